"""How commands end: interrupted at any moment, without a reader, without space for what they print."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from corpora import GENERATE, wait_for_blocks

COMMAND = (sys.executable, "-m", "nca_plugin")
#: Compiled code that does not return for minutes, inside a command.
IN_COMPILED_CODE = """
import sys
from nca_plugin.display import ending
from nca_plugin.automata import NCAConfig
from nca_plugin.automata.generator import Rollout
config = NCAConfig(grid_size=256, num_colors=64, patch_size=1, steps_per_frame=1000, band=None, temperature=1.0)
Rollout(NCAConfig(), "train", 0, 0, 0, 0).frames(1)
def roll():
    print("begun", flush=True)
    Rollout(config, "train", 0, 0, 0, 0).frames(1000)
ending._SECONDS_TO_END = 1.0
sys.exit(ending.run_to_its_end(roll))
"""


def test_an_interrupted_command_has_its_code_also_where_python_was_running_a_text(tmp_path: Path) -> None:
    code = "import signal, sys\nfrom nca_plugin.display.ending import run_to_its_end\n"
    code += "sys.exit(run_to_its_end(lambda: exec('signal.raise_signal(signal.SIGINT)', globals())))\n"
    (tmp_path / "command.py").write_text(code)
    # As a module, which Python ends in another way than a script.
    done = subprocess.run([sys.executable, "-m", "command"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "nca-plugin: interrupted\n")


def test_a_signal_that_is_ignored_stays_so() -> None:
    code = "import signal; from nca_plugin.display.ending import run_to_its_end; "
    code += "signal.signal(signal.SIGHUP, signal.SIG_IGN); "
    code += "run_to_its_end(lambda: signal.raise_signal(signal.SIGHUP)); print('done')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_command_is_imported_and_runs_is_one_line(tmp_path: Path, number: signal.Signals) -> None:
    draw = random.Random(int(number))
    codes = set()
    for delay in (draw.uniform(0.0, 2.0) for _ in range(4)):
        command = [*COMMAND, "inspect", "nca://toy", "--count", "50000", "--out", "page"]
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            _wait_until_caught(process, number)
            time.sleep(delay)
            process.send_signal(number)
            began = time.monotonic()
            assert process.stderr is not None
            assert process.stderr.read() == "nca-plugin: interrupted\n"
        assert time.monotonic() - began < 15
        codes.add(process.returncode)
        assert not list(tmp_path.iterdir())
    assert codes == {130}


@pytest.mark.parametrize("signals", [1, 2])
def test_compiled_code_does_not_keep_a_command_from_its_end(signals: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", IN_COMPILED_CODE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.communicate(timeout=20)[1] == "nca-plugin: interrupted\n"
    assert process.returncode == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_thread_that_is_left_does_not_keep_a_command_that_is_done(number: signal.Signals) -> None:
    code = "import sys, threading, time; from nca_plugin.display.ending import run_to_its_end; "
    code += "run_to_its_end(threading.Thread(target=time.sleep, args=(60,)).start); print('done', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "done\n"
        process.send_signal(number)
        assert process.communicate(timeout=20)[1] == "nca-plugin: interrupted\n"
    assert process.returncode == 130


def test_a_signal_to_one_process_alone_ends_its_workers(tmp_path: Path) -> None:
    command = [*GENERATE, "nca://toy", "--tokens", str(50 << 20), "--out", str(tmp_path / "corpus"), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    wait_for_blocks(tmp_path / "corpus")
    workers = psutil.Process(process.pid).children()
    process.terminate()
    assert process.communicate(timeout=20)[1] == "nca-plugin: interrupted\n"
    assert process.returncode == 130
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive


@pytest.mark.parametrize(
    ("redirection", "code", "error"),
    [
        ("> /dev/full", 2, "nca-plugin: error: cannot write to standard output: No space left on device\n"),
        ("2> /dev/full", 0, ""),
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        ("| head -n 1", 0, ""),
        ("| true", 0, ""),
    ],
)
def test_the_code_is_that_of_the_work_unless_its_answer_is_lost(
    tmp_path: Path, redirection: str, code: int, error: str
) -> None:
    script = f"{sys.executable} -m nca_plugin tokenizer written {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, error)
    assert (tmp_path / "written" / "tokenizer.json").is_file()


def test_files_do_not_take_the_place_of_streams_that_are_closed(tmp_path: Path) -> None:
    script = f"{sys.executable} -m nca_plugin generate nca://toy --tokens 2K --out corpus --workers 1 >&- 2>&- <&-"
    assert subprocess.run(["bash", "-c", script], cwd=tmp_path).returncode == 0
    done = subprocess.run([*COMMAND, "verify", "corpus"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done


def _wait_until_caught(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Wait until a process has a handler: before, Python itself is starting."""
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
        if all(caught >> (each - 1) & 1 for each in (signal.SIGTERM, number)):
            return
        time.sleep(0.001)
