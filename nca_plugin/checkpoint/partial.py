"""Folders that appear under their final names only when they are complete."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nca_plugin.errors import NCAPluginError
from nca_plugin.files import flush_path


def check_absent(target: Path) -> None:
    """Raise `NCAPluginError` if there is anything at `target`."""
    # Unlike Path.exists, this takes a name that is too long for one that is not there. Of a missing folder `..` is one
    # that is there.
    if os.path.lexists(target) or target.name == "..":
        raise NCAPluginError(f"output {target} exists already: choose another name, or remove it")


@contextlib.contextmanager
def complete_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`; without an error it is flushed to disk and renamed, else removed.

    What an earlier process that was killed left there is removed; what another process is writing is not. Files whose
    names end on `.distcp` or `.safetensors` are for the block to flush.

    Raises:
        NCAPluginError: another process writes the same target.
        OSError: a file cannot be written.
    """
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NCAPluginError(f"output {target} is being written by another process") from None
        # The process that held it may have renamed, or removed, it in the meantime.
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
