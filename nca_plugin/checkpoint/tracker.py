"""The file of a save folder that names its latest checkpoint."""

import re
import time
from pathlib import Path
from typing import Final

TRACKER: Final = "latest_checkpointed_iteration.txt"
RELEASE: Final = "release"
#: Seconds between two looks at a file that a run may be writing at this moment: about one in all.
_PAUSES: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
_MOST_BYTES: Final = 100


def read_tracker(folder: Path) -> str | None:
    """Return what the tracker file of a save folder holds, without space around it; None if there is no such file.

    A run that saves empties the file and writes it anew. So what names no folder that is there is asked for again,
    for about a second, before it is believed.

    Raises:
        OSError: the file cannot be read.
    """
    for pause in (*_PAUSES, None):
        try:
            with (folder / TRACKER).open("rb") as file:
                # Megatron strips white space; NULs are what a lost machine may leave of a write.
                text = file.read(_MOST_BYTES).decode(errors="replace").strip().strip("\0").strip()
        except FileNotFoundError:
            return None
        named = folder_named(text)
        if pause is None or (named is not None and (folder / named).is_dir()):
            return text
        time.sleep(pause)
    raise AssertionError


def folder_named(text: str) -> str | None:
    """Return the folder that the text of a tracker file names, None if it names none."""
    if re.fullmatch(r"[0-9]{1,12}", text):
        return f"iter_{int(text):07d}"
    return RELEASE if text == RELEASE else None
