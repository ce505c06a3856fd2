"""What programs that a model has written can do to this machine: nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nca_plugin.errors import NCAPluginError
from nca_plugin.tasks import sandbox, scoring
from nca_plugin.tasks.sandbox import Limits, check_sandbox, run_program, run_programs

LIMITS = Limits(memory_bytes=256 << 20)
#: By number on x86_64: fork, clone, vfork, clone3, execve, kill, tkill, socket, socketpair, ptrace, prctl, chmod,
#: io_uring_setup, memfd_create, setrlimit, prlimit64, unshare, mount, bpf, userfaultfd.
RAW_CALLS = (57, 56, 58, 435, 59, 62, 200, 41, 53, 101, 157, 90, 425, 319, 160, 302, 272, 165, 321, 323)


def test_programs_of_the_standard_library_run() -> None:
    program = """
import bisect, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json, math, random
import re, statistics, string, sys, time, typing
print("to nobody", file=sys.stderr)
time.sleep(0.01)
assert hashlib.md5(b"a").hexdigest().startswith("0cc1")
assert sorted(random.sample(range(9), 9)) == list(range(9))
datetime.datetime.now()
"""
    assert run_program(program, LIMITS) is None
    check_sandbox()


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 + 1 == 3, 'wrong'", "AssertionError: wrong"),
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import numpy", "ModuleNotFoundError"),
        ("def f(): f()\nf()", "RecursionError"),
        # One that leaves before its tests has not passed them.
        ("raise SystemExit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended early"),
        ("import ctypes; ctypes.string_at(0)", "ended by signal 11"),
        ('import os; os.write(3, b\'{"nonce": "guessed", "error": null}\'); os._exit(0)', "ended early"),
        ("import os\nwhile True: os.write(3, bytes(1 << 16))", "ended"),
    ],
)
def test_a_program_that_fails(program: str, reason: str) -> None:
    error = run_program(program, LIMITS)
    assert error is not None and reason in error


#: Signals that a program can ignore, SIGXCPU among them.
STUBBORN = "import signal\nfor s in (1, 2, 10, 15, 24): signal.signal(s, signal.SIG_IGN)\n"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "stopped after 1 s of CPU time"),
        # One long step of the interpreter, in which it does not look for signals.
        ("9 ** 9 ** 9", "stopped after 1 s of CPU time"),
        (f"{STUBBORN}while True: pass", "ended by signal 9"),
        ("import resource\nresource.setrlimit(resource.RLIMIT_CPU, (2, 2))", "ValueError: not allowed"),
    ],
)
def test_a_program_that_computes_for_long_is_stopped(program: str, reason: str) -> None:
    error = run_program(program, Limits(cpu_seconds=1, wall_seconds=600.0))
    assert error is not None and error.startswith(reason)


def test_a_program_that_waits_for_long_is_stopped() -> None:
    waiting = f"{STUBBORN}import time\ntime.sleep(1000)"
    assert run_program(waiting, Limits(cpu_seconds=600, wall_seconds=1.0)) == "stopped after 1 s"


def test_an_answer_that_is_stopped_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "Limits", lambda: Limits(cpu_seconds=1, wall_seconds=600.0))
    problem = {"prompt": "def double(x):\n", "test": "def check(f): assert f(2) == 4", "entry_point": "double"}
    answers = ["    return 2 * x\n", "    while True: pass\n"]
    assert scoring.humaneval(problem, [answers])["pass@1"] == 0.5


@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(10 << 30)",
        "x = []\nwhile True: x.append(bytearray(1 << 20))",
        "import mmap\nx = mmap.mmap(-1, 10 << 30)",
    ],
)
def test_memory_is_limited(program: str) -> None:
    error = run_program(program, LIMITS)
    assert error is not None and ("MemoryError" in error or "Cannot allocate memory" in error)


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess\nsubprocess.Popen(['sleep', '60'])",
        "import multiprocessing\nmultiprocessing.Pool(64)",
        "import threading\nwhile True: threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
        "import os\nos.posix_spawn('/bin/sleep', ['sleep', '60'], {})",
        "import os\nos.execv('/bin/sleep', ['sleep', '60'])",
    ],
)
def test_no_process_is_started(program: str) -> None:
    # The test process may have children of its own, e.g. multiprocessing's resource tracker.
    children = set(psutil.Process().children(recursive=True))
    error = run_program(program, LIMITS)
    assert error is not None and ("Operation not permitted" in error or "can't start new thread" in error)
    assert set(psutil.Process().children(recursive=True)) <= children


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.create_connection(('127.0.0.1', 1))",
        "import socket\nsocket.socket(socket.AF_UNIX)",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
    ],
)
def test_nothing_is_connected(program: str) -> None:
    error = run_program(program, LIMITS)
    # Urllib wraps it.
    assert error is not None and ("not permitted" in error or "Permission denied" in error)


@pytest.mark.parametrize(
    "attempt",
    [
        "open(path).read()",
        "open(path, 'w')",
        "open(path, 'a').write('x')",
        "os.open(path, os.O_RDONLY | os.O_TRUNC)",
        "os.truncate(path, 0)",
        "os.remove(path)",
        "os.rename(path, path + '2')",
        "os.chmod(path, 0)",
        "os.utime(path)",
        "os.link(path, path + '2')",
        "os.symlink(path, path + '2')",
        "os.mkdir(path + '2')",
        "os.listdir(os.path.dirname(path))",
        "open('/proc/self/environ').read()",
        "open('/etc/passwd').read()",
    ],
)
def test_no_file_is_touched(attempt: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("content")
    before = path.stat()
    error = run_program(f"import os\npath = {str(path)!r}\n{attempt}", LIMITS)
    assert error is not None and "PermissionError" in error
    after = path.stat()
    assert (after.st_mode, after.st_mtime_ns, after.st_nlink) == (before.st_mode, before.st_mtime_ns, before.st_nlink)
    assert path.read_text() == "content" and [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "attempt",
    [
        "os.kill(os.getppid(), 9)",
        "os.killpg(os.getpgid(os.getppid()), 9)",
        # A pipe that is read would signal.
        "fcntl.fcntl(3, fcntl.F_SETOWN, os.getppid())",
        "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))",
        "resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "os.sched_setaffinity(os.getppid(), {0})",
    ],
)
def test_no_other_process_is_touched(attempt: str) -> None:
    error = run_program(f"import fcntl, os, resource\n{attempt}", LIMITS)
    assert error is not None and ("Operation not permitted" in error or "not allowed" in error)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_the_kernel_is_not_reached_past_python() -> None:
    program = f"""
import ctypes
kernel = ctypes.CDLL(None, use_errno=True)
for number in {RAW_CALLS}:
    assert kernel.syscall(number, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 1, number
"""
    assert run_program(program, LIMITS) is None
    # Numbers of the other ABI.
    assert run_program(f"import ctypes\nctypes.CDLL(None).syscall({0x40000000 + 57})", LIMITS) == "ended by signal 31"


def test_secrets_of_the_environment_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert run_program("import os\nassert set(os.environ) <= {'LC_CTYPE'}, os.environ", LIMITS) is None


def test_a_program_dies_with_who_has_started_it(tmp_path: Path) -> None:
    code = (
        "from nca_plugin.tasks.sandbox import Limits, run_program\n"
        "run_program('while True: pass', Limits(cpu_seconds=600, wall_seconds=600.0))"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        while not (children := psutil.Process(process.pid).children()):
            assert process.poll() is None
            time.sleep(0.05)
        # It has to have asked for it.
        time.sleep(1.0)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(children, 10)
    assert not alive


def test_programs_run_side_by_side() -> None:
    done: list[int] = []
    errors = run_programs([f"assert {i} % 3" for i in range(12)], LIMITS, 4, done.append)
    assert [error is None for error in errors] == [i % 3 > 0 for i in range(12)]
    assert done == [1] * 12


def test_a_machine_that_cannot_hold_programs_runs_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    jail = tmp_path / "jail.py"
    jail.write_text('print(\'{"refused": "needs Landlock"}\')')
    monkeypatch.setattr(sandbox, "_JAIL", jail)
    for call in (check_sandbox, lambda: run_program("", LIMITS)):
        with pytest.raises(NCAPluginError, match="programs cannot be run safely on this machine: needs Landlock"):
            call()


def test_limits_that_cannot_be_set_are_no_failure_of_the_program() -> None:
    code = (
        "import resource\n"
        "from nca_plugin.tasks.sandbox import Limits, run_program\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))\n"
        "run_program('pass', Limits())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0 and "programs cannot be run safely on this machine" in done.stderr
