"""The tracker file, which names the latest checkpoint in a save folder."""

import re
import time
from pathlib import Path
from typing import Final

TRACKER: Final = "latest_checkpointed_iteration.txt"
RELEASE: Final = "release"
#: Seconds between attempts to read the tracker file, about one second in all.
_PAUSES: Final = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
_MOST_BYTES: Final = 100


def read_tracker(folder: Path) -> str | None:
    """Return the text of the tracker file in a save folder, without surrounding white space; None without the file.

    A run that saves empties the file and writes it anew. If the file does not name an existing folder, it is therefore
    read again for about a second.

    Raises:
        OSError: if the file cannot be read.
    """
    for pause in (*_PAUSES, None):
        try:
            with (folder / TRACKER).open("rb") as file:
                # Megatron strips white space too. NULs may be left of a write when a machine fails.
                text = file.read(_MOST_BYTES).decode(errors="replace").strip().strip("\0").strip()
        except FileNotFoundError:
            return None
        named = folder_named(text)
        if pause is None or (named is not None and (folder / named).is_dir()):
            return text
        time.sleep(pause)
    raise AssertionError


def folder_named(text: str) -> str | None:
    """Return the name of the folder that the text of a tracker file names; None if it names none."""
    if re.fullmatch(r"[0-9]{1,12}", text):
        return f"iter_{int(text):07d}"
    return RELEASE if text == RELEASE else None
