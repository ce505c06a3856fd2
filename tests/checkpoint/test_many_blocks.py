"""A checkpoint of many blocks: its table of contents is read by compiled code, and by columns, as a small one is."""

import pickle
import pickletools
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import edit_metadata
from hypothesis import given, settings
from hypothesis import strategies as st
from places import CHECKPOINTS
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from nca_plugin.checkpoint import opcodes
from nca_plugin.checkpoint.contents import Block, BlockTable
from nca_plugin.checkpoint.opcodes import scan
from nca_plugin.checkpoint.opened import read_checkpoint
from nca_plugin.checkpoint.pickling import load_pickle
from nca_plugin.checkpoint.stored import Item
from nca_plugin.checkpoint.write import Entry, NewBlock, Writer
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.read import read_trained
from nca_plugin.lineage.training_data import Lineage
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.start import new_common_state
from nca_plugin.transition.transfer import transfer

CORE = CHECKPOINTS / "core016"
WEIGHT = "decoder.layers.mlp.linear_fc1.weight"


def read(data: bytes, compile_from: int) -> tuple[Any, ...] | str:
    """Return what a pickle is read as, or why not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opcodes, "_LARGE", compile_from)
        try:
            nodes = scan(data)
        except ValueError as error:
            return str(error)
    tables = (nodes.kinds, nodes.first, nodes.second, nodes.targets, nodes.members)
    return (*(list(map(int, table)) for table in tables), nodes.root)


def assert_same(data: bytes) -> None:
    """Compiled code reads a pickle as Python does."""
    assert read(data, 0) == read(data, 1 << 40)


def stored_pickles() -> Iterator[bytes]:
    for file in sorted(CHECKPOINTS.rglob("*")):
        if file.name == ".metadata":
            yield file.read_bytes()
        elif file.suffix == ".pt":
            with zipfile.ZipFile(file) as archive:
                yield from (archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))


def test_compiled_code_reads_what_releases_wrote() -> None:
    pickles = list(stored_pickles())
    assert len(pickles) >= 6
    for data in pickles:
        assert isinstance(read(data, 0), tuple)
        assert_same(data)
        assert_same(data[:-1])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner) | st.sets(st.integers())
    ),
)


@settings(max_examples=100)
@given(VALUES, st.integers(2, 5), st.data())
def test_compiled_code_reads_any_pickle_as_python_does(value: Any, protocol: int, data: st.DataObject) -> None:
    saved = bytearray(pickle.dumps(value, protocol))
    assert_same(bytes(saved))
    assert_same(pickletools.optimize(bytes(saved)))
    for _ in range(data.draw(st.integers(0, 3))):
        saved[data.draw(st.integers(0, len(saved) - 1))] = data.draw(st.integers(0, 255))
        assert_same(bytes(saved))


@settings(max_examples=200)
@given(st.lists(st.sampled_from(bytes(code for code in range(256) if opcodes._TABLES[0][code] >= 0)), max_size=200))
def test_compiled_code_reads_any_opcodes_as_python_does(codes: list[int]) -> None:
    assert_same(bytes(codes))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x02\x85.", "opcode 0x85 at byte 2 has nothing to work on"),
        (b"\x80\x02N(\x85t.", "opcode 0x85 at byte 4 has nothing to work on"),
        (b"\x80\x02Nt.", "opcode 0x74 at byte 3 has nothing to work on"),
        (b"\x80\x02(Ne.", "opcode 0x65 at byte 4 has nothing to work on"),
        (b"\x80\x02Nq\xff.", "opcode 0x71 at byte 3 has nothing to work on"),
        (b"\x80\x02h\x01.", "opcode 0x68 at byte 2 has nothing to work on"),
        (b"\x80\x02Na.", "opcode 0x61 at byte 3 has nothing to work on"),
        (b"\x80\x020.", "opcode 0x30 at byte 2 has nothing to work on"),
        (b"\x80\x02.", "opcode 0x2e at byte 2 has nothing to work on"),
        (b"\x80\x02(.", "opcode 0x2e at byte 3 has nothing to work on"),
        (b"\x80\x02}(K\x01u.", "it cannot be read"),
        (b"\x80\x02I1\n.", "opcode 0x49, which no checkpoint has"),
    ],
)
def test_what_takes_more_than_there_is_is_refused(data: bytes, reason: str) -> None:
    assert_same(data)
    with pytest.raises(NCAPluginError, match=reason):
        load_pickle(data, "it")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint with each row of a tensor in a block of its own, in no order."""
    checkpoint = read_checkpoint(CORE)
    folder = tmp_path_factory.mktemp("many") / "checkpoint"
    folder.mkdir()
    writer = Writer(folder, links=False, num_workers=2)
    for name, tensor in checkpoint.tensors.items():
        values = tensor.read()
        whole = tuple((0, size) for size in tensor.shape)
        regions = [whole]
        if name == WEIGHT:
            rows = [(layer, row) for layer in range(tensor.shape[0]) for row in range(tensor.shape[1])]
            regions = [
                ((layer, layer + 1), (row, row + 1), whole[2])
                for layer, row in np.random.default_rng(1).permutation(rows).tolist()
            ]
        blocks = [
            NewBlock(region, lambda values=values, region=region: values[tuple(slice(*pair) for pair in region)])
            for region in regions
        ]
        writer.add(Entry(name, tensor.dtype, tensor.shape, blocks))
    for name, item in checkpoint.objects.items():
        writer.add_object(name, item)
    writer.write(new_common_state(checkpoint, {}, Lineage(None)), lambda num_bytes: None)
    return folder


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has every pickle read by compiled code."""
    monkeypatch.setattr(opcodes, "_LARGE", 0)


def loaded(folder: Path, name: str) -> torch.Tensor:
    entry = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata[name]
    state = {name: torch.empty(entry.size, dtype=entry.properties.dtype)}
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder), no_dist=True)
    return state[name]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("options", [{}, {"verify": True}, {"layout": "copy"}, {"preset": "attention-only"}], ids=str)
def test_many_blocks_are_carried_over(many: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = transfer(many, tmp_path / "out", Transition(**options), num_workers=2)
    kept = options.get("preset") is None
    found = read_checkpoint(tmp_path / "out")
    expected = read_checkpoint(many).tensor(WEIGHT)
    assert np.array_equal(found.tensor(WEIGHT), expected) == kept
    assert torch.equal(loaded(found.folder, WEIGHT), torch.from_numpy(found.tensor(WEIGHT)))
    row = next(row for row in report["tensors"] if row["name"] == WEIGHT)
    assert len(row.get("crc32", ())) == (len(found.tensors[WEIGHT].blocks) if kept else 0)


@pytest.mark.usefixtures("compiled")
def test_both_readings_of_a_checkpoint_are_the_same(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = read_checkpoint(many)
    monkeypatch.undo()
    plain = read_checkpoint(many)
    assert read_trained(compiled) == read_trained(plain) and compiled.objects == plain.objects
    assert compiled.embedding_rows == plain.embedding_rows
    for name, tensor in plain.tensors.items():
        other = compiled.tensors[name]
        assert (other.dtype, other.shape, list(other.blocks)) == (tensor.dtype, tensor.shape, list(tensor.blocks))


def test_the_same_places_are_written_as_were_read(many: Path, tmp_path: Path) -> None:
    """PyTorch reads the table of contents of a start, whose bytes are the same each time."""
    for name in ("one", "two"):
        transfer(many, tmp_path / name, Transition(preset="default", keep=["embedding", "output"]))
    first, second = (next((tmp_path / name).rglob(".metadata")) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    before = dcp.FileSystemReader(many).read_metadata()
    after = dcp.FileSystemReader(first.parent).read_metadata()
    assert after.state_dict_metadata[WEIGHT].chunks == before.state_dict_metadata[WEIGHT].chunks
    for index, place in after.storage_data.items():
        if index.fqn in before.state_dict_metadata and index.offset is not None:
            assert place == before.storage_data[index]


def test_a_region_is_read_from_the_blocks_that_it_lies_in(many: Path) -> None:
    tensor = read_checkpoint(many).tensors[WEIGHT]
    values = tensor.read()
    assert len(tensor.blocks) == values.shape[0] * values.shape[1]
    rng = np.random.default_rng(2)
    opened = tensor.opened()
    for _ in range(50):
        region = tuple(sorted(rng.integers(0, size + 1, 2).tolist()) for size in values.shape[: rng.integers(0, 4)])
        expected = values[tuple(slice(*pair) for pair in region)]
        spans = tuple((start, stop) for start, stop in region)
        for each in (tensor, opened):
            assert np.array_equal(each.read(*spans), expected)
    assert [block.offsets for block in tensor.within(((1, 2), (3, 5))).blocks] == [
        block.offsets for block in tensor.blocks if block.offsets[0] == 1 and 3 <= block.offsets[1] < 5
    ]


def test_a_table_of_blocks_is_a_sequence(many: Path) -> None:
    table = read_checkpoint(many).tensors[WEIGHT].blocks
    blocks = list(table)
    assert isinstance(table, BlockTable) and all(isinstance(block, Block) for block in blocks)
    assert [table[0], table[-1], list(table[3:5])] == [blocks[0], blocks[-1], blocks[3:5]]
    with pytest.raises(IndexError):
        table[len(blocks)]


def edited(many: Path, folder: Path, change: str) -> Path:
    """Return a copy of which the table of contents says something wrong of one block among many."""

    def edit(metadata: Metadata) -> None:
        entry = metadata.state_dict_metadata[WEIGHT]
        chunk = entry.chunks[77]
        index = MetadataIndex(WEIGHT, chunk.offsets)
        if change == "twice":
            entry.chunks[78] = chunk
        elif change == "lost":
            del metadata.storage_data[index]
        elif change == "outside":
            entry.chunks.append(type(chunk)(torch.Size([9, 9, 0]), chunk.sizes))
            metadata.storage_data[MetadataIndex(WEIGHT, torch.Size([9, 9, 0]))] = metadata.storage_data[index]
        elif change == "large":
            chunk.sizes = torch.Size([1, 1, 1 << 30])
        elif change == "flat":
            chunk.sizes = torch.Size([1, 1])
        elif change == "beyond":
            metadata.storage_data[index].length = 1 << 40
        elif change == "negative":
            metadata.storage_data[index].offset = -1
        elif change == "elsewhere":
            metadata.storage_data[index].relative_path = "../x"
        elif change == "float":
            metadata.storage_data[index].offset = 1.5
        elif change == "compressed":
            metadata.storage_data[index].transform_descriptors = ["zstd"]

    shutil.copytree(many, folder)
    edit_metadata(folder, edit)
    return folder


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("twice", "do not cover it"),
        ("lost", "is in none of its files"),
        ("outside", "lies outside it"),
        ("large", "is larger than its bytes"),
        ("flat", "lies outside it"),
        ("beyond", "is truncated: .* bytes or more"),
        ("negative", "is truncated"),
        ("elsewhere", "x is missing"),
        ("float", "cannot be read: no integer where there must be one"),
        ("compressed", "is compressed or encrypted"),
    ],
)
def test_one_wrong_block_among_many_is_found(many: Path, tmp_path: Path, change: str, reason: str) -> None:
    folder = edited(many, tmp_path / "edited", change)
    with pytest.raises(NCAPluginError, match=reason) as caught:
        read_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_one_archive_among_alike_ones_is_looked_at(many: Path, tmp_path: Path) -> None:
    """Archives that say the same of what is in them are not parsed anew; one that says something else is."""
    folder = tmp_path / "altered"
    shutil.copytree(many, folder)
    tensor = read_checkpoint(folder).tensors[WEIGHT]
    blocks = list(tensor.blocks)
    before = [tensor.stored(block) for block in blocks]
    assert len({stored.record for stored in before}) == len(blocks)
    item = blocks[50].source
    assert isinstance(item, Item)
    content = item.file.read_bytes()[item.offset : item.offset + item.length]
    for old, new in ((b"FloatStorage", b"HalfStorage\n"), (b"little", b"bigger"), (b"PK\1\2", b"PK\1\3")):
        with item.file.open("r+b") as file:
            file.seek(item.offset)
            file.write(content.replace(old, new))
        with pytest.raises(NCAPluginError, match="cannot be read"):
            tensor.stored(blocks[50])
        assert tensor.stored(blocks[51]) == before[51]
    crc = content.rindex(before[50].record.crc32.to_bytes(4, "little"))
    with item.file.open("r+b") as file:
        file.seek(item.offset)
        file.write(content[:crc] + b"\1\2\3\4" + content[crc + 4 :])
    assert tensor.stored(blocks[50]).record.crc32 == 0x04030201


def test_archives_that_pytorch_writes_are_alike_too(tmp_path: Path) -> None:
    values = [torch.full((40, 30), float(n)) for n in range(5)]
    items = []
    with (tmp_path / "x").open("wb") as file:
        for value in values:
            start = file.tell()
            torch.save(value, file)
            items.append(Item(tmp_path / "x", start, file.tell() - start))
    for item, value in zip(items, values, strict=True):
        stored = item.tensor()
        assert torch.equal(torch.from_numpy(stored.read()), value)
        assert stored == item.load()
