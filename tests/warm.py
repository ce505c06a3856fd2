"""Commands and launchers run in forks of a process that has imported them: thousands of cases in minutes.

A fork does what a start does, from the arguments to the exit code. Only the imports are those of the first.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn, Self


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: exit code; that of a signal is negative, as in `subprocess`.
        seconds: wall-clock time.
        peak_bytes: of memory, with what was imported before.
    """

    code: int
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int


class WarmProcess:
    """A process that has imported modules, each with a `main` that reads `sys.argv`, and runs them in forks."""

    def __init__(self, *modules: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()

    def run(
        self,
        module: str,
        arguments: Sequence[str | Path],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        timeout: float = 60,
        before: str = "",
    ) -> Ended:
        """Run `module.main()` in `folder`; a case that takes longer than `timeout` seconds is killed (code -9).

        Args:
            before: Python statements that the process runs first, such as to close its standard output.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        with tempfile.TemporaryDirectory() as outputs:
            case = {
                "module": module,
                "arguments": [str(argument) for argument in arguments],
                "folder": str(folder),
                "environment": dict(environment or {}),
                "outputs": outputs,
                "timeout": timeout,
                "before": before,
            }
            print(json.dumps(case), file=self._server.stdin, flush=True)
            ended = json.loads(self._server.stdout.readline())
            texts = {name: (Path(outputs) / name).read_text(errors="replace") for name in ("stdout", "stderr")}
        return Ended(**ended, **texts)


def _serve(modules: Sequence[str]) -> None:
    # What an import prints is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for module in modules:
        import_module(module)
    for line in sys.stdin:
        case = json.loads(line)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(case)
        code, peak = _wait(child, began + case["timeout"])
        answer = {"code": code, "seconds": time.monotonic() - began, "peak_bytes": peak}
        print(json.dumps(answer), file=answers, flush=True)


def _wait(child: int, deadline: float) -> tuple[int, int]:
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            deadline += 3600
        time.sleep(0.005)
    # What it started and left.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


def _run(case: dict[str, object]) -> NoReturn:
    os.setpgid(0, 0)
    code = 1
    try:
        outputs = Path(str(case["outputs"]))
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(outputs / name, os.O_WRONLY | os.O_CREAT), number)
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        os.chdir(str(case["folder"]))
        environment, arguments = case["environment"], case["arguments"]
        assert isinstance(environment, dict) and isinstance(arguments, list)
        os.environ.update(environment)
        sys.argv = [str(case["module"]), *arguments]
        exec(str(case["before"]), {})
        import_module(str(case["module"])).main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt:
        code = 130
        traceback.print_exc()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1:])
