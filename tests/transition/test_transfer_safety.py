"""Damaged, incomplete and malicious checkpoints, and a transition that is killed: refused or recovered, and the source
as it was."""

import argparse
import fcntl
import io
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import digests, edit_metadata, remove_entry, replace_item
from releases import needs_0_19
from torch.distributed.checkpoint.metadata import Metadata

from nca_plugin.checkpoint.dtypes import DTYPES
from nca_plugin.checkpoint.opened import read_checkpoint
from nca_plugin.checkpoint.pickling import load_pickle
from nca_plugin.checkpoint.stored import Item
from nca_plugin.checkpoint.torch_dist import COMMON_STATE
from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.freeze import read_freeze_list
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.transfer import transfer
from nca_plugin.transition.vocabulary import read_row_map

EMBEDDING = "embedding.word_embeddings.weight"
MLP = "decoder.layers.mlp.linear_fc1.weight"
COPY = Transition(vocab_size=150, layout="copy")


@pytest.fixture
def source(zoo: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    shutil.copytree(zoo / "llama", tmp_path / "source")
    return tmp_path / "source"


def iteration(source: Path) -> Path:
    return next(source.glob("iter_*"))


def item_of(source: Path, name: str) -> Item:
    """Return the bytes of a tensor's first block, or of an object."""
    checkpoint = read_checkpoint(source)
    found = checkpoint.tensors[name].blocks[0].source if name in checkpoint.tensors else checkpoint.objects[name]
    assert isinstance(found, Item)
    return found


def refused(source: Path, reason: str, transition: Transition | None = None) -> None:
    before = digests(source)
    with pytest.raises(NCAPluginError, match=reason) as caught:
        transfer(source, source.with_name("out"), transition)
    assert "\n" not in str(caught.value)
    assert [path.name for path in source.parent.iterdir() if path != source] == []
    assert digests(source) == before


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize(
    "where",
    [
        *(".metadata", "tensor", "old format"),
        # megatron-core 0.18 stores the common state as common.pt only.
        *(pytest.param(where, marks=needs_0_19) for where in ("object", "common.pt")),
    ],
)
def test_no_pickle_is_ever_executed(zoo: Path, tmp_path: Path, where: str) -> None:
    source, bomb = tmp_path / "source", Bomb(tmp_path / "executed")
    shutil.copytree(zoo / ("legacy" if where == "old format" else "llama"), source)
    if where == ".metadata":
        (iteration(source) / ".metadata").write_bytes(pickle.dumps(bomb))
    elif where == "tensor":
        replace_item(iteration(source), item_of(source, MLP), bomb)
    elif where == "object":
        replace_item(iteration(source), item_of(source, COMMON_STATE), [bomb])
    elif where == "common.pt":
        remove_entry(iteration(source), COMMON_STATE)
        torch.save({"args": bomb}, iteration(source) / "common.pt")
    else:
        torch.save({"args": bomb, "model": {}}, iteration(source) / "mp_rank_00_000/model_optim_rng.pt")
    refused(source, r"refused to load (posix|os)\.mkdir")
    assert not (tmp_path / "executed").exists()


def random_shard(source: Path) -> None:
    file = next(iteration(source).glob("*.distcp"))
    file.write_bytes(np.random.default_rng(1).bytes(file.stat().st_size))


def short_shard(source: Path) -> None:
    file = next(iteration(source).glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-100])


def missing_shard(source: Path) -> None:
    next(iteration(source).glob("*.distcp")).unlink()


def missing_metadata(source: Path) -> None:
    (iteration(source) / ".metadata").unlink()


def cut_metadata(source: Path) -> None:
    file = iteration(source) / ".metadata"
    file.write_bytes(file.read_bytes()[:500])


def wrong_type(source: Path) -> None:
    def edit(metadata: Metadata) -> None:
        metadata.state_dict_metadata[MLP].properties.dtype = torch.float16

    edit_metadata(iteration(source), edit)


def wrong_shape(source: Path) -> None:
    replace_item(iteration(source), item_of(source, MLP), torch.zeros(3, 3))


def missing_block(source: Path) -> None:
    def edit(metadata: Metadata) -> None:
        del metadata.state_dict_metadata[MLP].chunks[0]

    edit_metadata(iteration(source), edit)


def same_block_twice(source: Path) -> None:
    def edit(metadata: Metadata) -> None:
        chunks = metadata.state_dict_metadata[MLP].chunks
        chunks[0] = chunks[1]

    edit_metadata(iteration(source), edit)


def file_elsewhere(source: Path) -> None:
    def edit(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            info.relative_path = "../../" + info.relative_path

    edit_metadata(iteration(source), edit)


def no_format(source: Path) -> None:
    (iteration(source) / "metadata.json").unlink()


def other_format(source: Path) -> None:
    (iteration(source) / "metadata.json").write_text('{"sharded_backend": "zarr"}')


def no_common_state(source: Path) -> None:
    remove_entry(iteration(source), COMMON_STATE)


def wrong_tracker(source: Path) -> None:
    (source / "latest_checkpointed_iteration.txt").write_text("7")


def no_tracker(source: Path) -> None:
    (source / "latest_checkpointed_iteration.txt").unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (random_shard, r"__\d_\d\.distcp at byte \d+ cannot be read: it is damaged"),
        (short_shard, r"is truncated: __\d_\d\.distcp has \d+ of \d+ bytes"),
        (missing_shard, r"is incomplete: __\d_\d\.distcp is missing"),
        (missing_metadata, r"\.metadata is missing, which is written last"),
        (cut_metadata, r"\.metadata cannot be read: it is cut off"),
        (wrong_type, rf"is damaged: a block of '{MLP}' is float32 .* says float16"),
        (wrong_shape, rf"is damaged: a block of '{MLP}' is float32 \[3, 3\]"),
        (missing_block, rf"the blocks of '{MLP}' do not cover it"),
        (same_block_twice, rf"the blocks of '{MLP}' do not cover it"),
        (file_elsewhere, r"is incomplete: \.\./\.\./__\d_\d\.distcp is missing"),
        (no_format, r"metadata\.json is missing"),
        (other_format, r"unknown format"),
        pytest.param(no_common_state, r"does not say the model's", marks=needs_0_19),
        (wrong_tracker, r"names iter_0000007, which is missing"),
        (no_tracker, r"name one of its iterations, such as .*iter_0000001"),
    ],
)
def test_a_damaged_checkpoint_is_refused(source: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(source)
    refused(source, reason)


def test_a_rank_that_is_missing_is_refused(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "legacy", tmp_path / "source")
    shutil.rmtree(iteration(tmp_path / "source") / "mp_rank_01_001")
    refused(tmp_path / "source", r"is incomplete: mp_rank_01_001/model_optim_rng\.pt is missing")


@pytest.mark.parametrize(
    ("kind", "name", "transition"),
    [
        ("llama", MLP, COPY),
        ("llama", MLP, Transition(vocab_size=150, verify=True)),
        ("llama", EMBEDDING, Transition(vocab_size=150, keep_rows="0:9")),
        ("legacy", MLP, Transition(vocab_size=150)),
    ],
)
def test_a_byte_that_was_altered_is_found(
    zoo: Path, tmp_path: Path, kind: str, name: str, transition: Transition
) -> None:
    source = tmp_path / "source"
    shutil.copytree(zoo / kind, source)
    tensor = read_checkpoint(source).tensors[name]
    record = tensor.stored(tensor.blocks[0]).record
    with record.file.open("r+b") as file:
        file.seek(record.position + 5)
        byte = file.read(1)
        file.seek(record.position + 5)
        file.write(bytes([byte[0] ^ 1]))
    refused(source, r"is damaged: bytes \d+ to \d+ have CRC-32", transition)


def compressed(source: Path) -> None:
    item = item_of(source, MLP)
    with zipfile.ZipFile(buffer := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 24))

    def edit(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            if (info.relative_path, info.offset) == (item.file.name, item.offset):
                info.relative_path, info.offset, info.length = "zip", 0, len(saved)

    saved = bytes(item.length) + buffer.getvalue()
    (iteration(source) / "zip").write_bytes(saved)
    edit_metadata(iteration(source), edit)


def expanded(source: Path) -> None:
    shape = read_checkpoint(source).tensors[MLP].blocks[0].shape
    replace_item(iteration(source), item_of(source, MLP), torch.zeros(1).expand(shape))


def odd_tracker(source: Path) -> None:
    (source / "latest_checkpointed_iteration.txt").write_bytes(b"\xff\xfe" * 4000)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (compressed, "cannot be read: it is damaged"),
        (expanded, "does not lie within its record"),
        (odd_tracker, "neither an iteration nor 'release'"),
    ],
)
def test_a_hostile_checkpoint_is_refused(source: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(source)
    refused(source, reason)


@pytest.mark.parametrize(
    "data",
    [
        # What a pickle builds with a state: PyTorch's float32, a namespace's class, a function.
        b"ctorch\nfloat32\n(lV bfloat16\nab.",
        b"cargparse\nNamespace\n(N(dV__init__\nc_codecs\nencode\nstb.",
        b"c_codecs\nencode\n(N(dV_make\nNstb.",
        b"ctorch\nSize\n(N(dV__reduce__\nNstb.",
        b"c_codecs\nencode\n(c_codecs\nencode\nVlatin1\ntR.",
    ],
)
def test_a_pickle_cannot_change_what_it_names(data: bytes) -> None:
    with pytest.raises(NCAPluginError, match="cannot be read"):
        load_pickle(data, "it")
    assert DTYPES["float32"].name == "float32"
    assert argparse.Namespace(a=1).a == 1


def test_a_source_that_is_being_written_to_is_refused(source: Path) -> None:
    def write(name: str, size: int) -> Callable[[int], None]:
        with next(iteration(source).glob("*.distcp")).open("ab") as file:
            file.write(b"more")
        return lambda steps: None

    with pytest.raises(NCAPluginError, match="changed while it was read"):
        transfer(source, source.with_name("out"), start_stage=write)
    assert list(source.parent.iterdir()) == [source]


def test_two_at_once_do_not_meet(source: Path) -> None:
    partial = source.with_name(".out.partial")
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(NCAPluginError, match="out is being written by another process"):
        transfer(source, source.with_name("out"))
    os.close(descriptor)


def test_an_output_that_cannot_be_written_is_one_line(source: Path) -> None:
    (source.parent / "file").touch()
    with pytest.raises(NCAPluginError, match="cannot write to"):
        transfer(source, source.parent / "file" / "out")


def _killed_after(operations: int, source: Path, target: Path, transition: Transition) -> None:
    """Transfer, and die at an operation on the disk."""
    done = 0

    def count(event: str, _: object) -> None:
        nonlocal done
        done += event in ("open", "os.link", "os.rename", "os.mkdir", "os.remove", "os.listdir", "os.scandir")
        if done == operations:
            # The kill is itself an event.
            done += 1
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    transfer(source, target, transition, num_workers=2)
    os._exit(done if done < 200 else 200)


def _in_a_process(operations: int, source: Path, target: Path, transition: Transition) -> int:
    process = multiprocessing.get_context("fork").Process(
        target=_killed_after, args=(operations, source, target, transition)
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize("transition", [COPY, Transition(vocab_size=150)], ids=["copy", "link"])
def test_a_killed_transfer_leaves_nothing_half_there(source: Path, transition: Transition) -> None:
    before = digests(source)
    target = source.with_name("out")
    operations = _in_a_process(0, source, target, transition)
    assert operations > 40
    complete = digests(target)
    finished = 0
    for point in sorted(random.Random(5).sample(range(1, operations), 10)):
        shutil.rmtree(target)
        assert _in_a_process(point, source, target, transition) == -signal.SIGKILL
        if target.exists():
            finished += 1
        else:
            transfer(source, target, transition, num_workers=2)
        assert digests(target) == complete
        assert {path.name for path in source.parent.iterdir()} == {"source", "out"}
    assert finished < 10
    assert digests(source) == before


def test_lists_that_are_no_files_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    for name, reason in (
        ("pipe", "is not a file"),
        (".", "is not a file"),
        ("binary", "is not UTF-8 text"),
        ("missing", "cannot be read: No such file"),
        ("x" * 300, "cannot be read: File name too long"),
    ):
        for read in (read_row_map, read_freeze_list):
            with pytest.raises(NCAPluginError, match=reason):
                read(tmp_path / name)
