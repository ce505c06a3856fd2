"""Random numbers for new weights. They use numpy alone, so that a process which only moves weights compiles nothing.

The generator is counter-based, as that of the automata: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy
as 1, 2, 3", SC 2011). Number n of a stream is word n mod 4 of block n // 4, which can be computed without the others.
"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.arithmetic import stream_key

#: Length of one stream.
STREAM_LENGTH: Final = 1 << 34
#: Separates these streams from those of the other purposes in nca_plugin.automata.rng.
_WEIGHTS: Final = 8
#: Number of blocks that are made at once. Their numbers fit into a core's cache.
_BLOCKS: Final = 1 << 12
_U32: Final = np.uint64(32)
_LOW: Final = np.uint64(0xFFFFFFFF)
#: The two multipliers and two key increments of Philox4x32 (SC 2011, section 4.3).
_M0: Final = np.uint64(0xD2511F53)
_M1: Final = np.uint64(0xCD9E8D57)
_W0: Final = 0x9E3779B9
_W1: Final = 0xBB67AE85

_HALF: Final = np.float32(0.5)
_ONE: Final = np.float32(1.0)
_TWO: Final = np.float32(2.0)
_UNIT31: Final = np.float32(2.0**-31)
_LN2: Final = np.float32(0.6931471805599453)
#: The bits of the float32 sqrt(1/2).
_SQRT_HALF_BITS: Final = np.int32(0x3F3504F3)
_ARTANH: Final = tuple(np.float32(1.0 / k) for k in (9, 7, 5, 3, 1))
#: Coefficients of Giles 2011 in single precision, highest power first. With w = -ln(1 - x^2), the first polynomial is
#: in w - 2.5 for w < 5, the second in sqrt(w) - 3 for larger w.
_ERFINV_NEAR: Final = tuple(
    map(
        np.float32,
        (
            *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
            *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
        ),
    )
)
_ERFINV_FAR: Final = tuple(
    map(
        np.float32,
        (
            *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
            *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
        ),
    )
)


def normals(seed: int, stream: int, layer: int, first: int, count: int, std: float) -> NDArray[np.float32]:
    """Return normal variables of standard deviation `std`: `count` numbers of a layer's stream, from `first` on.

    They lie within 6.4 standard deviations. The quantile is computed in float32 by Giles' single-precision inverse
    error function ("Approximating the erfinv function", GPU Computing Gems, 2011).
    """
    out = np.empty(count, np.float32)
    scale = np.float32(std * math.sqrt(2.0))
    for place, words in _words(seed, stream, layer, first, count):
        # The lowest bit of a word is the sign, the other bits give x = 1 - tail. Then 1 - x^2 = tail * (2 - tail).
        magnitude = (words >> np.uint32(1)).astype(np.int32)
        tail = magnitude.astype(np.float32)
        tail += _HALF
        tail *= _UNIT31
        mantissa: NDArray[np.float32] = _TWO - tail
        mantissa *= tail
        # Split it into an exponent and a mantissa in [1 / sqrt(2), sqrt(2)).
        bits = mantissa.view(np.int32)
        exponent = bits - _SQRT_HALF_BITS
        exponent >>= np.int32(23)
        bits -= exponent << np.int32(23)
        s: NDArray[np.float32] = mantissa - _ONE
        mantissa += _ONE
        s /= mantissa
        w = _polynomial(s * s, _ARTANH)
        w *= s
        w *= _TWO
        w += exponent.astype(np.float32) * _LN2
        np.negative(w, out=w)
        far = np.flatnonzero(w >= np.float32(5.0))
        far_w = w[far]
        w -= np.float32(2.5)
        erfinv = _polynomial(w, _ERFINV_NEAR)
        erfinv[far] = _polynomial(np.sqrt(far_w) - np.float32(3.0), _ERFINV_FAR)
        x = (np.int32(0x7FFFFFFF) - magnitude).astype(np.float32)
        x += _HALF
        x *= _UNIT31
        signed = _ONE - _TWO * (words & np.uint32(1)).astype(np.float32)
        signed *= scale
        signed *= x
        np.multiply(signed, erfinv, out=out[place])
    return out


def uniforms(seed: int, stream: int, layer: int, first: int, count: int, bound: float) -> NDArray[np.float32]:
    """Return uniform variables in (-bound, bound): `count` numbers of a layer's stream, from `first` on."""
    out = np.empty(count, np.float32)
    for place, words in _words(seed, stream, layer, first, count):
        out[place] = (2.0 * ((words.astype(np.float64) + 0.5) * 2.0**-32) - 1.0) * bound
    return out


def _words(seed: int, stream: int, layer: int, first: int, count: int) -> Iterator[tuple[slice, NDArray[np.uint32]]]:
    """Yield the `count` 32-bit words of a stream from `first` on in pieces, each with its place among them."""
    key = int(stream_key(seed, "train", _WEIGHTS))
    stop = first + count
    for start in range(first // 4, -(-stop // 4), _BLOCKS):
        words = _philox(key, stream, layer, start, min(_BLOCKS, -(-stop // 4) - start))
        low, high = max(first, 4 * start), min(stop, 4 * start + len(words))
        yield slice(low - first, high - first), words[low - 4 * start : high - 4 * start]


def _philox(key: int, index: int, attempt: int, first_block: int, num_blocks: int) -> NDArray[np.uint32]:
    """Return the 32-bit words of `num_blocks` blocks of a stream, four for each block."""
    c0 = np.arange(first_block, first_block + num_blocks, dtype=np.uint64)
    # A word that is the same in every block stays an array of length 1 until a round mixes it with one that differs.
    c1, c2, c3 = (np.array([word], np.uint64) for word in (attempt, index & 0xFFFFFFFF, index >> 32))
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        product0, product1 = _M0 * c0, _M1 * c2
        c0, c2 = product1 >> _U32, product0 >> _U32
        c0, c2 = _xor(c0, c1, k0), _xor(c2, c3, k1)
        product1 &= _LOW
        product0 &= _LOW
        c1, c3 = product1, product0
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    words = np.empty((num_blocks, 4), np.uint32)
    for place, column in enumerate((c0, c1, c2, c3)):
        words[:, place] = column
    return words.reshape(-1)


def _xor(x: NDArray[np.uint64], y: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Return x ^ y ^ key, computed in place in x unless y is longer."""
    if len(x) < len(y):
        x, y = y.copy(), x
    x ^= y
    x ^= np.uint64(key)
    return x


def _polynomial(x: NDArray[np.float32], coefficients: tuple[np.float32, ...]) -> NDArray[np.float32]:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += coefficient
    return value
