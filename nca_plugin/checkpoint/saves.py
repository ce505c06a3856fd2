"""Finds what a killed Megatron run left in its save folder, and repairs the folder so that the run can resume.

Megatron writes an iteration's folder, `iter_0000300`, then empties the tracker file and writes the number into it. A
run that is killed in between leaves a folder that the tracker does not name yet, or a tracker that names nothing.
"""

import re
import shutil
from pathlib import Path
from typing import Final

from nca_plugin.checkpoint.opened import Checkpoint, read_checkpoint
from nca_plugin.checkpoint.tracker import RELEASE, TRACKER, folder_named, read_tracker
from nca_plugin.errors import NCAPluginError
from nca_plugin.files import complete_files

_ITERATION: Final = re.compile(r"iter_(\d{7,})")
#: The last file that Megatron writes into an iteration's folder.
_WRITTEN_LAST: Final = "metadata.json"


def newest_save(folder: Path) -> tuple[Checkpoint | None, str | None]:
    """Return the newest complete checkpoint; and, if the tracker file does not name it, what is wrong with that file.

    Raises:
        NCAPluginError: if the folder cannot be read.
    """
    iterations = _iterations(folder)
    try:
        text = read_tracker(folder)
    except OSError as error:
        raise NCAPluginError(f"save folder {folder} cannot be read: {error}") from error
    if text is None:
        damage = "is missing"
    else:
        name = folder_named(text)
        named = None if name is None or name == RELEASE else folder / name
        if named is not None and (checkpoint := _complete(named)) is not None:
            return checkpoint, None
        damage = "is empty" if not text else f"holds '{text}'" if named is None else f"names {named.name}"
        if named is not None:
            damage += ", which is not complete" if named.is_dir() else ", which is missing"
    for path in iterations:
        if (checkpoint := _complete(path)) is not None:
            return checkpoint, damage
    return None, None if damage == "is missing" else damage


def mend_saves(folder: Path, iteration: int | None, damage: str | None) -> list[str]:
    """Repair a save folder so that Megatron resumes from it, and return a line for each repair.

    Only one process may do this, while no run writes to the folder.

    Args:
        iteration: the iteration of the checkpoint that `newest_save` returns; None without one.
        damage: what `newest_save` says is wrong with the tracker file.

    Raises:
        NCAPluginError: if the folder cannot be written to.
    """
    done = []
    try:
        for path in _iterations(folder):
            number = int(path.name.removeprefix("iter_"))
            if number <= (iteration or 0):
                continue
            # The resumed run would write into this folder, whose files may be from other ranks. The start checkpoint of
            # the next stage may have links to them.
            if _complete(path) is None and not (path / _WRITTEN_LAST).exists():
                # The target of a symbolic link does not belong to this folder.
                path.unlink() if path.is_symlink() else shutil.rmtree(path)
                done.append(f"removed {path}, an unfinished save")
            else:
                kept = _free_name(path)
                path.rename(kept)
                done.append(f"renamed {path} to {kept.name}: the tracker file names an earlier iteration")
        if damage is not None:
            if iteration is None:
                (folder / TRACKER).unlink()
                done.append(f"removed {folder / TRACKER}, which {damage}: no complete checkpoint is there")
            else:
                with complete_files(folder / TRACKER) as (tracker,):
                    tracker.write_text(str(iteration))
                done.append(f"{folder / TRACKER} {damage}: now {iteration}, the newest complete checkpoint")
    except OSError as error:
        raise NCAPluginError(f"save folder {folder} cannot be written to: {error}") from error
    return done


def _iterations(folder: Path) -> list[Path]:
    """Return the folders of iterations, the latest iteration first."""
    try:
        found = [path for path in folder.iterdir() if _ITERATION.fullmatch(path.name) and path.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NCAPluginError(f"save folder {folder} cannot be read: {error}") from error
    return sorted(found, key=lambda path: int(path.name.removeprefix("iter_")), reverse=True)


def _complete(folder: Path) -> Checkpoint | None:
    """Return the checkpoint in an iteration's folder; None if it is incomplete, by the sizes of its files."""
    if not folder.is_dir():
        return None
    try:
        return read_checkpoint(folder)
    except NCAPluginError as error:
        # A disk that cannot be read now does not mean that the save is unfinished.
        if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
            raise
        return None


def _free_name(path: Path) -> Path:
    names = (path.with_name(f"replaced_{path.name}{suffix}") for suffix in ("", *(f"_{n}" for n in range(1, 1000))))
    return next(name for name in names if not name.exists())
