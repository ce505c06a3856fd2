"""Functions that the launchers of all stacks use in their processes."""

import argparse
import ctypes
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from types import TracebackType
from typing import Final, NoReturn

from nca_plugin.errors import NCAPluginError, one_line, require
from nca_plugin.this_rank import PARENT, ends_with_others

#: Environment variable that makes the command `nca-plugin` end with the process that started it, as a rank does.
CHILD: Final = "NCA_PLUGIN_CHILD"

#: In older releases, pretrain() takes other arguments.
_OLDEST_MEGATRON_CORE: Final = (0, 18)
_PR_SET_PDEATHSIG: Final = 1
_SECONDS_TO_END: Final = 1
#: Names of the first process of a machine or container, if that is not torchrun.
_INITS: Final = ("systemd", "init", "tini", "dumb-init", "docker-init", "catatonit", "bash", "sh", "dash", "sleep")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise NCAPluginError(f"{message} (see --help)")


def die_with_torchrun() -> None:
    """Make the kernel kill this rank, and the processes that it forks, as soon as torchrun or `PARENT` ends.

    A killed torchrun would leave its ranks running, which would go on writing checkpoints beside those of the next job.
    If neither has started this process, or outside Linux, it runs until ctrl-C. Before training begins, ctrl-C then
    prints one line.
    """
    if not _is_started_for_us():
        sys.excepthook = _show_uncaught
        return
    _die_with_parent()
    # If the parent has died already, this process has another parent now.
    parent = os.environ.get(PARENT)
    if not _is_torchrun(os.getppid()) if parent is None else os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGKILL)
    os.environ[PARENT] = str(os.getpid())
    os.register_at_fork(before=_note_fork, after_in_child=_die_with_forking_process)


def _show_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    frames = (frame for frame, _ in walk_tb(trace))
    is_training = any(
        frame.f_code.co_name == "train" and frame.f_globals.get("__name__") == "megatron.training.training"
        for frame in frames
    )
    # If training was interrupted, it may have hung, and the traceback shows where.
    if issubclass(kind, KeyboardInterrupt) and not is_training:
        print("nca-plugin: interrupted", file=sys.stderr, flush=True)
    else:
        sys.__excepthook__(kind, error, trace)


def die_with_spawning_process() -> None:
    """Do as `die_with_torchrun` in a process of Python's multiprocessing, such as a checkpoint's writer."""
    if _is_started_for_us():
        _die_with_parent()


def _is_started_for_us() -> bool:
    return sys.platform == "linux" and ends_with_others()


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _is_torchrun(pid: int) -> bool:
    """Return whether a parent may be torchrun. It may not if it is an init process, which inherits orphans."""
    if pid != 1:
        return True
    try:
        return Path("/proc/1/comm").read_text().strip() not in _INITS
    except OSError:
        return True


#: The process that forks; None if another thread than its main one does.
_forking: int | None = None


def _note_fork() -> None:
    global _forking
    # The kernel watches the thread that forked, and a thread may end before its process.
    _forking = os.getpid() if threading.current_thread() is threading.main_thread() else None


def _die_with_forking_process() -> None:
    if _forking is not None:
        _die_with_parent()
        if os.getppid() != _forking:
            os.kill(os.getpid(), signal.SIGKILL)


def check_training_loop() -> None:
    """Check, without importing Megatron, that it has a training loop that the launchers can start.

    Raises:
        NCAPluginError: if megatron-core is not installed, older than 0.18, or without `megatron.training`.
    """
    release = _megatron_core()
    if tuple(map(int, release.split(".")[:2])) < _OLDEST_MEGATRON_CORE:
        raise NCAPluginError(
            f"megatron-core {release} is older than 0.18, and its pretrain() is not what nca-plugin starts: write "
            "the data with nca-plugin generate and name it in the --data-path of a training script of your own "
            "(nca-plugin transfer works here too), or install megatron-core 0.19 in another environment"
        )
    if find_spec("megatron.training") is None:
        raise NCAPluginError(
            f"megatron-core {release} holds no megatron.training: install megatron-core 0.19, or add a checkout of "
            "Megatron-LM to PYTHONPATH"
        )


def _megatron_core() -> str:
    """Return the release of the megatron-core that an import finds.

    It is read from a file, because a checkout of Megatron-LM may take precedence over the installed package.
    """
    require("megatron.core")
    spec = find_spec("megatron.core")
    assert spec is not None and spec.origin is not None
    about = Path(spec.origin).with_name("package_info.py").read_text()
    numbers = dict(re.findall(r"^(MAJOR|MINOR|PATCH) = (\d+)$", about, re.MULTILINE))
    return ".".join(numbers.get(name, "0") for name in ("MAJOR", "MINOR", "PATCH"))


@contextmanager
def lost_worker_errors() -> Iterator[None]:
    """Turn PyTorch's errors for a lost worker of a data loader into an `NCAPluginError`.

    PyTorch's error may interrupt any line of the training and cause other errors. A worker that is lost while it sends
    a batch causes an error of the connection.
    """
    try:
        yield
    except NCAPluginError:
        raise
    except Exception as error:
        lost = _lost_worker(error)
        if lost is None:
            raise
        raise NCAPluginError(
            f"{lost}; most often the machine ran out of memory: give the job more, or fewer workers. Started again, "
            "the run resumes from its last checkpoint"
        ) from error


def _lost_worker(error: BaseException) -> str | None:
    """Return PyTorch's message about a lost worker; None if the error has another cause."""
    from torch._C import _error_if_any_worker_fails

    try:
        # The connection of a killed process ends shortly before the process does.
        time.sleep(_SECONDS_TO_END)
        _error_if_any_worker_fails()
    except RuntimeError as of_worker:
        error = of_worker
    for one in _chain(error):
        found = re.search(r"DataLoader worker \(pid.*?(is killed by signal: \w+|exited unexpectedly)", one_line(one))
        if found is not None:
            return found[0]
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that caused it."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            yield one
            waiting += (one.__context__, one.__cause__)


def use_shipped_dataset_helper() -> None:
    """Keep Megatron from compiling its dataset helper if only the compiled one is there, as in the wheel.

    Without the Makefile, Megatron would end the run.
    """
    import megatron.core.datasets.utils as dataset_utils

    has_makefile = (Path(dataset_utils.__file__).parent / "Makefile").is_file()
    if not has_makefile and find_spec("megatron.core.datasets.helpers_cpp") is not None:
        dataset_utils.compile_helpers = lambda: None
