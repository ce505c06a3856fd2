"""A writer killed at any moment: nothing under a final name is ever incomplete, and the same command ends with the same
bytes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from corpora import BLOCK, GENERATE, SUFFIXES, contents, wait_for_blocks, write

from nca_plugin.indexed.merge import merge
from nca_plugin.indexed.verify import verify


def assert_complete_or_absent(prefix: Path, expected: dict[str, bytes]) -> None:
    for suffix in SUFFIXES:
        path = Path(f"{prefix}{suffix}")
        assert not path.exists() or path.read_bytes() == expected[suffix]


@pytest.mark.parametrize("times", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path: Path, times: int) -> None:
    uri, documents = "nca://toy?seed=5", 12 * BLOCK
    write(tmp_path / "undisturbed", uri, documents=documents, workers=2)
    expected = contents(tmp_path / "undisturbed")
    prefix = tmp_path / "killed" / "corpus"
    command = [*GENERATE, uri, "--tokens", str(documents * 1024), "--out", str(prefix), "--workers", "2"]
    moments = random.Random(1)
    kills = 0
    while kills < times:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            # A start takes a second, an undisturbed run two more.
            process.wait(timeout=moments.uniform(0.8, 3.2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert_complete_or_absent(prefix, expected)
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            assert contents(prefix) == expected
            for path in prefix.parent.iterdir():
                path.unlink()
    subprocess.run(command, check=True)
    assert contents(prefix) == expected
    assert verify(str(prefix), 4) == []


#: What changes a disk, by the names that the code calls them by.
DISK_OPERATIONS = ("pwrite", "fdatasync", "fsync", "rename", "unlink", "ftruncate", "mkdir", "replace")


def killed_at(step: int, action: Callable[[], None]) -> bool:
    """Run `action` in a process that dies before disk operation `step`. Returns whether it died."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(operation: Callable) -> Callable:
            def call(*args, **kwargs):
                nonlocal count
                if count == step:
                    os._exit(9)
                count += 1
                return operation(*args, **kwargs)

            return call

        for name in DISK_OPERATIONS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def test_killed_before_every_operation_on_the_disk(
    tmp_path: Path, three_blocks: dict[str, bytes], three_parts: list[str]
) -> None:
    """Merging writes in one process, with the operations of every dataset."""
    for step in range(100):
        prefix = tmp_path / f"killed-{step}" / "corpus"
        died = killed_at(step, lambda prefix=prefix: merge(three_parts, str(prefix)))
        if prefix.parent.exists():
            assert_complete_or_absent(prefix, three_blocks)
        merge(three_parts, str(prefix))
        assert contents(prefix) == three_blocks
        if not died:
            break
    assert 20 < step < 99


def test_killed_again_and_again(tmp_path: Path, three_blocks: dict[str, bytes], three_parts: list[str]) -> None:
    """Each time a few operations further than the last."""
    prefix = tmp_path / "killed" / "corpus"
    step = 3
    while killed_at(step, lambda: merge(three_parts, str(prefix))):
        assert_complete_or_absent(prefix, three_blocks)
        step += 1
    assert contents(prefix) == three_blocks


def test_a_worker_that_is_killed_ends_the_run_and_the_next_one_continues(tmp_path: Path) -> None:
    prefix = tmp_path / "corpus"
    command = [*GENERATE, "nca://toy", "--tokens", str(12 << 20), "--out", str(prefix), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_blocks(tmp_path / "corpus")
    workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    workers[0].kill()
    errors = process.communicate()[1]
    assert process.returncode == 2
    assert "ended early (exit code -9" in errors and "Traceback" not in errors
    subprocess.run(command, check=True)
    assert verify(str(prefix), 4) == []


def test_no_worker_outlives_a_killed_writer(tmp_path: Path) -> None:
    command = [*GENERATE, "nca://toy", "--tokens", str(50 << 20), "--out", str(tmp_path / "corpus"), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_blocks(tmp_path / "corpus")
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


def test_ctrl_c_reaches_no_worker(tmp_path: Path) -> None:
    """Not even the first one, before whom Python starts a process of its own."""
    command = [*GENERATE, "nca://toy", "--tokens", str(50 << 20), "--out", str(tmp_path / "corpus"), "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        wait_for_blocks(tmp_path / "corpus")
        workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
        blocked = [re.search(r"SigBlk:\s*(\w+)", Path(f"/proc/{p.pid}/status").read_text()) for p in workers]
        os.killpg(process.pid, signal.SIGINT)
    assert [int(mask[1], 16) >> (signal.SIGINT - 1) & 1 for mask in blocked if mask] == [1, 1]


@pytest.mark.parametrize("delay", [0.0, 0.2, 0.6])
def test_ctrl_c_is_one_line(tmp_path: Path, delay: float) -> None:
    """A terminal sends it to all processes; the workers may still be starting."""
    command = [*GENERATE, "nca://toy", "--tokens", str(50 << 20), "--out", str(tmp_path / "corpus"), "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while len(psutil.Process(process.pid).children()) < 2:
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate()[1] == "nca-plugin: interrupted\n"
    assert process.returncode == 130
