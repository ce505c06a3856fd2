"""A corpus that is being written: killed at any moment, it is continued from its complete blocks.

Beside the final names stand PREFIX.bin.partial and PREFIX.next.partial, in which every block has its place from the
start, and PREFIX.journal. A block enters the journal, with the digests of its bytes, once these are on the disk. The
journal is held by a lock, so a prefix has one writer; it is removed last.
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
    """A block that stands in its place, perhaps not on the disk yet."""

    block: int
    bin_digest: str
    next_digest: str


@dataclass(frozen=True, slots=True)
class BlockWriter:
    """Writes blocks to their places in the partial files of a draft. Every process may have one.

    Attributes:
        files: descriptors of the .bin and the .next. They are handed on, never opened by name: what a process that
            outlives its parent writes must not end up in the files of the next run.
    """

    part: Shard
    files: tuple[int, int]

    def write(self, block: int, tokens: NDArray[Any], following: NDArray[Any]) -> WrittenBlock:
        """Write the documents of a block.

        Args:
            tokens: [documents, seq_length], of the corpus's type.
            following: [documents], the token after each document, which is its last target.
        """
        start = self.part.documents(block).start
        arrays = [np.ascontiguousarray(array, f"<{array.dtype.str[1:]}") for array in (tokens, following)]
        for file, array in zip(self.files, arrays, strict=True):
            _write(file, memoryview(array).cast("B"), start * array[0].nbytes)
        return WrittenBlock(block, *map(digest, arrays))

    def sync(self) -> None:
        """Return when all that was written, by any process, is on the disk."""
        for file in self.files:
            os.fdatasync(file)


class Draft:
    """The unfinished files of a corpus under `prefix`, held by this process while the context lasts.

    Attributes:
        manifest: of the finished corpus, None before.
        writer: for the blocks that are missing.
        missing: blocks that are still to be written, ascending.

    Raises:
        NCAPluginError: on entry, if the prefix has another writer, other content or too little room; within, if the
            disk fails or fills up.
    """

    def __init__(self, prefix: Path, part: Shard, origin: Origin, start_stage: StartStage) -> None:
        self._prefix = prefix
        self._part = part
        self._origin = origin
        self._start_stage = start_stage
        self._written: dict[int, WrittenBlock] = {}
        self._journal_path = _file(prefix, ".journal")
        self._identity = _identity(part, origin)
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
        return [block for block in range(self._part.num_blocks) if block not in self._written]

    def commit(self, blocks: Sequence[WrittenBlock]) -> None:
        """Make sure that `blocks`, which are written, outlast whatever happens."""
        lines = [f"{b.block} {b.bin_digest} {b.next_digest}\n" for b in blocks]
        with disk_errors(self._prefix):
            self.writer.sync()
            self._append("".join(lines))
        self._written.update((block.block, block) for block in blocks)

    def finish(self) -> Manifest:
        """Give the files their final names, now that no block is missing."""
        index = xxhash.xxh3_128()
        with disk_errors(self._prefix):
            with _partial(self._prefix, ".idx").open("wb") as file:
                for chunk in self._part.layout.chunks():
                    file.write(chunk)
                    index.update(chunk)
                file.flush()
                os.fsync(file.fileno())
            blocks = [self._written[block] for block in range(self._part.num_blocks)]
            self.manifest = Manifest(
                part=self._part,
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
                # Renamed already, if an earlier process came this far.
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
            check_same(self.manifest, self._part, str(self._prefix))
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
                    f"{finals[0]} is not what {self._journal_path} tells of: remove both to write the corpus anew"
                )
        else:
            # Without their journal they are nothing, and room that is needed.
            for suffix in _BLOCK_SUFFIXES:
                _partial(self._prefix, suffix).unlink(missing_ok=True)
        self._check_room()
        files = []
        for suffix in _BLOCK_SUFFIXES:
            files.append(os.open(self._location(suffix), os.O_WRONLY | os.O_CREAT, 0o666))
            stack.callback(os.close, files[-1])
            os.ftruncate(files[-1], self._part.sizes[suffix])
        self.writer = BlockWriter(self._part, (files[0], files[1]))
        if not lines:
            self._append(json.dumps(self._identity) + "\n")
        flush_path(self._prefix.parent)

    def _read_journal(self) -> list[str]:
        """Return the complete lines of the journal; what follows them, which a kill cut off, is removed."""
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
                f"{self._prefix} was begun with other settings ({', '.join(keys)} in {self._journal_path}): continue "
                f"as it was begun, or remove {self._journal_path} to begin anew"
            )

    def _check_blocks(self, lines: Sequence[str]) -> None:
        """Take the blocks of the journal as written that are found as it says."""
        block_tokens = self._part.spec.block_documents * self._part.spec.seq_length
        advance = self._start_stage("checking what is there", len(lines) * block_tokens)
        paths = [self._location(suffix) for suffix in _BLOCK_SUFFIXES]
        if not all(path.exists() for path in paths):
            return
        with paths[0].open("rb") as tokens, paths[1].open("rb") as following:
            for line in lines:
                match line.split():
                    case [text, bin_digest, next_digest] if text.isdecimal() and int(text) < self._part.num_blocks:
                        written = WrittenBlock(int(text), bin_digest, next_digest)
                        if written == self._digests(written.block, tokens, following):
                            self._written[written.block] = written
                advance(block_tokens)

    def _digests(self, block: int, *files: Any) -> WrittenBlock:
        documents = self._part.documents(block)
        found = []
        for file, suffix in zip(files, _BLOCK_SUFFIXES, strict=True):
            size = self._part.sizes[suffix] // self._part.num_documents
            file.seek(documents.start * size)
            found.append(digest(file.read(len(documents) * size)))
        return WrittenBlock(block, *found)

    def _check_room(self) -> None:
        sizes = self._part.sizes
        documents = sum(len(self._part.documents(block)) for block in self.missing)
        needed = documents * (sizes[".bin"] + sizes[".next"]) // self._part.num_documents + sizes[".idx"]
        way_out = "choose another --out, or write it in parts with --shard"
        check_space(self._prefix.parent, needed, str(self._prefix), way_out)

    def _location(self, suffix: str) -> Path:
        """Return where a file is: under its final name if an earlier process died while it renamed the files."""
        final = _file(self._prefix, suffix)
        return final if final.exists() else _partial(self._prefix, suffix)


@contextmanager
def disk_errors(prefix: Path) -> Iterator[None]:
    """Turn what the system says while `prefix` is written into an `NCAPluginError`."""
    try:
        yield
    except OSError as error:
        raise NCAPluginError(
            f"cannot write {prefix}: {error.strerror or error}; put that right and run the same command again, which "
            "keeps complete blocks"
        ) from error


def _identity(part: Shard, origin: Origin) -> dict[str, Any]:
    spec = part.spec
    return {
        "uri": spec.uri,
        "seq_length": spec.seq_length,
        "documents": [part.first_document, part.stop_document, spec.num_documents],
        **dataclasses.asdict(origin),
    }


@contextmanager
def locked(path: Path, prefix: str) -> Iterator[int]:
    """Yield a descriptor of the file `path`, made if need be, that no other process which writes `prefix` can have.

    Raises:
        NCAPluginError: another process has it, or the file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, path, prefix)
            # The process that held it may have finished, and removed it, in the meantime.
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
    """Write all of `data` at an offset: a disk that is nearly full may take a part of it first."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
