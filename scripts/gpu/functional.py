"""Parts c and d: the same batches and losses on the CPU and on the GPU; transfer, stage 2, exit and resume.

    python functional.py PARTS

One stage 1 is trained on the GPU. From its checkpoint the CPU, the GPU in float32 and the GPU in bf16 do the same five
updates. Its transfer starts a stage 2 on text, whole and in two halves, in three precisions. Most of the time of a run
is its start, so all that need not wait goes on side by side. $OUT/functional.json is written after every step.
"""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import DRY, LOCAL, OUT, ROOT, SLOWER, WORK, command_line, error_line, sized

_LOSS = re.compile(r"lm loss: ([\d.E+-]+)")
_SECONDS = 90 * SLOWER
_HALF, _WHOLE, _BATCHES = 10, 20, 4  # updates, and micro-batches of one

COMMON: dict[str, Any] = {
    **sized(4, 64, 256, 4, 128),
    **LOCAL,
    "position-embedding-type": "rope",
    "normalization": "RMSNorm",
    "untie-embeddings-and-output-weights": True,
    "attention-dropout": 0,
    "hidden-dropout": 0,
    "micro-batch-size": 2,
    "global-batch-size": 2 * _BATCHES,
    "num-workers": 1,
    "lr": 1e-3,
    "min-lr": 1e-4,
    "lr-decay-style": "cosine",
    "lr-decay-iters": 20,
    "eval-iters": 0,
    "eval-interval": 1_000_000,
    "log-interval": 1,
    "save-interval": _HALF,
}
NCA: dict[str, Any] = {"data-source": "nca://toy", "tokenizer-type": "NullTokenizer", "vocab-size": 512}
PRECISIONS: dict[str, dict[str, Any]] = {
    "bf16-distributed-optimizer": {"bf16": True, "use-distributed-optimizer": True},
    "fp32": {},
    "bf16": {"bf16": True},
}
TEXT, CARRIED_OVER = WORK / "text_document", WORK / "carried-over"

#: Runs at the same time.
pool = ThreadPoolExecutor(1 if DRY else 9)


@dataclass(frozen=True)
class Finished:
    losses: list[float]
    batches: list[str]
    """A fingerprint of each micro-batch."""


def do(name: str, command: Sequence[str | Path], **environment: str) -> str:
    """Run a command, and return what it printed.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    log = WORK / "logs" / f"functional-{name}.log"
    with log.open("w") as file:
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            env={**os.environ, **environment},
            stdout=file,
            stderr=file,
            timeout=_SECONDS,
        )
    if done.returncode:
        raise RuntimeError(f"{name}: {error_line(log.read_text(errors='replace'))}")
    return log.read_text(errors="replace")


def run(name: str, options: dict[str, Any], **environment: str) -> Finished:
    """Do a run that records its batches, with the launcher of the project's own tests."""
    folder = WORK / "functional" / name
    folder.mkdir(parents=True)
    launcher = ROOT / "tests" / "recording_launcher.py"
    log = do(name, [launcher, *command_line({**COMMON, **options})], RECORD_BATCHES_TO=str(folder), **environment)
    losses = [float(loss) for loss in _LOSS.findall(log)]
    return Finished(losses, (folder / "batches-0.txt").read_text().splitlines())


def relative(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference; NaN where there is nothing to compare."""
    pairs = zip(found, expected, strict=False)
    return max((abs(a - b) / abs(b) for a, b in pairs), default=math.nan)


def compare_devices(cpu: Finished, cuda: Finished, bf16: Finished) -> dict[str, Any]:
    """Return what part c says of five updates from the same checkpoint."""
    return {
        "batches_same": cpu.batches == cuda.batches == bf16.batches and len(cpu.batches) == 5 * _BATCHES,
        "first_loss": {"cpu": cpu.losses[0], "fp32": cuda.losses[0], "bf16": bf16.losses[0]},
        "fp32_relative_first": relative(cuda.losses[:1], cpu.losses),
        "fp32_relative_5": relative(cuda.losses, cpu.losses),
        "bf16_relative_5": relative(bf16.losses, cpu.losses),
    }


def compare_halves(whole: Finished, half: Finished, rest: Finished) -> dict[str, Any]:
    """Return what part d says of a run and of the same one exited and resumed."""
    losses = half.losses + rest.losses
    # Megatron's log gives the mean of two updates for the second after a resume: it is left out of both.
    compared = [i for i in range(_WHOLE) if i != _HALF + 1 and i < len(losses)]
    return {
        "batches_same": half.batches + rest.batches == whole.batches and len(whole.batches) == _WHOLE * _BATCHES,
        "losses": len(losses),
        "relative": relative([losses[i] for i in compared], [whole.losses[i] for i in compared]),
    }


def stage2(name: str, precision: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a stage 2 that is done whole, and of one that is exited and resumed."""
    options = {
        **precision,
        "data-path": TEXT,
        "split": "100,0,0",
        "tokenizer-type": "NullTokenizer",
        "vocab-size": 257,
        "train-iters": _WHOLE,
        "pretrained-checkpoint": CARRIED_OVER,
    }
    # Runs that start at the same time do not write the same index.
    kept = {"data-cache-path": WORK / f"cache-{name}", "save": WORK / f"kept-{name}", "load": WORK / f"kept-{name}"}
    return {**options, "data-cache-path": WORK / f"cache-{name}-whole"}, {**options, **kept}


def devices(stage1: Path) -> dict[str, Any]:
    """Do part c."""
    first = {**NCA, "train-iters": 5, "pretrained-checkpoint": stage1}
    runs = [
        pool.submit(run, "cpu", first, CUDA_VISIBLE_DEVICES=""),
        pool.submit(run, "fp32", first),
        pool.submit(run, "bf16", {**first, "bf16": True}),
    ]
    return compare_devices(*(each.result() for each in runs))


def resume(name: str, precision: dict[str, Any], needed: Sequence[Future[str]]) -> dict[str, Any]:
    """Do part d in one precision, once all that it needs is there."""
    for each in needed:
        each.result()
    options, kept = stage2(name, precision)
    whole = pool.submit(run, f"stage2-{name}", options)
    half = pool.submit(run, f"stage2-{name}-half", {**kept, "exit-interval": _HALF}).result()
    rest = pool.submit(run, f"stage2-{name}-resumed", kept).result()
    return compare_halves(whole.result(), half, rest)


def main() -> None:
    parts, stage1 = sys.argv[1], WORK / "stage1"
    result: dict[str, Any] = {}
    with ThreadPoolExecutor() as waiting, pool:
        first = pool.submit(run, "stage1", {**NCA, "train-iters": 10, "save": stage1})
        if "d" in parts:
            source = Path(json.__file__).parent
            prepare: list[str | Path] = ["-m", "nca_plugin", "prepare", source, "--pattern", "*.py", "--out", TEXT]
            prepared = pool.submit(do, "prepare", prepare)
        first.result()
        steps: dict[Future[dict[str, Any]], str] = {}
        if "c" in parts:
            steps[waiting.submit(devices, stage1)] = "cpu_and_gpu"
        if "d" in parts:
            transfer: list[str | Path] = ["-m", "nca_plugin", "transfer", "--from", stage1, "--to", CARRIED_OVER]
            transfer += ["--vocab-size", "257"]
            needed = (prepared, pool.submit(do, "transfer", transfer))
            # A rehearsal does the one of most parts.
            for name in list(PRECISIONS)[: 1 if DRY else None]:
                steps[waiting.submit(resume, name, PRECISIONS[name], needed)] = f"resume_{name}"
        for step in as_completed(steps):
            try:
                result[steps[step]] = step.result()
            except Exception as error:  # the other steps go on
                result[steps[step]] = f"FAILED {error!r}"
            (OUT / "functional.json").write_text(json.dumps(result, indent=1))
    sys.exit(any(isinstance(value, str) for value in result.values()))


if __name__ == "__main__":
    main()
