"""How long work tells of its progress."""

from collections.abc import Callable

#: From a stage's name and size to a function that is called with the steps done since the last call.
StartStage = Callable[[str, int], Callable[[int], None]]


def silent_stage(name: str, size: int) -> Callable[[int], None]:
    """Start a stage whose progress nobody watches."""
    return lambda steps: None
