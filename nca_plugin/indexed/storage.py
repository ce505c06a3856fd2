"""Where datasets are stored: in local folders, or in any file system that fsspec has a driver for, such as s3://."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from nca_plugin.errors import NCAPluginError
from nca_plugin.files import check_folder
from nca_plugin.indexed.manifest import MANIFEST_START, SUFFIXES, Manifest, Shard

_READ_BYTES: Final = 1 << 23
#: The size of the manifest of a dataset of 10^13 tokens.
_MAX_MANIFEST_BYTES: Final = 1 << 30


def prefix_of(name: str) -> str:
    """Return the prefix of a dataset, given by its prefix or by one of its files.

    Raises:
        NCAPluginError: `name` is a folder, or a suffix without a name.
    """
    prefix = name.removeprefix("file://")
    suffix = next((suffix for suffix in SUFFIXES if prefix.endswith(suffix)), "")
    prefix = prefix.removesuffix(suffix)
    if prefix.rpartition("/")[2] in ("", ".", ".."):
        raise NCAPluginError(f"'{name}' is not a prefix for files: give a folder and a name, such as datasets/web")
    return prefix


def output_prefix(name: str) -> str:
    """Return the prefix of the files to write, given by the prefix or by one of the files.

    Raises:
        NCAPluginError: `name` is a folder, or the folder cannot be written to.
    """
    prefix = prefix_of(name)
    if not is_remote(prefix):
        check_folder(Path(prefix).parent)
        # Path.is_dir would raise an error for a name that is too long; this returns False.
        if os.path.isdir(prefix):  # noqa: PTH112
            raise NCAPluginError(f"output {name} is a folder: name the files to write in it, such as {prefix}/text")
    return prefix


def local_output(name: str) -> Path:
    """Return what `output_prefix` returns. Raises `NCAPluginError` also for a prefix that is not on this machine."""
    prefix = output_prefix(name)
    if is_remote(prefix):
        raise NCAPluginError(f"output {name} is not on this machine: name a path, and copy its .bin and .idx")
    return Path(prefix)


def is_remote(path: str) -> bool:
    """Whether `path` is a URL that fsspec opens."""
    return "://" in path


def size_of(path: str) -> int | None:
    """Return the size of a file in bytes, None if it does not exist."""
    if not is_remote(path):
        return os.stat(path).st_size if os.path.isfile(path) else None  # noqa: PTH116, PTH113
    fs, name = _file_system(path)
    return _remote(path, lambda: int(fs.size(name)) if fs.isfile(name) else None)


def open_file(path: str) -> BinaryIO:
    """Open a file for reading. Raises `NCAPluginError` if that fails."""
    if not is_remote(path):
        with read_errors(path):
            return Path(path).open("rb")
    fs, name = _file_system(path)
    with read_errors(path):
        return cast(BinaryIO, fs.open(name, "rb"))


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Turn an error of the system or of a driver while `path` is read into an `NCAPluginError`."""
    try:
        yield
    except NCAPluginError:
        raise
    except Exception as error:
        # Drivers raise errors of many classes.
        if not isinstance(error, OSError) and not is_remote(str(path)):
            raise
        raise NCAPluginError(f"cannot read {path}: {_reason(error)}") from error


def read_manifest(prefix: str) -> Manifest:
    """Return the manifest under `prefix`. Raises `NCAPluginError` if the file is not a manifest or is damaged."""
    name = prefix + ".json"
    with open_file(name) as file, read_errors(name):
        data = file.read(len(MANIFEST_START))
        # The rest is read only if this is a manifest: another file may be larger than memory.
        if data == MANIFEST_START:
            data += file.read(_MAX_MANIFEST_BYTES)
    return Manifest.from_bytes(data, name)


def load_manifest(prefix: str) -> Manifest:
    """Return the manifest of the dataset under `prefix`, after checking the sizes of its files.

    Raises:
        NCAPluginError: the manifest is missing or damaged, or a file is missing or has a wrong size.
    """
    name = prefix + ".json"
    if size_of(name) is None:
        raise NCAPluginError(f"{name} does not exist: {prefix} is not a dataset that nca-plugin generate has completed")
    manifest = read_manifest(prefix)
    for fault in size_faults(prefix, manifest):
        raise NCAPluginError(f"{fault}: restore it, or remove all files of {prefix} and write them again")
    return manifest


def check_same(manifest: Manifest, shard: Shard, prefix: str) -> None:
    """Raise `NCAPluginError` unless the dataset under `prefix` is the one that is to be written there."""
    if manifest.shard != shard:
        raise NCAPluginError(f"{prefix}.json describes another dataset: choose another name, or remove its files")


def size_faults(prefix: str, manifest: Manifest) -> Iterator[str]:
    """Yield a message for each file that is missing or has another size than the manifest says."""
    for suffix, expected in manifest.shard.sizes.items():
        found = size_of(prefix + suffix)
        if found is None:
            yield f"{prefix}{suffix} does not exist"
        elif found != expected:
            yield f"{prefix}{suffix} has {found:,} bytes, not {expected:,}"


def names_after(prefix: str) -> list[str]:
    """Return what follows `prefix` in the names of the files that begin with it."""
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
    """Return the local prefix where a dataset for a remote prefix is written first. It depends on `prefix` alone.

    Raises:
        NCAPluginError: the folder for it cannot be used or belongs to another user.
    """
    user_folder = Path(tempfile.gettempdir()) / f"nca-plugin-{os.getuid()}"
    try:
        user_folder.mkdir(mode=0o700, exist_ok=True)
        is_own = user_folder.stat().st_uid == os.getuid()
    except OSError:
        is_own = False
    if not is_own:
        raise NCAPluginError(
            f"{user_folder} cannot be used or belongs to another user: set TMPDIR to a folder of your own"
        )
    name = hashlib.blake2b(prefix.encode(), digest_size=8).hexdigest()
    return user_folder / name / prefix.rpartition("/")[2]


def upload(staged: Path, prefix: str, advance: Callable[[int], None]) -> None:
    """Copy the files of a complete dataset to a remote prefix, the manifest last. Files that are there are skipped.

    Each file has the suffix .partial until it is complete, because not every driver has transactions.

    Args:
        advance: called with the number of bytes of the .bin that were copied.
    """
    fs, name = _file_system(prefix)

    def copy() -> None:
        fs.makedirs(fs._parent(name), exist_ok=True)
        for suffix in SUFFIXES:
            target = name + suffix
            if size_of(prefix + suffix) == size_of(f"{staged}{suffix}"):
                continue
            with Path(f"{staged}{suffix}").open("rb") as source, fs.open(target + ".partial", "wb") as partial:
                while piece := source.read(_READ_BYTES):
                    partial.write(piece)
                    if suffix == ".bin":
                        advance(len(piece))
            fs.mv(target + ".partial", target)

    _remote(prefix, copy)


def _file_system(path: str) -> tuple[Any, str]:
    # Imported here, because only remote paths need it.
    from fsspec.core import url_to_fs

    try:
        fs, name = url_to_fs(path)
    # A driver may connect here and raise any error.
    except Exception as error:
        raise NCAPluginError(f"cannot open {path}: {_reason(error)}") from error
    return fs, name


def _remote[T](path: str, action: Callable[[], T]) -> T:
    """Return what `action` returns, and turn its errors into an `NCAPluginError` that names `path`."""
    try:
        return action()
    except Exception as error:
        raise NCAPluginError(f"cannot use {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the message of an error in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
