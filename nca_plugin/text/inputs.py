"""The files of text that names stand for: every one is found once, and what is none is refused."""

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
    """A file of text.

    Attributes:
        size: in bytes.
        is_named: whether it was named itself, rather than a folder that holds it.
    """

    path: Path
    size: int
    is_named: bool


def find_files(names: Sequence[str], pattern: str, exclude: Collection[str]) -> dict[str, list[TextFile]]:
    """Return the files that names of files and folders stand for, in order, by these names.

    Links are followed. In a folder a file that several links lead to is taken once, and so are the files of a folder.

    Args:
        pattern: of the files that are taken from a folder, such as `*.py`.
        exclude: names of files and folders in a folder that are left out.

    Raises:
        NCAPluginError: what does not exist or cannot be read; what is no file, such as a pipe or a broken link; a file
            that several names stand for.
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
    """Whether a name stands for a file or a folder, if only for a broken link."""
    # Unlike Path.exists, this takes a name that is too long for a file's.
    return os.path.lexists(name)


def did_you_mean(name: str) -> str:
    """Return the end of a message about a file that does not exist: with the nearest name in its folder, if any."""
    path = Path(name)
    try:
        names = os.listdir(path.parent)  # noqa: PTH208
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name, names, 1, 0.7)
    return f": did you mean '{path.with_name(near[0])}'?" if near else ""


def _walk(folder: Path, pattern: str, exclude: Collection[str]) -> dict[Path, Path]:
    """Return the files of a folder by their real paths, sorted by those that the folder gives them."""
    pattern = _checked_pattern(pattern)
    root = folder.resolve()
    found: dict[Path, Path] = {}
    seen: set[Path] = set()
    # A file has the name that it has without links, if there is one.
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
    """Return the status of a file or folder of text. Raises `NCAPluginError` for anything else."""
    try:
        status = path.stat()
    except OSError as error:
        if path.is_symlink():
            raise NCAPluginError(f"{path} is a broken link ({error.strerror}): mend it, or {_LEAVE_OUT}") from error
        raise NCAPluginError(f"input {path} cannot be read: {error.strerror}") from error
    if not stat.S_ISDIR(status.st_mode):
        _check_is_file(path, status.st_mode)
    return status


def _check_is_file(path: Path, mode: int) -> None:
    kind = _KINDS.get(stat.S_IFMT(mode))
    if kind:
        raise NCAPluginError(f"{path} is {kind}, not a file of text: {_LEAVE_OUT}, or write it to a file first")
