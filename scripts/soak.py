"""Train for an hour and watch what the processes hold: memory, file handles, threads, and the generator's time.

    python scripts/soak.py --minutes 60 --ranks 4 --workers 4 --out runs/soak

Every ten seconds it adds a line to OUT/processes.csv; at the end it prints means over each sixth of the time, by kind
of process. What leaks grows from column to column. The run saves and validates as it goes, which hold things too.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nca_plugin.megatron.metrics import GENERATOR

_PARTS = 6
_INTERVAL = 10.0
_COLUMNS = ("seconds", "kind", "processes", "pss_mb", "file_handles", "threads")
_MODEL = (
    *("--num-layers", "2", "--hidden-size", "64", "--num-attention-heads", "4", "--seq-length", "512"),
    *("--max-position-embeddings", "512", "--position-embedding-type", "rope"),
    *("--micro-batch-size", "1", "--global-batch-size", "4", "--lr", "1e-4", "--train-iters", "100000000"),
    *("--eval-interval", "500", "--eval-iters", "4", "--save-interval", "1000", "--log-interval", "50"),
    *("--tensorboard-log-interval", "10", "--no-create-attention-mask-in-dataloader", "--data-source", "nca"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4, help="of the data loader, for each rank")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"--out {options.out} exists: choose another folder")
    options.out.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.ranks}"),
        *("-m", "nca_plugin.launch.megatron", *_MODEL, "--num-workers", str(options.workers)),
        *("--exit-duration-in-mins", str(options.minutes), "--tensorboard-dir", str(options.out / "tensorboard")),
        *("--save", str(options.out / "checkpoint")),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (options.out / "log").open("w") as log:
        run = psutil.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        watch(run, options.out / "processes.csv", options.minutes)
    finally:
        if run.is_running():
            run.terminate()
    if run.wait() != 0:
        sys.exit(f"the run ended with code {run.returncode}: see {options.out / 'log'}")
    report(options.out)


def watch(run: psutil.Popen, path: Path, minutes: int) -> None:
    """Write what the processes hold until the run ends, and tell every minute how far it is."""
    start = time.monotonic()
    told = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        while run.poll() is None:
            for kind, values in held(run):
                writer.writerow((f"{time.monotonic() - start:.0f}", kind, *values))
            file.flush()
            passed = int((time.monotonic() - start) / 60)
            if passed > told:
                print(f"{passed} of {minutes} min", file=sys.stderr, flush=True)
                told = passed
            time.sleep(_INTERVAL)


def held(run: psutil.Popen) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield, for each kind of process, their number, memory in MB (shared pages divided), file handles, threads."""
    kinds: dict[str, list[tuple[float, ...]]] = {"torchrun": [], "rank": [], "worker": [], "other": []}
    try:
        processes = [run, *run.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            if process.pid == run.pid:
                kind = "torchrun"
            elif process.name() == "pt_data_worker":
                kind = "worker"
            else:
                kind = "rank" if process.ppid() == run.pid else "other"
            memory = process.memory_full_info().pss / 1e6
            kinds[kind].append((memory, process.num_fds(), process.num_threads()))
        except psutil.Error:
            # It has ended.
            continue
    for kind, rows in kinds.items():
        if rows:
            yield kind, (len(rows), *(round(sum(column), 1) for column in zip(*rows, strict=True)))


def report(out: Path) -> None:
    """Print means over the parts of the time, as Markdown."""
    with (out / "processes.csv").open() as file:
        rows = list(csv.DictReader(file))
    end = float(rows[-1]["seconds"])
    parts = [(end * i / _PARTS, end * (i + 1) / _PARTS) for i in range(_PARTS)]
    heads = [f"{low / 60:.0f}-{high / 60:.0f} min" for low, high in parts]
    print(f"| processes | of all | {' | '.join(heads)} |")
    print("|---" * (2 + _PARTS) + "|")
    for kind in ("rank", "worker", "torchrun", "other"):
        for column in _COLUMNS[2:]:
            cells = []
            for low, high in parts:
                values = [
                    float(row[column]) for row in rows if row["kind"] == kind and low <= float(row["seconds"]) <= high
                ]
                cells.append(f"{sum(values) / len(values):,.1f}" if values else "-")
            print(f"| {kind} | {column} | {' | '.join(cells)} |")
    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    times = events.Scalars(GENERATOR)
    first = times[0].wall_time
    length = (times[-1].wall_time - first) / _PARTS
    for name, place in (("median", 0.5), ("99th percentile", 0.99)):
        cells = []
        for i in range(_PARTS):
            values = sorted(event.value for event in times if i * length <= event.wall_time - first <= (i + 1) * length)
            cells.append(f"{values[int(place * (len(values) - 1))]:.3f}" if values else "-")
        print(f"| generator | ms a sample, {name} | {' | '.join(cells)} |")
    losses = events.Scalars("lm loss")
    print(f"\n{losses[-1].step:,} iterations, loss {losses[0].value:.3f} to {losses[-1].value:.3f}")


if __name__ == "__main__":
    main()
