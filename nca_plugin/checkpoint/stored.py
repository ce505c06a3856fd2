"""What one `torch.save` wrote, read in place: objects, and tensors as references to the bytes they lie in.

The format is a zip archive without compression: `data.pkl`, `byteorder`, and one record for each storage (PyTorch,
"Serialization semantics"). The archive holds a CRC-32 of each record, which PyTorch itself does not check.
"""

import io
import math
import os
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from nca_plugin.checkpoint.unpickling import Globals, load_pickle
from nca_plugin.errors import NCAPluginError

_STORAGES: Final = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
#: Bytes of a zip entry's local header before its name.
_LOCAL_HEADER: Final = 30
_COPY_BYTES: Final = 1 << 23


@dataclass(frozen=True, slots=True)
class Record:
    """Bytes of a file and their CRC-32."""

    file: Path
    position: int
    size: int
    crc32: int

    def check(self, crc32: int) -> None:
        """Raise `NCAPluginError` if the bytes have another CRC-32 than they were saved with."""
        if crc32 != self.crc32:
            raise NCAPluginError(
                f"{self.file} is damaged: bytes {self.position} to {self.position + self.size - 1} have CRC-32 "
                f"{crc32:08x}, saved with {self.crc32:08x}"
            )


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, or a part of one, that lies in a record: `offset` and `strides` count elements."""

    record: Record
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def narrow(self, axis: int, start: int, length: int) -> "StoredTensor":
        """Return the part of `length` along an axis, as `torch.Tensor.narrow`."""
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        return replace(self, shape=shape, offset=self.offset + start * self.strides[axis])

    def under(self, axes: int) -> "StoredTensor":
        """Return the same values with `axes` axes of size 1 before the others."""
        return replace(self, shape=(1,) * axes + self.shape, strides=(0,) * axes + self.strides)

    def read(self) -> torch.Tensor:
        """Return the values, contiguous."""
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        position = self.record.position + self.offset * self.dtype.itemsize
        data = bytearray(span * self.dtype.itemsize)
        with self.record.file.open("rb", buffering=0) as file:
            file.seek(position)
            _read_into(file, memoryview(data))
        values = torch.frombuffer(data, dtype=self.dtype)
        return values.as_strided(self.shape, self.strides).contiguous()


@dataclass(frozen=True, slots=True)
class Item:
    """The bytes of one `torch.save`: a whole file, or a part of one."""

    file: Path
    offset: int
    length: int

    def load(self) -> Any:
        """Return what was saved, tensors as `StoredTensor`.

        Raises:
            NCAPluginError: damaged, or not an archive that `torch.save` writes.
        """
        origin = f"{self.file} at byte {self.offset}"
        with self.file.open("rb", buffering=0) as file:
            try:
                # zipfile finds the archive's end from behind, so it must not see what follows.
                archive = zipfile.ZipFile(io.BufferedReader(_Window(file, self.offset, self.length), 1 << 12))
                entries = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
                pickled = archive.read(entries["data.pkl"])
                if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
                    raise NCAPluginError(f"{origin} cannot be read: saved on a big-endian machine")
            except (zipfile.BadZipFile, KeyError, OSError, ValueError, NotImplementedError, zlib.error) as error:
                raise NCAPluginError(
                    f"{origin} cannot be read: it is damaged, or was not written by torch.save (PyTorch 1.6 or later)"
                ) from error

            def storage(identity: tuple[Any, ...]) -> tuple[Record, torch.dtype | None]:
                _, dtype, key, _, _ = identity
                return self._record(file, entries[f"data/{key}"]), dtype

            return load_pickle(pickled, origin, _TENSORS, storage)

    def tensor(self) -> StoredTensor:
        """Return the one tensor that was saved. Raises `NCAPluginError` if it is anything else."""
        value = self.load()
        if not isinstance(value, StoredTensor):
            raise NCAPluginError(f"{self.file} at byte {self.offset} holds no tensor")
        return value

    def _record(self, file: io.FileIO, info: zipfile.ZipInfo) -> Record:
        file.seek(self.offset + info.header_offset)
        header = file.read(_LOCAL_HEADER)
        data_offset = info.header_offset + _LOCAL_HEADER
        data_offset += int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        if info.compress_type != zipfile.ZIP_STORED or data_offset + info.file_size > self.length:
            raise ValueError(f"record {info.filename} does not lie within the archive")
        return Record(self.file, self.offset + data_offset, info.file_size, info.CRC)


def check_record(record: Record) -> None:
    """Read a record. Raises `NCAPluginError` if its bytes are not those that were saved."""
    crc = 0
    for piece in pieces(record.file, record.position, record.size):
        crc = zlib.crc32(piece, crc)
    record.check(crc)


def pieces(path: Path, position: int, size: int) -> Iterator[memoryview]:
    """Yield `size` bytes of a file in pieces of one buffer, each valid until the next."""
    buffer = memoryview(bytearray(min(_COPY_BYTES, size)))
    with path.open("rb", buffering=0) as file:
        file.seek(position)
        while size:
            piece = buffer[: min(len(buffer), size)]
            _read_into(file, piece)
            size -= len(piece)
            yield piece


def _read_into(file: io.FileIO, out: memoryview) -> None:
    while out:
        count = file.readinto(out)
        if not count:
            raise NCAPluginError(f"{os.fsdecode(file.name)} became shorter while it was read")
        out = out[count:]


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: io.FileIO, start: int, length: int) -> None:
        self._file, self._start, self._length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the start")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._start + self._at)
        read = self._file.readinto(memoryview(buffer)[:count]) or 0
        self._at += read
        return read


def _rebuild_tensor(
    storage: tuple[Record, torch.dtype | None],
    offset: int,
    shape: torch.Size,
    strides: tuple[int, ...],
    _requires_grad: bool,
    _hooks: object,
    dtype: object = None,
    _metadata: object = None,
) -> StoredTensor:
    record, stored_dtype = storage
    # _rebuild_tensor_v3 names the type itself; v2 has metadata in its place, which is empty for what a model stores.
    found = dtype if isinstance(dtype, torch.dtype) else stored_dtype
    if not isinstance(found, torch.dtype):
        raise ValueError("a tensor of no known type")
    tensor = StoredTensor(record, found, tuple(shape), tuple(strides), offset)
    if min((0, offset, *tensor.shape, *tensor.strides)) < 0 or len(tensor.shape) != len(tensor.strides):
        raise ValueError("a tensor of negative shape")
    last = offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    if math.prod(tensor.shape) and (last + 1) * found.itemsize > record.size:
        raise ValueError("a tensor that does not lie within its record")
    return tensor


def _rebuild_parameter(data: StoredTensor, *_: object) -> StoredTensor:
    return data


def _rebuild_from_type(rebuild: Any, _type: object, arguments: tuple[Any, ...], _state: object) -> StoredTensor:
    if rebuild not in (_rebuild_tensor, _rebuild_parameter):
        raise ValueError("a tensor of a type of its own")
    tensor: StoredTensor = rebuild(*arguments)
    return tensor


_TENSORS: Final[Globals] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Tensor"): None,
    ("torch.nn.parameter", "Parameter"): None,
    ("torch.storage", "UntypedStorage"): None,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}
