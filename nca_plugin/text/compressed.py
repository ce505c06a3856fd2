"""Reading files that may be compressed. The first bytes of a file decide, not its name."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.text.streams import DamagedError, Streams

_GZIP: Final = b"\x1f\x8b"
_XZ: Final = b"\xfd7zXZ\x00"
_LZMA: Final = b"]\x00\x00"
#: The first bytes of a frame, and those of a skippable frame, with which pzstd begins.
_ZSTD: Final = (b"\x28\xb5\x2f\xfd", *(bytes([first]) + b"\x2a\x4d\x18" for first in range(0x50, 0x60)))
#: The module of Python 3.14, and its backport to earlier versions.
_ZSTD_MODULES: Final = ("compression.zstd", "backports.zstd")
_BZIP2: Final = b"BZh"
#: The header of bzip2 is followed by one of these: a block, or the end of the stream.
_BZIP2_NEXT: Final = (b"1AY&SY", b"\x17rE8P\x90")
#: The first bytes of archives, and of files compressed in ways that are not read here.
_ARCHIVES: Final = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"\xff\x06\x00\x00sNaPpY": "compressed with snappy",
    b"\x1f\x9d": "compressed with compress",
}
#: The first bytes of files that hold tables.
_TABLES: Final = {
    b"PAR1": "a parquet file",
    b"ARROW1": "an arrow file",
    b"FEA1": "a feather file",
    b"Obj\x01": "an Avro file",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
}
#: Files of tables that are known by their suffix, because their first bytes do not tell: a spreadsheet is a zip
#: archive, an arrow stream begins with a length, and an ORC file begins with letters as a text may.
_TABLES_BY_NAME: Final = {
    **dict.fromkeys((".xlsx", ".xlsm", ".xlsb", ".xls", ".ods"), "a spreadsheet"),
    **dict.fromkeys((".arrow", ".ipc"), "an arrow file"),
    ".orc": "an ORC file",
}
_TAR: Final = (257, b"ustar")
_HEAD_BYTES: Final = 512
_BUFFER: Final = 1 << 17
#: Suffixes of compressed files. The suffix before them tells what the file holds.
SUFFIXES: Final = (".gz", ".gzip", ".bz2", ".xz", ".lzma", ".zst", ".zstd")


@contextmanager
def open_bytes(path: Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yield the file itself, whose position shows how much of it was read, and the stream of its uncompressed bytes.

    Both are the same object unless the file is compressed with gzip, bzip2, xz, lzma or zstd.

    Raises:
        NCAPluginError: the file cannot be read, is damaged or cut off, or is an archive.
    """
    with read_errors(path), path.open("rb") as raw:
        head = raw.read(_HEAD_BYTES)
        raw.seek(0)
        opener = _opener(path, head)
        if opener is None:
            _check_is_no_archive(path, head)
            yield raw, raw
            return
        with opener(raw) as stream:
            head = stream.read(_HEAD_BYTES)
            if _format(head):
                raise NCAPluginError(f"{path} is compressed twice: unpack it once")
            _check_is_no_archive(path, head)
            stream.seek(0)
            yield raw, stream


def is_compressed(path: Path) -> bool:
    """Whether a file is compressed in a way that `open_bytes` reads."""
    with open_bytes(path) as (raw, stream):
        return raw is not stream


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn errors of reading or decompressing `path` into an `NCAPluginError`."""
    try:
        yield
    except (EOFError, zlib.error, DamagedError, gzip.BadGzipFile) as error:
        raise NCAPluginError(f"{path} is compressed and damaged or cut off: {one_line(error)}") from error
    except OSError as error:
        raise NCAPluginError(f"{path} cannot be read: {error.strerror or one_line(error)}") from error
    except Exception as error:
        # ZstdError is a class of an optional package, so it is known by its name.
        if type(error).__name__ != "ZstdError":
            raise
        raise NCAPluginError(f"{path} is compressed and damaged or cut off: {one_line(error)}") from error


def _format(head: bytes) -> str | None:
    """Return the compression of a file that begins with `head`, None if it has none that is read here."""
    if head.startswith(_GZIP):
        return "gzip"
    if head.startswith(_BZIP2) and head[4:10] in _BZIP2_NEXT:
        return "bzip2"
    if head.startswith((_XZ, _LZMA)):
        return "xz"
    return "zstd" if head.startswith(_ZSTD) else None


def _opener(path: Path, head: bytes) -> Callable[[BinaryIO], BinaryIO] | None:
    opener: Any = None
    match _format(head):
        case "gzip":
            opener = lambda raw: gzip.GzipFile(fileobj=raw)  # noqa: E731
        case "bzip2":
            opener = lambda raw: io.BufferedReader(Streams(raw, bz2.BZ2Decompressor), _BUFFER)  # noqa: E731
        case "xz":
            opener = lambda raw: io.BufferedReader(Streams(raw, lzma.LZMADecompressor), _BUFFER)  # noqa: E731
        case "zstd":
            opener = _zstd(path).ZstdFile
    return cast(Callable[[BinaryIO], BinaryIO] | None, opener)


def _zstd(path: Path) -> Any:
    for module in _ZSTD_MODULES:
        try:
            return import_module(module)
        except ImportError:
            continue
    raise NCAPluginError(f"{path} is compressed with zstd: pip install backports.zstd to read it, or unpack it")


def _check_is_no_archive(path: Path, head: bytes) -> None:
    # A text file may begin with the same letters and digits as a table, and may have any name.
    is_binary = b"\0" in head
    marks = (mark for mark in _TABLES if head.startswith(mark) and (is_binary or not mark.isalnum()))
    table = _TABLES.get(next(marks, b""))
    if table is None and (is_binary or head.startswith(tuple(_ARCHIVES))):
        table = _TABLES_BY_NAME.get(path.suffix.lower())
    if table:
        raise NCAPluginError(
            f"{path} is {table}, not text: write its rows as JSON lines, each an object with its text in a field"
        )
    what = next((what for mark, what in _ARCHIVES.items() if head.startswith(mark)), None)
    place, mark = _TAR
    if head[place : place + len(mark)] == mark:
        what = "a tar archive"
    if what:
        raise NCAPluginError(f"{path} is {what}, not text: unpack it")
