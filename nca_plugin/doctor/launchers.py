"""Whether each way to start a run would work here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from nca_plugin import launch
from nca_plugin.doctor import machine, packages
from nca_plugin.doctor.check import Check, Verdict
from nca_plugin.doctor.facts import Facts
from nca_plugin.doctor.versions import MEGATRON_CORE
from nca_plugin.megatron.fused_kernels import OPTION, described_needs

_Checks = Sequence[Callable[[Facts], "Check | None"]]

# The checks that each kind of run needs to pass: those of the generator alone, and those of the launchers.
_OF_GENERATOR: Final[_Checks] = (
    *(packages.check_plugin, packages.check_numpy, packages.check_numba),
    machine.check_deflate,
)
_OF_MEGATRON: Final[_Checks] = (
    *(packages.check_torch, packages.check_megatron_core, packages.check_apex, packages.check_others),
    *(machine.check_dataset_helper, *_OF_GENERATOR),
)


def check_megatron(facts: Facts) -> Check:
    """Return whether `python -m nca_plugin.launch.megatron` would work."""
    return _megatron_or_hydra(facts, launch.MEGATRON)


def check_hydra(facts: Facts) -> Check:
    """Return whether `python -m nca_plugin.launch.hydra` would work."""
    return _megatron_or_hydra(facts, launch.HYDRA)


def check_bridge(facts: Facts) -> Check:
    """Return whether `python -m nca_plugin.launch.bridge` would work."""
    name = launch.BRIDGE
    if "megatron-bridge" not in facts.versions:
        return Check(name, "not here", Verdict.ABSENT, "Megatron-Bridge is not installed")
    if not facts.has_megatron:
        return _not_here(facts, name)
    if broken := _broken(facts, (packages.check_bridge, *_OF_MEGATRON)):
        return _cannot_run(name, broken)
    if error := facts.error("bridge launcher"):
        return _cannot_run(name, error, facts.show("import megatron.bridge.training.pretrain"))
    stand_ins = ", ".join(facts.told("bridge launcher", "stand_ins") or ())
    return _ready(facts, name, stand_ins and f", with stand-ins for {stand_ins}")


def check_nemo(facts: Facts) -> Check:
    """Return whether the command line of NeMo 2 would work."""
    name = "nemo llm pretrain data=nca"
    nemo = packages.check_nemo(facts)
    if nemo.verdict is Verdict.ABSENT:
        return Check(name, "not here", Verdict.ABSENT, "NeMo 2 is not installed")
    if broken := _broken(facts, (packages.check_nemo, packages.check_torch, *_OF_GENERATOR)):
        return _cannot_run(name, broken)
    if "nemo-run" not in facts.versions:
        return _cannot_run(name, "nemo-run is not installed", facts.pip("install nemo-run"))
    if not facts.has_nemo_entry_point:
        fix = facts.pip("install --force-reinstall --no-deps . (in a clone of nca-plugin)")
        return _cannot_run(name, "this nca-plugin has no entry point for it", fix)
    return Check(name, "ready", detail="by its versions and entry point: NeMo itself was not imported")


def _megatron_or_hydra(facts: Facts, name: str) -> Check:
    if not facts.has_megatron:
        return _not_here(facts, name)
    if broken := _broken(facts, _OF_MEGATRON):
        return _cannot_run(name, broken)
    if error := facts.error("megatron launcher") or (facts.error("hydra launcher") if name == launch.HYDRA else None):
        return _cannot_run(name, error, facts.show(f"import {name}, megatron.training"))
    if facts.told("megatron launcher", "needs_model_provider") and not facts.has_model_provider:
        detail = "megatron-core 0.18 takes the model from Megatron-LM's files: start where model_provider.py is"
        fix = facts.pip("install 'megatron-core==0.19.*' (or cd to a checkout of Megatron-LM core_v0.18.2)")
        return Check(name, "not from here", Verdict.WARN, detail, fix)
    needs = described_needs(facts.kernels) if facts.devices else ""
    return _ready(facts, name, needs and f", with {OPTION}")


def _not_here(facts: Facts, name: str) -> Check:
    detail = f"needs megatron-core {MEGATRON_CORE}"
    if "megatron-core" in facts.versions and not facts.has_nemo:
        detail += "; here, generate writes data for a script of your own (--data-path), and transfer works"
    return Check(name, "not here", Verdict.ABSENT, detail)


def _ready(facts: Facts, name: str, note: str = "") -> Check:
    return Check(
        name, "ready", detail=(f"on {len(facts.devices)} CUDA devices" if facts.devices else "CPU mode") + note
    )


def _cannot_run(name: str, reason: str, fix: str = "") -> Check:
    return Check(name, "cannot run", Verdict.BROKEN, reason, fix)


def _broken(facts: Facts, checks: _Checks) -> str:
    """Return a message with the names of the failed checks, whose lines have the fixes; empty if none failed."""
    done = [check(facts) for check in checks]
    names = ", ".join(check.name for check in done if check is not None and check.verdict is Verdict.BROKEN)
    return f"because of {names}" if names else ""
