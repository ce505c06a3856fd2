"""Counter-based random numbers: any number of any stream can be computed in any order, on any machine.

A stream is identified by (seed, split, purpose, index, attempt). The generator is Philox4x32-10 (Salmon et al.,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011). The transcendental functions for distributions are computed
here from IEEE additions, multiplications, divisions and square roots in a fixed order, because libraries differ in the
last bit, and an automaton amplifies a different last bit to a different trajectory.
"""

from typing import Final

import numpy as np

from nca_plugin import arithmetic
from nca_plugin.arithmetic import SPLITS, stream_key
from nca_plugin.automata.simd import LANES, broadcast, load, multiply_wide, store
from nca_plugin.compiled import compiled

__all__ = ["SPLITS", "stream_key"]

# The purposes of streams.
RULE: Final = 0
FIRST_STATE: Final = 1
NOISE: Final = 2
SCORED_FIRST_STATE: Final = 3
SCORED_NOISE: Final = 4
PERMUTATION: Final = 5
BRACKETS: Final = 6
CEILING: Final = 7
# 8 is used for weights, see nca_plugin.transition.random_numbers.
MIXTURE: Final = 9
SHUFFLE_BRACKETS: Final = 10
COPIES: Final = 11
INDEPENDENT: Final = 12
ELEMENTARY: Final = 13
LINEAR_RNN: Final = 14

_U32: Final = np.uint64(32)
# Philox4x32-10: two multipliers and two key increments (SC 2011, section 4.3).
_M0: Final = np.uint32(0xD2511F53)
_M1: Final = np.uint32(0xCD9E8D57)
_W0: Final = np.uint32(0x9E3779B9)
_W1: Final = np.uint32(0xBB67AE85)

# AS 241, PPND16: numerators and denominators of its three rational functions, highest power first.
_CENTRAL_NUM: Final = (
    2.5090809287301226727e3,
    3.3430575583588128105e4,
    6.7265770927008700853e4,
    4.5921953931549871457e4,
    1.3731693765509461125e4,
    1.9715909503065514427e3,
    1.3314166789178437745e2,
    3.3871328727963666080e0,
)
_CENTRAL_DEN: Final = (
    5.2264952788528545610e3,
    2.8729085735721942674e4,
    3.9307895800092710610e4,
    2.1213794301586595867e4,
    5.3941960214247511077e3,
    6.8718700749205790830e2,
    4.2313330701600911252e1,
    1.0,
)
_TAIL_NUM: Final = (
    7.74545014278341407640e-4,
    2.27238449892691845833e-2,
    2.41780725177450611770e-1,
    1.27045825245236838258e0,
    3.64784832476320460504e0,
    5.76949722146069140550e0,
    4.63033784615654529590e0,
    1.42343711074968357734e0,
)
_TAIL_DEN: Final = (
    1.05075007164441684324e-9,
    5.47593808499534494600e-4,
    1.51986665636164571966e-2,
    1.48103976427480074590e-1,
    6.89767334985100004550e-1,
    1.67638483018380384940e0,
    2.05319162663775882187e0,
    1.0,
)
_FAR_NUM: Final = (
    2.01033439929228813265e-7,
    2.71155556874348757815e-5,
    1.24266094738807843860e-3,
    2.65321895265761230930e-2,
    2.96560571828504891230e-1,
    1.78482653991729133580e0,
    5.46378491116411436990e0,
    6.65790464350110377720e0,
)
_FAR_DEN: Final = (
    2.04426310338993978564e-15,
    1.42151175831644588870e-7,
    1.84631831751005468180e-5,
    7.86869131145613259100e-4,
    1.48753612908506148525e-2,
    1.36929880922735805310e-1,
    5.99832206555887937690e-1,
    1.0,
)

# Phi(2) - 1/2 and the standard deviation of a normal variable within two sigma.
_TRUNCATED_HALF: Final = 0.47724986805182079
_TRUNCATED_STD: Final = 0.87962566103423978
# Normal quantile of 1/2 + q for |q| <= _TRUNCATED_HALF: q times a ratio of polynomials in q^2, highest power first. The
# coefficients are from a Remez exchange; the relative error is below 3e-9, a twentieth of float32's.
_TRUNCATED_NUM: Final = (
    -40.649644833569475,
    224.36963413685953,
    -278.7497132295475,
    139.21229439613305,
    -30.752036419154315,
    2.5066282777661946,
)
_TRUNCATED_DEN: Final = (
    -55.5632389665156,
    163.80742197454956,
    -157.1394087647621,
    67.17866749703155,
    -13.315484573872721,
    1.0,
)


#: Compiled for use in kernels.
log = compiled(arithmetic.log)
exp = compiled(arithmetic.exp)


@compiled
def philox(key: np.uint64, index: int, attempt: int, first_block: int, out: np.ndarray) -> None:
    """Write the numbers of 16 blocks from `first_block` on of stream (index, attempt) to `out`, uint32 [64].

    A block is four numbers; number j of block `first_block + i` is out[16 j + i].
    """
    for i in range(LANES):
        out[i] = first_block + i
    c0, c1 = load(out, 0), broadcast(np.uint32(attempt))
    c2, c3 = broadcast(np.uint32(index)), broadcast(np.uint32(np.uint64(index) >> _U32))
    k0, k1 = broadcast(np.uint32(key)), broadcast(np.uint32(key >> _U32))
    for _ in range(10):
        high0, low0 = multiply_wide(broadcast(_M0), c0)
        high1, low1 = multiply_wide(broadcast(_M1), c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + broadcast(_W0), k1 + broadcast(_W1)
    store(out, 0, c0)
    store(out, LANES, c1)
    store(out, 2 * LANES, c2)
    store(out, 3 * LANES, c3)


@compiled
def unit(word: np.uint32) -> float:
    """Return a 32-bit number as a float64 in (0, 1), an odd multiple of 2^-33."""
    return (float(word) + 0.5) * 2.0**-32


@compiled
def uniforms(key: np.uint64, index: int, attempt: int, count: int) -> np.ndarray:
    """Return the first `count` numbers of a stream: float64 in (0, 1), odd multiples of 2^-33."""
    words = np.empty(4 * LANES, np.uint32)
    out = np.empty((count + words.size - 1) // words.size * words.size, np.float64)
    for at in range(0, out.size, words.size):
        philox(key, index, attempt, at // 4, words)
        for i in range(LANES):
            for j in range(4):
                out[np.uint64(at + 4 * i + j)] = unit(words[np.uint64(LANES * j + i)])
    return out[:count]


@compiled
def normal_quantile(p: float) -> float:
    """Return the standard normal quantile of p in (0, 1), by Wichura's AS 241, PPND16 (Appl. Statist. 37, 1988)."""
    q = p - 0.5
    if abs(q) <= 0.425:
        r = 0.180625 - q * q
        return q * _polynomial(r, _CENTRAL_NUM) / _polynomial(r, _CENTRAL_DEN)
    r = np.sqrt(-log(p if q < 0 else 1.0 - p))
    if r <= 5.0:
        value = _polynomial(r - 1.6, _TAIL_NUM) / _polynomial(r - 1.6, _TAIL_DEN)
    else:
        value = _polynomial(r - 5.0, _FAR_NUM) / _polynomial(r - 5.0, _FAR_DEN)
    return -value if q < 0 else value


@compiled
def _polynomial(x: float, coefficients: tuple[float, ...]) -> float:
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return value


@compiled
def truncated_normals(key: np.uint64, index: int, attempt: int, count: int) -> np.ndarray:
    """Return `count` normal numbers of a stream, truncated at two sigma and rescaled to variance 1, float64."""
    values = uniforms(key, index, attempt, count)
    for i in range(count):
        q = (values[i] - 0.5) * (2.0 * _TRUNCATED_HALF)
        r = q * q
        values[i] = q * _polynomial(r, _TRUNCATED_NUM) / (_polynomial(r, _TRUNCATED_DEN) * _TRUNCATED_STD)
    return values
