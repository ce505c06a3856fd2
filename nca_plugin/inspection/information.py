"""How much a token tells about a later one: mutual information against distance, and its baseline."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.inspection import statistics
from nca_plugin.inspection.samples import Grid, Samples

#: Symbols that ids and colours are folded to, so that every pair of them is seen often.
NUM_SYMBOLS: Final = 16
#: Sequences that are looked at, the first: the counts of their pairs are held in memory.
_MAX_SEQUENCES: Final = 1000


@dataclass(frozen=True, eq=False, slots=True)
class Information:
    """Mutual information in bits (Miller-Madow), float64 [len(distances)] each, with standard errors over sequences.

    `baseline` is the same estimate on the same sequences in random order: the bias that is left.
    """

    distances: tuple[int, ...]
    value: NDArray[np.float64]
    error: NDArray[np.float64]
    baseline: NDArray[np.float64]
    baseline_error: NDArray[np.float64]


_Curve = Callable[[NDArray[np.int32]], tuple[NDArray[np.float64], NDArray[np.float64]]]


def frame_information(grid: Grid) -> Information:
    """Return what a cell's colour tells about the colour of the same cell d frames later, within a sequence.

    d goes up to half the frames, in equal ratios beyond 32: further on, a sequence has too few pairs.
    """
    colors = statistics.fold(grid.frames[:_MAX_SEQUENCES], NUM_SYMBOLS)
    shuffled = statistics.permuted(colors.reshape(colors.shape[0], -1)).reshape(colors.shape)
    ordered, baseline = (np.moveaxis(array, 1, -1) for array in (colors, shuffled))
    return _information(ordered, baseline, _distances(colors.shape[1] // 2), _within_sequences)


def token_information(samples: Samples) -> Information:
    """Return what a token tells about the token d places later.

    With a grid: about its top-left cell's colour, the patch's units digit, within a sequence; delimiters are left out,
    and d goes up to three frames. Without: about the ids modulo 16, with sequences pooled, and d goes up to half the
    sequence, in equal ratios beyond 32.
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
    """Return 1 .. 32 and forty more in equal ratios up to `furthest`."""
    spaced = np.geomspace(32, max(furthest, 32), 40).round().astype(int).tolist()
    return sorted({d for d in (*range(1, 33), *spaced) if d <= max(furthest, 1)})


def _with_delimiters(patches: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return [count, frames, patches] as token streams, [count, length], with -1 in place of the delimiters."""
    return np.pad(patches, ((0, 0), (0, 0), (1, 1)), constant_values=-1).reshape(patches.shape[0], -1)


def _information(
    ordered: NDArray[np.int64], shuffled: NDArray[np.int64], distances: Sequence[int], curve: _Curve
) -> Information:
    num_symbols = int(ordered.max()) + 1
    counts = (statistics.pair_counts(symbols, distances, num_symbols) for symbols in (ordered, shuffled))
    (value, error), (baseline, baseline_error) = map(curve, counts)
    return Information(tuple(distances), value, error, baseline, baseline_error)


# Every automaton has its own colours and its own rule: pooled, their dependences would cancel, and the mix of colours
# would pass for dependence.
def _within_sequences(counts: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = statistics.mutual_information(counts)
    estimates = [statistics.estimate_mean(column) for column in values.T]
    return np.array([e.value for e in estimates]), np.array([e.standard_error for e in estimates])


# All sequences speak the same language.
def _pooled(counts: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return statistics.jackknife(lambda kept: statistics.mutual_information(counts[kept].sum(axis=0)), counts.shape[0])
