"""How long work reports its progress."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: Seconds between two progress lines where there is no terminal.
SECONDS_BETWEEN_LINES: Final = 30.0

#: Takes the name and size of a stage, and returns a function that takes the number of steps since its last call.
StartStage = Callable[[str, int], Callable[[int], None]]


def silent_stage(name: str, size: int) -> Callable[[int], None]:
    """Start a stage that reports nothing."""
    return lambda steps: None


@contextmanager
def lines_now_and_then(line: Callable[[], str]) -> Iterator[None]:
    """Print what `line` returns on stderr every 30 s while the block runs, however long its steps take."""
    ended, stream = threading.Event(), sys.stderr

    def tell() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            print(line(), file=stream, flush=True)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        ended.set()
        teller.join()
