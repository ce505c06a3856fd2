"""Finding the text files that the inputs name: each file once, and an error for anything that is not a file."""

import difflib
import os
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Final

from nca_plugin.errors import NCAPluginError

_KINDS: Final = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_LEAVE_OUT: Final = "leave it out with --exclude or --pattern"


@dataclass(frozen=True, slots=True)
class TextFile:
    """A text file.

    Attributes:
        size: in bytes.
        is_named: whether the user named the file itself, rather than its folder.
    """

    path: Path
    size: int
    is_named: bool


def find_files(names: Sequence[str], pattern: str, exclude: Collection[str]) -> dict[str, list[TextFile]]:
    """Return the text files for each name of a file or folder, in order.

    Links are followed. A file that several links in a folder lead to is taken once, and so is a folder.

    Args:
        pattern: which files to take from a folder, such as `*.py`.
        exclude: names of files and folders in a folder to leave out.

    Raises:
        NCAPluginError: a file or folder is missing or cannot be read, is a pipe, a broken link or the like, or is named
            by several inputs.
    """
    found: dict[str, list[TextFile]] = {}
    known: dict[Path, str] = {}
    for name in names:
        path = Path(name)
        status = _status(path)
        files = _walk(path, pattern, exclude) if stat.S_ISDIR(status.st_mode) else {path.resolve(): path}
        of_name = found.setdefault(name, [])
        for real, file in files.items():
            if real in known:
                raise NCAPluginError(f"input {file} is in input {known[real]} too: name it once")
            known[real] = name
            of_name.append(TextFile(file, _status(file).st_size, is_named=file is path))
    return found


def exists(name: str) -> bool:
    """Whether a file, folder or link of this name exists, even a broken link."""
    # Path.exists would raise an error for a name that is too long; this returns False.
    return os.path.lexists(name)


def did_you_mean(name: str) -> str:
    """Return ": did you mean ...?" with the nearest name in the folder of a missing file, empty if none is near."""
    path = Path(name)
    try:
        names = os.listdir(path.parent)  # noqa: PTH208
    except (OSError, ValueError):
        return ""
    # `near_name` would suggest any file of the same ending.
    near = difflib.get_close_matches(path.name, names, 1, 0.7)
    return f": did you mean '{path.with_name(near[0])}'?" if near else ""


def _walk(folder: Path, pattern: str, exclude: Collection[str]) -> dict[Path, Path]:
    """Return the files in a folder by their real paths, sorted by their paths in the folder."""
    pattern = _checked_pattern(pattern)
    root = folder.resolve()
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    # Links come last, so that a file is found by a path without links if it has one.
    waiting, links = [(root, folder)], list[tuple[Path, Path]]()
    while waiting or links:
        real, place = waiting.pop() if waiting else links.pop(0)
        if real in seen:
            continue
        seen.add(real)
        for name, is_link in _entries(place):
            path = place / name
            if name in exclude:
                continue
            is_taken = path.relative_to(folder).match(pattern)
            try:
                mode = path.stat().st_mode
            except OSError:
                if is_taken:
                    _status(path)
                continue
            target = path.resolve() if is_link else real / name
            if stat.S_ISDIR(mode):
                if is_link and target != root and root.is_relative_to(target):
                    raise NCAPluginError(f"{path} is a link to a folder that holds {folder}: {_LEAVE_OUT}")
                (links if is_link else waiting).append((target, path))
            elif is_taken:
                _check_is_file(path, mode)
                found.setdefault(target, path)
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def _checked_pattern(pattern: str) -> str:
    ending = pattern.removeprefix("**/")
    if not ending or ending.startswith("/") or {"**", ".."} & set(PurePath(ending).parts):
        raise NCAPluginError(f"--pattern '{pattern}': must be the end of a file's path, such as '*.py' or 'docs/*.md'")
    return ending


def _entries(folder: Path) -> list[tuple[str, bool]]:
    """Return the names in a folder, and whether each is a link."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry.name, entry.is_symlink()) for entry in entries)
    except OSError as error:
        raise NCAPluginError(f"folder {folder} cannot be read: {error.strerror}; {_LEAVE_OUT}") from error


def _status(path: Path) -> os.stat_result:
    """Return the status of a text file or folder. Raises `NCAPluginError` for anything else."""
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink():
            raise NCAPluginError(f"{path} is a broken link ({error.strerror}): repair it, or {_LEAVE_OUT}") from error
        raise NCAPluginError(f"input {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        _check_is_file(path, status.st_mode)
    return status


def _check_is_file(path: Path, mode: int) -> None:
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind:
        raise NCAPluginError(f"{path} is {kind}, not a text file: {_LEAVE_OUT}, or write it to a file first")
