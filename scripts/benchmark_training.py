"""What online NCA data costs a run of Megatron: tokens a second, and the time that waits for the next batch, beside
Megatron's mock data.

    python scripts/benchmark_training.py [--models 160m 400m] [--micro-batches 4 16] [--ranks N]

Batches come from nca://web, from mock data and from nca://code in turn, block by block within one run, so that nothing
else differs. A block is timed between two synchronisations of the device, its first quarter left out, and so is the
first block of each kind. The wait is the time in which the forward step asks for a micro-batch: what the one dataloader
worker is late. Models are those of conf/model, on CUDA devices where there are some. Nothing but what is installed is
needed: without Transformer Engine the layers are Megatron's plain PyTorch ones (`local`).
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

KINDS = ("web", "mock", "code")
_RESULT = re.compile(r"^benchmark: (.+)$", re.MULTILINE)


def main() -> None:
    has_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["160m", "400m"] if has_cuda else ["tiny"])
    parser.add_argument("--micro-batches", nargs="+", type=int, default=[4] if has_cuda else [1], help="sequences")
    parser.add_argument("--seq-length", type=int, default=1024, help="tokens of a sequence (default: 1024)")
    parser.add_argument("--ranks", type=int, default=max(1, torch.cuda.device_count()), help="default: one a device")
    parser.add_argument("--blocks", type=int, default=4, help="of each kind of data (default: 4)")
    parser.add_argument("--iterations", type=int, default=20, help="of a block (default: 20)")
    parser.add_argument("--out", type=Path, help="file that a line of JSON is added to for each run")
    parser.add_argument("--only-cuda", action="store_true", help="do nothing without a CUDA device")
    options = parser.parse_args()
    if options.blocks < 1 or options.iterations < 4:
        parser.error("--blocks must be at least 1, --iterations at least 4: the first quarter of a block is left out")
    if options.only_cuda and not has_cuda:
        print("no CUDA device: nothing is measured")
        return
    print(f"{options.ranks} ranks, sequences of {options.seq_length} tokens")
    columns = ("model", "layers", "micro-batch", "data", "ms an iteration", "waits, ms", "share", "tokens/s by block")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for model in options.models:
        for micro_batch in options.micro_batches:
            row = measure(model, micro_batch, options)
            if options.out is not None:
                with options.out.open("a") as file:
                    print(json.dumps(row), file=file)
            for kind in KINDS:
                found = row[kind]
                speeds = " ".join(f"{speed:,}" for speed in found["tokens_per_s"])
                times = f"{found['ms']:.1f} | {found['wait_ms']:.3f} | {found['wait_ms'] / found['ms']:.3%}"
                print(f"| {model} | {row['layers']} | {micro_batch} | {kind} | {times} | {speeds} |", flush=True)


def measure(model: str, micro_batch: int, options: argparse.Namespace) -> dict[str, Any]:
    """Do a run, and return what it has found."""
    arguments = {
        # A block of each kind comes first and does not count; the last block ends with the iteration after it.
        "train-iters": len(KINDS) * (options.blocks + 1) * options.iterations + 1,
        "micro-batch-size": micro_batch,
        "global-batch-size": micro_batch * options.ranks,
        "seq-length": options.seq_length,
        "max-position-embeddings": options.seq_length,
        "eval-iters": 0,
        "log-interval": 1_000_000,
    }
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"),
        *(__file__, "--config-name", "pretrain", f"model={model}", "data=nca", "+kernels=local"),
        *(f"arguments.{name}={value}" for name, value in arguments.items()),
    ]
    # One thread a rank, so that the dataloader's worker has a core where there are two.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "BENCHMARK_ITERATIONS": str(options.iterations)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    result = _RESULT.search(done.stdout)
    if done.returncode or result is None:
        sys.exit(done.stdout[-2000:] + done.stderr[-5000:])
    found = {"model": model, "micro_batch": micro_batch, "seq_length": options.seq_length, "ranks": options.ranks}
    return {**found, **json.loads(result[1])}


class Clock:
    """Stands where the forward step gets its batches from, and keeps the time."""

    def __init__(self, args: Any) -> None:
        self._args = args
        self._block = int(os.environ["BENCHMARK_ITERATIONS"])
        self._dropped = self._block // 4
        self._iterators: dict[str, Iterator[Any]] = {}
        self._calls = 0
        self._began = self._waited = 0.0
        #: By kind of data: seconds an iteration of each block, and seconds of it that were waited.
        self._seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self._waits: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def batches(self, own: Iterator[Any]) -> Iterator[Any]:
        """Return where the batch of this iteration comes from. `own` is the run's data, of nca://web."""
        if not self._iterators:
            mock, code = {"mock_data": True, "data_path": None}, {"data_path": ["nca://code"]}
            self._iterators = {"web": own, "mock": self._other(mock), "code": self._other(code)}
        block, place = divmod(self._calls, self._block)
        self._calls += 1
        if place in (0, self._dropped):
            torch.cuda.synchronize()
            now = time.perf_counter()
            if place == 0 and block >= len(KINDS) + 1:
                counted = self._block - self._dropped
                kind = KINDS[(block - 1) % len(KINDS)]
                self._seconds[kind].append((now - self._began) / counted)
                self._waits[kind].append(self._waited / counted)
            self._began, self._waited = now, 0.0
        return self._timed(self._iterators[KINDS[block % len(KINDS)]])

    def report(self) -> None:
        """Print what was found, as one line of JSON of rank 0. The rank that waits longest counts."""
        waits = torch.tensor([statistics.mean(self._waits[kind]) for kind in KINDS], device="cuda")
        torch.distributed.all_reduce(waits, torch.distributed.ReduceOp.MAX)
        if torch.distributed.get_rank():
            return
        tokens = self._args.global_batch_size * self._args.seq_length
        layers, gpu_bytes = self._args.transformer_impl, torch.cuda.max_memory_allocated()
        result: dict[str, Any] = {"layers": layers, "gpu_gb": round(gpu_bytes / 1e9, 1)}
        for kind, wait in zip(KINDS, waits.tolist(), strict=True):
            seconds = self._seconds[kind]
            speeds = [round(tokens / value) for value in seconds]
            ms = round(1e3 * statistics.median(seconds), 2)
            result[kind] = {"tokens_per_s": speeds, "ms": ms, "wait_ms": round(1e3 * wait, 3)}
        print(f"benchmark: {json.dumps(result)}", flush=True)

    def _other(self, changes: dict[str, Any]) -> Iterator[Any]:
        """Return batches of what the run would read with other arguments, from a data loader like its own."""
        from megatron.training.datasets.data_samplers import build_pretraining_data_loader

        from nca_plugin.megatron.dataset_provider import provider

        before = {name: getattr(self._args, name) for name in changes}
        vars(self._args).update(changes)
        try:
            train = provider([self._args.train_iters * self._args.global_batch_size, 0, 0])[0]
            return iter(build_pretraining_data_loader(train, 0))
        finally:
            vars(self._args).update(before)

    def _timed(self, iterator: Iterator[Any]) -> Iterator[Any]:
        begin = time.perf_counter()
        batch = next(iterator)
        self._waited += time.perf_counter() - begin
        return iter([batch])


def run_timed() -> None:
    """Be a rank of a run: the Hydra launcher, with a clock around its data."""
    from nca_plugin.launch import hydra, megatron

    pretrain = megatron._pretrain

    def timed_pretrain(args: argparse.Namespace, spelling: Callable[[str], str]) -> None:
        from nca_plugin.megatron import step

        clock, next_batch = Clock(args), step._next_batch
        step._next_batch = lambda data_iterator, model: next_batch(clock.batches(data_iterator), model)
        pretrain(args, spelling)
        clock.report()

    megatron._pretrain = timed_pretrain
    hydra.main()


if __name__ == "__main__":
    # torchrun starts this script again for each rank.
    if "RANK" in os.environ:
        run_timed()
    else:
        main()
