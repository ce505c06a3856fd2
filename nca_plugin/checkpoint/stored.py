"""The format of `torch.save`, read in place and written: objects, and tensors as references to the bytes they lie in.

It is a zip archive without compression: `data.pkl`, `byteorder`, `version`, and one record for each storage (PyTorch,
"Serialization semantics"). The archive holds a CRC-32 of each record, which PyTorch itself does not check.
"""

import collections
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from nca_plugin.checkpoint.dtypes import DTYPES, DType, Values
from nca_plugin.checkpoint.pickling import Globals, Maker, Reference, dump_pickle, load_pickle
from nca_plugin.errors import NCAPluginError

_STORAGES: Final = {
    "DoubleStorage": DTYPES["float64"],
    "FloatStorage": DTYPES["float32"],
    "HalfStorage": DTYPES["float16"],
    "BFloat16Storage": DTYPES["bfloat16"],
    "LongStorage": DTYPES["int64"],
    "IntStorage": DTYPES["int32"],
    "ShortStorage": DTYPES["int16"],
    "CharStorage": DTYPES["int8"],
    "ByteStorage": DTYPES["uint8"],
    "BoolStorage": DTYPES["bool"],
}
_STORAGE_NAMES: Final = {dtype: name for name, dtype in _STORAGES.items()}
#: Bytes of a zip entry's local header before its name.
_LOCAL_HEADER: Final = 30
_ALIGNMENT: Final = 64
#: Version, flags, compression, time and date of a zip entry.
_ZIP_FIELDS: Final = (0, 0, 0, 0, 33)
#: Little enough that a piece stays in a core's cache from its reading to its writing.
_COPY_BYTES: Final = 1 << 19


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
    dtype: DType
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

    def read(self) -> Values:
        """Return the values, contiguous."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype.array)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        # All of it lies in the file, see `_rebuild_tensor`.
        values = np.empty(span, self.dtype.array)
        with self.record.file.open("rb", buffering=0) as file:
            file.seek(self.record.position + self.offset * self.dtype.itemsize)
            _read_into(file, memoryview(values).cast("B"))
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(values, self.shape, strides))


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
                if any(i.compress_type != zipfile.ZIP_STORED or i.file_size > self.length for i in entries.values()):
                    raise ValueError("compressed")
                pickled = archive.read(entries["data.pkl"])
                if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
                    raise NCAPluginError(f"{origin} cannot be read: saved on a big-endian machine")
            except NCAPluginError:
                raise
            # A damaged archive can fail in any way, as a damaged pickle can.
            except Exception as error:
                raise NCAPluginError(
                    f"{origin} cannot be read: it is damaged, or was not written by torch.save (PyTorch 1.6 or later)"
                ) from error

            def storage(identity: tuple[Any, ...]) -> tuple[Record, DType | None]:
                _, dtype, key, _, _ = identity
                if type(key) is not str:
                    raise ValueError("a tensor without a record")
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
    buffer = memoryview(np.empty(min(_COPY_BYTES, size), np.uint8))
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
    storage: tuple[Record, DType | None],
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    _requires_grad: bool,
    _hooks: object,
    dtype: object = None,
    _metadata: object = None,
) -> StoredTensor:
    record, stored_dtype = storage
    if not isinstance(record, Record) or {type(v) for v in (offset, *shape, *strides)} != {int}:
        raise ValueError("a tensor without a place")
    # _rebuild_tensor_v3 names the type itself; v2 has metadata in its place, which is empty for what a model stores.
    found = dtype if isinstance(dtype, DType) else stored_dtype
    if not isinstance(found, DType):
        raise ValueError("a tensor of no known type")
    tensor = StoredTensor(record, found, tuple(shape), tuple(strides), offset)
    if min((0, offset, *tensor.shape, *tensor.strides)) < 0 or len(tensor.shape) != len(tensor.strides):
        raise ValueError("a tensor of negative shape")
    last = offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    count = math.prod(tensor.shape)
    # Nor may a value be there several times: a few bytes would become any number of them.
    if count and max(last + 1, count) * found.itemsize > record.size:
        raise ValueError("a tensor that does not lie within its record")
    return tensor


def _rebuild_parameter(data: StoredTensor, *_: object) -> StoredTensor:
    return data


_REBUILD_TENSOR: Final = Maker(_rebuild_tensor)
_REBUILD_PARAMETER: Final = Maker(_rebuild_parameter)


def _rebuild_from_type(rebuild: Any, _type: object, arguments: tuple[Any, ...], _state: object) -> StoredTensor:
    if rebuild not in (_REBUILD_TENSOR, _REBUILD_PARAMETER):
        raise ValueError("a tensor of a type of its own")
    tensor: StoredTensor = rebuild(*arguments)
    return tensor


_TENSORS: Final[Globals] = {
    ("torch._utils", "_rebuild_tensor_v2"): _REBUILD_TENSOR,
    ("torch._utils", "_rebuild_tensor_v3"): _REBUILD_TENSOR,
    ("torch._utils", "_rebuild_parameter"): _REBUILD_PARAMETER,
    ("torch._tensor", "_rebuild_from_type_v2"): Maker(_rebuild_from_type),
    ("torch", "Tensor"): None,
    ("torch.nn.parameter", "Parameter"): None,
    ("torch.storage", "UntypedStorage"): None,
    **{("torch", name): dtype for name, dtype in _STORAGES.items()},
}


@dataclass(frozen=True, slots=True)
class NewTensor:
    """Values to save as a tensor."""

    values: Values
    dtype: DType


def save(value: object, file: io.BufferedWriter) -> None:
    """Append what `torch.save` would write: `value`, and every `NewTensor` in it as a tensor.

    Values lie at multiples of 64 bytes from the archive's start, as PyTorch has them.
    """
    storages: list[NewTensor] = []

    def storage(found: object) -> tuple[Any, ...] | None:
        if not isinstance(found, _Storage):
            return None
        storages.append(found.tensor)
        kind = Reference("torch", _STORAGE_NAMES[found.tensor.dtype])
        return ("storage", kind, str(len(storages) - 1), "cpu", found.tensor.values.size)

    pickled = dump_pickle(_with_tensors(value), storage)
    archive = _Archive(file)
    archive.add("data.pkl", pickled)
    archive.add("byteorder", b"little")
    for number, tensor in enumerate(storages):
        archive.add(f"data/{number}", memoryview(np.ascontiguousarray(tensor.values).reshape(-1)).cast("B"))
    archive.add("version", b"3\n")
    archive.close()


@dataclass(frozen=True, slots=True)
class _Storage:
    tensor: NewTensor


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """A tensor as PyTorch pickles it: a function, and what to call it with."""

    tensor: NewTensor

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.tensor.values.shape
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        hooks: collections.OrderedDict[int, object] = collections.OrderedDict()
        arguments = (_Storage(self.tensor), 0, shape, strides, False, hooks)
        return Reference("torch._utils", "_rebuild_tensor_v2"), arguments


def _with_tensors(value: Any) -> Any:
    if isinstance(value, NewTensor):
        return _Rebuilt(value)
    # Only where Megatron-Bridge has them: a value that many others share must not become many.
    is_flat = type(value) is dict and any(isinstance(item, NewTensor) for item in value.values())
    return {key: _with_tensors(item) for key, item in value.items()} if is_flat else value


class _Archive:
    """A zip archive without compression, as a part of a file: places count from where it began."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self._start = file.tell()
        self._directory = b""
        self._count = 0

    def add(self, name: str, data: bytes | memoryview) -> None:
        encoded = f"archive/{name}".encode()
        header_offset = self._file.tell() - self._start
        sizes = (zlib.crc32(data), len(data), len(data), len(encoded))
        # The padding is an extra field of at least four bytes, its own header.
        padding = -(header_offset + _LOCAL_HEADER + len(encoded) + 4) % _ALIGNMENT
        extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
        self._file.write(struct.pack("<4s5HIIIHH", b"PK\3\4", *_ZIP_FIELDS, *sizes, len(extra)) + encoded + extra)
        self._file.write(data)
        self._directory += struct.pack(
            "<4s6HIIIHHHHHII", b"PK\1\2", 0, *_ZIP_FIELDS, *sizes, 0, 0, 0, 0, 0, header_offset
        )
        self._directory += encoded
        self._count += 1

    def close(self) -> None:
        at = self._file.tell() - self._start
        counts = (0, 0, self._count, self._count, len(self._directory), at, 0)
        self._file.write(self._directory + struct.pack("<4s4HIIH", b"PK\5\6", *counts))
