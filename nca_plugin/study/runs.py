"""One run of Megatron as a process: its arguments, its progress, its result."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from nca_plugin.errors import NCAPluginError

_ITERATION = re.compile(r"iteration\s+(\d+)/")
_RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """A stage to run. `folder` will hold its checkpoint, TensorBoard events, log and result."""

    name: str
    folder: Path
    iterations: int
    arguments: list[str]
    threads: int
    inputs: str = ""
    """Fingerprint of what the run reads, so that a result is not taken for that of other inputs."""

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"


@dataclass(frozen=True)
class RunResult:
    """What a run logged. Curves are lists of (iteration, value), losses in nats a token."""

    seconds: float
    train_loss: list[tuple[int, float]]
    validation_loss: list[tuple[int, float]]


class Processes:
    """Processes that stop together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._is_stopped = False

    @contextmanager
    def start(self, command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
        """Run a command with its output piped. Raises `NCAPluginError` after `stop`."""
        with self._lock:
            if self._is_stopped:
                raise NCAPluginError("not started, because another run failed")
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, errors="replace"
            )
            self._running.add(process)
        try:
            yield process
        finally:
            process.wait()
            with self._lock:
                self._running.remove(process)

    def stop(self) -> None:
        """End what runs, and start nothing more."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                process.terminate()


def execute(run: Run, on_iteration: Callable[[int], None], processes: Processes) -> RunResult:
    """Run a stage, or return its result if it is complete. A half-finished one is begun again.

    Args:
        on_iteration: called with the number of each finished iteration that Megatron reports.
        processes: where the process runs, for a caller that has to stop it.

    Raises:
        NCAPluginError: the run failed; the message holds its last line and names its log.
    """
    # The arguments are part of the result: a study with other settings does not take it for its own.
    finished = _finished(run)
    if finished is not None:
        on_iteration(run.iterations)
        return finished
    shutil.rmtree(run.folder, ignore_errors=True)
    run.folder.mkdir(parents=True)
    command = [
        *(sys.executable, "-m", "nca_plugin.launch.megatron", *run.arguments),
        *("--train-iters", str(run.iterations)),
        *("--save", str(run.checkpoint), "--save-interval", str(run.iterations)),
        *("--tensorboard-dir", str(run.folder / "tensorboard"), "--tensorboard-log-interval", "10"),
    ]
    started = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": str(run.threads), "PYTHONUNBUFFERED": "1"}
    log_path = run.folder / "log.txt"
    with log_path.open("w") as log, processes.start(command, environment) as process:
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            log.write(line)
            last = line.strip() or last
            if match := _ITERATION.search(line):
                on_iteration(int(match[1]))
    if process.returncode:
        raise NCAPluginError(
            f"run {run.name} ended with code {process.returncode}: {_error_line(log_path) or last}; see {log_path}"
        )
    result = RunResult(time.monotonic() - started, *read_losses(run.folder / "tensorboard"))
    if not result.validation_loss:
        raise NCAPluginError(f"run {run.name} logged no validation loss: check eval-interval; see {log_path}")
    partial = run.folder / f"{_RESULT}.partial"
    partial.write_text(json.dumps({"arguments": _identity(run), **asdict(result)}, indent=1))
    partial.rename(run.folder / _RESULT)
    return result


def _finished(run: Run) -> RunResult | None:
    try:
        stored = json.loads((run.folder / _RESULT).read_text())
    except (OSError, ValueError):
        return None
    if stored.pop("arguments", None) != _identity(run):
        return None
    curves = {name: [(int(i), float(v)) for i, v in stored[name]] for name in ("train_loss", "validation_loss")}
    return RunResult(stored["seconds"], **curves)


def _identity(run: Run) -> list[str]:
    return [*run.arguments, str(run.iterations), run.inputs]


def _error_line(log_path: Path) -> str | None:
    """Return the line of a log that names the error."""
    lines = [line.strip() for line in log_path.read_text().splitlines()]
    named = [line for line in lines if re.match(r"(\[rank\d+\]: )?([\w.]*(Error|Exception)|nca-plugin: error)\b", line)]
    return named[-1] if named else None


def read_losses(folder: Path) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Return the training and validation losses that a run wrote to TensorBoard, as (iteration, nats a token)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()

    def curve(tag: str) -> list[tuple[int, float]]:
        if tag not in events.Tags()["scalars"]:
            return []
        by_step: dict[int, list[float]] = {}
        for event in events.Scalars(tag):
            by_step.setdefault(event.step, []).append(event.value)
        # Megatron evaluates twice after the last iteration, on different samples: their mean is the better estimate.
        return [(step, sum(values) / len(values)) for step, values in sorted(by_step.items())]

    return curve("lm loss"), curve("lm loss validation")
