"""Checks of paths before long work, files and folders that get their names only when complete, and the one lock."""

import errno
import fcntl
import os
import shutil
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from nca_plugin.errors import NCAPluginError

#: The longest file name in bytes. File systems take 255, and `complete_files` adds a prefix to the name.
_LONGEST_NAME: Final = 255 - len(".partial.4194304.")


def check_target(target: Path) -> None:
    """Raise `NCAPluginError` if the file `target` cannot be written. Call it before long work."""
    check_folder(target.parent)
    if len(os.fsencode(target.name)) > _LONGEST_NAME:
        raise NCAPluginError(f"cannot write {target}: the name is too long; choose another output")
    # If the folder before `..` is missing, `isdir` does not recognise `..` as a folder.
    if os.path.isdir(target) or target.name == "..":  # noqa: PTH112
        raise NCAPluginError(f"cannot write {target}: it is a folder; name a file")


def path_option(text: str) -> Path:
    """Return the path that an option names. Use it as the `type` of an argparse argument.

    Raises:
        ArgumentTypeError: the text is empty, which `Path` would read as the current folder.
    """
    if not text:
        raise ArgumentTypeError("the value is empty: name a path")
    return Path(text)


def check_folder(folder: Path) -> None:
    """Raise `NCAPluginError` if files cannot be written to `folder`, which need not exist. Call it before long work."""
    try:
        folder.stat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise NCAPluginError(f"cannot write to {folder}: the name is too long; choose another output") from error
    # A broken link counts as existing: no folder can be made in its place.
    nearest = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise NCAPluginError(f"cannot write to {folder}: {nearest} is not a folder; choose another output")
    if not os.access(nearest, os.W_OK):
        raise NCAPluginError(f"cannot write to {folder}: {nearest} is read-only for this user; choose another output")
    # The system refuses `..` after a missing folder; making that folder would leave an empty one behind.
    for path in (folder, *folder.parents):
        if path.name == ".." and not os.path.lexists(path.parent):
            raise NCAPluginError(
                f"cannot write to {folder}: {path.parent} does not exist, so `..` after it is invalid; write "
                "the path without `..`"
            )


def read_lines(path: Path, option: str) -> list[str]:
    """Return the lines of a text file that an option names. Raises `NCAPluginError` if it cannot be read as text."""
    try:
        # Reading a pipe or a device might never end.
        if path.exists() and not path.is_file():
            raise NCAPluginError(f"{option} {path} is not a file")
        return path.read_text("utf-8").splitlines()
    except OSError as error:
        raise NCAPluginError(f"{option} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise NCAPluginError(f"{option} {path} is not UTF-8 text") from error


def check_outside(target: Path, *sources: Path) -> None:
    """Raise `NCAPluginError` if an output lies inside a folder that is only read, or inside one that it links to.

    Sources that do not exist are skipped; reading them gives the error.
    """
    real = Path(os.path.realpath(target))
    for folder in sources:
        if real.is_relative_to(os.path.realpath(folder)) and folder.exists():
            raise NCAPluginError(f"output {target} lies within {folder}, which is only read: choose another place")
        for linked, link in _linked_folders(folder):
            if real.is_relative_to(linked):
                raise NCAPluginError(
                    f"output {target} lies within {linked}, which is only read because {link} links to it: choose "
                    "another place"
                )


def _linked_folders(source: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the folders outside `source` that links in it lead to, each with its link.

    A folder that holds `source` itself is skipped, because other things may lie there.
    """
    root = Path(os.path.realpath(source))
    # os.walk skips folders that cannot be listed; reading them later gives the error.
    for place, folders, _ in os.walk(root):
        for link in (Path(place, name) for name in folders):
            linked = Path(os.path.realpath(link))
            if link.is_symlink() and not linked.is_relative_to(root) and not root.is_relative_to(linked):
                yield linked, link


def check_space(folder: Path, num_bytes: int, what: str, way_out: str) -> None:
    """Raise `NCAPluginError` if the disk of `folder`, which need not exist, has less than `num_bytes` free.

    Args:
        what: what is to be written, for the message.
        way_out: what the user can do other than make room.
    """
    free = shutil.disk_usage(_nearest(folder)).free
    if num_bytes > free:
        raise NCAPluginError(
            f"{what} needs {described_size(num_bytes)} more, {folder} has {described_size(free)} free: make room, or "
            f"{way_out}"
        )


def described_size(num_bytes: float) -> str:
    """Return a number of bytes with three digits: 999 B, 4.1 kB, 12.5 GB."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while num_bytes >= 999.5 and (larger := next(units, None)):
        num_bytes, unit = num_bytes / 1000, larger
    return f"{num_bytes:.3g} {unit}" if num_bytes < 999.5 else f"{num_bytes:,.0f} {unit}"


def _nearest(folder: Path) -> Path:
    """Return `folder` if it exists, else the nearest parent that does."""
    # Path.exists would raise an error for a folder that this user may not look into; this returns False.
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110


def flush_path(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def complete_files(*targets: Path) -> Iterator[list[Path]]:
    """Yield an empty file beside each target. Without an error each is flushed and renamed to its target.

    The block writes and closes the files. A target that exists is replaced. After an error the files are removed.

    Raises:
        NCAPluginError: a folder cannot be made or written to.
    """
    partials: list[Path] = []
    try:
        for target in targets:
            partial = target.with_name(f".partial.{os.getpid()}.{target.name}")
            try:
                partial.parent.mkdir(parents=True, exist_ok=True)
                partial.touch()
            except OSError as error:
                raise NCAPluginError(
                    f"cannot write {partial.parent}: {error.strerror or error}; choose another output"
                ) from error
            partials.append(partial)
        yield partials
        for partial in partials:
            flush_path(partial)
        for partial, target in zip(partials, targets, strict=True):
            partial.rename(target)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)


def try_lock(file: int | IO[Any]) -> bool:
    """Lock an open file or folder for this process until it is closed.

    Callers lock the output itself, or a file in it, so that no lock file is left beside an output.

    Returns:
        False if another process holds the lock.

    Raises:
        OSError: the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_absent(target: Path) -> None:
    """Raise `NCAPluginError` if there is anything at `target`."""
    # Path.exists would raise an error for a name that is too long. The path `missing/..` exists only for the user.
    if os.path.lexists(target) or target.name == "..":
        raise NCAPluginError(f"output {target} exists already: choose another name, or remove it")


@contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; it is flushed to disk and renamed at the end, or removed after an error.

    Files that a killed process left in it are removed first. Files ending in `.distcp` or `.safetensors` are not
    flushed here, because their writers flush them.

    Raises:
        NCAPluginError: another process writes the same target.
        OSError: a file cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not try_lock(descriptor):
            raise NCAPluginError(f"output {target} is being written by another process")
        # The process that held the lock may have renamed or removed the folder before this one got the lock.
        if not partial.exists() or os.fstat(descriptor).st_ino != partial.stat().st_ino:
            raise NCAPluginError(f"output {target} was being written by another process: try again")
        for left in partial.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield partial
            _flush_tree(partial)
            partial.rename(target)
            flush_path(target.parent)
        finally:
            if partial.exists():
                shutil.rmtree(partial)
    finally:
        os.close(descriptor)


def _flush_tree(folder: Path) -> None:
    """Have the disk hold the files of a folder and their names."""
    for parent, _, files in os.walk(folder):
        # Data files were flushed when they were written, and linked ones are not ours to flush.
        small = [Path(parent, name) for name in files if not name.endswith((".distcp", ".safetensors"))]
        for path in (*small, Path(parent)):
            flush_path(path)
