"""Runs programs that a model has written, each in a process of its own that can do no harm (see `jail`).

The sandbox protects this machine, not the score: a malicious program can forge its own verdict. A program that only
ends early, for example with `exit()`, counts as failed.
"""

import contextlib
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from nca_plugin.errors import NCAPluginError

_JAIL: Final = Path(__file__).with_name("jail.py")
#: Larger than any verdict in bytes.
_MOST_BYTES: Final = 4096
#: A probe of what must fail in a sandbox that can be trusted.
_ATTEMPTS: Final = """
import os, socket
def fails(attempt, *arguments):
    try:
        attempt(*arguments)
    except OSError:
        return
    raise AssertionError(f"{attempt.__name__}{arguments} works")
fails(open, "/etc/passwd")
fails(open, "/nca-plugin-probe", "w")
fails(os.fork)
fails(os.kill, os.getppid(), 0)
fails(socket.socket)
"""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one program.

    Attributes:
        cpu_seconds: time that it may compute, in whole seconds, including 0.1 s for the interpreter's start. A busy
            machine does not shorten it, so that a score does not depend on what else runs.
        wall_seconds: time after which it is killed, however little it has computed.
        memory_bytes: size of its address space, including 20 MB for the interpreter.
    """

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory_bytes: int = 1 << 30


def check_sandbox() -> None:
    """Raise `NCAPluginError` unless this machine has the sandbox: Linux 6.2 or newer, x86_64 or aarch64."""
    error = run_program(_ATTEMPTS, Limits())
    if error is not None:
        raise NCAPluginError(f"programs cannot be run safely on this machine: {error}")


def run_program(program: str, limits: Limits) -> str | None:
    """Run a program. Return why it failed, None if it ran to its end.

    It may compute and import the standard library. It cannot read or write other files, start processes or threads,
    open connections, or signal other processes.

    Raises:
        NCAPluginError: this machine does not have the sandbox.
    """
    nonce = secrets.token_hex(16)
    # The environment is empty, because this process's may hold tokens and keys.
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-B", str(_JAIL)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
    ) as process:
        try:
            task = {"program": program, "nonce": nonce, **asdict(limits)}
            answer = _answer(process, json.dumps(task), limits.wall_seconds)
        finally:
            process.kill()
    if answer is None:
        return f"stopped after {limits.wall_seconds:g} s"
    try:
        verdict = json.loads(answer)
    except ValueError:
        if process.returncode == -signal.SIGXCPU:
            return f"stopped after {limits.cpu_seconds} s of CPU time"
        return "ended early" if process.returncode >= 0 else f"ended by signal {-process.returncode}"
    if "refused" in verdict:
        raise NCAPluginError(f"programs cannot be run safely on this machine: {verdict['refused']}")
    if verdict.get("nonce") != nonce:
        return "ended early"
    error: str | None = verdict["error"]
    return error


def run_programs(
    programs: Iterable[str], limits: Limits, jobs: int, on_done: Callable[[int], None] = lambda _: None
) -> list[str | None]:
    """Return the result of `run_program` for each program. `jobs` run at a time; `on_done(1)` is called after each."""

    def one(program: str) -> str | None:
        error = run_program(program, limits)
        on_done(1)
        return error

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, programs))


def _answer(process: subprocess.Popen[bytes], task: str, seconds: float) -> bytes | None:
    """Return the output of a jail, None if it takes longer than `seconds`."""
    assert process.stdin is not None and process.stdout is not None
    # If the interpreter does not start, the output below is empty.
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(task.encode())
        process.stdin.close()
    deadline = time.monotonic() + seconds
    answer = b""
    # The limit is for programs that write without end.
    while len(answer) < _MOST_BYTES:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return None
        part = os.read(process.stdout.fileno(), _MOST_BYTES)
        if not part:
            break
        answer += part
    return answer
