"""Which deflate library is in use, told by the sizes that it gives to known payloads.

Samples depend on it, because a rule is in a band by the size of its compressed rollout. This module needs only the
standard library, so that `nca-plugin doctor` works where numpy is not installed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Buffer

# (a, m, size): the size of gzip -9 of 360 int32 numbers x[i] >> 8 modulo m, with x[0] = 1 and x[i+1] = a x[i] modulo
# 2^31 - 1, measured with zlib 1.2.13. zlib-ng and ISA-L give other sizes.
_KNOWN_PAYLOADS: Final = ((7, 10, 301), (48271, 16, 356), (69621, 625, 757), (48271, 10_000, 964))
# Added to zlib's wbits, this asks for gzip's 18 bytes of header and trailer.
_GZIP_CONTAINER: Final = 16
# zlib keeps this much of its window for the current match: MIN_LOOKAHEAD in its deflate.h.
_LOOKAHEAD: Final = 262

#: What `sizes_of_known_payloads` returns with the original zlib.
SIZES_OF_ZLIB: Final[Sequence[int]] = tuple(size for _, _, size in _KNOWN_PAYLOADS)


def gzip_size(payload: Buffer) -> int:
    """Return the size of a payload in bytes after gzip at level 9."""
    # A window as large as the payload finds the same matches as the largest one, and is set up faster.
    window_bits = min(15, (memoryview(payload).nbytes + _LOOKAHEAD).bit_length())
    return len(zlib.compress(payload, 9, _GZIP_CONTAINER + window_bits))


def sizes_of_known_payloads() -> Sequence[int]:
    """Return the sizes that the deflate library in use gives to known payloads. With zlib they are `SIZES_OF_ZLIB`."""
    return tuple(gzip_size(_payload(multiplier, modulus)) for multiplier, modulus, _ in _KNOWN_PAYLOADS)


def _payload(multiplier: int, modulus: int) -> bytes:
    numbers, x = [], 1
    for _ in range(360):
        x = x * multiplier % (2**31 - 1)
        numbers.append((x >> 8) % modulus)
    return struct.pack("<360i", *numbers)
