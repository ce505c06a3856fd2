"""Writes the data files of a new `torch_dist` folder: links to old files, copies of parts of them, and new blocks.

Several threads write blocks, each thread to its own file and one block at a time, so that memory does not grow with the
checkpoint. It is fixed beforehand which thread writes what, so that the same transition gives the same bytes.
"""

import io
import itertools
import json
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nca_plugin.checkpoint.contents import Region
from nca_plugin.checkpoint.dtypes import DType, Values
from nca_plugin.checkpoint.metadata_writing import dump_metadata
from nca_plugin.checkpoint.stored import Item, NewTensor, Record, check_record, pieces, save
from nca_plugin.checkpoint.torch_dist import COMMON_FILE, COMMON_STATE, FORMAT
from nca_plugin.files import check_space

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: Largest size of a new block's values. Each worker holds one block in memory.
BLOCK_BYTES: Final = 1 << 24
_EAGER_BYTES: Final = 1 << 23
#: Approximate size of a saved block without its values.
_ARCHIVE_BYTES: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A part of a tensor whose values are made when they are written."""

    region: Region
    make: Callable[[], Values]


@dataclass(frozen=True, slots=True)
class KeptBlock:
    """A part of a tensor that keeps its saved bytes."""

    region: Region
    item: Item
    record: Record


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of the new checkpoint and the blocks that it is made of."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    blocks: Sequence[KeptBlock | NewBlock]


@dataclass(frozen=True, slots=True)
class _Job:
    """Something to append to a file: the object `name`, or the block at `offsets` of the tensor `name`."""

    name: str
    offsets: tuple[int, ...] | None
    num_bytes: int
    append: Callable[[io.BufferedWriter], None]


class _EagerFile(io.BufferedWriter):
    """Makes the system write data to the disk early.

    Data that piles up in memory slows down all writing, and the flush at the end has to wait for it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path.open("xb", buffering=0))
        self._begun = 0

    def write(self, data: "ReadableBuffer") -> int:
        count = super().write(data)
        end = self.tell()
        if end - self._begun >= _EAGER_BYTES:
            self.flush()
            # This advice does not drop data that is not on the disk yet. It starts writing the data.
            os.posix_fadvise(self.fileno(), self._begun, end - self._begun, os.POSIX_FADV_DONTNEED)
            self._begun = end
        return count


class _Stopped(Exception):
    """Stops a worker after another one has failed."""


class Writer:
    """Writes the data files of one folder, which exists and is empty.

    Args:
        links: whether kept blocks of tensors are linked. Otherwise they are copied.
        num_workers: number of threads.
    """

    def __init__(self, folder: Path, *, links: bool, num_workers: int) -> None:
        self._folder = folder
        self._links = links
        self._num_workers = num_workers
        self._advance: Callable[[int], None] = lambda num_bytes: None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._jobs: list[_Job] = []
        self._linked: dict[Path, int] = {}
        self._entries: list[Entry] = []
        self._objects: list[str] = []
        self._places: dict[tuple[str, tuple[int, ...] | None], Item] = {}

    def add(self, entry: Entry) -> None:
        """Add a tensor to the plan."""
        self._entries.append(entry)
        for block in entry.blocks:
            start = tuple([start for start, _ in block.region])
            if isinstance(block, KeptBlock):
                self._add_item(entry.name, start, block.item, block.record)
            else:
                self._add_values(entry, start, block)

    def add_object(self, name: str, item: Item | None) -> None:
        """Add an object to the plan, which is kept unchanged; None is the empty state of a module."""
        self._objects.append(name)
        if item is None:
            self._jobs.append(_Job(name, None, 0, lambda file: save([None], file)))
        else:
            self._add_item(name, None, item, None)

    @property
    def num_bytes(self) -> int:
        """Bytes of all planned blocks that are not linked."""
        return sum(job.num_bytes for job in self._jobs)

    @property
    def held_bytes(self) -> int:
        """Bytes of the linked files that this folder does not use, but keeps on the disk."""
        return sum(path.stat().st_size for path in self._linked) - sum(self._linked.values())

    def check_space(self, more: int = 0) -> None:
        """Raise `NCAPluginError` unless the disk has room for the plan and `more` bytes."""
        needed = self.num_bytes + len(self._jobs) * _ARCHIVE_BYTES + more
        check_space(self._folder, needed, "the checkpoint", "choose another output")

    def write(self, common_state: Mapping[str, Any], advance: Callable[[int], None]) -> list[Path]:
        """Write the plan, flush it to the disk, and return the old files that were linked.

        Args:
            common_state: the state that is stored once for all ranks. It becomes an object, which megatron-core 0.19
                reads, and a file, which earlier versions read.
            advance: is called with the number of bytes as they are written.

        Raises:
            NCAPluginError: if data to copy are damaged, or the disk has no room.
            OSError: if a file cannot be written.
        """
        self.check_space()
        self._advance = advance
        with (self._folder / COMMON_FILE).open("xb") as file:
            save(dict(common_state), file)
            flush(file)
        self._objects.append(COMMON_STATE)
        self._jobs.append(_Job(COMMON_STATE, None, 0, lambda file: save([dict(common_state)], file)))
        linked = sorted(self._linked)
        for path in linked:
            os.link(path.resolve(), self._folder / path.name)
        self._run({path.name for path in linked})
        with (self._folder / ".metadata").open("xb") as file:
            tensors = [(e.name, e.dtype, e.shape, [block.region for block in e.blocks]) for e in self._entries]
            # The order must not depend on which thread was first.
            places = dict(sorted(self._places.items(), key=lambda place: (place[0][0], place[0][1] or ())))
            file.write(dump_metadata(tensors, self._objects, places))
            flush(file)
        with (self._folder / "metadata.json").open("xb") as file:
            file.write(json.dumps(FORMAT).encode())
            flush(file)
        return linked

    def _add_values(self, entry: Entry, offsets: tuple[int, ...], block: NewBlock) -> None:
        num_bytes = math.prod(stop - start for start, stop in block.region) * entry.dtype.itemsize

        def append(file: io.BufferedWriter) -> None:
            save(NewTensor(block.make(), entry.dtype), file)
            self._advance_by(num_bytes)

        self._jobs.append(_Job(entry.name, offsets, num_bytes, append))

    def _add_item(self, name: str, offsets: tuple[int, ...] | None, item: Item, record: Record | None) -> None:
        # Objects are copied, because they are small and not worth keeping an old file on the disk.
        if self._links and record is not None:
            self._linked[item.file] = self._linked.get(item.file, 0) + item.length
            self._places[name, offsets] = item
            return

        def append(file: io.BufferedWriter) -> None:
            crc, at = 0, item.offset
            for piece in pieces(item.file, item.offset, item.length):
                file.write(piece)
                if record is not None:
                    first, last = max(0, record.position - at), max(0, record.position + record.size - at)
                    crc = zlib.crc32(piece[first:last], crc)
                at += len(piece)
                self._advance_by(len(piece))
            if record is not None:
                record.check(crc)

        self._jobs.append(_Job(name, offsets, item.length, append))

    def _run(self, taken: set[str]) -> None:
        """Write the new files. Linked files of an earlier transition may have the same names, which are avoided."""
        shares: list[list[_Job]] = [[] for _ in range(self._num_workers)]
        loads = [0] * self._num_workers
        for job in self._jobs:
            worker = loads.index(min(loads))
            loads[worker] += job.num_bytes
            shares[worker].append(job)
        stems = (f"transfer_{n}_" for n in itertools.count())
        stem = next(stem for stem in stems if not any(name.startswith(stem) for name in taken))
        files = [self._folder / f"{stem}{worker}.distcp" for worker in range(self._num_workers)]
        with ThreadPoolExecutor(self._num_workers) as pool:
            tasks = [pool.submit(self._write_file, *pair) for pair in zip(files, shares, strict=True) if pair[1]]
            try:
                for task in as_completed(tasks):
                    task.result()
            except BaseException:
                self._stop.set()
                raise

    def _write_file(self, path: Path, jobs: Sequence[_Job]) -> None:
        with _EagerFile(path) as file:
            for job in jobs:
                start = file.tell()
                job.append(file)
                with self._lock:
                    self._places[job.name, job.offsets] = Item(path, start, file.tell() - start)
            flush(file)

    def _advance_by(self, num_bytes: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        with self._lock:
            self._advance(num_bytes)


def check_records(records: Sequence[Record], num_workers: int, advance: Callable[[int], None]) -> None:
    """Read records. Raises `NCAPluginError` if the bytes of one do not have the CRC-32 that they were saved with."""
    with ThreadPoolExecutor(num_workers) as pool:
        for num_bytes in pool.map(_check_some, _batches(records)):
            advance(num_bytes)


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Yield lists of records that together have the bytes of a block.

    Handing small records to a thread one by one would take longer than reading them.
    """
    batch: list[Record] = []
    num_bytes = 0
    for record in records:
        batch.append(record)
        num_bytes += record.size
        if num_bytes >= BLOCK_BYTES:
            yield batch
            batch, num_bytes = [], 0
    yield batch


def _check_some(records: Sequence[Record]) -> int:
    for record in records:
        check_record(record)
    return sum(record.size for record in records)


def why_no_link(files: Iterable[Path], folder: Path) -> str | None:
    """Return why one of the files cannot be linked into `folder`; None if all can."""
    probe = folder / "link"
    for file in files:
        try:
            os.link(file.resolve(), probe)
        except OSError as error:
            return f"no hard links from {file.resolve().parent}: {error.strerror or error}"
        probe.unlink()
    return None


def flush(file: io.BufferedWriter) -> None:
    """Wait until everything that was written is on the disk."""
    file.flush()
    os.fsync(file.fileno())
