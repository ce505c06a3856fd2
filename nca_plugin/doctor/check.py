"""The result of one check, which is a line of the screen."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """What a result means for a run, as the screen shows it."""

    OK = "ok"
    WARN = "warn"
    """A run may differ from what was meant, be slower, or fail in some cases."""
    BROKEN = "BROKEN"
    ABSENT = "-"
    """It is not installed, and nothing that is installed needs it."""


@dataclass(frozen=True)
class Check:
    """A line of the screen."""

    name: str
    found: str
    verdict: Verdict = Verdict.OK
    detail: str = ""
    fix: str = ""
    """A command that fixes it, with a note in brackets if need be; empty if nothing is wrong or another line has it."""
