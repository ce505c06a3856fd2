"""Imports that may fail, hang or crash. Each chain of them runs in its own process, which reports each step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from nca_plugin.bridge import cpu as bridge_cpu
from nca_plugin.megatron import cpu_mode

# Marks the lines that report a step, because an import may print lines too.
_MARK: Final = "nca-plugin-doctor: "


@dataclass(frozen=True)
class Outcome:
    """How a step of a chain went."""

    error: str | None = None
    """None if the step succeeded, else the error in one line."""

    is_import_error: bool = False
    """Whether the error is an `ImportError`. Code that catches it takes the package for one that is not installed."""

    found: Mapping[str, Any] = field(default_factory=dict)
    """Facts that the step reported."""


def import_in_process(chain: str, timeout: float) -> dict[str, Outcome]:
    """Return the outcomes of the steps of a chain by name, up to the first step that failed.

    Args:
        timeout: seconds after which the process is killed. The step that was running has then failed.
    """
    # A file rather than a pipe, which a process that an import has started might keep open for ever.
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, chain], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            code = None
        output.seek(0)
        lines = output.read().decode(errors="replace").splitlines()
    told = [json.loads(line[len(_MARK) :]) for line in lines if line.startswith(_MARK)]
    outcomes = {step.pop("name"): Outcome(**step) for step in told}
    if all(outcome.error is None for outcome in outcomes.values()):
        for name, _ in _CHAINS[chain][len(outcomes) :]:
            return {**outcomes, name: Outcome(_how_it_ended(code, timeout))}
    return outcomes


def _how_it_ended(code: int | None, timeout: float) -> str:
    if code is None:
        return f"no end after {timeout:g} s"
    return f"crash: {signal.Signals(-code).name}" if code < 0 else f"the process ended with exit code {code}"


def _torch() -> dict[str, Any]:
    import torch

    reason = None
    if not torch.cuda.is_available():
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except Exception as error:
            reason = _in_one_line(error)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if reason is None else []
    return {"cuda": torch.version.cuda, "devices": devices, "reason": reason}


def _megatron_core() -> dict[str, Any]:
    # Launchers call this before they import anything of Megatron.
    cpu_mode.prepare()
    import_module("megatron.core")
    return {}


def _dataset_helper() -> dict[str, Any]:
    import megatron.core.datasets.utils as dataset_utils

    error = None
    try:
        import_module("megatron.core.datasets.helpers_cpp")
    except Exception as problem:
        error = _in_one_line(problem)
    folder = Path(dataset_utils.__file__).parent
    return {"reason": error, "makefile": (folder / "Makefile").is_file()}


def _megatron_launcher() -> dict[str, Any]:
    from megatron.training import pretrain

    from nca_plugin.megatron.pretraining import needs_model_provider

    return {"needs_model_provider": needs_model_provider(pretrain)}


def _hydra_launcher() -> dict[str, Any]:
    import nca_plugin.launch.hydra  # noqa: F401

    return {}


def _bridge_launcher() -> dict[str, Any]:
    stand_ins = []
    if cpu_mode.prepare():
        stand_ins = bridge_cpu.add_stand_ins()
    for module in ("gpt_step", "pretrain"):
        import_module(f"megatron.bridge.training.{module}")
    return {"stand_ins": stand_ins}


def _generator() -> dict[str, Any]:
    import nca_plugin.sources  # noqa: F401
    from nca_plugin.compiled import is_kept

    return {"is_kept": is_kept()}


def _transformer_engine() -> dict[str, Any]:
    import_module("transformer_engine")
    return {}


def _apex() -> dict[str, Any]:
    import_module("apex")
    return {}


def _resiliency() -> dict[str, Any]:
    # These are the modules that Megatron imports before it checks the version.
    for module in ("core", "cached_metadata_filesystem_reader", "filesystem_async", "state_dict_saver"):
        import_module(f"nvidia_resiliency_ext.checkpointing.async_ckpt.{module}")
    return {}


_Step = tuple[str, Callable[[], "dict[str, Any]"]]

_CHAINS: Final[Mapping[str, Sequence[_Step]]] = {
    "torch": [("torch", _torch)],
    "megatron": [
        ("torch", _torch),
        ("megatron-core", _megatron_core),
        ("dataset helper", _dataset_helper),
        ("megatron launcher", _megatron_launcher),
        ("hydra launcher", _hydra_launcher),
    ],
    "megatron-bridge": [("bridge launcher", _bridge_launcher)],
    "generator": [("generator", _generator)],
    "transformer-engine": [("transformer-engine", _transformer_engine)],
    "apex": [("apex", _apex)],
    "nvidia-resiliency-ext": [("nvidia-resiliency-ext", _resiliency)],
}


def _in_one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _run(chain: str) -> None:
    for name, step in _CHAINS[chain]:
        try:
            outcome = Outcome(found=step())
        except Exception as error:
            outcome = Outcome(_in_one_line(error), isinstance(error, ImportError))
        # An import may have printed half a line before.
        print(f"\n{_MARK}{json.dumps({'name': name, **vars(outcome)})}", flush=True)
        if outcome.error is not None:
            break
    # Exits at once, because threads of imported packages could keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    _run(sys.argv[1])
