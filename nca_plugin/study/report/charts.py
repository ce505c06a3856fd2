"""The learning curves, gains and ablations of a report. Each function draws on matplotlib axes.

The baseline has the colour of the text, the other arms have C0, C1, ... If there are more arms than colours, their
dashes differ.
"""

import textwrap
from typing import Any, Final

import numpy as np

from nca_plugin.display.drawing import COLORS, GREY, PAPER, TEXT, finish_chart, hide_frame
from nca_plugin.display.terminal import short
from nca_plugin.study.comparison import estimate
from nca_plugin.study.report.parts import (
    Ablation,
    Values,
    label,
    language_rows,
    longer_baselines,
    losses,
    lost_points,
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
    """Draw held-out perplexity against language tokens: the mean and the range of the seeds."""
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
    end = values["summary"][domain][values["baseline"]]["perplexity"]["mean"]
    axes.axhline(end, color=GREY, linewidth=1, zorder=1)
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
    base = losses(language_rows(values, domain, values["baseline"]))
    axes.axhline(0, color=TEXT, linewidth=1.2)
    seen, ends, arms = [0.0], [0.0], others(values)
    for i, arm in enumerate(arms):
        rows = language_rows(values, domain, arm)
        differences, x = losses(rows) - base, tokens_of(rows)
        found = [estimate(column.tolist()) for column in differences.T]
        style = _style(values, arm)
        mean = np.array([one.mean for one in found])
        axes.plot(x, mean, **{**style, "linewidth": 1.2})
        is_shown = np.array([one.is_shown for one in found])
        axes.plot(x, np.where(is_shown, mean, np.nan), label=wrapped(label(values, arm)), **{**style, "linewidth": 3.0})
        late = x >= SHOWN_FROM * x[-1]
        seen += [differences[:, late].min(), differences[:, late].max()]
        if found[-1].low is not None and found[-1].high is not None:
            ends += [found[-1].low, found[-1].high]
            if len(arms) <= MOST_BANDS:
                lows, highs = ([getattr(one, name) for one in found] for name in ("low", "high"))
                axes.fill_between(x, lows, highs, color=style["color"], alpha=0.1, linewidth=0)
            place = x[-1] * (1.02 + 0.14 * i / len(arms))
            axes.vlines(place, found[-1].low, found[-1].high, color=style["color"], linewidth=1.6)
            axes.plot([place], [found[-1].mean], color=style["color"], marker="o", markersize=4)
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
    """Draw the gain of each arm with its interval, at equal tokens and at equal compute."""
    from matplotlib.transforms import blended_transform_factory

    arms = others(values)
    axes.axvline(0, color=TEXT, linewidth=1.2)
    text_place = blended_transform_factory(axes.transAxes, axes.transData)
    behind = {"facecolor": PAPER, "edgecolor": "none", "pad": 1.5}
    ends = [0.0]
    y = 0.0
    for i, arm in enumerate(arms):
        found = values["summary"][domain][arm]
        if i:
            axes.axhline(y, color=GREY, alpha=0.3, linewidth=0.8)
        name = gain_label(values, arm)
        axes.text(0.01, y + 0.08, name, transform=text_place, fontsize=10, va="top", zorder=4, bbox=behind)
        y += _LINE * (name.count("\n") + 1) + 0.2
        kinds = [("equal tokens", found["gain_percent"], "C0", "o")]
        if found["equal_compute"] is not None:
            kinds.append(("equal compute", found["equal_compute"]["gain_percent"], "C1", "s"))
        for kind, gain, color, marker in kinds:
            legend = kind if kind not in axes.get_legend_handles_labels()[1] else "_"
            if gain["low"] is not None:
                axes.hlines(y, gain["low"], gain["high"], color=color, linewidth=1.8)
                ends += [gain["low"], gain["high"]]
            axes.plot(gain["mean"], y, color=color, marker=marker, markersize=7, linestyle="none", label=legend)
            ends.append(gain["mean"])
            y += 0.25
    margin = 0.05 * (max(ends) - min(ends)) or 1.0
    axes.set(
        xlabel="gain in perplexity (%), right of 0 is better",
        xlim=(min(ends) - margin, max(ends) + margin),
        ylim=(y, 0),
        yticks=[],
    )
    finish_chart(axes)
    axes.spines["left"].set_visible(False)


def gain_label(values: Values, arm: str) -> str:
    """Return the name of an arm that is shown above its gains."""
    return wrapped(label(values, arm), 60)


def gains_height(values: Values) -> float:
    """Return the height of the chart of gains in inches."""
    lines = sum(gain_label(values, arm).count("\n") + 1 for arm in others(values))
    return 1.5 + 0.9 * (_LINE * lines + 0.7 * len(others(values)))


def draw_ablations(axes: Any, values: Values, shown: list[Ablation]) -> None:
    """Draw how the gain changes when a component is drawn anew, component x domain."""
    from matplotlib.colors import to_rgba

    domains = list(values["domains"])
    cells = [[lost_points(values, domain, ablation) for domain in domains] for ablation in shown]
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
