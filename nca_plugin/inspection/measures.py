"""Measures samples: each statistic by name, with its standard error."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.inspection import statistics
from nca_plugin.inspection.samples import Grid, Samples
from nca_plugin.inspection.statistics import Measured, estimate_mean, estimate_quantile, jackknife

#: Ranks at which the share of the most frequent tokens is measured, and transitions at which seen neighbourhoods are
#: counted. They are those of the values in `reference`.
RANKS: Final = (1, 10, 100, 1000, 5000)
TRANSITIONS: Final = (2, 13, 26)
_PERCENTILES: Final = (5, 50, 95)

#: Measures that depend on the number of pooled sequences. A small sample has fewer distinct tokens, and larger shares
#: of its most frequent ones.
DEPENDS_ON_COUNT: Final = ("distinct_tokens", "token_entropy", "top_share_")

#: Title and unit of each measure, by name.
TITLES: Final[dict[str, tuple[str, str]]] = {
    "score": ("Gzip score of the first ten frames", ""),
    "in_band": ("Sequences whose own score is inside their band", "%"),
    "distinct_tokens": ("Distinct tokens in all sequences", "tokens"),
    "distinct_per_sequence": ("Distinct tokens in a sequence", "tokens"),
    "token_entropy": ("Entropy of the token frequencies", "bits"),
    "top_share_1": ("Share of the most frequent token", "%"),
    **{f"top_share_{rank}": (f"Share of the {rank:,} most frequent tokens", "%") for rank in RANKS[1:]},
    "token_repeat_1": ("Tokens equal to the one before", "%"),
    "token_repeat_2": ("Tokens equal to the one two before", "%"),
    "patch_repeat_1": ("Patch tokens equal to the same patch one frame back", "%"),
    "patch_repeat_2": ("Patch tokens equal to the same patch two frames back", "%"),
    "change_rate": ("Cells that change from frame to frame", "%"),
    "change_rate_q5": ("The same: 5 % of the sequences change less", "%"),
    "change_rate_q50": ("The same: half of the sequences change less", "%"),
    "change_rate_q95": ("The same: 95 % of the sequences change less", "%"),
    "right_neighbour": ("Cells equal to their right neighbour", "%"),
    "color_entropy": ("Entropy of the colours of a sequence", "bits"),
    **{f"seen_{t}": (f"Cells seen before, from frame {t}", "%") for t in TRANSITIONS},
    "right_if_seen": ("Cells seen before whose next colour is the same as then", "%"),
}


def measure(samples: Samples) -> dict[str, Measured]:
    """Return the statistics of samples by name.

    Shares are in 0 .. 1, entropies are plug-in estimates in bits. `TITLES` has the names in words, and
    `nca_plugin.inspection.reference` the values of the release. With a grid:

    * distinct_tokens, token_entropy, top_share_<rank>: of patch tokens, pooled over sequences;
    * distinct_per_sequence, color_entropy: means over sequences;
    * change_rate: mean over transitions and sequences; change_rate_q5, _q50, _q95: quantiles of the sequences' means;
    * patch_repeat_1, _2: share of patch tokens that equal the same patch one or two frames back;
    * right_neighbour: share of cells that equal their right neighbour;
    * seen_<t>: share of cells whose 3x3 neighbourhood occurred before transition t; right_if_seen: the share of these
      cells, pooled over all transitions, that the first occurrence predicts;
    * score: mean gzip score; in_band: share of sequences inside the band that selected them, if each has one.

    Without a grid: distinct_tokens, token_entropy, top_share_<rank>, distinct_per_sequence, and token_repeat_1, _2.
    """
    if samples.grid is None:
        tokens = samples.tokens
        repeats = {f"token_repeat_{lag}": _repeats(tokens, lag) for lag in (1, 2) if lag < tokens.shape[1]}
        return _token_measures(tokens, samples.source.vocab_size) | repeats
    grid = samples.grid
    patches = grid.patches.reshape(samples.count, -1)
    return _token_measures(patches, grid.config.grid_start) | _frame_measures(grid)


def _token_measures(tokens: NDArray[np.int32], vocab_size: int) -> dict[str, Measured]:
    ranks = [rank for rank in RANKS if rank < vocab_size]

    def pooled(kept: NDArray[np.intp]) -> list[float]:
        counts = statistics.token_counts(tokens[kept], vocab_size)
        shares = statistics.top_shares(counts, ranks)
        return [float(np.count_nonzero(counts)), float(statistics.entropy(counts)), *map(float, shares)]

    names = ["distinct_tokens", "token_entropy", *(f"top_share_{rank}" for rank in ranks)]
    measures = _named(names, *jackknife(pooled, tokens.shape[0]))
    return measures | {"distinct_per_sequence": estimate_mean(statistics.distinct(tokens))}


def _frame_measures(grid: Grid) -> dict[str, Measured]:
    frames, count = grid.frames, grid.frames.shape[0]
    changes = statistics.change_rate(frames).mean(axis=1)
    seen, right = map(np.stack, zip(*map(statistics.seen_neighbourhoods, frames), strict=True))
    transitions = [t for t in TRANSITIONS if t < frames.shape[1]]
    measures = {
        "change_rate": estimate_mean(changes),
        **{f"change_rate_q{p}": estimate_quantile(changes, p / 100) for p in _PERCENTILES},
        **{f"patch_repeat_{lag}": _repeats(grid.patches, lag) for lag in (1, 2) if lag < frames.shape[1]},
        "right_neighbour": estimate_mean(statistics.right_neighbour_rate(frames)),
        "color_entropy": estimate_mean(statistics.color_entropy(frames, grid.config.num_colors)),
        **{f"seen_{t}": estimate_mean(seen[:, t - 1].mean(axis=1)) for t in transitions},
    }
    if seen.any():
        ratio = jackknife(lambda kept: right[kept].sum() / max(seen[kept].sum(), 1), count)
        measures |= _named(["right_if_seen"], *ratio)
    measures["score"] = estimate_mean(grid.scores)
    if None not in grid.bands:
        low, high = np.array(grid.bands).T
        measures["in_band"] = estimate_mean((low < grid.scores) & (grid.scores < high))
    return measures


def _repeats(symbols: NDArray[np.int32], lag: int) -> Measured:
    return estimate_mean(statistics.repeat_rate(symbols, lag))


def _named(names: list[str], values: NDArray[np.float64], errors: NDArray[np.float64]) -> dict[str, Measured]:
    pairs = zip(np.atleast_1d(values), np.atleast_1d(errors), strict=True)
    return {name: Measured(float(value), float(error)) for name, (value, error) in zip(names, pairs, strict=True)}
