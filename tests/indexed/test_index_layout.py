"""Where the bytes of an .idx are: at any size."""

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import _IndexReader

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.layout import IndexLayout
from nca_plugin.indexed.manifest import DatasetSpec, Manifest, Origin, Shard
from nca_plugin.sources import parse

# 10^12 tokens.
SPEC = DatasetSpec(
    uri="nca://web", seq_length=1024, vocab_size=10_002, supervised=((37, 1024),), num_documents=976_562_500
)


def test_pointers_as_megatron_reads_them(tmp_path: Path) -> None:
    """The header and a few places of a sparse file of 20 GB."""
    layout = Shard(SPEC, 0, SPEC.num_blocks).layout
    count = SPEC.num_documents
    assert layout.size == 34 + 20 * count + 8
    middle = count // 2
    pointers = 34 + 4 * count
    documents = pointers + 8 * count
    with (tmp_path / "corpus.idx").open("wb") as file:
        file.truncate(layout.size)
        for start, stop in (
            (0, 34 + 4),
            *((34 + 4 * i, 34 + 4 * i + 4) for i in (middle, count - 1)),
            *((pointers + 8 * i, pointers + 8 * i + 8) for i in (0, middle, count - 1)),
            *((documents + 8 * i, documents + 8 * i + 8) for i in (0, middle, count)),
        ):
            file.seek(start)
            assert file.write(layout.read(start, stop)) == stop - start
    index = _IndexReader(str(tmp_path / "corpus.idx"), multimodal=False)
    assert index.sequence_count == index.sequence_lengths.size == count
    assert index.document_count == index.document_indices.size == count + 1
    for i in (0, middle, count - 1):
        assert index.sequence_pointers[i] == i * 1024 * 2
        assert index.sequence_lengths[i] == 1024
    assert [index.document_indices[i] for i in (0, middle, count)] == [0, middle, count]


@pytest.mark.parametrize("count", [1, 7, 1000, 4096])
def test_shards_are_complete_and_disjoint(count: int) -> None:
    shards = [Shard.numbered(SPEC, number, count) for number in range(1, count + 1)]
    assert shards[0].first_document == 0 and shards[-1].stop_document == SPEC.num_documents
    for before, after in itertools.pairwise(shards):
        assert before.stop_document == after.first_document
    assert sum(shard.sizes[".bin"] for shard in shards) == 2 * 10**12
    assert sum(shard.sizes[".next"] for shard in shards) == 2 * SPEC.num_documents
    assert max(s.num_blocks for s in shards) - min(s.num_blocks for s in shards) <= 1


def test_the_manifest_counts_them() -> None:
    part = Shard.numbered(SPEC, 4096, 4096)
    digests = ("0" * 32,) * part.num_blocks
    data = Manifest(part, Origin({}, ""), digests, digests, digests[0]).to_bytes()
    content = json.loads(data)
    assert content["documents"] == {"first": 976_324_608, "stop": 976_562_500, "of": 976_562_500, "per_block": 1024}
    assert content["input_tokens"] == 1024 * (976_562_500 - 976_324_608)
    assert content["supervised_tokens"] == 987 * (976_562_500 - 976_324_608)
    assert Manifest.from_bytes(data, "corpus.json").shard == part


def test_more_documents_than_megatron_counts_are_refused() -> None:
    with pytest.raises(NCAPluginError, match=r"must be 1 \.\. 2\^31 - 1"):
        DatasetSpec.from_source(parse("nca"), (1 << 31) * 1024, 1024)
    assert DatasetSpec.from_source(parse("nca"), ((1 << 31) - 1) * 1024, 1024).num_documents == (1 << 31) - 1


@settings(max_examples=100)
@given(
    num_documents=st.integers(1, 40),
    length=st.integers(1, 5000),
    dtype=st.sampled_from(["uint16", "int32"]),
    cuts=st.lists(st.integers(0, 900), min_size=2, max_size=2),
)
def test_any_piece_of_an_index_is_a_piece_of_the_whole(
    num_documents: int, length: int, dtype: str, cuts: list[int]
) -> None:
    layout = IndexLayout(num_documents, length, dtype)
    size = np.dtype(dtype).itemsize
    whole = b"".join(
        (
            struct.pack("<9sQBQQ", b"MMIDIDX", 1, {"uint16": 8, "int32": 4}[dtype], num_documents, num_documents + 1),
            np.full(num_documents, length, "<i4").tobytes(),
            (np.arange(num_documents, dtype="<i8") * length * size).tobytes(),
            np.arange(num_documents + 1, dtype="<i8").tobytes(),
        )
    )
    assert b"".join(layout.chunks()) == whole
    start, stop = sorted(cuts)
    assert layout.read(start, stop) == whole[start:stop]
