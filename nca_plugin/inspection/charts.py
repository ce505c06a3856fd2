"""The curves and histograms of the page. Each function draws on matplotlib axes."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nca_plugin.automata.config import Band
from nca_plugin.display.drawing import GREY, PAPER, finish_chart, hide_frame, place_legend
from nca_plugin.inspection import statistics
from nca_plugin.inspection.information import Information
from nca_plugin.inspection.measures import RANKS, TRANSITIONS
from nca_plugin.inspection.samples import Samples

_BINS: Final = 40
_STRIP_LENGTH: Final = 64
#: The axis of mutual information is logarithmic if its largest and smallest value have a larger ratio than this.
_LOGARITHMIC_RANGE: Final = 30
_RELEASED: Final = "released code"

Reference = Mapping[str, float] | None


def draw_scores(
    axes: Any,
    scores: NDArray[np.float64],
    random_scores: NDArray[np.float64] | None,
    bands: Sequence[Band],
    noise: float,
) -> None:
    """Draw the scores of the sequences, and of random rules if a band selected the sequences' rules.

    Args:
        bands: the bands that selected the rules, lowest first.
        noise: the score of random frames.
    """
    everything = scores if random_scores is None else np.concatenate([scores, random_scores])
    edges = _edges(max(noise, float(everything.max())), bands)
    for i, (low, high) in enumerate(bands):
        # Matplotlib leaves labels that begin with an underscore out of the legend.
        label = "_" if i else "band" if len(bands) == 1 else "bands"
        axes.axvspan(low, min(high, edges[-1]), color="C0", alpha=0.12, label=label, linewidth=0)
    axes.hist(scores, edges, weights=_equal_shares(scores), color="C0", alpha=0.75, label="these sequences")
    if random_scores is not None:
        weights = _equal_shares(random_scores)
        axes.hist(random_scores, edges, weights=weights, histtype="step", color="C1", linewidth=2, label="random rules")
    axes.set(
        xlabel=f"gzip score (near 0: frozen, {noise:.2f}: noise)",
        ylabel="share of sequences",
        xlim=(0, edges[-1]),
    )
    finish_chart(axes, percent=True)


def _edges(highest: float, bands: Sequence[Band]) -> NDArray[np.float64]:
    """Return the edges of bins from 0 or below to above `highest`. The lowest band begins and ends at an edge."""
    width, start = highest / _BINS, 0.0
    if bands:
        start, end = bands[0][0], min(bands[0][1], highest)
        width = (end - start) / max(1, round((end - start) / width))
    return start + width * np.arange(-np.ceil(start / width), np.ceil((highest - start) / width) + 1)


def draw_ranks(axes: Any, tokens: NDArray[np.int32], vocab_size: int, reference: Reference) -> None:
    """Draw the share of the r most frequent ids in all tokens, against r."""
    counts = statistics.token_counts(tokens, vocab_size)
    ranks = np.unique(np.geomspace(1, vocab_size, 200).round().astype(int))
    axes.plot(ranks, statistics.top_shares(counts, ranks.tolist()), color="C0", label="these sequences")
    axes.plot(ranks, ranks / vocab_size, color=GREY, linestyle=":", label="if all were equally frequent")
    _draw_reference(axes, RANKS, [f"top_share_{rank}" for rank in RANKS], reference)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="number of most frequent token ids", ylabel="share of all tokens")
    finish_chart(axes, percent=True)


def draw_frame_information(axes: Any, information: Information) -> None:
    """Draw mutual information and its baseline against distance in frames, with two standard errors."""
    _draw_information(axes, information, marker="o", markersize=3)
    axes.set(xlabel="distance (frames)", ylim=_from_zero(axes))
    finish_chart(axes)


def draw_token_information(axes: Any, information: Information, frame_length: int | None) -> None:
    """Draw mutual information against distance in tokens, on a logarithmic axis if there are no frames."""
    if frame_length is not None:
        _draw_information(axes, information)
        axes.set(xticks=np.arange(0, information.distances[-1] + 1, frame_length), ylim=_from_zero(axes))
    else:
        _draw_information(axes, information, marker="o", markersize=4, linestyle="none")
        axes.set_xscale("log")
        # A logarithmic axis over a small range would show noise as if it were structure.
        positive = information.value[information.value > 0]
        if positive.size and positive.max() > _LOGARITHMIC_RANGE * positive.min():
            axes.set_yscale("log")
        else:
            axes.set_ylim(min(0.0, axes.get_ylim()[0]), axes.get_ylim()[1])
    axes.set_xlabel("distance (tokens)")
    finish_chart(axes)


def _draw_information(axes: Any, information: Information, **style: Any) -> None:
    distances = np.array(information.distances)
    for value, error, color, label in (
        (information.value, information.error, "C0", "these sequences"),
        (information.baseline, information.baseline_error, GREY, "same sequences, order shuffled"),
    ):
        axes.plot(distances, value, color=color, label=label, **style)
        if "linestyle" not in style:
            axes.fill_between(distances, value - 2 * error, value + 2 * error, color=color, alpha=0.25, linewidth=0)
    axes.set_ylabel("mutual information (bits)")


def _from_zero(axes: Any) -> tuple[float, float]:
    """Return limits that leave room for a baseline slightly below 0."""
    top = axes.get_ylim()[1]
    return -0.03 * top, top


def draw_changes(axes: Any, frames: NDArray[np.uint8], reference: Reference) -> None:
    """Draw the share of cells that change in each transition."""
    _draw_transitions(axes, statistics.change_rate(frames))
    if reference is not None:
        axes.axhline(reference["change_rate"], color="C1", linestyle="--", label=f"mean of the {_RELEASED}")
    axes.set_ylabel("cells that change")
    finish_chart(axes, percent=True)


def draw_seen(axes: Any, seen: NDArray[np.bool_], reference: Reference) -> None:
    """Draw the share of cells whose neighbourhood occurred before. `seen` is [count, transitions, cells]."""
    _draw_transitions(axes, seen.mean(axis=2))
    _draw_reference(axes, TRANSITIONS, [f"seen_{t}" for t in TRANSITIONS], reference)
    axes.set_ylabel("cells seen before")
    finish_chart(axes, percent=True)


def _draw_transitions(axes: Any, shares: NDArray[np.float64]) -> None:
    """Draw the mean and the spread over sequences of `shares`, [count, transitions]."""
    steps = np.arange(1, shares.shape[1] + 1)
    low, high = np.percentile(shares, (5, 95), axis=0)
    axes.fill_between(steps, low, high, color="C0", alpha=0.2, linewidth=0, label="90 % of the sequences")
    axes.plot(steps, shares.mean(axis=0), color="C0", marker="o", markersize=3, label="mean")
    axes.set(ylim=(0, 1.02), xlabel="from this frame to the next")


def draw_mask(axes: Any, samples: Samples) -> None:
    """Draw which next tokens count in the loss. Each row is a frame, or 64 tokens if there are no frames."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    length = samples.grid.config.frame_length if samples.grid else _STRIP_LENGTH
    # The first token of a sequence is never a next token.
    states = np.concatenate([[2], samples.loss_mask[0].astype(np.int64)])
    rows = -(-states.size // length)
    strip = np.full(rows * length, np.nan)
    strip[: states.size] = states
    axes.imshow(
        strip.reshape(rows, length),
        cmap=ListedColormap(["C1", "C0", GREY]),
        vmin=0,
        vmax=2,
        interpolation="nearest",
        aspect="auto",
        extent=(0.5, length + 0.5, rows + 0.5, 0.5),
    )
    axes.hlines(np.arange(rows - 1) + 1.5, 0.5, length + 0.5, color=PAPER, linewidth=1.5)
    axes.set(xlabel="position in the row", ylabel="frame" if samples.grid else f"row of {length} tokens")
    hide_frame(axes)
    handles = [Patch(color=c, label=name) for c, name in (("C0", "counts"), ("C1", "masked"), (GREY, "only an input"))]
    place_legend(axes, handles=handles)


def _draw_reference(axes: Any, x: ArrayLike, names: list[str], reference: Reference) -> None:
    if reference is not None:
        values = [reference[name] for name in names]
        axes.plot(x, values, color="C1", marker="D", markersize=7, linestyle="none", label=_RELEASED)


def _equal_shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.full(values.size, 1 / values.size)
