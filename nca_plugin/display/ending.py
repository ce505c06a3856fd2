"""How a command ends, whatever happens to it: interrupted, without a reader, without space for what it prints.

Little is imported here, so that all this holds before the command itself is imported.
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

#: Of a command that a signal ended in order, as shells and others give it for ctrl-C.
INTERRUPTED: Final = 130
#: Of one that ended in an error that a user can put right.
FAILED: Final = 2

_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: For the command to put its files in order after a signal, and after a second one.
_SECONDS_TO_END: Final = 10.0
_SECONDS_AFTER_SECOND: Final = 1.0
_MESSAGE: Final = "nca-plugin: interrupted\n"


def run_to_its_end(command: Callable[[], None]) -> int:
    """Run a command that ends as `sys.exit` does and return the exit code, whatever happens to it.

    - ctrl-C, SIGTERM and SIGHUP raise `KeyboardInterrupt` once and give code 130 and one line. A command that does not
      end within 10 s, or 1 s after a second signal, such as one inside compiled code, is ended with its processes.
    - A signal when the command is done leaves its process 1 s to end with the command's own code.
    - Where standard output is closed, or its reader has left, the command does its work all the same.
    - What cannot be written to standard output for another reason is one line and code 2, when the work is done.
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
        # numba, interrupted while it loads compiled code, makes a SystemError of it.
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
    """Let no ctrl-C reach a process that is started within, from its first instruction on: a terminal sends it to all
    processes, of which the first ends the others. A signal interrupts the block, which may be half-way, only when it
    ends."""

    # Started by the first process otherwise, it would let interrupts through again.
    ensure_running()
    late: list[int] = []
    # The mask is that of this thread, and a signal may come to another one; handlers are of the main thread alone.
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
    """Python ends itself by a signal, in place of its exit code, where a KeyboardInterrupt has passed through `exec` of
    a text, as dataclasses use it. It does not for a subclass."""


class _Interrupts:
    """Signals as one `KeyboardInterrupt`, and a watch that ends the process if it does not end by itself."""

    def __init__(self) -> None:
        self.is_told = False
        self.is_interrupted = False
        self._is_ended = False
        self._pid = os.getpid()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        # A signal that is ignored already, as nohup and a shell's background jobs have it, stays so.
        self._caught = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._caught:
            signal.signal(number, self._interrupt)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._leave_child)
        start_new_thread(self._watch, ())

    def end(self) -> None:
        """Interrupt nothing any more. The watch still sees signals, as a thread that the command left may run on."""
        self._is_ended = True
        for number in self._caught:
            signal.signal(number, self._pass)
        # Python takes handlers of its own away as it shuts down, but leaves a signal ignored: its code is kept.
        atexit.register(self._ignore)

    def _ignore(self) -> None:
        for number in self._caught:
            signal.signal(number, signal.SIG_IGN)

    def _interrupt(self, number: int, frame: "FrameType | None") -> None:
        # A second one would interrupt what puts the files in order.
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
        # Python's handler waits until compiled code returns. This thread does not.
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
    """Return the processes that this one has started; none where the system does not tell."""
    children = []
    with suppress(OSError):
        for thread in os.listdir("/proc/self/task"):  # noqa: PTH208 - pathlib is not imported yet
            with suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:  # noqa: PTH123
                children += [int(number) for number in file.read().split()]
    return children


class _Stream(io.FileIO):
    """A standard stream that is written to as long as it can be.

    Attributes:
        error: why it could not be; that nobody reads it any more is none.
    """

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.error: OSError | None = None

    @classmethod
    def replace(cls, name: str) -> "_Stream | None":
        """Have sys.stdout or sys.stderr write through a new one; None if it is no file."""
        before = getattr(sys, name)
        try:
            stream = cls(before.fileno())
        except (AttributeError, OSError):
            return None
        # A name that is no text, or that the encoding lacks, is shown with backslashes.
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
