"""What the parts of a GPU run share: where they write, Megatron's arguments, processes, and the pilot."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: A tiny rehearsal on the CPU.
DRY = os.environ["DRY"] == "1"
#: The scratch of this call, and what is kept of it.
WORK, OUT = Path(os.environ["WORK"]), Path(os.environ["OUT"])
ROOT = Path(__file__).parents[2]
#: How much longer everything may take in a rehearsal, whose machine is slow.
SLOWER = 4 if DRY else 1
#: Of the models of e and f; it decides about memory only, their batch is of 64 sequences.
MICRO_BATCH = int(os.environ.get("MICRO_BATCH", "2" if DRY else "16"))

#: Sources by a short name, beside the presets: one cell a token, which is easier to learn than patches.
NAMED = {"cell": "toy?patch_size=1&grid_size=6&band=none"}

#: Megatron's plain PyTorch layers everywhere, so that environments can be compared, and what they need without Apex.
LOCAL: dict[str, Any] = {"transformer-impl": "local", "local-kernels": True}

_ITERATION = re.compile(r"iteration\s+(\d+)/")
_SECONDS_BETWEEN_LOOKS = 0.1
_SECONDS_TO_END = 10.0


def uri_of(name: str, scheme: str = "nca") -> str:
    """Return the URI of a source by its short name, or that of a preset."""
    return f"{scheme}://{NAMED.get(name, name)}"


def sized(layers: int, hidden: int, ffn: int, heads: int, seq_length: int) -> dict[str, Any]:
    """Return the arguments of a model's shape."""
    return {
        "num-layers": layers,
        "hidden-size": hidden,
        "ffn-hidden-size": ffn,
        "num-attention-heads": heads,
        "seq-length": seq_length,
        "max-position-embeddings": seq_length,
    }


#: The model of e and f, and its batch.
MODEL: dict[str, Any] = {
    **(sized(2, 64, 128, 2, 128) if DRY else sized(8, 384, 1024, 6, 512)),
    **LOCAL,
    "swiglu": True,
    "normalization": "RMSNorm",
    "position-embedding-type": "rope",
    "disable-bias-linear": True,
    "untie-embeddings-and-output-weights": True,
    "attention-dropout": 0,
    "hidden-dropout": 0,
    "micro-batch-size": MICRO_BATCH,
    "global-batch-size": 4 if DRY else 64,
    "bf16": not DRY,
    "weight-decay": 0.0001,
    "clip-grad": 1.0,
    "embedding-init-method-std": 0.1,
    "num-workers": 1,
    "no-create-attention-mask-in-dataloader": True,
}
TOKENS_PER_UPDATE = int(MODEL["global-batch-size"]) * int(MODEL["seq-length"])


def command_line(options: Mapping[str, Any]) -> list[str]:
    """Return options as arguments of Megatron; True is a flag, and False leaves it out."""
    words: list[str] = []
    for name, value in options.items():
        if value is not False:
            words += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return words


def error_line(log: str) -> str:
    """Return the last line of a log that names an error, else its end."""
    named = [line for line in log.splitlines() if "Error" in line or "error:" in line]
    return (named or [log.strip() or "without a word"])[-1][-300:]


def start(module: str, options: Mapping[str, Any], log: Path) -> subprocess.Popen[bytes]:
    """Start a module of the plugin as the only rank of a run."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        command = [sys.executable, "-m", module, *command_line(options)]
        return subprocess.Popen(command, stdout=output, stderr=output)


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End processes that were started here, and wait for them."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_END
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Speed:
    """What a pilot found."""

    tokens_per_s: float
    """Tokens a second of all runs together, side by side."""

    startup_s: float
    """Until the slowest of them had logged its first update."""

    gpu_gb: float
    """Memory of the device that was in use, all runs together."""


def pilot(options: Mapping[str, Any], copies: int, seconds: float, folder: Path) -> Speed:
    """Measure how fast `copies` runs go side by side, over `seconds` in which all of them train.

    Raises:
        RuntimeError: a run ended, or took too long to start.
    """
    endless = {
        **options,
        # More than there is time for, and no more: Megatron builds an index of all its samples first.
        "train-iters": 3000,
        "lr": 1e-3,
        "lr-decay-style": "constant",
        "eval-iters": 0,
        "eval-interval": 1_000_000,
        "log-interval": 1,
    }
    logs = [folder / f"pilot-{i}.txt" for i in range(copies)]
    began = time.monotonic()
    # A seed of its own for each, so that no two write the same index of the text at the same time.
    processes = [start("nca_plugin.launch.megatron", {**endless, "seed": i + 1}, log) for i, log in enumerate(logs)]
    try:
        # The first updates compile kernels and fill caches.
        _wait_for(lambda: all(_updates_done(log) >= 1 for log in logs), processes, logs, 90 * SLOWER)
        startup = time.monotonic() - began
        _wait_for(lambda: all(_updates_done(log) >= 5 for log in logs), processes, logs, 60 * SLOWER)
        before, first = time.monotonic(), sum(map(_updates_done, logs))
        _wait_for(lambda: time.monotonic() - before >= seconds, processes, logs, 2 * seconds + 10)
        updates, after = sum(map(_updates_done, logs)) - first, time.monotonic()
        memory = gpu_gb("used")
    finally:
        end(processes)
    return Speed(updates * TOKENS_PER_UPDATE / (after - before), startup, memory)


def gpu_gb(kind: str) -> float:
    """Return the memory of the device that is `used`, or its `total`."""
    if DRY:
        return 0.0
    query = ["nvidia-smi", f"--query-gpu=memory.{kind}", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()
    return round(float(found[0]) / 1024, 1)


def _updates_done(log: Path) -> int:
    found = _ITERATION.findall(log.read_text(errors="replace")) if log.exists() else []
    return int(found[-1]) if found else 0


def _wait_for(
    is_so: Callable[[], bool], processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        for process, log in zip(processes, logs, strict=True):
            if process.poll() is not None:
                reason = error_line(log.read_text(errors="replace"))
                raise RuntimeError(f"a run of the pilot ended with code {process.returncode}: {reason}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the pilot's runs were not there after {seconds:.0f} s")
        time.sleep(_SECONDS_BETWEEN_LOOKS)
