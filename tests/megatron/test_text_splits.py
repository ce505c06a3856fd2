"""Text whose files are damaged, or that leaves a split of a run without documents: Megatron would search for ever."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.layout import IndexLayout
from nca_plugin.megatron.text_datasets import check_text, parts, read_lengths, split_shares

SAMPLES = (1, 0, 0)
SEQ_LENGTH = 16


def text(prefix: Path, documents: int, length: int = 8) -> str:
    layout = IndexLayout(documents, length, "uint16")
    Path(f"{prefix}.idx").write_bytes(b"".join(layout.chunks()))
    Path(f"{prefix}.bin").write_bytes(bytes(documents * layout.document_bytes))
    return str(prefix)


@given(documents=st.integers(1, 200), shares=st.lists(st.integers(0, 999), min_size=1, max_size=3).filter(any))
def test_a_split_is_refused_where_megatron_gives_it_no_document(
    tmp_path_factory: pytest.TempPathFactory, documents: int, shares: list[int]
) -> None:
    split = ",".join(map(str, shares))
    prefix = text(tmp_path_factory.mktemp("text") / "some", documents)
    matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split(split))
    # As in Megatron's builder.
    counts = [round(high * float(documents)) - round(low * float(documents)) for low, high in filter(None, matrix)]
    read = parts(([prefix], None), None, split, "--split")
    if all(counts):
        check_text(read, SAMPLES, SEQ_LENGTH, "--split")
    else:
        with pytest.raises(NCAPluginError, match=f"split of data path .* holds none of its {documents} documents"):
            check_text(read, SAMPLES, SEQ_LENGTH, "--split")


def test_every_path_of_every_split_is_looked_at(tmp_path: Path) -> None:
    some, none = text(tmp_path / "some", 9), text(tmp_path / "none", 0)
    for blend, blend_per_split, split in (
        (([some, "nca://toy", none], [1, 1, 1]), None, "1,0,0"),
        (None, [([some], None), ([none], None), None], None),
        (None, [([some], None), None, ([some, none], [1, 1])], None),
    ):
        with pytest.raises(NCAPluginError, match="none holds no documents"):
            check_text(parts(blend, blend_per_split, split, "--split"), SAMPLES, SEQ_LENGTH, "--split")


def test_a_source_has_no_end_and_a_document_without_tokens_is_none(tmp_path: Path) -> None:
    blend = (["nca://toy", "s3://bucket/text"], [1, 1])
    check_text(parts(blend, None, "90,5,5", "--split"), SAMPLES, SEQ_LENGTH, "--split")
    empty = text(tmp_path / "empty", 3, 0)
    with pytest.raises(NCAPluginError, match=r"train split of data path .*empty holds no token"):
        check_text(parts(([empty], None), None, "1,0,0", "--split"), SAMPLES, SEQ_LENGTH, "--split")


def test_a_blend_without_weights_reads_each_path_once_and_needs_a_sample_of_each(tmp_path: Path) -> None:
    many, few, exact = text(tmp_path / "many", 9), text(tmp_path / "few", 2), text(tmp_path / "exact", 1, 17)

    def check(paths: list[str], weights: list[float] | None = None) -> None:
        for blend, blend_per_split in (((paths, weights), None), (None, [(paths, weights), None, None])):
            check_text(parts(blend, blend_per_split, "1,0,0", "--split"), SAMPLES, SEQ_LENGTH, "--split")

    check([many, exact])
    check([few])
    check([many, few], [0.5, 0.5])
    # 71 tokens after the first hold 4 samples of 16, and 16 hold one.
    read = parts(([many, exact], None), None, "1,0,0", "--split")
    check_text(read, (5, 0, 0), SEQ_LENGTH, "--split")
    with pytest.raises(NCAPluginError, match="the training reads 6 samples, and its blend holds 5: without weights"):
        check_text(read, (6, 0, 0), SEQ_LENGTH, "--split")
    with pytest.raises(NCAPluginError, match=r"few holds 16 tokens, less than a sample of 17, .*after its weight"):
        check([many, few])
    with pytest.raises(NCAPluginError, match=r"nca://toy has no end, .* as in 0\.5 nca://web 0\.5 text"):
        check([many, "nca://toy"])


@pytest.mark.parametrize("split", ["'99,1,0'", "[99,1,0]", "99/1/0", "99, 1", "969, 30, 1"])
def test_a_split_is_read_as_megatron_reads_it(split: str) -> None:
    assert sum(split_shares(split, "--split")) == pytest.approx(1)


@pytest.mark.parametrize("split", ["", "a,b", "0,0,0", "1,2,3,4", "1.2.3"])
def test_what_is_no_split_is_one_line(split: str) -> None:
    with pytest.raises(NCAPluginError, match="must be up to three numbers"):
        split_shares(split, "--split")


def test_every_cut_of_an_index_is_found(tmp_path: Path) -> None:
    prefix = text(tmp_path / "some", 3)
    assert list(read_lengths(prefix)) == [8, 8, 8]
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    whole, tokens = index.read_bytes(), data.read_bytes()
    for size in range(len(whole)):
        index.write_bytes(whole[:size])
        with pytest.raises(NCAPluginError, match=str(index)):
            read_lengths(prefix)
    index.write_bytes(whole)
    data.write_bytes(tokens[:-1])
    with pytest.raises(NCAPluginError, match="is shorter than"):
        read_lengths(prefix)


@given(at=st.integers(0, 69), value=st.integers(0, 255))
def test_a_changed_byte_of_an_index_is_no_other_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int
) -> None:
    prefix = text(tmp_path_factory.mktemp("text") / "some", 3)
    index = Path(f"{prefix}.idx")
    content = bytearray(index.read_bytes())
    content[at % len(content)] = value
    index.write_bytes(content)
    try:
        assert len(read_lengths(prefix)) <= 3
    except NCAPluginError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["missing", ".", "", "some.bin", "some.idx", "folder"])
def test_a_path_without_both_files_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text(tmp_path / "some", 3)
    (tmp_path / "folder.idx").mkdir()
    with pytest.raises(NCAPluginError, match=r"does not exist"):
        read_lengths(name)


def test_lengths_are_mapped_and_not_read(tmp_path: Path) -> None:
    assert isinstance(read_lengths(text(tmp_path / "some", 3)), np.memmap)
