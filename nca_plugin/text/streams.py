"""Reading files of several bzip2 or xz streams to the end.

If a later stream is damaged at its beginning, Python's own readers take that for the end of the file and lose its data.
"""

import io
from collections.abc import Callable
from typing import Any, BinaryIO, Final, Protocol

_CHUNK: Final = 1 << 16


class DamagedError(Exception):
    """The data in a stream, or after its end, is not valid."""


class Decompressor(Protocol):
    """The interface of decompressors in `bz2` and `lzma`."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class Streams(io.RawIOBase):
    """The bytes of all streams of a file. Zeros may follow a stream, as padding of xz.

    Reading raises:
        DamagedError: the data is not a stream.
        EOFError: a stream is cut off.
    """

    def __init__(self, raw: BinaryIO, new: Callable[[], Decompressor]) -> None:
        self._raw, self._new = raw, new
        self._start()

    def _start(self) -> None:
        self._stream: Decompressor | None = self._new()
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go back to the beginning, or stay. Nothing else is supported."""
        if (offset, whence) == (0, io.SEEK_SET):
            self._raw.seek(0)
            self._start()
        elif (offset, whence) != (0, io.SEEK_CUR):
            raise io.UnsupportedOperation(f"seek({offset}, {whence})")
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        with memoryview(buffer).cast("B") as view:
            data = self._next(len(view))
            view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _next(self, most: int) -> bytes:
        """Return 1 to `most` bytes, b"" at the end of the file."""
        while self._stream is not None:
            data = b""
            if self._stream.eof:
                data = self._after(self._stream.unused_data)
                if not data:
                    self._stream = None
                    break
                self._stream = self._new()
            elif self._stream.needs_input:
                data = self._raw.read(_CHUNK)
                if not data:
                    raise EOFError("a stream does not end")
            try:
                found = self._stream.decompress(data, most)
            # `bz2` raises OSError, `lzma` raises LZMAError.
            except Exception as error:
                raise DamagedError(str(error)) from error
            if found:
                return found
        return b""

    def _after(self, data: bytes) -> bytes:
        """Return the data after a stream and its padding, b"" if there is none."""
        while not (data := data.lstrip(b"\0")):
            if not (data := self._raw.read(_CHUNK)):
                break
        return data
