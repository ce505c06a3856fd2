"""How long work tells of its progress."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: Where nobody watches a bar.
SECONDS_BETWEEN_LINES: Final = 30.0

#: From a stage's name and size to a function that is called with the steps done since the last call.
StartStage = Callable[[str, int], Callable[[int], None]]


def silent_stage(name: str, size: int) -> Callable[[int], None]:
    """Start a stage whose progress nobody watches."""
    return lambda steps: None


@contextmanager
def lines_now_and_then(line: Callable[[], str]) -> Iterator[None]:
    """Print what `line` returns on stderr every 30 s, also while a step of the work takes longer."""
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
