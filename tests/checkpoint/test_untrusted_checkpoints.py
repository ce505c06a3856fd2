"""Checkpoints that nobody vouches for: read in bounded time and memory, and refused in one line."""

import io
import pickle
import random
import resource
import shutil
import signal
import struct
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import edit_metadata
from hypothesis import example, given, settings
from hypothesis import strategies as st
from places import CHECKPOINTS
from torch.distributed.checkpoint.metadata import MetadataIndex

from nca_plugin.checkpoint.contents import Block, Tensor, check_blocks
from nca_plugin.checkpoint.dtypes import DTYPES
from nca_plugin.checkpoint.folders import read_mapping
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.opened import open_checkpoint, read_checkpoint
from nca_plugin.checkpoint.pickling import load_pickle
from nca_plugin.checkpoint.stored import Item
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.read import read_trained
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.model_initialisation import distribution
from nca_plugin.transition.selectors import parse_selector
from nca_plugin.transition.transfer import transfer

CORE = CHECKPOINTS / "core016"
WEIGHT = "decoder.layers.mlp.linear_fc1.weight"


@contextmanager
def bounded(seconds: int = 60, num_bytes: int = 1 << 28) -> Iterator[None]:
    """Fail if the block takes longer, or more memory."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        yield
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - largest) * 1024 < num_bytes
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def refused(reason: str = "") -> Iterator[None]:
    with bounded(), pytest.raises(NCAPluginError, match=reason or None) as caught:
        yield
    assert str(caught.value).isprintable() and len(str(caught.value)) < 1000


def nested(levels: int, around: bytes) -> bytes:
    """Values each of which holds the one before twice: 2^levels of them to whoever does not look."""
    return b"\x80\x04)\x94" + b"".join(
        b"j" + struct.pack("<I", n) + b"j" + struct.pack("<I", n) + around + b"\x94" for n in range(levels)
    )


BOMBS = {
    "a memo of gigabytes": b"\x80\x02Nr\xff\xff\xff\x7fj\x00\x00\x00\x00.",
    "bytes without end": b"\x80\x04\x8e" + b"\xff" * 8 + b"a.",
    "a text without end": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fa.",
    "a byte array without end": b"\x80\x05\x96" + b"\xff" * 7 + b"\x7fa.",
    "a number without end": b"\x80\x02\x8b\xff\xff\xff\xff1.",
    "a frame without end": b"\x80\x04\x95" + b"\xff" * 8 + b"N",
    "a key that is tuples of tuples": nested(60, b"\x86") + b"}j" + struct.pack("<I", 60) + b"Ns.",
    "a member that is tuples of tuples": nested(60, b"\x86") + b"\x8fj(" + struct.pack("<I", 60) + b"\x90.",
    "a text over and over": b"\x80\x02X"
    + struct.pack("<I", 1 << 16)
    + b"a" * (1 << 16)
    + b"q\x00X\x06\x00\x00\x00latin1q\x010"
    + b"c_codecs\nencode\nq\x020("
    + b"h\x02h\x00h\x01\x86R" * 20000
    + b"t.",
    "a list over and over": b"\x80\x02("
    + b"K\x01" * (1 << 16)
    + b"t\x85q\x00cbuiltins\nset\nq\x010("
    + b"h\x01h\x00R" * 20000
    + b"t.",
    "keys of one hash": b"\x80\x02}("
    + b"".join(b"\x8a\x0b" + (k * (2**61 - 1)).to_bytes(11, "little") + b"N" for k in range(30000))
    + b"u.",
    "a name without end": b"\x80\x02c" + b"a" * (1 << 20) + b"\nb\n.",
    "nothing": b"",
    "no pickle": b"PK\x03\x04",
}


@pytest.mark.parametrize("data", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_before_it_goes_off(data: bytes) -> None:
    with refused("it cannot be read"):
        load_pickle(data, "it")


def test_what_is_shared_stays_shared_when_it_is_written(tmp_path: Path) -> None:
    """Lists that hold each other are no bomb until somebody looks at all of them."""
    value: Any = []
    for _ in range(60):
        value = [value, value]
    source = with_state(tmp_path, {"shared": value, "number": 3})
    with bounded():
        transfer(source, tmp_path / "out")
    args = (read_checkpoint(tmp_path / "out").common_state or {})["args"]
    assert args.number == 3 and args.shared[0] is args.shared[1]


def test_what_nests_without_end_is_refused(tmp_path: Path) -> None:
    value: Any = []
    for _ in range(20_000):
        value = [value]
    data = b"\x80\x04" + b"]" * 20_000 + b"a" * 19_999 + b"."
    with bounded():
        load_pickle(data, "it")
    circle: list[Any] = []
    circle.append(circle)
    source = with_state(tmp_path, {"circle": circle})
    with bounded(), suppress(NCAPluginError):
        transfer(source, tmp_path / "out")


def with_state(folder: Path, values: dict[str, Any]) -> Path:
    """Return a copy of a checkpoint whose arguments say more."""
    shutil.copytree(CORE, folder / "source")
    state = torch.load(folder / "source/common.pt", weights_only=False)
    state["args"] = Namespace(**{**vars(state["args"]), **values})
    torch.save(state, folder / "source/common.pt")
    return folder / "source"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    shutil.copytree(CORE, tmp_path / "source")
    return tmp_path / "source"


ODD: list[Any] = [1.5, float("nan"), float("inf"), -1, 1 << 62, 1 << 400, "1", None, True, [], (1,), b"1"]


@pytest.mark.parametrize("field", ["offset", "length"])
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_odd_places_are_refused(source: Path, field: str, value: Any) -> None:
    def edit(metadata: Any) -> None:
        for info in metadata.storage_data.values():
            setattr(info, field, value)

    edit_metadata(source, edit)
    with refused():
        read_checkpoint(source)


@pytest.mark.parametrize("value", [*ODD, (1, 2.5), (float("nan"),), torch.Size([1 << 60]), torch.Size([])], ids=repr)
@pytest.mark.parametrize("field", ["size", "offsets", "sizes"])
def test_odd_shapes_are_refused(source: Path, field: str, value: Any) -> None:
    def edit(metadata: Any) -> None:
        entry = metadata.state_dict_metadata[WEIGHT]
        setattr(entry if field == "size" else entry.chunks[0], field, value)

    edit_metadata(source, edit)
    with refused():
        read_checkpoint(source)


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[31mb", "a" * 100_000, 7, None, ("a", "b")], ids=lambda name: str(name)[:9]
)
def test_odd_names_are_refused(source: Path, name: Any) -> None:
    def edit(metadata: Any) -> None:
        metadata.state_dict_metadata[name] = metadata.state_dict_metadata[WEIGHT]
        for index, info in list(metadata.storage_data.items()):
            if index.fqn == WEIGHT:
                metadata.storage_data[MetadataIndex(name, index.offset)] = info

    edit_metadata(source, edit)
    with refused():
        read_checkpoint(source)


def test_a_tensor_that_is_larger_than_its_bytes_is_refused(source: Path) -> None:
    def edit(metadata: Any) -> None:
        entry = metadata.state_dict_metadata[WEIGHT]
        shape = torch.Size([1 << 40, *entry.size[1:]])
        entry.size, entry.chunks[:] = shape, entry.chunks[:1]
        entry.chunks[0].sizes = shape

    edit_metadata(source, edit)
    with refused("is larger than its bytes"):
        read_checkpoint(source)


@settings(max_examples=40)
@given(st.data())
def test_altered_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Of the table of contents and of what all ranks share: any change ends in a checkpoint or in one line."""
    folder = tmp_path_factory.mktemp("altered") / "source"
    shutil.copytree(CORE, folder)
    file = folder / data.draw(st.sampled_from([".metadata", "common.pt", "metadata.json"]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["set", "cut", "add"]))
        if kind == "set":
            content[at] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[at : at + data.draw(st.integers(1, 9))]
        else:
            content[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    file.write_bytes(content)
    try:
        with bounded():
            transfer(folder, folder.with_name("out"), Transition(vocab_size=50))
            read_trained(open_checkpoint(folder))
    except NCAPluginError as error:
        assert str(error).isprintable()
    shutil.rmtree(folder.parent)


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(min_size=1),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
            | st.tuples(inner, inner)
        ),
        max_leaves=20,
    ),
    st.integers(2, 5),
)
@example({"a": (1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**63, -(2**80))}, 2)
def test_it_reads_what_python_writes(value: Any, protocol: int) -> None:
    mine = load_pickle(pickle.dumps(value, protocol), "it")
    assert repr(mine) == repr(value)


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=300) | st.binary(min_size=1, max_size=300),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    ),
    st.integers(2, 5),
    st.data(),
)
def test_a_pickle_of_which_the_end_is_missing_is_said_to_be_cut_off(
    value: Any, protocol: int, data: st.DataObject
) -> None:
    saved = pickle.dumps(value, protocol)
    with refused("cannot be read: it is cut off"):
        load_pickle(saved[: data.draw(st.integers(0, len(saved) - 1))], "x")


@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with suppress(NCAPluginError), bounded():
        load_pickle(b"\x80\x04" + data, "it")


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(*[st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda p: (min(p), max(p)))] * 2), max_size=6
    )
)
def test_blocks_cover_a_tensor_once(regions: list[Any]) -> None:
    held = torch.zeros(4, 4, dtype=torch.int64)
    for (a, b), (c, d) in regions:
        held[a:b, c:d] += 1
    item = Item(Path("x"), 0, 1 << 20)
    blocks = tuple(Block((r[0][0], r[1][0]), (r[0][1] - r[0][0], r[1][1] - r[1][0]), item) for r in regions)
    tensor = Tensor("x", DTYPES["float32"], (4, 4), blocks)
    if bool((held == 1).all()):
        check_blocks(Path("c"), tensor)
    else:
        with pytest.raises(NCAPluginError, match="do not cover it"):
            check_blocks(Path("c"), tensor)


def test_many_blocks_are_checked_in_their_number() -> None:
    item = Item(Path("x"), 0, 1 << 40)
    places = [(layer, part) for layer in range(300) for part in range(100)]
    random.Random(1).shuffle(places)
    blocks = tuple(Block((layer, part, 0), (1, 1, 64), item) for layer, part in places)
    with bounded(num_bytes=1 << 29):
        check_blocks(Path("c"), Tensor("x", DTYPES["float32"], (300, 100, 64), blocks))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), 0, 0.0, -0.02, 10**400, "10**400", True, [0.02], "nan", 1e-40], ids=repr
)
def test_odd_standard_deviations_are_refused(value: Any) -> None:
    name = "decoder.layers.mlp.linear_fc1.weight"
    with refused("init_method_std is .*: no standard deviation"):
        distribution(name, parameter(name), ModelConfig({"init_method_std": value, "num_layers": 2}))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2", 10**400, [2], float("nan")], ids=lambda value: str(value)[:9])
def test_odd_numbers_are_refused(value: Any) -> None:
    with refused("num_layers is"):
        ModelConfig({"num_layers": value}).integer("num_layers")


@pytest.mark.parametrize(
    "text", ["mlp[0000001]", "mlp[00]", "mlp[99999999]", "mlp[\u0661]", "mlp[-1]", "mlp[]", "mlp[1:0]", "mlp[0:12]"]
)
def test_odd_ranges_are_refused(text: str) -> None:
    with refused(r"unknown selector|the model has layers 0 to 1"):
        parse_selector(text, 2)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"vocab_size": 10**11}, "--vocab-size 100000000000: must lie in"),
        ({"tensor_model_parallel_size": 10**9}, "must lie in"),
        (
            {"vocab_size": 9, "make_vocab_size_divisible_by": 1 << 24, "tensor_model_parallel_size": 2},
            "embedding rows, of which at most",
        ),
        (
            {"vocab_size": 1 << 24, "make_vocab_size_divisible_by": 1 << 20},
            "the checkpoint needs .* more, .* make room",
        ),
    ],
)
def test_what_no_disk_holds_is_refused(
    source: Path, options: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 30, 0, 1 << 20))
    with refused(reason):
        transfer(source, source.with_name("out"), Transition(**options))
    assert list(source.parent.iterdir()) == [source]


def test_yaml_that_makes_more_of_itself_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 {x: 1}"] + [f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}" for n in range(30)]
    (tmp_path / "run_config.yaml").write_text("\n".join(lines))
    with refused("it merges mappings"):
        read_mapping(tmp_path / "run_config.yaml")


def test_a_description_of_any_size_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "run_config.yaml").open("wb") as file:
        file.truncate(1 << 40)
    with refused("it has more than 4,194,304 bytes"):
        read_mapping(tmp_path / "run_config.yaml")


def test_a_tensor_of_a_record_is_checked(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(torch.zeros(3), buffer)
    (tmp_path / "x").write_bytes(buffer.getvalue())
    assert Item(tmp_path / "x", 0, len(buffer.getvalue())).tensor().shape == (3,)
