"""Megatron's .idx for documents of one length: every byte follows from the type, the number and the length of them.

The file is `MMIDIDX\\0\\0`, version (uint64 1), type code (uint8), number of sequences (uint64), number of
documents + 1 (uint64), then the length of each sequence (int32), its offset in the .bin in bytes (int64), and the first
sequence of each document with the end of the last (int64). All is little-endian. Here every document is one sequence.
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

#: Megatron's codes for the types in which it writes tokens.
DTYPE_CODES: Final = {"int32": 4, "uint16": 8}

MAGIC: Final = b"MMIDIDX\x00\x00"
#: Mark, version, type code, number of sequences, number of documents + 1.
HEADER: Final = struct.Struct("<9sQBQQ")
_CHUNK_BYTES: Final = 1 << 20


def token_dtype(vocab_size: int) -> str:
    """Return the type in which Megatron writes ids 0 .. vocab_size - 1."""
    return "uint16" if vocab_size < 65_500 else "int32"


@dataclass(frozen=True, slots=True)
class IndexLayout:
    """The .idx of `num_documents` documents of `document_length` tokens of type `dtype` each."""

    num_documents: int
    document_length: int
    dtype: str

    @property
    def size(self) -> int:
        """The size of the .idx in bytes."""
        *_, (_, start, count, item, _) = self._arrays()
        return start + count * item.itemsize

    @property
    def document_bytes(self) -> int:
        """The size of a document in the .bin in bytes."""
        return self.document_length * np.dtype(self.dtype).itemsize

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes start .. stop - 1 of the file."""
        header = HEADER.pack(MAGIC, 1, DTYPE_CODES[self.dtype], self.num_documents, self.num_documents + 1)
        parts = [header[start:stop]]
        for _, at, count, item, values in self._arrays():
            low, high = max(start - at, 0), min(stop - at, count * item.itemsize)
            if low < high:
                first, last = low // item.itemsize, -(-high // item.itemsize)
                data = values(np.arange(first, last, dtype=np.int64)).astype(item).tobytes()
                parts.append(data[low - first * item.itemsize : high - first * item.itemsize])
        return b"".join(parts)

    def chunks(self) -> Iterator[bytes]:
        """Yield the whole file, piece by piece."""
        for start in range(0, self.size, _CHUNK_BYTES):
            yield self.read(start, start + _CHUNK_BYTES)

    def describe(self, offset: int) -> str:
        """Return the name of the field that holds a byte of the file, for a message."""
        for name, at, count, item, _ in reversed(self._arrays()):
            if offset >= at:
                return f"the {name} of document {min((offset - at) // item.itemsize, count - 1):,}"
        fields = ((26, "number of documents + 1"), (18, "number of sequences"), (17, "type code"), (9, "version"))
        return "the " + next((name for at, name in fields if offset >= at), "mark of an index")

    def _arrays(
        self,
    ) -> tuple[tuple[str, int, int, np.dtype, Callable[[NDArray[np.int64]], NDArray[np.int64]]], ...]:
        """Return for each array of the file its name, offset, length and type, and item i as a function of i."""
        int32, int64 = np.dtype("<i4"), np.dtype("<i8")
        lengths_at = HEADER.size
        pointers_at = lengths_at + self.num_documents * int32.itemsize
        documents_at = pointers_at + self.num_documents * int64.itemsize
        return (
            ("length", lengths_at, self.num_documents, int32, lambda i: np.full_like(i, self.document_length)),
            ("pointer", pointers_at, self.num_documents, int64, lambda i: i * self.document_bytes),
            ("first sequence", documents_at, self.num_documents + 1, int64, lambda i: i),
        )
