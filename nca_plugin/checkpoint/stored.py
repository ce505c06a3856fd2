"""Reads and writes the format of `torch.save`. A tensor is read as a reference to its bytes in the file.

The format is a zip archive without compression: `data.pkl`, `byteorder`, `version`, and one record for each storage
(PyTorch, "Serialization semantics"). The archive holds a CRC-32 of each record, which PyTorch itself does not check.
"""

import collections
import io
import math
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from nca_plugin.checkpoint.archives import Alike, Archive, ArchiveWriter, Ends
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
#: Limits of `_ALIKE`: archives of one length, and lengths.
_MOST_ALIKE: Final = 8
_MOST_LENGTHS: Final = 256
#: A piece of this size stays in a core's cache from its reading to its writing.
_COPY_BYTES: Final = 1 << 19


@dataclass(frozen=True, slots=True)
class Record:
    """The `size` bytes from `position` on in a file, and the CRC-32 that they were saved with."""

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
    """A tensor, or a part of one, in a record. `offset` and `strides` count elements."""

    record: Record
    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def narrow(self, axis: int, start: int, length: int) -> "StoredTensor":
        """Return `length` indices from `start` on along an axis, as `torch.Tensor.narrow` does."""
        if (start, length) == (0, self.shape[axis]):
            return self
        shape = (*self.shape[:axis], length, *self.shape[axis + 1 :])
        return replace(self, shape=shape, offset=self.offset + start * self.strides[axis])

    def under(self, axes: int) -> "StoredTensor":
        """Return the same values with `axes` axes of size 1 before the others."""
        return replace(self, shape=(1,) * axes + self.shape, strides=(0,) * axes + self.strides)

    def read(self) -> Values:
        """Return the values as a contiguous array."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype.array)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        # `_rebuild_tensor` has checked that the span lies within the record.
        values = np.empty(span, self.dtype.array)
        with self.record.file.open("rb", buffering=0) as file:
            file.seek(self.record.position + self.offset * self.dtype.itemsize)
            _read_into(file, memoryview(values).cast("B"))
        strides = [stride * self.dtype.itemsize for stride in self.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(values, self.shape, strides))


@dataclass(frozen=True, slots=True)
class Item:
    """The bytes of one `torch.save`, which are a whole file or a part of one."""

    file: Path
    offset: int
    length: int

    def load(self) -> Any:
        """Return the saved value, with each tensor as a `StoredTensor`.

        Raises:
            NCAPluginError: if the archive is damaged, or `torch.save` did not write it.
        """
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            return self._load(descriptor, Ends.read(descriptor, self.offset, self.length))
        finally:
            os.close(descriptor)

    def tensor(self) -> StoredTensor:
        """Return the saved tensor. Raises `NCAPluginError` if the saved value is not a tensor."""
        descriptor = os.open(self.file, os.O_RDONLY)
        try:
            ends = Ends.read(descriptor, self.offset, self.length)
            for alike, found in _ALIKE.get(self.length, ()):
                crc32 = alike.crc32_of(ends)
                if crc32 is not None:
                    record = Record(self.file, self.offset + found.record.position, found.record.size, crc32)
                    return StoredTensor(record, found.dtype, found.shape, found.strides, found.offset)
            value = self._load(descriptor, ends)
        finally:
            os.close(descriptor)
        if not isinstance(value, StoredTensor):
            raise NCAPluginError(f"{self.file} at byte {self.offset} holds no tensor")
        return value

    def _load(self, descriptor: int, ends: Ends) -> Any:
        origin = f"{self.file} at byte {self.offset}"
        try:
            archive = Archive(descriptor, self.offset, self.length, ends)
            read = ["data.pkl", *(name for name in ("byteorder",) if name in archive.entries)]
            pickled, *byteorder = map(archive.read, read)
        # A damaged archive can fail with any type of error, as a damaged pickle can.
        except Exception as error:
            raise NCAPluginError(
                f"{origin} cannot be read: it is damaged, or was not written by torch.save (PyTorch 1.6 or later)"
            ) from error
        if byteorder not in ([], [b"little"]):
            raise NCAPluginError(f"{origin} cannot be read: saved on a big-endian machine")
        names = []

        def storage(identity: tuple[Any, ...]) -> tuple[Record, DType | None]:
            _, dtype, key, _, _ = identity
            if type(key) is not str:
                raise ValueError("a tensor without a record")
            names.append(f"data/{key}")
            entry = archive.entries[names[-1]]
            return Record(self.file, self.offset + archive.place(names[-1]), entry.size, entry.crc32), dtype

        value = load_pickle(pickled, origin, _TENSORS, storage)
        if isinstance(value, StoredTensor) and len(names) == 1:
            self._remember(Alike.of(archive, ends, names[0], read), value)
        return value

    def _remember(self, alike: Alike | None, found: StoredTensor) -> None:
        if alike is None:
            return
        if len(_ALIKE) >= _MOST_LENGTHS:
            _ALIKE.clear()
        record = replace(found.record, position=found.record.position - self.offset)
        _ALIKE[self.length] = (*_ALIKE.get(self.length, ()), (alike, replace(found, record=record)))[-_MOST_ALIKE:]


#: Loaded archives of a single tensor, by their lengths. Positions count from the start of the archive.
_ALIKE: Final[dict[int, tuple[tuple[Alike, StoredTensor], ...]]] = {}


def check_record(record: Record) -> None:
    """Read a record. Raises `NCAPluginError` if its bytes do not have the CRC-32 that they were saved with."""
    crc = 0
    for piece in pieces(record.file, record.position, record.size):
        crc = zlib.crc32(piece, crc)
    record.check(crc)


def pieces(path: Path, position: int, size: int) -> Iterator[memoryview]:
    """Yield `size` bytes of a file in pieces. A piece is valid until the next one, since they share a buffer."""
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
    # _rebuild_tensor_v3 passes the type as `dtype`. v2 passes metadata there, which a model's tensors do not have.
    found = dtype if isinstance(dtype, DType) else stored_dtype
    if not isinstance(found, DType):
        raise ValueError("a tensor of no known type")
    tensor = StoredTensor(record, found, tuple(shape), tuple(strides), offset)
    if min((0, offset, *tensor.shape, *tensor.strides)) < 0 or len(tensor.shape) != len(tensor.strides):
        raise ValueError("a tensor of negative shape")
    last = offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=True))
    count = math.prod(tensor.shape)
    # A value may not be repeated by strides of 0 either, or a few bytes could become any number of values.
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
    """Append to a file what `torch.save` would write for `value`, with every `NewTensor` in it as a tensor."""
    storages: list[NewTensor] = []

    def storage(found: object) -> tuple[Any, ...] | None:
        if not isinstance(found, _Storage):
            return None
        storages.append(found.tensor)
        kind = Reference("torch", _STORAGE_NAMES[found.tensor.dtype])
        return ("storage", kind, str(len(storages) - 1), "cpu", found.tensor.values.size)

    pickled = dump_pickle(_with_tensors(value), storage)
    archive = ArchiveWriter(file)
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
    """A tensor as PyTorch pickles it: a function and its arguments."""

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
    # Only a flat dict, as in Megatron-Bridge, is copied. Copies of a shared value would no longer be shared.
    is_flat = type(value) is dict and any(isinstance(item, NewTensor) for item in value.values())
    return {key: _with_tensors(item) for key, item in value.items()} if is_flat else value
