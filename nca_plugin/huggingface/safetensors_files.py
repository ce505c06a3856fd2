"""Reads folders of `.safetensors` files in parts, and writes them piece by piece.

Files are written here, because the safetensors library writes only tensors that are all in memory. A file has eight
bytes with the length of the header, the header (JSON with type, shape and place of each tensor), and the values.
"""

import json
import math
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import safetensors

from nca_plugin.checkpoint.dtypes import DTYPES, DType, Values
from nca_plugin.checkpoint.write import flush
from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.json_files import read_object, shown

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
#: Limit on an index, which is enough for a million tensors.
_MAX_INDEX_BYTES: Final = 1 << 27
#: The names that transformers gives to files of an index.
_SHARDS: Final = "model-*-of-*.safetensors"
#: Types of weights by their names in safetensors.
WEIGHT_DTYPES: Final = {"F32": DTYPES["float32"], "F16": DTYPES["float16"], "BF16": DTYPES["bfloat16"]}
_NAMES: Final = {dtype.name: name for name, dtype in WEIGHT_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class SavedTensor:
    """A tensor in a file, whose values begin at byte `position`. `dtype` is the name in safetensors."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    position: int

    def read(self, start: int, stop: int) -> Values:
        """Return rows `start` .. `stop - 1` of one of the `WEIGHT_DTYPES`."""
        dtype = WEIGHT_DTYPES[self.dtype].array
        columns = math.prod(self.shape[1:])
        position = self.position + start * columns * dtype.itemsize
        values = np.fromfile(self.file, dtype, (stop - start) * columns, offset=position)
        if values.size != (stop - start) * columns:
            raise NCAPluginError(f"{self.file} became shorter while it was read")
        return values.reshape(stop - start, *self.shape[1:])


@dataclass(frozen=True, slots=True)
class PiecewiseTensor:
    """A tensor to write. `pieces` yields its values in order, as contiguous arrays."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    pieces: Callable[[], Iterator[Values]]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_folder(folder: Path) -> dict[str, SavedTensor]:
    """Return the tensors of a folder by name.

    Raises:
        NCAPluginError: if the folder holds no model in safetensors, a file is missing, damaged or surplus, or a tensor
            is missing or stored twice.
    """
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        if index.exists():
            raise NCAPluginError(f"{folder} holds {SINGLE} and {INDEX}: remove the one that is not the model's")
        return {tensor.name: tensor for tensor in _contents(folder / SINGLE)}
    if not index.is_file():
        old = any(folder.glob("*.bin"))
        raise NCAPluginError(
            f"{folder} holds no {SINGLE}"
            + (": its weights are pickled (.bin); save them with save_pretrained of transformers first" if old else "")
        )
    named = read_object(index, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise NCAPluginError(f"{index} names no weights: its weight_map must name a file for each tensor")
    places = {name: folder / Path(file).name for name, file in named.items()}
    files = sorted(set(places.values()))
    unread = sorted(path.name for path in folder.glob(_SHARDS) if path not in files)
    if unread:
        raise NCAPluginError(f"{folder} holds {unread[0]}, which {INDEX} does not name: remove what is not the model's")
    found: dict[str, SavedTensor] = {}
    for file in files:
        for tensor in _contents(file):
            if tensor.name in found:
                raise NCAPluginError(
                    f"{folder} holds {shown(tensor.name)} twice: in {found[tensor.name].file.name} and in {file.name}"
                )
            found[tensor.name] = tensor
    for name, file in places.items():
        if name not in found or found[name].file != file:
            raise NCAPluginError(f"{folder} is incomplete: {shown(name)} is not in {file.name}, where {INDEX} says")
    return found


def write_folder(
    folder: Path, tensors: Iterable[PiecewiseTensor], max_shard_bytes: int, advance: Callable[[int], None]
) -> int:
    """Write tensors to an existing folder and return the number of files. Several files get an index.

    Args:
        max_shard_bytes: the largest size of a file, unless a single tensor is larger.
        advance: is called with the number of bytes as they are written.
    """
    shards: list[list[PiecewiseTensor]] = []
    size = 0
    for tensor in tensors:
        if not shards or size + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.num_bytes
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        names = [SINGLE]
    for name, shard in zip(names, shards, strict=True):
        _write(folder / name, shard, advance)
    if len(shards) > 1:
        places = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.num_bytes for shard in shards for tensor in shard)
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2))
    return len(shards)


def _write(path: Path, tensors: Iterable[PiecewiseTensor], advance: Callable[[int], None]) -> None:
    # With the widest types first, all values are aligned.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    # transformers refuses a file without a framework's name.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in ordered:
        start, end = end, end + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype.name],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            for piece in tensor.pieces():
                file.write(np.ascontiguousarray(piece).data)
                advance(piece.nbytes)
        flush(file)


def _contents(path: Path) -> Iterator[SavedTensor]:
    try:
        # Reading a pipe might never end.
        if path.exists() and not path.is_file():
            raise NCAPluginError(f"{path} is no file")
        # The library checks the header and the size of the file, but does not say where the values are.
        with safetensors.safe_open(path, framework="np"), path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise NCAPluginError(f"{path.parent} is incomplete: {path.name} is missing") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise NCAPluginError(f"{path} is damaged: {one_line(error)}") from error
    for name, entry in header.items():
        if name != "__metadata__":
            position = 8 + length + entry["data_offsets"][0]
            yield SavedTensor(path, name, entry["dtype"], tuple(entry["shape"]), position)
