"""Where corpora lie: folders of this machine, or any file system that fsspec has a driver for, such as s3://."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.manifest import SUFFIXES, Manifest

_READ_BYTES: Final = 1 << 23


def prefix_of(name: str) -> str:
    """Return the prefix that `name`, a prefix or one of its files, stands for.

    Raises:
        NCAPluginError: a folder, which is no prefix.
    """
    prefix = name.removeprefix("file://")
    if not prefix or prefix.endswith("/"):
        raise NCAPluginError(f"'{name}' names a folder: add the name of the corpus, such as {name}corpus")
    for suffix in SUFFIXES:
        prefix = prefix.removesuffix(suffix)
    return prefix


def is_remote(path: str) -> bool:
    """Whether `path` is for fsspec to open."""
    return "://" in path


def size_of(path: str) -> int | None:
    """Return the bytes of a file, None if there is none."""
    if not is_remote(path):
        return os.stat(path).st_size if os.path.isfile(path) else None  # noqa: PTH116, PTH113
    fs, name = _file_system(path)
    return _remote(path, lambda: int(fs.size(name)) if fs.isfile(name) else None)


def open_file(path: str) -> BinaryIO:
    """Open a file to read. Raises `NCAPluginError` if that is impossible."""
    try:
        if not is_remote(path):
            return Path(path).open("rb")
    except OSError as error:
        raise NCAPluginError(f"cannot read {path}: {error.strerror}") from error
    fs, name = _file_system(path)
    return cast(BinaryIO, _remote(path, lambda: fs.open(name, "rb")))


def read_file(path: str) -> bytes:
    """Return the content of a file. Raises `NCAPluginError` if that is impossible."""
    with open_file(path) as file:
        return file.read()


def load_manifest(prefix: str) -> Manifest:
    """Return the manifest of the corpus under `prefix`, whose files are looked at but not read.

    Raises:
        NCAPluginError: a manifest that is missing or damaged, or a file of another size than it says.
    """
    name = prefix + ".json"
    if size_of(name) is None:
        raise NCAPluginError(f"{name} does not exist: {prefix} is no corpus that nca-plugin generate has finished")
    manifest = Manifest.from_bytes(read_file(name), name)
    for fault in size_faults(prefix, manifest):
        raise NCAPluginError(f"{fault}: restore it, or write the corpus again")
    return manifest


def size_faults(prefix: str, manifest: Manifest) -> Iterator[str]:
    """Yield what is wrong with the existence and the sizes of the files beside a manifest."""
    for suffix, expected in manifest.part.sizes.items():
        found = size_of(prefix + suffix)
        if found is None:
            yield f"{prefix}{suffix} does not exist"
        elif found != expected:
            yield f"{prefix}{suffix} has {found:,} bytes, must have {expected:,}"


def find(pattern: str) -> list[str]:
    """Return the files whose names match a pattern of `*` and `?`."""
    if not is_remote(pattern):
        path = Path(pattern)
        return sorted(map(str, path.parent.glob(path.name)))
    fs, name = _file_system(pattern)
    return _remote(pattern, lambda: sorted(fs.unstrip_protocol(found) for found in fs.glob(name)))


def staging_prefix(prefix: str) -> Path:
    """Return where a corpus for a remote prefix is written first: the same place for the same prefix."""
    name = hashlib.blake2b(prefix.encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"nca-plugin-{os.getuid()}" / name / prefix.rpartition("/")[2]


def upload(staged: Path, prefix: str, advance: Callable[[int], None]) -> None:
    """Copy the files of a complete corpus to a remote prefix, the manifest last, and remove them here."""
    fs, name = _file_system(prefix)

    def copy() -> None:
        fs.makedirs(fs._parent(name), exist_ok=True)
        for suffix in SUFFIXES:
            # A file of a transaction appears when it is complete.
            with fs.transaction, Path(f"{staged}{suffix}").open("rb") as source, fs.open(name + suffix, "wb") as target:
                while piece := source.read(_READ_BYTES):
                    target.write(piece)
                    advance(len(piece))

    _remote(prefix, copy)
    shutil.rmtree(staged.parent)


def _file_system(path: str) -> tuple[Any, str]:
    # Only who asks for a remote path pays for the import.
    from fsspec.core import url_to_fs

    try:
        fs, name = url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise NCAPluginError(f"cannot open {path}: {' '.join(str(error).split())}") from error
    return fs, name


def _remote[T](path: str, action: Callable[[], T]) -> T:
    """Return what `action` does. Drivers raise errors of many classes, of which none is ours to handle."""
    try:
        return action()
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NCAPluginError(f"cannot use {path}: {reason}") from error
