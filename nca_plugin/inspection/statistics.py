"""Statistics of token samples and of their frames.

These are pure functions on numpy arrays. If a statistic has one value per sequence, its standard error is that of the
mean (`estimate_mean`). If sequences are pooled first, `jackknife` gives the error. Both treat sequences as the units,
because the tokens of one sequence share a rule and are far from independent.

In shapes, `...` stands for any leading axes, usually [count] sequences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nca_plugin.automata import gzip_score
from nca_plugin.automata.complexity import SCORED_FRAMES, scored_size

_LN2: Final = float(np.log(2.0))
_RESAMPLES: Final = 400
#: Number of parts of `batch_interval`, and the quantile 0.975 of Student's t with one degree of freedom less.
NUM_BATCHES: Final = 20
_STUDENT_T: Final = 2.093


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured value and its standard error over sequences, which is nan if there is only one."""

    value: float
    standard_error: float


def estimate_mean(values: ArrayLike) -> Measured:
    """Return the mean of one value per sequence, [count]."""
    array = np.asarray(values, np.float64)
    error = float(array.std(ddof=1) / np.sqrt(array.size)) if array.size > 1 else float("nan")
    return Measured(float(array.mean()), error)


def batch_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the 95 % interval of the mean of a series in which neighbours may be alike.

    Its error is that of the means of 20 consecutive parts (method of batch means), with Student's distribution of 19
    degrees of freedom. A bootstrap over single values would count neighbours as independent.

    Args:
        values: one value per place of the series, in order, [count]; at least 20.
    """
    array = np.asarray(values, np.float64)
    error = estimate_mean([part.mean() for part in np.array_split(array, NUM_BATCHES)]).standard_error
    mean = float(array.mean())
    return mean - _STUDENT_T * error, mean + _STUDENT_T * error


def estimate_quantile(values: ArrayLike, q: float) -> Measured:
    """Return the quantile `q`, 0 .. 1, of one value per sequence, [count].

    The error comes from the bootstrap over sequences. It is accurate to about 25 % for 300 sequences.
    """
    # Imported only here, because scipy takes half a second and is installed only with an extra.
    from scipy import stats

    array = np.asarray(values, np.float64)
    value = float(np.quantile(array, q))
    if array.size < 2:
        return Measured(value, float("nan"))
    quantile = partial(np.quantile, q=q)
    drawn = stats.bootstrap((array,), quantile, n_resamples=_RESAMPLES, method="percentile", random_state=0)
    return Measured(value, float(drawn.standard_error))


def jackknife(
    statistic: Callable[[NDArray[np.intp]], ArrayLike], count: int, groups: int = 20
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a statistic of all sequences and its standard error, by the delete-a-group jackknife.

    Sequence i belongs to group i modulo `groups`. The error follows from how the statistic changes when a group is left
    out (Kott, "The delete-a-group jackknife", Journal of Official Statistics 17, 2001). It is accurate to about 16 %
    for 20 groups.

    Args:
        statistic: takes the indices of the sequences to use, int [m], and returns a number or an array.
        count: number of sequences.

    Returns:
        Value and standard error, float64 of the statistic's shape. The error is nan if `count` is 1.
    """
    everything = np.arange(count)
    value = np.asarray(statistic(everything), np.float64)
    groups = min(groups, count)
    if groups < 2:
        return value, np.full_like(value, np.nan)
    without = np.stack([np.asarray(statistic(everything[everything % groups != g]), np.float64) for g in range(groups)])
    variance = (groups - 1) / groups * np.square(without - without.mean(axis=0)).sum(axis=0)
    return value, np.sqrt(variance)


def token_counts(tokens: ArrayLike, vocab_size: int) -> NDArray[np.int64]:
    """Return how often each id occurs, int64 [vocab_size]. `tokens` are ids below `vocab_size`, in any shape."""
    return np.bincount(np.asarray(tokens).ravel(), minlength=vocab_size)


def top_shares(counts: ArrayLike, ranks: Sequence[int]) -> NDArray[np.float64]:
    """Return for each r of `ranks` the share of all tokens that are among the r most frequent ids.

    The shares of a small sample are too large, because the sample itself decides which ids are most frequent.

    Args:
        counts: integers [vocab_size], not all zero.

    Returns:
        float64 [len(ranks)], in (0, 1].
    """
    cumulative = np.cumsum(np.sort(np.asarray(counts))[::-1])
    return cumulative[np.minimum(np.asarray(ranks, int), cumulative.size) - 1] / cumulative[-1]


def entropy(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the plug-in entropy of `counts`, [..., symbols] -> [...], in bits; 0 if all counts are zero.

    It is too small by about `entropy_bias`.
    """
    array = np.asarray(counts, np.float64)
    total = array.sum(axis=-1, keepdims=True)
    p = np.divide(array, total, out=np.zeros_like(array), where=total > 0)
    return -np.sum(p * np.log2(p, out=np.zeros_like(p), where=p > 0), axis=-1)


def entropy_bias(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the number of bits by which `entropy` is too small: (occurring symbols - 1) / (2 N ln 2) (Miller 1955)."""
    array = np.asarray(counts)
    occurring = np.count_nonzero(array, axis=-1)
    return np.maximum(occurring - 1, 0) / (2.0 * _LN2 * np.maximum(array.sum(axis=-1), 1))


def distinct(tokens: ArrayLike) -> NDArray[np.int64]:
    """Return the number of distinct ids of each sequence, [..., length] -> int64 [...]."""
    ordered = np.sort(np.asarray(tokens), axis=-1)
    return 1 + np.count_nonzero(np.diff(ordered, axis=-1), axis=-1)


def repeat_rate(symbols: ArrayLike, lag: int) -> NDArray[np.float64]:
    """Return the share of symbols that equal the one `lag` places before them, for each sequence.

    Args:
        symbols: integers [count, length, ...], such as tokens [count, length], or patches [count, frames, patches],
            which are compared with the same patch `lag` frames before.
        lag: 1 .. length - 1.

    Returns:
        float64 [count].
    """
    array = np.asarray(symbols)
    equal = array[:, lag:] == array[:, :-lag]
    return equal.reshape(equal.shape[0], -1).mean(axis=1)


def change_rate(frames: ArrayLike) -> NDArray[np.float64]:
    """Return the share of cells that differ from the frame before.

    Args:
        frames: integers [..., num_frames, height, width].

    Returns:
        float64 [..., num_frames - 1], in 0 .. 1.
    """
    array = np.asarray(frames)
    return (array[..., 1:, :, :] != array[..., :-1, :, :]).mean(axis=(-2, -1))


def right_neighbour_rate(frames: ArrayLike) -> NDArray[np.float64]:
    """Return the share of cells that equal their right neighbour on the torus, [..., frames, h, w] -> [...]."""
    array = np.asarray(frames)
    return (array == np.roll(array, -1, axis=-1)).mean(axis=(-3, -2, -1))


def color_entropy(frames: ArrayLike, num_colors: int) -> NDArray[np.float64]:
    """Return the plug-in entropy of the colours of each sequence's cells, [count, frames, h, w] -> [count], bits."""
    array = np.asarray(frames)
    return entropy(np.stack([token_counts(sequence, num_colors) for sequence in array]))


def gzip_scores(frames: ArrayLike, num_colors: int, patch_size: int) -> NDArray[np.float64]:
    """Return the gzip score of each sequence's first 10 frames, which the release scores.

    Args:
        frames: integers [count, num_frames, height, width].

    Returns:
        float64 [count].
    """
    return np.array([gzip_score(sequence[:SCORED_FRAMES], num_colors, patch_size) for sequence in np.asarray(frames)])


def compressed_shares(tokens: ArrayLike) -> NDArray[np.float64]:
    """Return each sequence's size after gzip divided by that as int32, int32 [count, length] -> float64 [count]."""
    array = np.asarray(tokens, np.int32)
    return np.array([scored_size(sequence) / sequence.nbytes for sequence in array])


def seen_neighbourhoods(frames: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return for every cell of every transition whether the rule could have been looked up earlier in the sequence.

    Transition t leads from frame t to frame t + 1, counted from 1. A cell is seen if its 3x3 neighbourhood on the torus
    occurs in a frame before t. It is right if its next state is the one that followed the first occurrence.

    Args:
        frames: integers [num_frames, height, width] of one sequence, in 0 .. 255.

    Returns:
        seen and right, bool [num_frames - 1, height * width]. A cell that is not seen is not right.
    """
    array = np.asarray(frames).astype(np.int64)
    now, after = array[:-1], array[1:].reshape(array.shape[0] - 1, -1)
    rows = _dense(_triples(now, axis=-1, base=256))
    ids = _triples(rows, axis=-2, base=int(rows.max()) + 1)
    _, first, inverse = np.unique(ids, return_index=True, return_inverse=True)
    first_place = first[inverse.reshape(after.shape)]
    seen = first_place // after.shape[1] < np.arange(after.shape[0])[:, None]
    return seen, seen & (after.ravel()[first_place] == after)


def _triples(array: NDArray[np.int64], axis: int, base: int) -> NDArray[np.int64]:
    """Return for each place a number that identifies it and its two neighbours along `axis` of the torus."""
    return (np.roll(array, 1, axis) * base + array) * base + np.roll(array, -1, axis)


def _dense(array: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the ranks of the values. There are fewer than 2^21 different ones, so that three ranks fit in 64 bits."""
    return np.unique(array, return_inverse=True)[1].reshape(array.shape).astype(np.int64)


def pair_counts(symbols: ArrayLike, distances: Sequence[int], num_symbols: int) -> NDArray[np.int32]:
    """Return how often each pair of symbols occurs at each distance, sequence by sequence.

    Args:
        symbols: integers [count, ..., length] below `num_symbols`. Negative numbers are not symbols.
        distances: distances along the last axis, each at least 1. Beyond length - 1 there are no pairs.

    Returns:
        int32 [count, len(distances), num_symbols, num_symbols], by earlier symbol and later symbol.
    """
    array = np.asarray(symbols)
    count = array.shape[0]
    sequence = np.arange(count).reshape(-1, *(1,) * (array.ndim - 1))
    result = np.zeros((count, len(distances), num_symbols, num_symbols), np.int32)
    for i, distance in enumerate(distances):
        earlier, later = array[..., :-distance], array[..., distance:]
        cell = (sequence * num_symbols + earlier) * num_symbols + later
        cells = np.bincount(cell[(earlier >= 0) & (later >= 0)], minlength=count * num_symbols**2)
        result[:, i] = cells.reshape(count, num_symbols, num_symbols)
    return result


def mutual_information(counts: ArrayLike) -> NDArray[np.float64]:
    """Return the mutual information of the two symbols of a pair, [..., symbols, symbols] -> [...], in bits.

    This is the plug-in estimate with the Miller-Madow correction of its three entropies. Since pairs of one sequence
    are not independent, a bias remains. The same estimate for sequences in random order shows how large it is. The
    difference from that baseline comes from the order of the tokens.
    """
    array = np.asarray(counts)
    joint = array.reshape(*array.shape[:-2], -1)
    parts = (array.sum(axis=-1), array.sum(axis=-2), joint)
    first, second, both = (entropy(part) + entropy_bias(part) for part in parts)
    return first + second - both


def fold(tokens: ArrayLike, num_symbols: int) -> NDArray[np.int64]:
    """Return ids modulo `num_symbols`. With a large alphabet, each pair would occur too rarely for statistics of pairs.

    The mutual information of folded tokens is at most that of the tokens (data-processing inequality).
    """
    return np.asarray(tokens, np.int64) % num_symbols


def permuted(symbols: ArrayLike) -> NDArray[np.int64]:
    """Return the sequences [count, length], each in its own random order."""
    return np.random.default_rng(0).permuted(np.asarray(symbols, np.int64), axis=-1)
