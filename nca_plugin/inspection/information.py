"""Measures how much a token tells about a later one: mutual information against distance, and its baseline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.inspection import statistics
from nca_plugin.inspection.samples import Grid, Samples

#: Ids and colours are folded to this number of symbols, so that every pair of symbols occurs often.
NUM_SYMBOLS: Final = 16
#: Only this number of sequences is used, because the counts of their pairs are held in memory.
_MAX_SEQUENCES: Final = 1000


@dataclass(frozen=True, eq=False, slots=True)
class Information:
    """Mutual information in bits (Miller-Madow) with standard errors over sequences, float64 [len(distances)] each.

    `baseline` is the same estimate for the same sequences in random order, which is the remaining bias.
    """

    distances: tuple[int, ...]
    value: NDArray[np.float64]
    error: NDArray[np.float64]
    baseline: NDArray[np.float64]
    baseline_error: NDArray[np.float64]


_Curve = Callable[[NDArray[np.int32]], tuple[NDArray[np.float64], NDArray[np.float64]]]


def frame_information(grid: Grid) -> Information:
    """Return what a cell's colour tells about the colour of the same cell d frames later, within a sequence.

    d goes up to half the frames, beyond which a sequence has too few pairs. Above 32 it grows in equal ratios.
    """
    colors = statistics.fold(grid.frames[:_MAX_SEQUENCES], NUM_SYMBOLS)
    shuffled = statistics.permuted(colors.reshape(colors.shape[0], -1)).reshape(colors.shape)
    ordered, baseline = (np.moveaxis(array, 1, -1) for array in (colors, shuffled))
    return _information(ordered, baseline, _distances(colors.shape[1] // 2), _within_sequences)


def token_information(samples: Samples) -> Information:
    """Return what a token tells about the token d places later.

    With a grid, a patch token stands for the colour of its top-left cell, its units digit. The information is that
    within a sequence, delimiters are left out, and d goes up to three frames. Without a grid, ids are taken modulo 16,
    sequences are pooled, and d goes up to half the sequence, above 32 in equal ratios.
    """
    if samples.grid is None:
        tokens = statistics.fold(samples.tokens[:_MAX_SEQUENCES], NUM_SYMBOLS)
        return _information(tokens, statistics.permuted(tokens), _distances(tokens.shape[1] // 2), _pooled)
    config, patches = samples.grid.config, samples.grid.patches[:_MAX_SEQUENCES]
    colors = statistics.fold(patches % config.num_colors, NUM_SYMBOLS)
    shuffled = statistics.permuted(colors.reshape(colors.shape[0], -1)).reshape(colors.shape)
    furthest = min(3, patches.shape[1] - 1) * config.frame_length
    ordered, baseline = map(_with_delimiters, (colors, shuffled))
    return _information(ordered, baseline, range(1, furthest + 1), _within_sequences)


def _distances(furthest: int) -> list[int]:
    """Return 1 .. 32 and forty more distances in equal ratios up to `furthest`."""
    spaced = np.geomspace(32, max(furthest, 32), 40).round().astype(int).tolist()
    return sorted({d for d in (*range(1, 33), *spaced) if d <= max(furthest, 1)})


def _with_delimiters(patches: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return patches [count, frames, patches] as token streams [count, length], with -1 for delimiters."""
    return np.pad(patches, ((0, 0), (0, 0), (1, 1)), constant_values=-1).reshape(patches.shape[0], -1)


def _information(
    ordered: NDArray[np.int64], shuffled: NDArray[np.int64], distances: Sequence[int], curve: _Curve
) -> Information:
    num_symbols = int(ordered.max()) + 1
    counts = (statistics.pair_counts(symbols, distances, num_symbols) for symbols in (ordered, shuffled))
    (value, error), (baseline, baseline_error) = map(curve, counts)
    return Information(tuple(distances), value, error, baseline, baseline_error)


# Every automaton has its own colours and rule. If sequences were pooled, their dependences would cancel, and the
# different mixes of colours would look like dependence.
def _within_sequences(counts: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = statistics.mutual_information(counts)
    estimates = [statistics.estimate_mean(column) for column in values.T]
    return np.array([e.value for e in estimates]), np.array([e.standard_error for e in estimates])


# Sequences of tokens can be pooled, because all have the same distribution.
def _pooled(counts: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return statistics.jackknife(lambda kept: statistics.mutual_information(counts[kept].sum(axis=0)), counts.shape[0])
