"""Whether the packages that are there fit together."""

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
#: The variable that keeps numba from compiling.
_DISABLED: Final = "NUMBA_DISABLE_JIT"
# Packages with a line of their own.
_SHOWN: Final = ("torch", "megatron-core", "numpy", "numba")
#: How to get what is to be trained with, where nothing is.
_FOR_TRAINING: Final = "no run can be started here: pip install 'nca-plugin[megatron]' brings it"


def check_python(version: str) -> Check:
    """Whether nca-plugin runs on this interpreter."""
    if is_within(version, PYTHON):
        return Check("Python", version, detail=f"supported: {PYTHON}")
    newer = next(filter(shutil.which, ("python3.12", "python3.13", "python3.14")), "python3.12")
    fix = f"{newer} -m venv .venv && .venv/bin/pip install . (in a clone of nca-plugin)"
    return Check("Python", version, Verdict.BROKEN, f"needs {PYTHON}; nothing else was looked at", fix)


def check_plugin(facts: Facts) -> Check:
    """Whether it is installed, or what it needs at least, and its generator can be imported."""
    found, error = facts.versions.get("nca-plugin", "not installed"), facts.error("generator")
    if "nca-plugin" not in facts.versions and not facts.versions.keys() >= REQUIRED.keys():
        fix = facts.pip("install . (in a clone of nca-plugin)")
        return Check("nca-plugin", found, Verdict.BROKEN, "nor is all that it needs", fix)
    if error is None or any(check(facts).verdict is Verdict.BROKEN for check in (check_numpy, check_numba)):
        return Check("nca-plugin", found)
    return Check("nca-plugin", found, Verdict.BROKEN, error, facts.show("import nca_plugin.sources"))


def check_torch(facts: Facts) -> Check:
    """Whether a torch that is there can be imported."""
    check, error = _of_the_environment(facts, "torch", TORCH), facts.error("torch")
    if error is None:
        return check
    return Check("torch", check.found, Verdict.BROKEN, error, facts.show("import torch"))


def check_megatron_core(facts: Facts) -> Check:
    """Whether a Megatron that is there is a release that something here takes, and can be imported."""
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
    """Whether Megatron-Bridge, if it is there, is the release that the launcher knows."""
    name, supported = "megatron-bridge", f"supported: {BRIDGE}, Python {PYTHON_OF_BRIDGE}"
    version = facts.versions.get(name)
    if version is None:
        return _absent(name, supported)
    if not is_within(facts.python, PYTHON_OF_BRIDGE):
        fix = "python3.12 -m venv .venv-bridge (an environment of its own)"
        return Check(name, version, Verdict.BROKEN, f"needs Python {PYTHON_OF_BRIDGE}", fix)
    if not is_within(version, BRIDGE):
        # A container's own is never replaced.
        return Check(name, version, Verdict.WARN, f"tested with {BRIDGE}")
    return Check(name, version, detail=supported)


def check_nemo(facts: Facts) -> Check:
    """Whether a NeMo that is there has language models, and the release of Megatron that it takes."""
    name, supported = "nemo-toolkit", f"supported: {NEMO}, megatron-core {MEGATRON_CORE_OF_NEMO}"
    version = facts.versions.get(name)
    if version is None:
        return _absent(name, supported)
    if not is_within(version, NEMO):
        return Check(name, version, Verdict.ABSENT, f"has no language models; {supported}")
    if not facts.has_nemo:
        # Where nothing else needs the release that is there, the line of megatron-core tells.
        fix = facts.pip("uninstall nemo-toolkit (NeMo 2 needs an environment of its own)") if facts.has_megatron else ""
        return Check(name, version, Verdict.BROKEN, f"needs megatron-core {MEGATRON_CORE_OF_NEMO}", fix)
    return Check(name, version, detail=supported)


def check_transformer_engine(facts: Facts) -> Check:
    """Whether Transformer Engine, if it is there, is whole: with a part of it Megatron cannot be imported."""
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
    # Without a device there is nothing to install it for.
    install = facts.pip(f"install --no-build-isolation '{extras}=={version}'")
    fix = install if facts.devices else facts.pip(f"uninstall {name}")
    return Check(name, version, _verdict_of_import(facts, name), error, fix)


def check_apex(facts: Facts) -> Check:
    """Whether the package named apex, if there is one, is NVIDIA's rather than the package index's."""
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
    # Megatron asks no more than whether it can be imported, and then builds layers that it does not have.
    consequence = (
        "cannot be imported, so Megatron does without" if verdict is Verdict.WARN else "models cannot be built"
    )
    fix = facts.pip(f"uninstall {name}")
    return Check(name, version, verdict, f"not NVIDIA's but an unrelated package: {consequence}", fix)


def check_resiliency(facts: Facts) -> Check:
    """Whether NVIDIA's resiliency extension, if it is there, is new: with an old one Megatron cannot be imported."""
    name, supported = "nvidia-resiliency-ext", f"supported: {RESILIENCY}"
    version = facts.versions.get(name)
    if version is None:
        return _absent(name, supported)
    if is_within(version, RESILIENCY):
        return Check(name, version, detail=supported)
    if not facts.has_megatron:
        # Releases before 0.18 do not mind.
        return Check(name, version)
    verdict = _verdict_of_import(facts, name)
    does_without = verdict is Verdict.WARN
    consequence = (
        "it cannot be imported, so Megatron does without" if does_without else "Megatron cannot be imported with it"
    )
    # Only Megatron-Bridge needs it, and has a stand-in in CPU mode.
    is_needed = "megatron-bridge" in facts.versions and facts.devices
    fix = facts.pip(f"install '{name}{RESILIENCY}'" if is_needed else f"uninstall {name}")
    return Check(name, version, verdict, f"too old: {consequence}; {supported}", fix)


def check_numpy(facts: Facts) -> Check:
    """Whether numpy is there."""
    return _required(facts, "numpy")


def check_numba(facts: Facts) -> Check:
    """Whether numba is there, may compile, and has a folder for what it compiles."""
    check, error = _required(facts, "numba"), facts.error("generator")
    if error is not None and _DISABLED in error:
        return Check("numba", check.found, Verdict.BROKEN, "is told not to compile", f"unset {_DISABLED}")
    if facts.told("generator", "is_kept") is not False:
        return check
    fix = "export NUMBA_CACHE_DIR=... (a folder with space that can be written to)"
    return Check("numba", check.found, Verdict.WARN, "cannot keep what it compiles: ten seconds more a process", fix)


def check_others(facts: Facts) -> Check:
    """Whether the required packages without a line of their own are there."""
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
    """Whether what only some commands need is there."""
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
    """Check a package that an environment that trains brings itself, and that is never replaced."""
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
    """Return what runs on CUDA need for want of Apex, beside what they need for want of Transformer Engine; empty if it
    is nothing."""
    needs = described_needs(facts.kernels, _NO_TRANSFORMER_ENGINE)
    return needs and f"needs {OPTION}: {needs}"


def _absent(name: str, supported: str = "optional") -> Check:
    return Check(name, "absent", Verdict.ABSENT, supported)


def _verdict_of_import(facts: Facts, name: str) -> Verdict:
    """Return what it means that a package is wrong: Megatron takes one that raises an `ImportError` for absent."""
    return Verdict.WARN if facts.outcomes[name].is_import_error else Verdict.BROKEN
