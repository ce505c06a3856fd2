"""Reads and writes zip archives without compression, each a part of a file, without copying the values in them.

A checkpoint may have hundreds of thousands of archives, so that two short reads must suffice for each. The fields are
described in "APPNOTE.TXT" by PKWARE.
"""

import io
import os
import struct
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

_LOCAL_HEADER: Final = struct.Struct("<4s5H3I2H")
#: The last fields of the local header: the lengths of the name and of the extra fields.
_LETTERS_AND_EXTRA: Final = struct.Struct("<2H")
_ENTRY: Final = struct.Struct("<4s6H3I5H2I")
#: Offset of the CRC-32 within an entry of the directory.
_CRC32: Final = 16
_END: Final = struct.Struct("<4s4H2IH")
#: The end record of an archive with 64-bit fields, and its locator.
_END64: Final = struct.Struct("<4sQ2H2I4Q")
_LOCATOR: Final = struct.Struct("<4sIQI")
_LARGE: Final = 0xFFFFFFFF
_LARGE_FIELDS: Final = 1
_IS_ENCRYPTED: Final = 1
#: Bytes that are read at once at either end of an archive. The directory of a tensor has a few hundred.
_END_BYTES: Final = 1 << 11
_ALIGNMENT: Final = 64
#: Version, flags, compression, time and date of an entry.
_FIELDS: Final = (0, 0, 0, 0, 33)


@dataclass(frozen=True, slots=True)
class ArchiveEntry:
    """An entry in the directory of an archive.

    Attributes:
        header: the offset of the entry's local header.
        size: the number of its bytes.
        crc32: the CRC-32 of its bytes.
        crc32_at: the offset at which the directory stores that CRC-32.
    """

    header: int
    size: int
    crc32: int
    crc32_at: int


@dataclass(frozen=True, slots=True)
class Ends:
    """The first and the last bytes of an archive, joined. A small archive is held whole.

    Attributes:
        data: the bytes.
        head: how many of them are from the beginning of the archive.
        gap: number of bytes between the first and the last ones.
    """

    data: bytes
    head: int
    gap: int

    @classmethod
    def read(cls, descriptor: int, start: int, length: int) -> "Ends":
        """Read the ends of an archive of `length` bytes that begins at byte `start` of a file."""
        if length <= 2 * _END_BYTES:
            return cls(os.pread(descriptor, length, start), 0, 0)
        head = os.pread(descriptor, _END_BYTES, start)
        return cls(
            head + os.pread(descriptor, _END_BYTES, start + length - _END_BYTES), len(head), length - 2 * _END_BYTES
        )

    def place(self, at: int, count: int) -> int | None:
        """Return where `count` bytes at offset `at` of the archive are in `data`; None if they are not in it."""
        if at + count <= self.head:
            return at
        return at - self.gap if at - self.gap >= self.head else None


class Archive:
    """Reads an archive.

    Args:
        descriptor: the descriptor of the file.
        start, length: the bytes of the archive within the file.
        ends: the ends of the archive.

    Raises:
        ValueError: if the archive is damaged or compressed.
        struct.error: if it is too short.
    """

    def __init__(self, descriptor: int, start: int, length: int, ends: Ends) -> None:
        self._descriptor = descriptor
        self._start = start
        self._length = length
        self._ends = ends
        #: Offsets and lengths of the bytes that were read so far. Everything that was found follows from them alone.
        self.looks: list[tuple[int, int]] = []
        #: The entries by their names, without the folder that PyTorch puts all of them in.
        self.entries = self._directory()

    def read(self, name: str) -> bytes:
        """Return the bytes of an entry."""
        at, entry = self.place(name), self.entries[name]
        data = self._bytes(at, entry.size)
        if zlib.crc32(data) != entry.crc32:
            raise ValueError(f"{name} has another CRC-32 than it was saved with")
        return data

    def place(self, name: str) -> int:
        """Return the offset of an entry's bytes from the start of the archive."""
        entry = self.entries[name]
        # The other fields of the header repeat the directory, whose values count.
        signature = self._bytes(entry.header, 4)
        at = entry.header + _LOCAL_HEADER.size
        at += sum(_LETTERS_AND_EXTRA.unpack(self._bytes(at - _LETTERS_AND_EXTRA.size, _LETTERS_AND_EXTRA.size)))
        if signature != b"PK\3\4" or at + entry.size > self._length:
            raise ValueError(f"record {name} does not lie within the archive")
        return at

    def _bytes(self, at: int, count: int) -> bytes:
        if at < 0 or at + count > self._length:
            raise ValueError("a part that does not lie within the archive")
        self.looks.append((at, count))
        place = self._ends.place(at, count)
        if place is None:
            return os.pread(self._descriptor, count, self._start + at)
        return self._ends.data[place : place + count]

    def _directory(self) -> dict[str, ArchiveEntry]:
        end = self._length - _END.size
        signature, *_, size, first, comment = _END.unpack(self._bytes(end, _END.size))
        if signature != b"PK\5\6" or comment:
            raise ValueError("no end of an archive")
        if end >= _LOCATOR.size and self._bytes(end - _LOCATOR.size, 4) == b"PK\6\7":
            end -= _LOCATOR.size + _END64.size
            signature, *_, size, first = _END64.unpack(self._bytes(end, _END64.size))
            if signature != b"PK\6\6":
                raise ValueError("no end of an archive")
        # Offsets in the directory count from `begin`, before which the archive may have zeros.
        begin = end - size - first
        if begin < 0:
            raise ValueError("a directory that lies outside the archive")
        directory = self._bytes(begin + first, size)
        entries = {}
        at = 0
        while at < size:
            signature, *_, flags, compression, _, _, crc32, stored, held, letters, extra, comment, _, _, _, header = (
                _ENTRY.unpack_from(directory, at)
            )
            crc32_at = begin + first + at + _CRC32
            at += _ENTRY.size
            name = directory[at : at + letters].decode("utf-8")
            at += letters
            if _LARGE in (stored, held, header):
                large = iter(_large_fields(directory[at : at + extra]))
                held, stored, header = (next(large) if field == _LARGE else field for field in (held, stored, header))
            at += extra + comment
            if signature != b"PK\1\2" or at > size:
                raise ValueError("a damaged directory")
            if compression or flags & _IS_ENCRYPTED or stored != held or held > self._length:
                raise ValueError("compressed")
            entries[name.split("/", 1)[-1]] = ArchiveEntry(begin + header, held, crc32, crc32_at)
        return entries


def _large_fields(extra: bytes) -> tuple[int, ...]:
    """Return the 64-bit fields among an entry's extra fields."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == _LARGE_FIELDS:
            return struct.unpack_from(f"<{size // 8}Q", extra, at + 4)
        at += 4 + size
    return ()


@dataclass(frozen=True, slots=True)
class Alike:
    """Recognizes archives that differ from one that was read only in the values, so that they need not be parsed.

    Attributes:
        spans: slices of `Ends.data` that were read in the known archive, without the CRC-32 of unread entries.
        looked_at: the bytes of the known archive in these slices.
        crc32: the place of the record's CRC-32 in `Ends.data`.
    """

    spans: tuple[slice, ...]
    looked_at: bytes
    crc32: int

    @classmethod
    def of(cls, archive: Archive, ends: Ends, name: str, read: Collection[str]) -> "Alike | None":
        """Return what recognizes archives like this one, with its record `name`, of which the entries `read` were read.

        Returns None if bytes outside its ends were read too.
        """
        unread = sorted(entry.crc32_at for name, entry in archive.entries.items() if name not in read)
        spans = []
        for at, count in archive.looks:
            stops = [crc32_at for crc32_at in unread if at <= crc32_at < at + count]
            edges = zip([at, *(stop + 4 for stop in stops)], [*stops, at + count], strict=True)
            for start, stop in edges:
                if (place := ends.place(start, stop - start)) is None:
                    return None
                spans.append(slice(place, place + stop - start))
        crc32 = ends.place(archive.entries[name].crc32_at, 4)
        return None if crc32 is None else cls(tuple(spans), b"".join([ends.data[span] for span in spans]), crc32)

    def crc32_of(self, ends: Ends) -> int | None:
        """Return the CRC-32 of the record in an archive of the same length; None if it is not alike."""
        data = ends.data
        if b"".join([data[span] for span in self.spans]) != self.looked_at:
            return None
        return int.from_bytes(data[self.crc32 : self.crc32 + 4], "little")


class ArchiveWriter:
    """Appends an archive to a file. As in PyTorch, values begin at multiples of 64 bytes from the archive's start."""

    def __init__(self, file: io.BufferedWriter) -> None:
        self._file = file
        self._start = file.tell()
        self._directory = b""
        self._count = 0

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Append an entry to the archive."""
        encoded = f"archive/{name}".encode()
        header = self._file.tell() - self._start
        sizes = (zlib.crc32(data), len(data), len(data), len(encoded))
        # The padding is an extra field, which has at least the four bytes of its own header.
        padding = -(header + _LOCAL_HEADER.size + len(encoded) + 4) % _ALIGNMENT
        extra = struct.pack("<2sH", b"FB", padding) + bytes(padding)
        self._file.write(_LOCAL_HEADER.pack(b"PK\3\4", *_FIELDS, *sizes, len(extra)) + encoded + extra)
        self._file.write(data)
        self._directory += _ENTRY.pack(b"PK\1\2", 0, *_FIELDS, *sizes, 0, 0, 0, 0, 0, header) + encoded
        self._count += 1

    def close(self) -> None:
        """Append the directory."""
        at = self._file.tell() - self._start
        counts = (0, 0, self._count, self._count, len(self._directory), at, 0)
        self._file.write(self._directory + _END.pack(b"PK\5\6", *counts))
