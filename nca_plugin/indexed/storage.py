"""Where corpora lie: folders of this machine, or any file system that fsspec has a driver for, such as s3://."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    if not is_remote(path):
        with read_errors(path):
            return Path(path).open("rb")
    fs, name = _file_system(path)
    return cast(BinaryIO, _remote(path, lambda: fs.open(name, "rb")))


def read_file(path: str) -> bytes:
    """Return the content of a file. Raises `NCAPluginError` if that is impossible."""
    with read_errors(path), open_file(path) as file:
        return file.read()


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into an `NCAPluginError`."""
    try:
        yield
    except OSError as error:
        raise NCAPluginError(f"cannot read {path}: {error.strerror or error}") from error


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


def names_after(prefix: str) -> list[str]:
    """Return how the names of the files go on that begin with `prefix`."""
    if not is_remote(prefix):
        folder = Path(prefix).parent
        with read_errors(folder):
            names = [found.name for found in folder.iterdir()] if folder.is_dir() else []
    else:
        fs, name = _file_system(prefix)
        paths = _remote(prefix, lambda: fs.ls(fs._parent(name), detail=False) if fs.isdir(fs._parent(name)) else [])
        names = [found.rpartition("/")[2] for found in paths]
    start = prefix.rpartition("/")[2]
    return sorted(name.removeprefix(start) for name in names if name.startswith(start))


def staging_prefix(prefix: str) -> Path:
    """Return where a corpus for a remote prefix is written first: the same place for the same prefix.

    Raises:
        NCAPluginError: a folder of this name that is another user's.
    """
    user_folder = Path(tempfile.gettempdir()) / f"nca-plugin-{os.getuid()}"
    try:
        user_folder.mkdir(mode=0o700, exist_ok=True)
        is_own = user_folder.stat().st_uid == os.getuid()
    except OSError:
        is_own = False
    if not is_own:
        raise NCAPluginError(f"{user_folder} cannot be used or is another user's: set TMPDIR to a folder of your own")
    name = hashlib.blake2b(prefix.encode(), digest_size=8).hexdigest()
    return user_folder / name / prefix.rpartition("/")[2]


def upload(staged: Path, prefix: str, advance: Callable[[int], None]) -> None:
    """Copy the files of a complete corpus to a remote prefix, the manifest last.

    Args:
        advance: called with the bytes of the .bin that are copied.
    """
    fs, name = _file_system(prefix)

    def copy() -> None:
        fs.makedirs(fs._parent(name), exist_ok=True)
        for suffix in SUFFIXES:
            # A file of a transaction appears when it is complete.
            with fs.transaction, Path(f"{staged}{suffix}").open("rb") as source, fs.open(name + suffix, "wb") as target:
                while piece := source.read(_READ_BYTES):
                    target.write(piece)
                    if suffix == ".bin":
                        advance(len(piece))

    _remote(prefix, copy)


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
