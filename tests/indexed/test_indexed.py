"""Generated datasets on disk: Megatron's own readers get what the source makes, however the files were written."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from corpora import BLOCK, SUFFIXES, contents, write
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.layout import token_dtype
from nca_plugin.indexed.manifest import Manifest
from nca_plugin.indexed.merge import find_parts, merge, part_name
from nca_plugin.indexed.storage import prefix_of
from nca_plugin.indexed.verify import verify
from nca_plugin.sources import parse


@pytest.mark.parametrize(
    ("uri", "dtype"),
    [("nca://web", np.uint16), ("nca://toy?split=valid", np.uint16), ("dyck://?vocab_offset=65372", np.int32)],
)
def test_megatron_reads_every_document_as_the_source_makes_it(tmp_path: Path, uri: str, dtype: type) -> None:
    write(tmp_path / "corpus", uri, documents=BLOCK + 9, workers=2)
    dataset, source = IndexedDataset(str(tmp_path / "corpus")), parse(uri)
    assert len(dataset) == BLOCK + 9
    assert dataset.index.dtype is dtype is DType.optimal_dtype(source.vocab_size)
    np.testing.assert_array_equal(dataset.document_indices, np.arange(BLOCK + 10))
    for i in range(BLOCK + 9):
        np.testing.assert_array_equal(dataset[i], source.sample(i, 1024).tokens[:-1])
    assert verify(str(tmp_path / "corpus"), 16) == []


@pytest.mark.parametrize("vocab_size", [1, 65_499, 65_500, 1 << 20])
def test_the_type_is_the_one_that_megatron_chooses(vocab_size: int) -> None:
    assert np.dtype(token_dtype(vocab_size)) == DType.optimal_dtype(vocab_size)


def test_the_files_do_not_depend_on_workers_and_shards(tmp_path: Path) -> None:
    documents = 8 * BLOCK + 100
    write(tmp_path / "one", "iid", documents=documents)
    expected = contents(tmp_path / "one")
    write(tmp_path / "three", "iid", documents=documents, workers=3)
    assert contents(tmp_path / "three") == expected
    for count in (2, 7):
        prefix = tmp_path / f"of-{count}"
        shards = list(range(1, count + 1))
        random.Random(count).shuffle(shards)
        for number in shards:
            write(part_name(str(prefix), number, count), "iid", documents=documents, shard=(number, count))
        merge(find_parts(str(prefix))[::-1], str(prefix / "merged"))
        assert contents(prefix / "merged") == expected


def test_the_manifest_says_what_was_written(tmp_path: Path) -> None:
    write(tmp_path / "corpus", "nca", documents=3)
    manifest = json.loads((tmp_path / "corpus.json").read_text())
    assert manifest["uri"] == parse("nca").uri
    assert (manifest["documents"]["first"], manifest["documents"]["stop"], manifest["documents"]["of"]) == (0, 3, 3)
    assert (manifest["input_tokens"], manifest["supervised_tokens"]) == (3 * 1024, 3 * 987)
    assert (manifest["dtype"], manifest["vocab_size"], manifest["seq_length"]) == ("uint16", 10_002, 1024)
    assert set(manifest["versions"]) == {"nca-plugin", "numba", "numpy"}
    for suffix in (".bin", ".next", ".idx"):
        assert manifest[suffix[1:]]["bytes"] == (tmp_path / f"corpus{suffix}").stat().st_size
    assert Manifest.from_bytes((tmp_path / "corpus.json").read_bytes(), "corpus.json").shard.spec.loss_mask.sum() == 987


def test_a_source_with_several_loss_masks_is_refused(tmp_path: Path) -> None:
    uri = "nca://web:0.5,code:0.5?code.grid_size=16"
    with pytest.raises(NCAPluginError, match=r"sample \d+ of .* has another loss mask than sample 0"):
        write(tmp_path / "corpus", uri, documents=64)
    assert not any((tmp_path / f"corpus{suffix}").exists() for suffix in SUFFIXES)


@pytest.mark.parametrize("name", ["a/corpus", "a/corpus.bin", "a/corpus.idx", "a/corpus.json", "file://a/corpus"])
def test_a_file_of_a_dataset_stands_for_its_prefix(name: str) -> None:
    assert prefix_of(name) == "a/corpus"


@pytest.mark.parametrize("name", ["corpora/", ".", "..", "", "corpora/..", ".bin", "corpora/.idx", "file://"])
def test_a_folder_is_no_prefix(name: str) -> None:
    with pytest.raises(NCAPluginError, match="is not a prefix for files"):
        prefix_of(name)
