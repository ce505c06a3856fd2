"""Checks of the installed packages and their versions."""

from __future__ import annotations

import shutil
from typing import Final

from nca_plugin.doctor.check import Check, Verdict
from nca_plugin.doctor.facts import Facts
from nca_plugin.doctor.versions import (
    BRIDGE,
    EXTRAS,
    MEGATRON_CORE,
    MEGATRON_CORE_OF_NEMO,
    NEMO,
    PYTHON,
    PYTHON_OF_BRIDGE,
    REQUIRED,
    RESILIENCY,
    TESTED_UP_TO,
    TORCH,
    is_within,
)
from nca_plugin.megatron.fused_kernels import HYDRA_OVERRIDE, OPTION, Kernels, described_needs

_NO_TRANSFORMER_ENGINE: Final = Kernels(has_transformer_engine=False)
#: The variable that switches numba's compiler off.
_DISABLED: Final = "NUMBA_DISABLE_JIT"
# Packages with a line of their own on the screen.
_SHOWN: Final = ("torch", "megatron-core", "numpy", "numba")
#: The detail for missing training packages.
_FOR_TRAINING: Final = "no run can be started here: pip install 'nca-plugin[megatron]' brings it"


def check_python(version: str) -> Check:
    """Check whether nca-plugin supports this version of Python."""
    if is_within(version, PYTHON):
        return Check("Python", version, detail=f"supported: {PYTHON}")
    newer = next(filter(shutil.which, ("python3.12", "python3.13", "python3.14")), "python3.12")
    fix = f"{newer} -m venv .venv && .venv/bin/pip install . (in a clone of nca-plugin)"
    return Check("Python", version, Verdict.BROKEN, f"needs {PYTHON}; nothing else was looked at", fix)


def check_plugin(facts: Facts) -> Check:
    """Check whether nca-plugin, or at least all that it needs, is installed and its generator can be imported."""
    found, error = facts.versions.get("nca-plugin", "not installed"), facts.error("generator")
    if "nca-plugin" not in facts.versions and not facts.versions.keys() >= REQUIRED.keys():
        fix = facts.pip("install . (in a clone of nca-plugin)")
        return Check("nca-plugin", found, Verdict.BROKEN, "nor is all that it needs", fix)
    if error is None or any(check(facts).verdict is Verdict.BROKEN for check in (check_numpy, check_numba)):
        return Check("nca-plugin", found)
    return Check("nca-plugin", found, Verdict.BROKEN, error, facts.show("import nca_plugin.sources"))


def check_torch(facts: Facts) -> Check:
    """Check whether torch, if it is installed, can be imported."""
    check, error = _of_the_environment(facts, "torch", TORCH), facts.error("torch")
    if error is None:
        return check
    return Check("torch", check.found, Verdict.BROKEN, error, facts.show("import torch"))


def check_megatron_core(facts: Facts) -> Check:
    """Check whether Megatron, if it is installed, is a supported release and can be imported."""
    name = "megatron-core"
    check, error = _of_the_environment(facts, name, MEGATRON_CORE), facts.error(name)
    if facts.has_nemo:
        return Check(name, check.found, detail="NeMo 2's")
    if name in facts.versions and is_within(facts.versions.get("nemo-toolkit", ""), NEMO) and not facts.has_megatron:
        detail, fix = f"NeMo 2 needs {MEGATRON_CORE_OF_NEMO}", f"install 'megatron-core{MEGATRON_CORE_OF_NEMO}'"
        return Check(name, check.found, Verdict.BROKEN, detail, facts.pip(fix))
    if error is None:
        return check
    causes = (check_transformer_engine(facts), check_apex(facts), check_resiliency(facts))
    for cause in causes:
        if cause.verdict is Verdict.BROKEN:
            return Check("megatron-core", check.found, Verdict.BROKEN, f"cannot be imported, because of {cause.name}")
    return Check("megatron-core", check.found, Verdict.BROKEN, error, facts.show("import megatron.core"))


def check_bridge(facts: Facts) -> Check:
    """Check whether Megatron-Bridge, if it is installed, is the release that the launcher supports."""
    name, supported = "megatron-bridge", f"supported: {BRIDGE}, Python {PYTHON_OF_BRIDGE}"
    version = facts.versions.get(name)
    if version is None:
        return _absent(name, supported)
    if not is_within(facts.python, PYTHON_OF_BRIDGE):
        fix = "python3.12 -m venv .venv-bridge (an environment of its own)"
        return Check(name, version, Verdict.BROKEN, f"needs Python {PYTHON_OF_BRIDGE}", fix)
    if not is_within(version, BRIDGE):
        # The version in a container is never replaced.
        return Check(name, version, Verdict.WARN, f"tested with {BRIDGE}")
    return Check(name, version, detail=supported)


def check_nemo(facts: Facts) -> Check:
    """Check whether NeMo, if it is installed, has language models and the release of Megatron that it needs."""
    name, supported = "nemo-toolkit", f"supported: {NEMO}, megatron-core {MEGATRON_CORE_OF_NEMO}"
    version = facts.versions.get(name)
    if version is None:
        return _absent(name, supported)
    if not is_within(version, NEMO):
        return Check(name, version, Verdict.ABSENT, f"has no language models; {supported}")
    if not facts.has_nemo:
        # If nothing else needs the installed release of Megatron, the line of megatron-core has the fix.
        fix = facts.pip("uninstall nemo-toolkit (NeMo 2 needs an environment of its own)") if facts.has_megatron else ""
        return Check(name, version, Verdict.BROKEN, f"needs megatron-core {MEGATRON_CORE_OF_NEMO}", fix)
    return Check(name, version, detail=supported)


def check_transformer_engine(facts: Facts) -> Check:
    """Check whether Transformer Engine, if it is installed, is complete. Otherwise Megatron cannot be imported."""
    name = "transformer-engine"
    version = facts.versions.get(name)
    cuda = (facts.told("torch", "cuda") or "13").partition(".")[0]
    extras = f"{name}[pytorch,core_cu{cuda}]"
    if version is None:
        if not facts.devices:
            return _absent(name)
        install = facts.pip(f"install --no-build-isolation '{extras}'")
        fix = f"{install} (or start runs with {OPTION}, in Hydra {HYDRA_OVERRIDE})"
        return Check(name, "absent", Verdict.WARN, f"needs {OPTION}: {described_needs(_NO_TRANSFORMER_ENGINE)}", fix)
    error = facts.error(name)
    if error is None:
        return Check(name, version)
    # Without a GPU it is not needed.
    install = facts.pip(f"install --no-build-isolation '{extras}=={version}'")
    fix = install if facts.devices else facts.pip(f"uninstall {name}")
    return Check(name, version, _verdict_of_import(facts, name), error, fix)


def check_apex(facts: Facts) -> Check:
    """Check whether the package named apex, if it is installed, is NVIDIA's and not the one on the package index."""
    name = "apex"
    version = facts.versions.get(name)
    if version is None:
        if not facts.devices:
            return _absent(name)
        return Check(name, "absent", Verdict.ABSENT, _needs_of_apex(facts))
    verdict, error = _verdict_of_import(facts, name), facts.error(name)
    if facts.is_nvidia_apex:
        if error is not None:
            return Check(name, version, verdict, error, facts.show("import apex"))
        if facts.devices and (needs := _needs_of_apex(facts)):
            return Check(name, version, Verdict.WARN, f"built without extensions, {needs}")
        return Check(name, version, detail="NVIDIA's")
    # Megatron only checks whether apex can be imported, and would then use layers that the other package lacks.
    consequence = (
        "cannot be imported, so Megatron does without" if verdict is Verdict.WARN else "models cannot be built"
    )
    fix = facts.pip(f"uninstall {name}")
    return Check(name, version, verdict, f"not NVIDIA's but an unrelated package: {consequence}", fix)


def check_resiliency(facts: Facts) -> Check:
    """Check whether NVIDIA's resiliency extension, if it is installed, is recent enough for importing Megatron."""
    name, supported = "nvidia-resiliency-ext", f"supported: {RESILIENCY}"
    version = facts.versions.get(name)
    if version is None:
        return _absent(name, supported)
    if is_within(version, RESILIENCY):
        return Check(name, version, detail=supported)
    if not facts.has_megatron:
        # Megatron before 0.18 works with old releases.
        return Check(name, version)
    verdict = _verdict_of_import(facts, name)
    does_without = verdict is Verdict.WARN
    consequence = (
        "it cannot be imported, so Megatron does without" if does_without else "Megatron cannot be imported with it"
    )
    # Only Megatron-Bridge needs it, and in CPU mode that has a stand-in.
    is_needed = "megatron-bridge" in facts.versions and facts.devices
    fix = facts.pip(f"install '{name}{RESILIENCY}'" if is_needed else f"uninstall {name}")
    return Check(name, version, verdict, f"too old: {consequence}; {supported}", fix)


def check_numpy(facts: Facts) -> Check:
    """Check whether numpy is installed."""
    return _required(facts, "numpy")


def check_numba(facts: Facts) -> Check:
    """Check whether numba is installed, may compile, and has a writable cache folder."""
    check, error = _required(facts, "numba"), facts.error("generator")
    if error is not None and _DISABLED in error:
        return Check("numba", check.found, Verdict.BROKEN, "is told not to compile", f"unset {_DISABLED}")
    if facts.told("generator", "is_kept") is not False:
        return check
    fix = "export NUMBA_CACHE_DIR=... (a folder with space that can be written to)"
    return Check("numba", check.found, Verdict.WARN, "cannot cache what it compiles: ten seconds per process", fix)


def check_others(facts: Facts) -> Check:
    """Check whether the required packages without a line of their own are installed."""
    others = [name for name in REQUIRED if name not in _SHOWN]
    there = [name for name in others if name in facts.versions]
    name, found = "other packages", f"{len(there)} of {len(others)}"
    missing = [other for other in others if other not in there]
    if missing:
        return Check(name, found, Verdict.BROKEN, f"missing: {', '.join(missing)}", facts.install(*missing))
    old = [other for other in there if not is_within(facts.versions[other], REQUIRED[other])]
    if old:
        detail = ", ".join(f"{other} {facts.versions[other]} (needs {REQUIRED[other]})" for other in old)
        return Check(name, found, Verdict.WARN, detail, facts.install(*old))
    return Check(name, found)


def check_extras(facts: Facts) -> Check:
    """Check whether the packages that only some commands need are installed."""
    missing = [
        f"{extra} ({', '.join(lacking)})"
        for extra, packages in EXTRAS.items()
        if (lacking := [name for name in packages if name not in facts.versions and name not in _SHOWN])
    ]
    found = f"{len(EXTRAS) - len(missing)} of {len(EXTRAS)}"
    if not missing:
        return Check("extras", found)
    return Check("extras", found, Verdict.ABSENT, f"pip install 'nca-plugin[NAME]' brings {', '.join(missing)}")


def _of_the_environment(facts: Facts, name: str, ranges: str) -> Check:
    """Check a package that belongs to the training environment and is never replaced."""
    version = facts.versions.get(name)
    if version is None:
        return Check(name, "absent", Verdict.ABSENT, _FOR_TRAINING)
    if not is_within(version, ranges):
        detail = f"tested from {ranges.removeprefix('>=')} on: docs/environments.md says what works here"
        return Check(name, version, Verdict.WARN, detail)
    newest = TESTED_UP_TO[name]
    if not is_within(version, f"=={newest}.*") and is_within(version, f">={newest}"):
        return Check(name, version, Verdict.WARN, f"newer than the tests, which ran up to {newest}")
    return Check(name, version, detail=f"tested from {ranges.removeprefix('>=')} to {newest}")


def _required(facts: Facts, name: str) -> Check:
    version = facts.versions.get(name)
    if version is None:
        return Check(name, "missing", Verdict.BROKEN, f"needs {REQUIRED[name]}", facts.install(name))
    if not is_within(version, REQUIRED[name]):
        return Check(name, version, Verdict.WARN, f"needs {REQUIRED[name]}", facts.install(name))
    return Check(name, version, detail=f"supported: {REQUIRED[name]}")


def _needs_of_apex(facts: Facts) -> str:
    """Return the message about what runs on CUDA need because Apex is incomplete, apart from what they need because
    Transformer Engine is missing; empty if they need nothing."""
    needs = described_needs(facts.kernels, _NO_TRANSFORMER_ENGINE)
    return needs and f"needs {OPTION}: {needs}"


def _absent(name: str, supported: str = "optional") -> Check:
    return Check(name, "absent", Verdict.ABSENT, supported)


def _verdict_of_import(facts: Facts, name: str) -> Verdict:
    """Return how bad a wrong package is: Megatron takes one that raises an `ImportError` for not installed."""
    return Verdict.WARN if facts.outcomes[name].is_import_error else Verdict.BROKEN
