"""How a command ends: when it is interrupted, when nobody reads its output, and when its output cannot be written.

This module imports little, so that it is in effect before the command itself is imported.
"""

import atexit
import io
import os
import select
import signal
import sys
import time
from _thread import start_new_thread  # Without the cost of threading, which is imported later.
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.resource_tracker import ensure_running
from threading import current_thread, main_thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Buffer
    from types import FrameType

#: Exit code after a signal, the same that shells use for ctrl-C.
INTERRUPTED: Final = 130
#: Exit code after an error that the user can fix.
FAILED: Final = 2

_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Seconds that a command has to clean up after a signal, and after a second one.
_SECONDS_TO_END: Final = 10.0
_SECONDS_AFTER_SECOND: Final = 1.0
_MESSAGE: Final = "nca-plugin: interrupted\n"


def run_to_its_end(command: Callable[[], None]) -> int:
    """Run a command that ends like `sys.exit`, and return its exit code.

    - ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt` once, print one line and give exit code 130. A command that
      does not end within 10 s, or 1 s after a second signal, is killed with its processes, even in compiled code.
    - A signal after the command is done leaves the process 1 s to end with the command's own exit code.
    - If standard output is closed or its reader has left, the command still does all its work.
    - If standard output cannot be written for another reason, one line and exit code 2 follow after the work.
    """
    _open_missing_streams()
    interrupts = _Interrupts()
    sys.unraisablehook = _show_unraisable
    output = _Stream.replace("stdout")
    _Stream.replace("stderr")
    code: object = 0
    try:
        try:
            command()
        except SystemExit as end:
            code = end.code or 0
        finally:
            interrupts.end()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception:
        # numba turns an interrupt while it loads compiled code into a SystemError.
        if not interrupts.is_interrupted:
            raise
        code = INTERRUPTED
    sys.stdout.flush()
    if code == INTERRUPTED:
        sys.stderr.write(_MESSAGE)
        interrupts.is_told = True
    elif output is not None and output.error is not None and code != FAILED:
        code = FAILED
        sys.stderr.write(f"nca-plugin: error: cannot write to standard output: {output.error.strerror}\n")
    sys.stderr.flush()
    return code if isinstance(code, int) else 1


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Block ctrl-C for processes that are started in the block, from their first instruction on.

    A terminal sends ctrl-C to all processes; the first process ends the others itself. A signal to this process is
    delivered at the end of the block, so that the block is not interrupted half-way.
    """

    # If the resource tracker were started inside the block, it would unblock the signal again.
    ensure_running()
    late: list[int] = []
    # The signal mask is per thread, and another thread may get the signal. Only the main thread can set handlers.
    is_main = current_thread() is main_thread()
    numbers = [number for number in _SIGNALS if is_main and callable(signal.getsignal(number))]
    handlers = {number: signal.signal(number, lambda number, _: late.append(number)) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in late:
            signal.raise_signal(number)


class _Interrupted(KeyboardInterrupt):
    """A subclass, because Python replaces its exit code by a signal if a plain KeyboardInterrupt passes through `exec`
    of a text, which dataclasses use."""


class _Interrupts:
    """Turns signals into one `KeyboardInterrupt`, and kills the process if it does not end afterwards."""

    def __init__(self) -> None:
        self.is_told = False
        self.is_interrupted = False
        self._is_ended = False
        self._pid = os.getpid()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # A signal that is already ignored stays ignored. nohup and background jobs of a shell rely on that.
        self._caught = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._caught:
            signal.signal(number, self._interrupt)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._leave_child)
        start_new_thread(self._watch, ())

    def end(self) -> None:
        """Stop interrupting. The watch still sees signals, because a thread of the command may keep running."""
        self._is_ended = True
        for number in self._caught:
            signal.signal(number, self._pass)
        # Python removes its handlers at shutdown, but ignored signals stay ignored, so the exit code is kept.
        atexit.register(self._ignore)

    def _ignore(self) -> None:
        for number in self._caught:
            signal.signal(number, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: "FrameType | None") -> None:
        # A second exception would interrupt the clean-up.
        if not self.is_interrupted:
            self.is_interrupted = True
            raise _Interrupted

    def _pass(self, number: int, frame: "FrameType | None") -> None:
        pass

    def _leave_child(self) -> None:
        if signal.getsignal(signal.SIGINT) in (self._interrupt, self._pass):
            signal.set_wakeup_fd(-1)
            for number in self._caught:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _watch(self) -> None:
        # Python's signal handlers wait until compiled code returns; this thread does not.
        while os.read(self._reader, 1)[0] not in self._caught:
            pass
        deadline = time.monotonic() + (_SECONDS_AFTER_SECOND if self._is_ended else _SECONDS_TO_END)
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._reader], [], [], left)[0] and os.read(self._reader, 1)[0] in self._caught:
                deadline = min(deadline, time.monotonic() + _SECONDS_AFTER_SECOND)
        for child in _children():
            with suppress(OSError):
                os.kill(child, signal.SIGTERM)
        if not self.is_told:
            with suppress(OSError):
                os.write(2, _MESSAGE.encode())
        os._exit(INTERRUPTED)


def _children() -> list[int]:
    """Return the child processes of this process; none if the system does not list them."""
    children = []
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - pathlib is not imported yet
            with suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:  # noqa: PTH123
                children += [int(number) for number in file.read().split()]
    return children


class _Stream(io.FileIO):
    """A standard stream that ignores errors of writing.

    Attributes:
        error: the first error of writing, None if there was none. A reader that has left is not an error.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    @classmethod
    def replace(cls, name: str) -> "_Stream | None":
        """Make sys.stdout or sys.stderr write through a new stream and return it; None if it is not a file."""
        before = getattr(sys, name)
        try:
            stream = cls(before.fileno())
        except (AttributeError, OSError):
            return None
        # File names that cannot be encoded are shown with backslashes.
        text = io.TextIOWrapper(
            io.BufferedWriter(stream),
            encoding=before.encoding,
            errors="backslashreplace",
            line_buffering=before.line_buffering,
        )
        setattr(sys, name, text)
        return stream

    def write(self, data: "Buffer") -> int:
        try:
            written = super().write(data)
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.error = self.error or error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes
        return written


def _open_missing_streams() -> None:
    """Open the null device where a standard stream is closed: a file that is opened later would take its place, and
    hold what is printed."""
    for descriptor in range(3):
        with suppress(OSError):
            os.fstat(descriptor)
            continue
        os.open(os.devnull, os.O_RDWR)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, mode, closefd=False))


def _show_unraisable(what: "sys.UnraisableHookArgs") -> None:
    # Raised where no code can catch it, such as in a destructor, it would be shown as a traceback.
    if not issubclass(what.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(what)
