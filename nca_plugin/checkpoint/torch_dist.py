"""Megatron's `torch_dist` checkpoint format, read and written without a process group.

A checkpoint folder holds `.metadata` (a pickle: which tensors and objects there are, in which chunks, and where each
chunk's bytes lie), `*.distcp` files of such chunks, each a `torch.save` of its own, and `metadata.json`, which names
the format. Layers are stacked on axis 0. A checkpoint is untrusted input: only the classes that these files
legitimately hold are unpickled.
"""

import dataclasses
import io
import itertools
import json
import os
import pickle
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from nca_plugin.errors import NCAPluginError

_TRACKER: Final = "latest_checkpointed_iteration.txt"
_COMMON_STATE: Final = "common_state/shard_0_1"
_FORMAT: Final = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
_PICKLED_MODULES: Final = (
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
    "torch.distributed.checkpoint.filesystem",
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder and its table of contents."""

    folder: Path
    metadata: Metadata

    @property
    def names(self) -> list[str]:
        return list(self.metadata.state_dict_metadata)

    def entry(self, name: str) -> TensorStorageMetadata | BytesStorageMetadata:
        return self.metadata.state_dict_metadata[name]

    def stored(self) -> Iterator[tuple[MetadataIndex, _StorageInfo]]:
        """Yield where the bytes of every chunk and object lie."""
        yield from self.metadata.storage_data.items()

    def tensor(self, name: str) -> torch.Tensor:
        """Return a whole tensor, its chunks put together."""
        entry = self.entry(name)
        assert isinstance(entry, TensorStorageMetadata)
        whole = torch.empty(entry.size, dtype=entry.properties.dtype)
        for index, info in self.stored():
            if index.fqn == name:
                assert index.offset is not None
                chunk = self._load(name, info)
                whole[tuple(slice(o, o + s) for o, s in zip(index.offset, chunk.shape, strict=True))] = chunk
        return whole

    def common_state(self) -> dict[str, Any]:
        """Return what is stored once for all ranks: the run's arguments, its iteration and the like."""
        for index, info in self.stored():
            if index.fqn == _COMMON_STATE:
                state: dict[str, Any] = self._load(_COMMON_STATE, info)[0]
                return state
        raise NCAPluginError(
            f"checkpoint {self.folder} has no common state: it was not saved by megatron-core 0.19's torch_dist format"
        )

    def _load(self, name: str, info: _StorageInfo) -> Any:
        from megatron.core.safe_globals import SAFE_GLOBALS

        with (self.folder / info.relative_path).open("rb") as file:
            file.seek(info.offset)
            payload = io.BytesIO(file.read(info.length))
        try:
            with torch.serialization.safe_globals(SAFE_GLOBALS):
                return torch.load(payload, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0]
            raise NCAPluginError(f"checkpoint {self.folder}: '{name}' cannot be read: {reason}") from error


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint folder that `path` names: itself, or the latest one under it.

    Raises:
        NCAPluginError: nothing there, or no checkpoint in it.
    """
    if not path.is_dir():
        raise NCAPluginError(f"checkpoint {path} does not exist")
    tracker = path / _TRACKER
    if not tracker.is_file():
        return path
    latest = tracker.read_text().strip()
    if not (latest.isdecimal() or latest == "release"):
        raise NCAPluginError(f"checkpoint {path}: {_TRACKER} holds '{latest}', neither an iteration nor 'release'")
    folder = path / (f"iter_{int(latest):07d}" if latest.isdecimal() else latest)
    if not folder.is_dir():
        raise NCAPluginError(f"checkpoint {path}: {_TRACKER} names {folder.name}, which is missing")
    return folder


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, with its files' sizes checked.

    Raises:
        NCAPluginError: not a complete `torch_dist` checkpoint.
    """
    folder = find_checkpoint(path)
    backend = _backend(folder)
    if backend != _FORMAT["sharded_backend"]:
        raise NCAPluginError(
            f"checkpoint {folder} is of an unknown format ({backend or 'no readable metadata.json'}): save it with "
            "--ckpt-format torch_dist"
        )
    try:
        with (folder / ".metadata").open("rb") as file:
            metadata = _MetadataUnpickler(file).load()
    except FileNotFoundError:
        raise NCAPluginError(f"checkpoint {folder} is incomplete: .metadata is missing") from None
    except (pickle.UnpicklingError, EOFError, AttributeError, ImportError, IndexError, ValueError) as error:
        raise NCAPluginError(f"checkpoint {folder}: .metadata cannot be read: {error}") from error
    checkpoint = Checkpoint(folder, metadata)
    _check_sizes(checkpoint)
    return checkpoint


def _backend(folder: Path) -> str | None:
    """Return the format that a checkpoint folder names, None if it names none."""
    try:
        backend: str | None = json.loads((folder / "metadata.json").read_text()).get("sharded_backend")
    except (OSError, ValueError):
        return None
    return backend


def embedding_rows(path: Path) -> int | None:
    """Return the rows of the word embedding in the checkpoint at `path`; None where there is no `torch_dist` one."""
    if not (path / _TRACKER).is_file() or _backend(find_checkpoint(path)) != _FORMAT["sharded_backend"]:
        return None
    entry = read_checkpoint(path).metadata.state_dict_metadata.get("embedding.word_embeddings.weight")
    return entry.size[0] if isinstance(entry, TensorStorageMetadata) else None


def _check_sizes(checkpoint: Checkpoint) -> None:
    needed: dict[str, int] = {}
    for _, info in checkpoint.stored():
        needed[info.relative_path] = max(needed.get(info.relative_path, 0), info.offset + info.length)
    for name, size in needed.items():
        file = checkpoint.folder / name
        if Path(name).name != name or not file.is_file():
            raise NCAPluginError(f"checkpoint {checkpoint.folder} is incomplete: {name} is missing")
        if file.stat().st_size < size:
            raise NCAPluginError(
                f"checkpoint {checkpoint.folder} is truncated: {name} has {file.stat().st_size} of {size} bytes"
            )


def write_release(
    root: Path,
    origin: Checkpoint,
    kept: list[str],
    replaced: dict[str, torch.Tensor],
    common_state: dict[str, Any],
) -> None:
    """Write `root/release`: what is `kept` as links to the bytes of `origin`, what is `replaced` in one new file.

    Megatron starts a checkpoint named `release` at iteration 0 and looks for neither optimizer nor random state in it.
    """
    folder = root / "release"
    folder.mkdir(parents=True)
    contents = {name: origin.entry(name) for name in kept}
    storage = {index: info for index, info in origin.stored() if index.fqn in contents}
    for name in sorted({info.relative_path for info in storage.values()}):
        _link(origin.folder / name, folder / name)
    # A checkpoint that was itself transferred holds such a file already.
    new_file = next(path for path in (folder / f"transfer_{n}.distcp" for n in itertools.count()) if not path.exists())
    with new_file.open("xb") as file:
        for name, tensor in replaced.items():
            entry = _layout(name, tensor)
            contents[name] = entry
            for chunk in entry.chunks:
                part = tensor[tuple(slice(o, o + s) for o, s in zip(chunk.offsets, chunk.sizes, strict=True))]
                index = MetadataIndex(name, chunk.offsets)
                storage[index] = _append(file, part.clone())
        contents[_COMMON_STATE] = BytesStorageMetadata()
        storage[MetadataIndex(_COMMON_STATE)] = _append(file, [common_state])
        _flush_to_disk(file)
    metadata = Metadata(contents, storage_data=storage, version=getattr(origin.metadata, "version", None))
    with (folder / ".metadata").open("xb") as file:
        pickle.dump(metadata, file)
        _flush_to_disk(file)
    (folder / "metadata.json").write_text(json.dumps(_FORMAT))
    (root / _TRACKER).write_text("release")


def reset_progress(common_state: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the common state of a run that has not begun, with `changes` to its arguments: no optimizer, no schedule,
    no consumed samples."""
    kept: dict[str, Any] = {
        key: common_state[key] for key in ("checkpoint_version", "content_metadata") if key in common_state
    }
    fresh = dict.fromkeys(("iteration", "consumed_train_samples", "consumed_valid_samples", "skipped_train_samples"), 0)
    args = Namespace(**{**vars(common_state["args"]), **fresh, **changes})
    return {**kept, "args": args, "iteration": 0, "num_floating_point_operations_so_far": 0}


def is_stacked(name: str) -> bool:
    """Whether axis 0 of a tensor counts layers."""
    return re.match(r"decoder\.layers\.\D", name) is not None


def _layout(name: str, tensor: torch.Tensor) -> TensorStorageMetadata:
    """Return the chunks to store a tensor in: one for each layer, so that a rank reads no more than its own."""
    rows, rest = tensor.shape[0], tensor.shape[1:]
    step = 1 if is_stacked(name) else rows
    zeros = (0,) * len(rest)
    chunks = [
        ChunkStorageMetadata(torch.Size((row, *zeros)), torch.Size((step, *rest))) for row in range(0, rows, step)
    ]
    return TensorStorageMetadata(TensorProperties.create_from_tensor(tensor), tensor.shape, chunks)


def _append(file: io.BufferedWriter, value: object) -> _StorageInfo:
    start = file.tell()
    buffer = io.BytesIO()
    torch.save(value, buffer)
    file.write(buffer.getbuffer())
    return _StorageInfo(Path(file.name).name, start, file.tell() - start)


def _flush_to_disk(file: io.BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


class _MetadataUnpickler(pickle.Unpickler):
    """Loads `.metadata`, and no class that has no place in it."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _PICKLED_MODULES and "." not in name:
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        if module == "torch.serialization" and name == "_get_layout":
            return super().find_class(module, name)
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"refused to load {module}.{name}")
