"""The curves of a report and what they add up to. Each function draws on matplotlib axes.

The baseline is drawn in the colour of the text, the other arms in C0, C1, ...; more arms than colours differ by dashes.
"""

import textwrap
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from nca_plugin.display.page import Theme, finish_chart
from nca_plugin.display.terminal import short
from nca_plugin.study.comparison import Estimate, estimate
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

#: Theme to the colours of arms: Okabe and Ito's, darker or lighter where the page is near, and two more.
ARM_COLORS: Final[Mapping[Theme, Sequence[str]]] = MappingProxyType(
    {
        "light": ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#A87400", "#56B4E9", "#7A3E9D"),
        "dark": ("#56B4E9", "#E8793A", "#2CC295", "#E29AC4", "#F0D34A", "#4C86D9", "#B79AE8"),
    }
)
_DASHES: Final = ("-", "--", ":", "-.")
#: The share of a run from which on it is shown: earlier losses would leave no room for later differences.
SHOWN_FROM: Final = 0.4
#: With more arms bands hide each other.
MOST_BANDS: Final = 4
_LABEL_LETTERS: Final = 34
_GREY: Final = "#8c959f"
#: Height of a line of text among gains, whose unit is 0.9 inches.
_LINE: Final = 0.21


def draw_curves(axes: Any, values: Values, domain: str) -> None:
    """Draw held-out perplexity against language tokens: means, and the range of seeds."""
    scale, unit = _unit(values, domain)
    highest = []
    for arm in values["arms"]:
        rows = language_rows(values, domain, arm)
        x, y = tokens_of(rows) / scale, np.exp(losses(rows))
        style = _style(axes, values, arm)
        axes.plot(x, y.mean(axis=0), label=_label(values, arm), zorder=3, **style)
        if len(rows) > 1:
            axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=style["color"], alpha=0.12, linewidth=0)
        late = y.mean(axis=0)[x >= SHOWN_FROM * x[-1]]
        highest.append(late[0])
    ends = [np.exp(losses(rows))[:, -1].min() for arm in values["arms"] if (rows := language_rows(values, domain, arm))]
    text = _text_color(axes)
    for rows in longer_baselines(values, domain):
        extra = short(rows[0]["tokens"] - values["domains"][domain]["tokens"])
        mean = np.exp(losses(rows)).mean(axis=0)
        name = f"{label(values, values['baseline'])}, equal compute: {extra} tokens more"
        axes.plot(tokens_of(rows) / scale, mean, color=text, linestyle="--", linewidth=1.2, label=wrapped(name))
        ends.append(mean[-1])
    end = values["summary"][domain][values["baseline"]]["perplexity"]["mean"]
    axes.axhline(end, color=_GREY, linewidth=1, zorder=1)
    bottom, top = min(ends), max(highest)
    axes.set(
        xlabel=f"language tokens{unit}",
        ylabel="held-out perplexity",
        xlim=(0.6 * SHOWN_FROM * values["domains"][domain]["tokens"] / scale, None),
        ylim=(bottom - 0.05 * (top - bottom), top + 0.05 * (top - bottom)),
    )
    finish_chart(axes, num_columns=_columns(values))


def draw_differences(axes: Any, values: Values, domain: str) -> None:
    """Draw each arm's loss minus the baseline's at the same tokens, paired by seed, with its interval.

    The line is thick where 0 lies outside the interval.
    """
    scale, unit = _unit(values, domain)
    base = losses(language_rows(values, domain, values["baseline"]))
    axes.axhline(0, color=_text_color(axes), linewidth=1.2)
    seen, ends, arms = [0.0], [0.0], others(values)
    for i, arm in enumerate(arms):
        rows = language_rows(values, domain, arm)
        differences, x = losses(rows) - base, tokens_of(rows) / scale
        found = [estimate(column.tolist()) for column in differences.T]
        style = _style(axes, values, arm)
        mean = np.array([one.mean for one in found])
        axes.plot(x, mean, **{**style, "linewidth": 1.2})
        is_shown = np.array([one.is_shown for one in found])
        axes.plot(x, np.where(is_shown, mean, np.nan), label=_label(values, arm), **{**style, "linewidth": 3.0})
        late = x >= SHOWN_FROM * x[-1]
        seen += [differences[:, late].min(), differences[:, late].max()]
        if found[-1].low is not None and found[-1].high is not None:
            ends += [found[-1].low, found[-1].high]
            if len(arms) <= MOST_BANDS:
                lows, highs = ([getattr(one, name) for one in found] for name in ("low", "high"))
                axes.fill_between(x, lows, highs, color=style["color"], alpha=0.1, linewidth=0)
            _draw_interval(axes, x[-1] * (1.02 + 0.14 * i / len(arms)), found[-1], style["color"])
    # Intervals of few seeds may be so long that nothing else could be seen.
    spread = max(seen) - min(seen) or 0.01
    low, high = max(min(ends), min(seen) - spread), min(max(ends), max(seen) + spread)
    margin = 0.1 * spread
    axes.set(
        xlabel=f"language tokens{unit}",
        ylabel=f"loss minus that of '{_short_label(values, values['baseline'])}' (nats)",
        ylim=(min(low, *seen) - margin, max(high, *seen) + margin),
    )
    finish_chart(axes, num_columns=_columns(values))


def _draw_interval(axes: Any, x: float, found: Estimate, color: str) -> None:
    axes.vlines(x, found.low, found.high, color=color, linewidth=1.6)
    axes.plot([x], [found.mean], color=color, marker="o", markersize=4)


def draw_gains(axes: Any, values: Values, domain: str) -> None:
    """Draw the gain of each arm with its interval, at equal tokens and at equal compute."""
    from matplotlib.transforms import blended_transform_factory

    arms = others(values)
    axes.axvline(0, color=_text_color(axes), linewidth=1.2)
    text_place = blended_transform_factory(axes.transAxes, axes.transData)
    behind = {"facecolor": axes.get_facecolor(), "edgecolor": "none", "pad": 1.5}
    ends = [0.0]
    y = 0.0
    for i, arm in enumerate(arms):
        found = values["summary"][domain][arm]
        if i:
            axes.axhline(y, color=_GREY, alpha=0.3, linewidth=0.8)
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
    """Return an arm's name over its gains."""
    return wrapped(label(values, arm), 60)


def gains_height(values: Values) -> float:
    """Return inches that the gains of all arms take."""
    lines = sum(gain_label(values, arm).count("\n") + 1 for arm in others(values))
    return 1.5 + 0.9 * (_LINE * lines + 0.7 * len(others(values)))


def draw_ablations(axes: Any, values: Values, shown: list[Ablation]) -> None:
    """Draw what is left of the gain when a component is drawn anew, component x domain."""
    from matplotlib.colors import LinearSegmentedColormap

    domains = list(values["domains"])
    cells = [[lost_points(values, domain, ablation) for domain in domains] for ablation in shown]
    amounts = np.array([[cell.mean for cell in row] for row in cells])
    limit = float(np.abs(amounts).max()) or 1.0
    colors = LinearSegmentedColormap.from_list("", ["#D55E00", axes.get_facecolor(), "#0072B2"])
    shades = colors((amounts + limit) / (2 * limit))
    # What is inside its interval has next to no colour.
    page = np.array(colors(0.5))
    is_shown = np.array([[cell.is_shown for cell in row] for row in cells])
    shades = np.where(is_shown[..., None], shades, page + 0.2 * (shades - page))
    axes.imshow(shades, aspect="auto")
    for (y, x), amount in np.ndenumerate(amounts):
        cell = cells[y][x]
        text = f"{amount:+.1f}"
        if cell.low is not None:
            text += f"\n{cell.low:+.1f} to {cell.high:+.1f}"
            text += "" if cell.is_shown else "\nnone shown"
        weight = "bold" if cell.is_shown else "normal"
        color = contrasting(shades[y, x])
        axes.text(x, y, text, ha="center", va="center", fontsize=10, fontweight=weight, color=color)
    axes.set_yticks(range(len(shown)), [ablation_label(values, ablation) for ablation in shown])
    axes.set_xticks(range(len(domains)), [wrapped(domain, 16) for domain in domains])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def ablation_label(values: Values, ablation: Ablation) -> str:
    """Return the name of an ablation's row."""
    return wrapped(f"{ablation.component} of {label(values, ablation.whole)}", 26)


def contrasting(color: Any) -> str:
    """Return black or white, whichever can be read on a colour of matplotlib's."""
    red, green, blue = color[:3]
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "#ffffff"


def legend_height(values: Values) -> float:
    """Return inches that the legend of the arms takes."""
    entries = [wrapped(label(values, arm)) for arm in values["arms"]]
    # Equal-compute baselines, where there are any.
    entries += ["\n"] * len(longer_baselines(values, next(iter(values["domains"]))))
    lines = sum(entry.count("\n") + 1 for entry in entries)
    return 0.19 * lines / _columns(values)


def _columns(values: Values) -> int:
    return 2 if max(len(label(values, arm)) for arm in values["arms"]) <= _LABEL_LETTERS else 1


def _style(axes: Any, values: Values, arm: str) -> dict[str, Any]:
    if arm == values["baseline"]:
        return {"color": _text_color(axes), "linewidth": 2.0}
    colors = len(ARM_COLORS["light"])
    index = others(values).index(arm)
    return {"color": f"C{index % colors}", "linestyle": _DASHES[index // colors % len(_DASHES)], "linewidth": 2.0}


def _text_color(axes: Any) -> str:
    return str(axes.xaxis.label.get_color())


def _short_label(values: Values, arm: str) -> str:
    return textwrap.shorten(label(values, arm), 24).replace("$", r"\$")


def _label(values: Values, arm: str) -> str:
    return wrapped(label(values, arm))


def wrapped(text: str, letters: int = 2 * _LABEL_LETTERS) -> str:
    """Return lines of at most so many letters, as matplotlib takes them."""
    # Matplotlib takes what stands between two dollar signs for a formula.
    return textwrap.fill(text, letters, break_on_hyphens=False).replace("$", r"\$")


def _unit(values: Values, domain: str) -> tuple[float, str]:
    return token_unit(values["domains"][domain]["tokens"])


def token_unit(tokens: float) -> tuple[float, str]:
    """Return what to divide numbers of tokens by for an axis that ends there, and its name."""
    units = ((1e9, " (billions)"), (1e6, " (millions)"), (1e3, " (thousands)"))
    return next(((scale, name) for scale, name in units if tokens >= scale), (1.0, ""))
