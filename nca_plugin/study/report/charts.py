"""The learning curves, gains and ablations of a report. Each function draws on matplotlib axes.

The baseline has the colour of the text, the other arms have C0, C1, ... If there are more arms than colours, their
dashes differ.
"""

import math
import textwrap
from typing import Any, Final

import numpy as np

from nca_plugin.display.drawing import COLORS, GREY, PAPER, TEXT, finish_chart, hide_frame
from nca_plugin.display.terminal import short
from nca_plugin.study.linear_model import Estimate, Variance, differences
from nca_plugin.study.paper import published_gains
from nca_plugin.study.report.parts import (
    Ablation,
    Values,
    best_ngrams,
    gain_over,
    label,
    language_rows,
    longer_baselines,
    losses,
    not_learned,
    others,
    tokens_of,
)

_DASHES: Final = ("-", "--", ":", "-.")
#: Runs are shown from this share on. Earlier losses would leave no room for later differences.
SHOWN_FROM: Final = 0.4
#: With more arms, bands are left out, because they would hide each other.
MOST_BANDS: Final = 4
_LABEL_LETTERS: Final = 34
#: Height of a line of text in the chart of gains, in units of 0.9 inches.
_LINE: Final = 0.21


def draw_curves(axes: Any, values: Values, domain: str) -> None:
    """Draw held-out perplexity against language tokens: the mean and the range of the seeds, and counting n-grams."""
    highest = []
    for arm in values["arms"]:
        rows = language_rows(values, domain, arm)
        x, y = tokens_of(rows), np.exp(losses(rows))
        style = _style(values, arm)
        axes.plot(x, y.mean(axis=0), label=wrapped(label(values, arm)), zorder=3, **style)
        if len(rows) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=style["color"], alpha=0.12, linewidth=0)
        late = y.mean(axis=0)[x >= SHOWN_FROM * x[-1]]
        highest.append(late[0])
    ends = [np.exp(losses(rows))[:, -1].min() for arm in values["arms"] if (rows := language_rows(values, domain, arm))]
    for rows in longer_baselines(values, domain):
        extra = short(rows[0]["tokens"] - values["domains"][domain]["tokens"])
        mean = np.exp(losses(rows)).mean(axis=0)
        name = f"{label(values, values['baseline'])}, equal compute: {extra} tokens more"
        axes.plot(tokens_of(rows), mean, color=TEXT, linestyle="--", linewidth=1.2, label=wrapped(name))
        ends.append(mean[-1])
    end = values["summary"][domain][values["baseline"]]["perplexity"]
    axes.axhline(end, color=GREY, linewidth=1, zorder=1)
    order, counted = best_ngrams(values, domain)
    if order is not None:
        place = math.exp(counted)
        axes.axhline(place, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
        axes.annotate(f"{order}-grams", (0.995, place), xycoords=("axes fraction", "data"), va="bottom", ha="right")
        ends.append(place)
        highest.append(place)
    bottom, top = min(ends), max(highest)
    axes.set(
        xlabel="language tokens",
        ylabel="held-out perplexity",
        xlim=(0.6 * SHOWN_FROM * values["domains"][domain]["tokens"], None),
        ylim=(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom)),
    )
    finish_chart(axes, num_columns=_columns(values), is_in_tokens=True)


def draw_differences(axes: Any, values: Values, domain: str) -> None:
    """Draw each arm's loss minus the baseline's at the same tokens, paired by seed, with its interval.

    The line is thick where the interval does not contain 0.
    """
    axes.axhline(0, color=TEXT, linewidth=1.2)
    seen, ends, arms = [0.0], [0.0], others(values)
    rows = {arm: language_rows(values, domain, arm) for arm in (values["baseline"], *arms)}
    x = tokens_of(rows[values["baseline"]])
    # By evaluation, and then by arm.
    pairs = [(number, 0) for number in range(1, len(rows))]
    curves = np.array([losses(of_arm) for of_arm in rows.values()])
    # The losses of the held-out documents are known at the end alone. Their noise is taken to be the same before.
    documents = values["domains"][domain]["noise"]["held_out"]
    held_out = None if documents is None else [Variance(**documents)] * len(pairs)
    found = [differences(curves[..., number], pairs, held_out) for number in range(len(x))]
    found[-1] = [Estimate(**values["summary"][domain][arm]["difference"]) for arm in arms]
    for i, arm in enumerate(arms):
        of_arm = [one[i] for one in found]
        style = _style(values, arm)
        mean = np.array([one.mean for one in of_arm])
        axes.plot(x, mean, **{**style, "linewidth": 1.2})
        is_shown = np.array([one.is_shown for one in of_arm])
        # The marker shows an evaluation between two that show nothing.
        thick = {**style, "linewidth": 3.0, "marker": "o", "markersize": 3.0}
        axes.plot(x, np.where(is_shown, mean, np.nan), label=wrapped(label(values, arm)), **thick)
        late = x >= SHOWN_FROM * x[-1]
        shown = np.array([one.values for one in of_arm])[late]
        seen += [shown.min(), shown.max()]
        if of_arm[-1].low is not None and of_arm[-1].high is not None:
            ends += [of_arm[-1].low, of_arm[-1].high]
            if len(arms) <= MOST_BANDS:
                lows, highs = ([getattr(one, name) for one in of_arm] for name in ("low", "high"))
                axes.fill_between(x, lows, highs, color=style["color"], alpha=0.1, linewidth=0)
            place = x[-1] * (1.02 + 0.14 * i / len(arms))
            axes.vlines(place, of_arm[-1].low, of_arm[-1].high, color=style["color"], linewidth=1.6)
            axes.plot([place], [of_arm[-1].mean], color=style["color"], marker="o", markersize=4)
    # Intervals of few seeds may be so long that they would hide everything else.
    spread = max(seen) - min(seen) or 0.01
    low, high = max(min(ends), min(seen) - spread), min(max(ends), max(seen) + spread)
    margin = 0.1 * spread
    base_name = wrapped(textwrap.shorten(label(values, values["baseline"]), 24))
    axes.set(
        xlabel="language tokens",
        ylabel=f"loss minus that of '{base_name}' (nats)",
        ylim=(min(low, *seen) - margin, max(high, *seen) + margin),
    )
    finish_chart(axes, num_columns=_columns(values), is_in_tokens=True)


def draw_gains(axes: Any, values: Values, domain: str) -> None:
    """Draw the gain of each arm with its interval and its seeds, the best arm on top, and the paper's gains as a band.

    An interval that leaves the axes ends in an arrow.
    """
    from matplotlib.transforms import blended_transform_factory

    axes.axvline(0, color=TEXT, linewidth=1.2)
    size = values["domains"][domain]["bytes_per_token"]
    reach = [0.0]
    if size is not None:
        reach += published_gains(size)
        axes.axvspan(*published_gains(size), color=GREY, alpha=0.25, linewidth=0, label="the paper's gains")
    text_place = blended_transform_factory(axes.transAxes, axes.transData)
    y, lines = 0.0, list[tuple[float, dict[str, Any], str]]()
    for arm in by_gain(values, domain):
        found = values["summary"][domain][arm]
        if y:
            axes.axhline(y, color=GREY, alpha=0.3, linewidth=0.8)
        name = gain_label(values, arm)
        behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
        axes.text(0.01, y + 0.08, name, transform=text_place, fontsize=10, va="top", zorder=4, bbox=behind)
        y += _LINE * (name.count("\n") + 1) + 0.2
        kinds = [("equal tokens", found["gain_percent"], "C0", "o")]
        if found["equal_compute"] is not None:
            kinds.append(("equal compute", found["equal_compute"]["gain_percent"], "C1", "s"))
        for kind, gain, color, marker in kinds:
            legend = kind if kind not in axes.get_legend_handles_labels()[1] else "_"
            axes.plot(gain["mean"], y, color=color, marker=marker, markersize=7, linestyle="none", label=legend)
            axes.plot(gain["values"], [y] * len(gain["values"]), color=color, marker="|", alpha=0.8, linestyle="none")
            reach += [gain["mean"], *gain["values"]]
            lines.append((y, gain, color))
            y += 0.25
    margin = 0.15 * (max(reach) - min(reach)) or 1.0
    low, high = min(reach) - margin, max(reach) + margin
    for place, gain, color in lines:
        if gain["low"] is None:
            continue
        ends = max(gain["low"], low), min(gain["high"], high)
        axes.hlines(place, *ends, color=color, linewidth=1.8)
        for end, limit, marker in ((gain["low"], low, "<"), (gain["high"], high, ">")):
            if not low <= end <= high:
                axes.plot(limit, place, color=color, marker=marker, markersize=7, clip_on=False)
    axes.set(xlabel="gain in perplexity (%), right of 0 is better", xlim=(low, high), ylim=(y, 0), yticks=[])
    finish_chart(axes)
    axes.spines["left"].set_visible(False)


def by_gain(values: Values, domain: str) -> list[str]:
    """Return the arms but the baseline, from the largest gain to the smallest."""
    summary = values["summary"][domain]
    return sorted(others(values), key=lambda arm: -summary[arm]["gain_percent"]["mean"])


def gain_label(values: Values, arm: str) -> str:
    """Return the name of an arm that is shown above its gains."""
    mark = " (stage 1 not learned)" if not_learned(values, arm) else ""
    return wrapped(f"{label(values, arm)}{mark}", 60)


def gains_height(values: Values) -> float:
    """Return the height of the chart of gains in inches."""
    lines = sum(gain_label(values, arm).count("\n") + 1 for arm in others(values))
    return 1.5 + 0.9 * (_LINE * lines + 0.7 * len(others(values)))


def draw_retrieval(axes: Any, values: Values, domain: str) -> None:
    """Draw by how much the loss of a repeated passage is lower, against the distance: mean and range of the seeds."""
    for arm in values["arms"]:
        found = [row["retrieval"] for row in language_rows(values, domain, arm)]
        gains = np.array([one["gain"] for one in found], np.float64)
        style, x = _style(values, arm), np.arange(gains.shape[1])
        axes.plot(x, gains.mean(axis=0), marker="o", markersize=4, label=wrapped(label(values, arm)), **style)
        axes.fill_between(x, gains.min(axis=0), gains.max(axis=0), color=style["color"], alpha=0.12, linewidth=0)
        axes.set_xticks(x, [str(distance) for distance in found[0]["distances"]])
    axes.axhline(0, color=GREY, linewidth=1, zorder=1)
    axes.set(xlabel="tokens between the two passages", ylabel="loss that the repetition saves (nats)")
    finish_chart(axes, num_columns=_columns(values))


def draw_ablations(axes: Any, values: Values, shown: list[Ablation]) -> None:
    """Draw the gain of drawing a component anew over keeping it, component x domain."""
    from matplotlib.colors import to_rgba

    domains = list(values["domains"])
    cells = [[gain_over(values, domain, ablation.arm, ablation.whole) for domain in domains] for ablation in shown]
    limit = max(abs(cell.mean) for row in cells for cell in row) or 1.0
    shades = np.empty((len(cells), len(domains), 4))
    for y, x in np.ndindex(shades.shape[:2]):
        cell = cells[y][x]
        # Colours are pale enough for text on them. Differences that are not shown have nearly no colour.
        opacity = (0.5 if cell.is_shown else 0.1) * abs(cell.mean) / limit
        shades[y, x] = to_rgba(COLORS[0 if cell.mean > 0 else 1], opacity)
        text = f"{cell.mean:+.1f}"
        if cell.low is not None:
            text += f"\n{cell.low:+.1f} to {cell.high:+.1f}"
            text += "" if cell.is_shown else "\nnone shown"
        weight = "bold" if cell.is_shown else "normal"
        axes.text(x, y, text, ha="center", va="center", fontsize=10, fontweight=weight)
    axes.imshow(shades, aspect="auto")
    axes.set_yticks(range(len(shown)), [ablation_label(values, ablation) for ablation in shown])
    axes.set_xticks(range(len(domains)), [wrapped(domain, 16) for domain in domains])
    hide_frame(axes)


def ablation_label(values: Values, ablation: Ablation) -> str:
    """Return the name of an ablation's row."""
    return wrapped(f"{ablation.component} of {label(values, ablation.whole)}", 26)


def legend_height(values: Values) -> float:
    """Return the height of the legend of the arms in inches."""
    entries = [wrapped(label(values, arm)) for arm in values["arms"]]
    # Baselines of equal compute have entries of two lines.
    entries += ["\n"] * len(longer_baselines(values, next(iter(values["domains"]))))
    lines = sum(entry.count("\n") + 1 for entry in entries)
    return 0.19 * lines / _columns(values)


def _columns(values: Values) -> int:
    return 2 if max(len(label(values, arm)) for arm in values["arms"]) <= _LABEL_LETTERS else 1


def _style(values: Values, arm: str) -> dict[str, Any]:
    if arm == values["baseline"]:
        return {"color": TEXT, "linewidth": 2.0}
    dashes, color = divmod(others(values).index(arm), len(COLORS))
    return {"color": COLORS[color], "linestyle": _DASHES[dashes % len(_DASHES)], "linewidth": 2.0}


def wrapped(text: str, letters: int = 2 * _LABEL_LETTERS) -> str:
    """Return a text for matplotlib in lines of at most `letters` letters."""
    # Matplotlib would read text between two dollar signs as a formula.
    return textwrap.fill(text, letters, break_on_hyphens=False).replace("$", r"\$")
