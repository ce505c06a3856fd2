"""A dataset while it is being written. If the writer is killed, the next one continues from the complete blocks.

Until the dataset is complete there are PREFIX.bin.partial and PREFIX.next.partial, which have their full length from
the start, and PREFIX.journal. A block is entered in the journal, with the digests of its bytes, once these are on the
disk. A lock on the journal lets only one process write a prefix. The journal is removed last.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray

from nca_plugin.display.progress import StartStage
from nca_plugin.errors import NCAPluginError
from nca_plugin.files import check_folder, check_space, flush_path, try_lock
from nca_plugin.indexed.manifest import SUFFIXES, Manifest, Origin, Shard, digest
from nca_plugin.indexed.storage import check_same, load_manifest

#: Files that are written block by block.
_BLOCK_SUFFIXES = (".bin", ".next")
_READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class WrittenBlock:
    """A block whose bytes were written to the partial files. They may not be on the disk yet."""

    block: int
    bin_digest: str
    next_digest: str


@dataclass(frozen=True, slots=True)
class BlockWriter:
    """Writes blocks to their places in the partial files of a draft. Several processes may each have one.

    Attributes:
        files: descriptors of the .bin and the .next. A worker gets them from its parent and never opens the files by
            name: if it outlives its parent, it cannot write to the files of the next run.
    """

    shard: Shard
    files: tuple[int, int]

    def write(self, block: int, tokens: NDArray[Any], following: NDArray[Any]) -> WrittenBlock:
        """Write the documents of a block.

        Args:
            tokens: [documents, seq_length], of the dataset's dtype.
            following: [documents], the token after each document, which is its last target.
        """
        start = self.shard.documents(block).start
        arrays = [np.ascontiguousarray(array, f"<{array.dtype.str[1:]}") for array in (tokens, following)]
        for file, array in zip(self.files, arrays, strict=True):
            _write(file, memoryview(array).cast("B"), start * array[0].nbytes)
        return WrittenBlock(block, *map(digest, arrays))

    def sync(self) -> None:
        """Wait until everything that any process wrote is on the disk."""
        for file in self.files:
            os.fdatasync(file)


class Draft:
    """The unfinished files of a dataset under `prefix`, which this process holds while the context lasts.

    Attributes:
        manifest: the manifest of the finished dataset, None before that.
        writer: writes the missing blocks.
        missing: the blocks that are still to be written, ascending.

    Raises:
        NCAPluginError: on entry, if another process writes the prefix, it holds other content, or the disk has too
            little space; within, if writing fails.
    """

    def __init__(self, prefix: Path, shard: Shard, origin: Origin, start_stage: StartStage) -> None:
        self._prefix = prefix
        self._shard = shard
        self._origin = origin
        self._start_stage = start_stage
        self._written: dict[int, WrittenBlock] = {}
        self._journal_path = _file(prefix, ".journal")
        self._identity = _identity(shard, origin)
        self.manifest: Manifest | None = None

    def __enter__(self) -> Self:
        check_folder(self._prefix.parent)
        with disk_errors(self._prefix), ExitStack() as stack:
            self._prefix.parent.mkdir(parents=True, exist_ok=True)
            self._journal = stack.enter_context(locked(self._journal_path, str(self._prefix)))
            try:
                self._open(stack)
            except BaseException:
                if not os.fstat(self._journal).st_size:
                    self._journal_path.unlink()
                raise
            self._open_files = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    @property
    def missing(self) -> list[int]:
        return [block for block in range(self._shard.num_blocks) if block not in self._written]

    def commit(self, blocks: Sequence[WrittenBlock]) -> None:
        """Flush `blocks`, which were written, to the disk and enter them in the journal."""
        lines = [f"{b.block} {b.bin_digest} {b.next_digest}\n" for b in blocks]
        with disk_errors(self._prefix):
            self.writer.sync()
            self._append("".join(lines))
        self._written.update((block.block, block) for block in blocks)

    def finish(self) -> Manifest:
        """Write the .idx and the manifest and give all files their final names. No block may be missing."""
        index = xxhash.xxh3_128()
        with disk_errors(self._prefix):
            with _partial(self._prefix, ".idx").open("wb") as file:
                for chunk in self._shard.layout.chunks():
                    file.write(chunk)
                    index.update(chunk)
                file.flush()
                os.fsync(file.fileno())
            blocks = [self._written[block] for block in range(self._shard.num_blocks)]
            self.manifest = Manifest(
                shard=self._shard,
                origin=self._origin,
                bin_digests=tuple(block.bin_digest for block in blocks),
                next_digests=tuple(block.next_digest for block in blocks),
                idx_digest=index.hexdigest(),
            )
            with _partial(self._prefix, ".json").open("wb") as file:
                file.write(self.manifest.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            for suffix in SUFFIXES:
                # An earlier process may have been killed after it renamed this one.
                if _partial(self._prefix, suffix).exists():
                    _partial(self._prefix, suffix).rename(_file(self._prefix, suffix))
                flush_path(self._prefix.parent)
            self._journal_path.unlink()
        return self.manifest

    def _open(self, stack: ExitStack) -> None:
        finals = [path for suffix in SUFFIXES if (path := _file(self._prefix, suffix)).exists()]
        manifest_path = _file(self._prefix, ".json")
        if manifest_path in finals:
            self.manifest = load_manifest(str(self._prefix))
            check_same(self.manifest, self._shard, str(self._prefix))
            self._journal_path.unlink()
            return
        lines = self._read_journal()
        if not lines and finals:
            raise NCAPluginError(f"output {finals[0]} exists already: choose another name, or remove it")
        if lines:
            self._check_identity(lines[0])
            self._check_blocks(lines[1:])
            if self.missing and finals:
                raise NCAPluginError(
                    f"{finals[0]} does not belong to {self._journal_path}: remove both to write the dataset anew"
                )
        else:
            # Without a journal nobody knows which blocks are complete, and the files take up space.
            for suffix in _BLOCK_SUFFIXES:
                _partial(self._prefix, suffix).unlink(missing_ok=True)
        self._check_room()
        files = []
        for suffix in _BLOCK_SUFFIXES:
            files.append(os.open(self._location(suffix), os.O_WRONLY | os.O_CREAT, 0o666))
            stack.callback(os.close, files[-1])
            os.ftruncate(files[-1], self._shard.sizes[suffix])
        self.writer = BlockWriter(self._shard, (files[0], files[1]))
        if not lines:
            self._append(json.dumps(self._identity) + "\n")
        flush_path(self._prefix.parent)

    def _read_journal(self) -> list[str]:
        """Return the complete lines of the journal, and cut off a last line that a kill left unfinished."""
        content = b""
        while piece := os.read(self._journal, _READ_BYTES):
            content += piece
        lines = content[: content.rfind(b"\n") + 1]
        os.ftruncate(self._journal, len(lines))
        return lines.decode(errors="replace").splitlines()

    def _append(self, text: str) -> None:
        _write(self._journal, memoryview(text.encode()), os.fstat(self._journal).st_size)
        os.fdatasync(self._journal)

    def _check_identity(self, line: str) -> None:
        try:
            begun: Any = json.loads(line)
        except ValueError:
            begun = None
        if begun != self._identity:
            known = begun if isinstance(begun, dict) else {}
            keys = [key for key, value in self._identity.items() if known.get(key) != value]
            raise NCAPluginError(
                f"{self._prefix} was begun with other settings ({', '.join(keys)} in {self._journal_path}): use those "
                f"settings to continue, or remove {self._journal_path} to begin anew"
            )

    def _check_blocks(self, lines: Sequence[str]) -> None:
        """Take as written the blocks whose bytes have the digests that the journal gives."""
        block_tokens = self._shard.spec.block_documents * self._shard.spec.seq_length
        advance = self._start_stage("checking what is there", len(lines) * block_tokens)
        paths = [self._location(suffix) for suffix in _BLOCK_SUFFIXES]
        if not all(path.exists() for path in paths):
            return
        with paths[0].open("rb") as tokens, paths[1].open("rb") as following:
            for line in lines:
                match line.split():
                    case [text, bin_digest, next_digest] if text.isdecimal() and int(text) < self._shard.num_blocks:
                        written = WrittenBlock(int(text), bin_digest, next_digest)
                        if written == self._digests(written.block, tokens, following):
                            self._written[written.block] = written
                advance(block_tokens)

    def _digests(self, block: int, *files: Any) -> WrittenBlock:
        documents = self._shard.documents(block)
        found = []
        for file, suffix in zip(files, _BLOCK_SUFFIXES, strict=True):
            size = self._shard.sizes[suffix] // self._shard.num_documents
            file.seek(documents.start * size)
            found.append(digest(file.read(len(documents) * size)))
        return WrittenBlock(block, *found)

    def _check_room(self) -> None:
        sizes = self._shard.sizes
        documents = sum(len(self._shard.documents(block)) for block in self.missing)
        needed = documents * (sizes[".bin"] + sizes[".next"]) // self._shard.num_documents + sizes[".idx"]
        way_out = "choose another --out, or write it in parts with --shard"
        check_space(self._prefix.parent, needed, str(self._prefix), way_out)

    def _location(self, suffix: str) -> Path:
        """Return the path of a file, which has its final name if an earlier process was killed while renaming."""
        final = _file(self._prefix, suffix)
        return final if final.exists() else _partial(self._prefix, suffix)


@contextmanager
def disk_errors(prefix: Path) -> Iterator[None]:
    """Turn an `OSError` while `prefix` is written into an `NCAPluginError`."""
    try:
        yield
    except OSError as error:
        raise NCAPluginError(
            f"cannot write {prefix}: {error.strerror or error}; put that right and run the same command again, which "
            "keeps complete blocks"
        ) from error


def _identity(shard: Shard, origin: Origin) -> dict[str, Any]:
    spec = shard.spec
    return {
        "uri": spec.uri,
        "seq_length": spec.seq_length,
        "documents": [shard.first_document, shard.stop_document, spec.num_documents],
        **dataclasses.asdict(origin),
    }


@contextmanager
def locked(path: Path, prefix: str) -> Iterator[int]:
    """Create the file `path` if need be, lock it, and yield its descriptor.

    Raises:
        NCAPluginError: another process that writes `prefix` holds the lock, or the file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path, prefix)
            # The process that held the lock may have finished meanwhile and removed the file.
            if _is_at(descriptor, path):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, path: Path, prefix: str) -> None:
    try:
        if not try_lock(descriptor):
            raise NCAPluginError(f"{prefix} is being written by another process: wait for it, or choose another --out")
    except OSError as error:
        raise NCAPluginError(
            f"{path.parent} is on a file system without locks ({error.strerror}): write elsewhere and copy"
        ) from error


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _file(prefix: Path, suffix: str) -> Path:
    return prefix.with_name(prefix.name + suffix)


def _partial(prefix: Path, suffix: str) -> Path:
    return _file(prefix, suffix + ".partial")


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of `data` at an offset. On a disk that is nearly full, one call may write only a part."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
