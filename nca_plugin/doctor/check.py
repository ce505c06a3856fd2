"""A line of the screen."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """What a finding means for a run, as the screen shows it."""

    OK = "ok"
    WARN = "warn"
    """A run may be another than was meant, be slower, or fail in some cases."""
    BROKEN = "BROKEN"
    ABSENT = "-"
    """Not there, and nothing that is there needs it."""


@dataclass(frozen=True)
class Check:
    """A line of the screen."""

    name: str
    found: str
    verdict: Verdict = Verdict.OK
    detail: str = ""
    fix: str = ""
    """A command, with a note in brackets if it needs one; empty if there is nothing to do, or another line tells."""
