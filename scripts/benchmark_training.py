"""What online NCA data costs a run of Megatron: tokens a second beside those with its mock data, and the share of an
iteration that waits for the next batch.

    python scripts/benchmark_training.py [--ranks N] [--iterations N] [--repetitions N]

Two models, on CUDA devices where there are some. The wait is the time in which the forward step asks Megatron's data
iterator for a micro-batch: what the one dataloader worker is late, and what its batch takes to reach this process.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

_SEQ_LENGTH = 1024
_MICRO_BATCH_SIZE = 4 if torch.cuda.is_available() else 1
_LOG_INTERVAL = 5
_ITERATION = re.compile(r"elapsed time per iteration \(ms\): ([\d.]+)")
_WAIT = re.compile(r"benchmark: waited ([\d.]+) ms a micro-batch")

#: Overrides of `conf/pretrain.yaml`.
_CPU_MODELS = {
    "4 x 128": ["model=tiny"],
    "4 x 512": ["model=tiny", "arguments.hidden-size=512", "arguments.ffn-hidden-size=1536"],
}
_CUDA_MODELS = {"160m": ["model=160m"], "400m": ["model=400m"]}
_DATA = {
    "NCA": ["data.source=nca"],
    "mock": [
        "~data",
        "arguments.mock-data=true",
        "arguments.tokenizer-type=NullTokenizer",
        "arguments.vocab-size=10002",
    ],
}


@dataclass(frozen=True)
class Speed:
    """Of a run, the first interval left out."""

    iteration: float
    """ms, median over the intervals of the log."""

    wait: float
    """ms, mean over the iterations, of the rank that waits longest."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=max(1, torch.cuda.device_count()), help="default: one a device")
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each kind, in turn")
    parser.add_argument("--only-cuda", action="store_true", help="do nothing without a CUDA device")
    options = parser.parse_args()
    if options.iterations < 2 * _LOG_INTERVAL:
        parser.error(f"--iterations must be at least {2 * _LOG_INTERVAL}: the first {_LOG_INTERVAL} do not count")
    if options.only_cuda and not torch.cuda.is_available():
        print("no CUDA device: nothing is measured")
        return
    batch = options.ranks * _MICRO_BATCH_SIZE
    tokens = batch * _SEQ_LENGTH
    print(f"{options.ranks} ranks, {batch} sequences of {_SEQ_LENGTH} tokens an iteration, one dataloader worker")
    print(
        "| model | data | ms an iteration | tokens a second | waits for data, ms | share |\n|---|---|---|---|---|---|"
    )
    for name, model in (_CUDA_MODELS if torch.cuda.is_available() else _CPU_MODELS).items():
        speeds: dict[str, list[Speed]] = {data: [] for data in _DATA}
        for _ in range(options.repetitions):
            for data, overrides in _DATA.items():
                speeds[data].append(_measure([*model, *overrides], options.ranks, options.iterations, batch))
        for data, runs in speeds.items():
            iteration = statistics.median(run.iteration for run in runs)
            wait = statistics.median(run.wait for run in runs)
            print(
                f"| {name} | {data} | {iteration:.1f} | {tokens / iteration * 1e3:,.0f} | {wait:.3f} | "
                f"{wait / iteration:.3%} |",
                flush=True,
            )


def _measure(overrides: list[str], ranks: int, iterations: int, batch: int) -> Speed:
    arguments = {
        "train-iters": iterations,
        "micro-batch-size": _MICRO_BATCH_SIZE,
        "global-batch-size": batch,
        "seq-length": _SEQ_LENGTH,
        "max-position-embeddings": _SEQ_LENGTH,
        "num-workers": 1,
        "eval-iters": 0,
        "log-interval": _LOG_INTERVAL,
        "split": "'100,0,0'",
    }
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        *(__file__, "--config-name", "pretrain", *overrides),
        *(f"arguments.{name}={value}" for name, value in arguments.items()),
    ]
    # One thread a rank, so that the dataloader's worker has a core where there are two.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-5000:])
    return Speed(
        iteration=statistics.median(map(float, _ITERATION.findall(done.stdout)[1:])),
        wait=max(map(float, _WAIT.findall(done.stdout))),
    )


def _run_timed() -> None:
    """Be a rank of a run: the Hydra launcher, with a clock around its data iterators."""
    from nca_plugin.launch import hydra, megatron

    waits: list[float] = []

    class Timed:
        def __init__(self, iterator: Iterator[Any]) -> None:
            self._iterator = iterator

        def __next__(self) -> Any:
            start = time.perf_counter()
            batch = next(self._iterator)
            waits.append(time.perf_counter() - start)
            return batch

    pretrain = megatron._pretrain

    def timed_pretrain(*arguments: Any) -> None:
        from nca_plugin.megatron import step

        next_batch = step._next_batch
        step._next_batch = lambda iterator, model: next_batch(Timed(iterator), model)
        pretrain(*arguments)

    megatron._pretrain = timed_pretrain
    hydra.main()
    # One micro-batch an iteration.
    print(f"benchmark: waited {statistics.mean(waits[_LOG_INTERVAL:]) * 1e3} ms a micro-batch", flush=True)


if __name__ == "__main__":
    # torchrun starts this script again for each rank.
    if "RANK" in os.environ:
        _run_timed()
    else:
        main()
