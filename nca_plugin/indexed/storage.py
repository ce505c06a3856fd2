"""Where corpora lie: folders of this machine, or any file system that fsspec has a driver for, such as s3://."""

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
#: Of a corpus of 10^13 tokens.
_MAX_MANIFEST_BYTES: Final = 1 << 30


def prefix_of(name: str) -> str:
    """Return the prefix that `name`, a prefix or one of its files, stands for.

    Raises:
        NCAPluginError: a folder, or a suffix without a name.
    """
    prefix = name.removeprefix("file://")
    suffix = next((suffix for suffix in SUFFIXES if prefix.endswith(suffix)), "")
    prefix = prefix.removesuffix(suffix)
    if prefix.rpartition("/")[2] in ("", ".", ".."):
        raise NCAPluginError(f"'{name}' names no corpus: a folder and a name are needed, such as corpora/web")
    return prefix


def output_prefix(name: str) -> str:
    """Return the prefix of the files to write that `name`, a prefix or one of its files, stands for.

    Raises:
        NCAPluginError: a folder, or a prefix in one that cannot be written to.
    """
    prefix = prefix_of(name)
    if not is_remote(prefix):
        check_folder(Path(prefix).parent)
        # Unlike Path.is_dir, this takes a name that is too long for a file's.
        if os.path.isdir(prefix):  # noqa: PTH112
            raise NCAPluginError(f"output {name} is a folder: name the files to write in it, such as {prefix}/text")
    return prefix


def local_output(name: str) -> Path:
    """Return what `output_prefix` does. Raises `NCAPluginError` also for a prefix elsewhere than on this machine."""
    prefix = output_prefix(name)
    if is_remote(prefix):
        raise NCAPluginError(f"output {name} is not on this machine: name a path, and copy its .bin and .idx")
    return Path(prefix)


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
    with read_errors(path):
        return cast(BinaryIO, fs.open(name, "rb"))


@contextmanager
def read_errors(path: str | Path) -> Iterator[None]:
    """Turn what the system, or a driver, says of a file that cannot be read into an `NCAPluginError`."""
    try:
        yield
    except NCAPluginError:
        raise
    except Exception as error:
        # Drivers raise errors of many classes, of which none is ours to handle.
        if not isinstance(error, OSError) and not is_remote(str(path)):
            raise
        raise NCAPluginError(f"cannot read {path}: {_reason(error)}") from error


def read_manifest(prefix: str) -> Manifest:
    """Return the manifest under `prefix`. Raises `NCAPluginError` if it is none or damaged."""
    name = prefix + ".json"
    with open_file(name) as file, read_errors(name):
        data = file.read(len(MANIFEST_START))
        # Another file may be larger than memory.
        if data == MANIFEST_START:
            data += file.read(_MAX_MANIFEST_BYTES)
    return Manifest.from_bytes(data, name)


def load_manifest(prefix: str) -> Manifest:
    """Return the manifest of the corpus under `prefix`, whose files are looked at but not read.

    Raises:
        NCAPluginError: a manifest that is missing or damaged, or a file of another size than it says.
    """
    name = prefix + ".json"
    if size_of(name) is None:
        raise NCAPluginError(f"{name} does not exist: {prefix} is no corpus that nca-plugin generate has finished")
    manifest = read_manifest(prefix)
    for fault in size_faults(prefix, manifest):
        raise NCAPluginError(f"{fault}: restore it, or remove all files of {prefix} and write them again")
    return manifest


def check_same(manifest: Manifest, part: Shard, prefix: str) -> None:
    """Raise `NCAPluginError` unless the corpus that lies under `prefix` is the one that is to be written there."""
    if manifest.part != part:
        raise NCAPluginError(f"{prefix}.json describes another corpus: choose another name, or remove its files")


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
    """Copy the files of a complete corpus to a remote prefix, the manifest last, unless they are there.

    A file has another name until it is complete: not every driver has transactions.

    Args:
        advance: called with the bytes of the .bin that are copied.
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
    # Only who asks for a remote path pays for the import.
    from fsspec.core import url_to_fs

    try:
        fs, name = url_to_fs(path)
    # Drivers may connect here, and raise whatever they do.
    except Exception as error:
        raise NCAPluginError(f"cannot open {path}: {_reason(error)}") from error
    return fs, name


def _remote[T](path: str, action: Callable[[], T]) -> T:
    """Return what `action` does to `path`."""
    try:
        return action()
    except Exception as error:
        raise NCAPluginError(f"cannot use {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return in one line what an error says."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
