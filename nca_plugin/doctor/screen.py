"""The screen: all checks, and what to do."""

from __future__ import annotations

import platform
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from nca_plugin.display.progress import lines_now_and_then
from nca_plugin.doctor import launchers, machine, packages
from nca_plugin.doctor.check import Check, Verdict
from nca_plugin.doctor.facts import Facts, gather

_WIDTH: Final = 100
_INDENT: Final = 53

_WRAPPER: Final = textwrap.TextWrapper(_WIDTH, subsequent_indent=" " * _INDENT, break_on_hyphens=False)

Sections = Mapping[str, Sequence[Check]]


def run() -> int:
    """Print what works here and how to fix what does not. Return the exit code, 2 if something is broken."""
    python = packages.check_python(platform.python_version())
    if python.verdict is Verdict.OK:
        if sys.stderr.isatty():
            print("importing what is installed ...", end="\r", file=sys.stderr, flush=True)
        with lines_now_and_then(lambda: "importing what is installed"):
            sections = examine(gather())
    else:
        sections = {"packages": [python]}
    print(screen(sections))
    return 2 if any(check.verdict is Verdict.BROKEN for checks in sections.values() for check in checks) else 0


def examine(facts: Facts) -> Sections:
    """Return the results of all checks by section, in the order of the screen."""
    sections: Mapping[str, Sequence[Check | None]] = {
        "packages": [
            packages.check_python(facts.python),
            packages.check_plugin(facts),
            packages.check_torch(facts),
            packages.check_megatron_core(facts),
            packages.check_bridge(facts),
            packages.check_nemo(facts),
            packages.check_transformer_engine(facts),
            packages.check_apex(facts),
            packages.check_resiliency(facts),
            packages.check_numpy(facts),
            packages.check_numba(facts),
            packages.check_others(facts),
            packages.check_extras(facts),
        ],
        "machine": [
            machine.check_device(facts),
            machine.check_deflate(facts),
            machine.check_dataset_helper(facts),
            machine.check_shared_memory(facts),
            machine.check_open_files(facts),
            machine.check_torchrun(facts),
        ],
        "runs": [
            launchers.check_megatron(facts),
            launchers.check_hydra(facts),
            launchers.check_bridge(facts),
            launchers.check_nemo(facts),
        ],
    }
    return {name: [check for check in checks if check is not None] for name, checks in sections.items()}


def screen(sections: Sections) -> str:
    """Return the results as text. Lines have at most 100 characters, except commands, which are not broken."""
    lines = [f"nca-plugin of {Path(__file__).parents[2]}, {sys.executable}"]
    for name, checks in sections.items():
        lines += [name, *(line for check in checks for line in _lines(check))]
    every = [check for checks in sections.values() for check in checks]
    for verdict, title in ((Verdict.BROKEN, "to put right"), (Verdict.WARN, "to look at")):
        found = [check for check in every if check.verdict is verdict]
        if found:
            lines += [title, *(f"  {check.name}: {check.fix}" for check in found if check.fix)]
    if not any(check.verdict is Verdict.BROKEN for check in every):
        lines.append("Nothing is broken.")
    return "\n".join(lines)


def _lines(check: Check) -> Sequence[str]:
    start = f"  {check.verdict.value:<7}{check.name:<27} {check.found:<15} ".ljust(_INDENT)
    detail = textwrap.shorten(check.detail, 3 * (_WIDTH - _INDENT), placeholder=" ...")
    return [line.rstrip() for line in _WRAPPER.wrap(start + detail)]
