"""Functions that give the same bits in compiled kernels and in plain Python, on every machine: keys of random streams,
logarithm and exponential. Libraries differ in the last bit of the latter two."""

import functools
import math
from typing import Final

import numpy as np

SPLITS: Final = ("train", "valid", "test")

_LN2: Final = 0.6931471805599453
_EXP_SERIES: Final = tuple(1.0 / math.factorial(k) for k in range(8, -1, -1))


@functools.cache
def stream_key(seed: int, split: str, purpose: int) -> np.uint64:
    """Return the 64-bit Philox key of a family of streams, mixed by splitmix64 (Steele et al., OOPSLA 2014)."""
    mask = (1 << 64) - 1
    z = seed & mask
    for word in (SPLITS.index(split), purpose):
        z = (z + 0x9E3779B97F4A7C15 * (word + 1)) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        z ^= z >> 31
    return np.uint64(z)


def log(x: float) -> float:
    """Return ln(x) for x in [2^-40, 2^40], to about 1e-15 relative, with the same bits on every machine."""
    exponent = 0
    while x < 0.7071067811865476:
        x *= 2.0
        exponent -= 1
    while x >= 1.4142135623730951:
        x *= 0.5
        exponent += 1
    # ln(x) = 2 artanh(s), |s| <= 0.172: eleven odd terms reach double precision.
    s = (x - 1.0) / (x + 1.0)
    z = s * s
    series = 1.0 / 23.0
    for k in range(10, -1, -1):
        series = series * z + 1.0 / (2 * k + 1)
    return exponent * _LN2 + 2.0 * s * series


def exp(x: float) -> float:
    """Return e^x for |x| <= 40, to about 1e-13 relative, with the same bits on every machine."""
    # e^x = (e^(x / 1024))^1024. The inner exponential is a Taylor series to the eighth order.
    small = x / 1024.0
    value = 0.0
    for coefficient in _EXP_SERIES:
        value = value * small + coefficient
    for _ in range(10):
        value *= value
    return value
