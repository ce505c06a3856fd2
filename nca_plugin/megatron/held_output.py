"""Holds back what is printed while a run is set up, until it is known that the run begins."""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from typing import TextIO

from nca_plugin.errors import NCAPluginError


class HeldOutput(io.TextIOBase):
    """Stands for a stream and keeps what is written until `release`.

    After that it passes everything on, because a logger that was set up meanwhile may keep writing to it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held: list[str] | None = []

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._held is None:
            return self._stream.write(text)
        self._held.append(text)
        return len(text)

    def flush(self) -> None:
        if self._held is None:
            self._stream.flush()

    def text(self) -> str:
        return "".join(self._held or ())

    def release(self, *, is_printed: bool) -> None:
        text, self._held = self.text(), None
        if is_printed:
            self.write(text)
            self.flush()


@contextlib.contextmanager
def held_output() -> Iterator[None]:
    """Hold back the output within the context until its end, and drop it after an `NCAPluginError`.

    The line of the error would be lost among hundreds of others.
    """
    output, errors = HeldOutput(sys.stdout), HeldOutput(sys.stderr)
    # Megatron sets up a handler when it is imported.
    loggers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    held = {sys.stdout: output, sys.stderr: errors}
    before = {handler: handler.stream for handler in loggers if handler.stream in held}
    is_printed = True
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            for handler, stream in before.items():
                handler.setStream(held[stream])
            yield
    except NCAPluginError:
        is_printed = False
        raise
    finally:
        for handler, stream in before.items():
            handler.setStream(stream)
        output.release(is_printed=is_printed)
        errors.release(is_printed=is_printed)
