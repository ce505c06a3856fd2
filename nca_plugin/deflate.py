"""Which deflate library compresses here, by the sizes that it gives to known payloads.

Samples depend on it: a rule belongs to a band by the size of its compressed rollout. The standard library is all that
this needs, so that `nca-plugin doctor` can tell where numpy is not installed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Buffer

# Sizes after gzip -9 of 360 int32 numbers x[i] >> 8 modulo m, x[i+1] = a x[i] modulo 2^31 - 1, x[0] = 1, as (a, m,
# bytes), measured with zlib 1.2.13. zlib-ng and ISA-L give others.
_KNOWN_PAYLOADS: Final = ((7, 10, 301), (48271, 16, 356), (69621, 625, 757), (48271, 10_000, 964))
# Added to zlib's wbits, it asks for gzip's 18 bytes of header and trailer.
_GZIP_CONTAINER: Final = 16
# What zlib keeps of its window for the present match: MIN_LOOKAHEAD in its deflate.h.
_LOOKAHEAD: Final = 262

#: What `sizes_of_known_payloads` gives with the original zlib.
SIZES_OF_ZLIB: Final[Sequence[int]] = tuple(size for _, _, size in _KNOWN_PAYLOADS)


def gzip_size(payload: Buffer) -> int:
    """Return the bytes that a payload takes after gzip at level 9."""
    # A window that reaches over the whole payload finds the matches of the largest, and is sooner set up.
    window_bits = min(15, (memoryview(payload).nbytes + _LOOKAHEAD).bit_length())
    return len(zlib.compress(payload, 9, _GZIP_CONTAINER + window_bits))


def sizes_of_known_payloads() -> Sequence[int]:
    """Return the sizes that the deflate library in use gives to known payloads: `SIZES_OF_ZLIB`, if it is zlib."""
    return tuple(gzip_size(_payload(multiplier, modulus)) for multiplier, modulus, _ in _KNOWN_PAYLOADS)


def _payload(multiplier: int, modulus: int) -> bytes:
    numbers, x = [], 1
    for _ in range(360):
        x = x * multiplier % (2**31 - 1)
        numbers.append((x >> 8) % modulus)
    return struct.pack("<360i", *numbers)
