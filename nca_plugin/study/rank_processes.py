"""The ranks of a study's run, as processes on this machine."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import nca_plugin
from nca_plugin.errors import NCAPluginError
from nca_plugin.launch.process import CHILD
from nca_plugin.launch.rounds import reserved_port
from nca_plugin.this_rank import PARENT

SECONDS_BETWEEN_LOOKS: Final = 0.2
_ERROR: Final = re.compile(r"(\[rank\d+\]: ?)?([\w.]*(Error|Exception)|nca-plugin: error)\b")
_SECONDS_TO_END: Final = 10.0


@dataclass(frozen=True)
class Place:
    """Where the ranks of a run are started.

    Attributes:
        ranks: number of ranks.
        threads: number of threads of each rank.
        devices: value of CUDA_VISIBLE_DEVICES; None to leave it as it is.
        stop: ends the ranks when it is set.
    """

    ranks: int = 1
    threads: int = 1
    devices: Sequence[str] | None = None
    stop: threading.Event = field(default_factory=threading.Event)


class StoppedError(NCAPluginError):
    """The run was stopped because another one failed."""


def run_processes(module: str, arguments: list[str], place: Place, title: str, log: Path) -> None:
    """Run a module in a process for each rank, and wait for them. They end with this process, however it ends.

    Args:
        module: module for `python -m`.
        title: title of the run for messages.
        log: file that the output is appended to.

    Raises:
        NCAPluginError: a rank failed. The message holds the line of the log that says why.
        StoppedError: `place.stop` was set.
    """
    command = [sys.executable, "-m", module, *arguments]
    # Only the command itself looks for it; a rank would pass it on to what it starts.
    own = {CHILD: "1"} if module == nca_plugin.__name__ else {}
    began = log.stat().st_size if log.exists() else 0
    processes: list[subprocess.Popen[bytes]] = []
    with log.open("ab") as output, reserved_port() as port:
        try:
            for rank in range(place.ranks):
                environment = {**_environment(rank, port, place), **own}
                processes.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
            code = _wait(processes, place, title)
        finally:
            _end(processes)
    if code:
        how = f"ended with code {code}" if code > 0 else f"was ended by signal {signal.Signals(-code).name}"
        raise NCAPluginError(f"{title} {how}: {_error_line(log, began)}; see {log}")


def _environment(rank: int, port: int, place: Place) -> Mapping[str, str]:
    own = {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(place.ranks),
        "LOCAL_WORLD_SIZE": str(place.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(place.threads),
        "PYTHONUNBUFFERED": "1",
        PARENT: str(os.getpid()),
    }
    if place.devices is not None:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(place.devices)
    # Variables of torchrun are removed, because this process may be a rank of a job itself.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TORCHELASTIC_", "GROUP_"))}
    return {**inherited, **own}


def _wait(processes: list[subprocess.Popen[bytes]], place: Place, title: str) -> int:
    """Return 0 when all ranks have succeeded, or the exit code of the first that fails."""
    while True:
        codes = [process.poll() for process in processes]
        failed = next((code for code in codes if code), None)
        if failed is not None:
            return failed
        if all(code == 0 for code in codes):
            return 0
        if place.stop.wait(SECONDS_BETWEEN_LOOKS):
            raise StoppedError(f"{title}: stopped")


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.terminate()
    deadline = time.monotonic() + _SECONDS_TO_END
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _error_line(log: Path, began: int) -> str:
    """Return the line of a log, after byte `began`, that names the error, or else its last line."""
    with log.open(errors="replace") as file:
        file.seek(began)
        lines = [line.strip() for line in file if line.strip()]
    named = [line for line in lines if _ERROR.match(line)]
    return (named or lines or ["without a word"])[-1]
