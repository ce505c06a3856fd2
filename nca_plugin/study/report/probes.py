"""Pictures of what a model has learned and read: stage 1, accuracy in context, induction heads, the data.

Each function draws on matplotlib axes.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.display.drawing import GREY, finish_chart, hide_frame
from nca_plugin.inspection import sheet
from nca_plugin.inspection.samples import Samples, draw_samples
from nca_plugin.inspection.statistics import compressed_shares
from nca_plugin.sources import parse
from nca_plugin.study.report.parts import Row, Stage1, losses, tokens_of

_NUM_SEQUENCES: Final = 3
#: With more columns, there is no room for numbers.
_MOST_NUMBERED: Final = 12
#: The colours of induction scores, made for colour-blind readers. Low scores are dark.
_SCORES: Final = "cividis"
#: The range of colours reaches at least to this score, that of a head which is visibly an induction head.
_FAINTEST: Final = 0.3


def draw_stage1(axes: Any, stage: Stage1) -> None:
    """Draw held-out loss against tokens, with thin lines for seeds, and the loss of token frequencies alone."""
    x, y = tokens_of(stage.rows), losses(stage.rows)
    if len(y) > 1:
        axes.plot(x, y.T, color="C0", linewidth=0.8, alpha=0.7)
    axes.plot(x, y.mean(axis=0), color="C0", linewidth=2, marker="o", markersize=4, label="held-out loss")
    for key, name, color, style in (
        ("unigram_loss", "token frequencies alone", "C1", "--"),
        ("oracle_loss", "oracle", "C2", "-"),
    ):
        known = [row[key] for row in stage.rows if row[key] is not None]
        if known:
            axes.axhline(float(np.mean(known)), color=color, linestyle=style, label=name)
    axes.set(xlabel="tokens of stage 1", ylabel="nats a supervised token")
    finish_chart(axes, is_in_tokens=True)


def draw_in_context(axes: Any, stage: Stage1) -> None:
    """Draw patch accuracy against the number of frames seen, on the samples that copying does not predict."""
    from matplotlib.ticker import MaxNLocator

    found = [row["in_context"] for row in stage.rows]
    frames = np.array(found[0]["frames"])
    for key, name, style in (
        ("limit", "knowing the rule", {"color": GREY, "linestyle": ":"}),
        ("lookup", "looking up what was seen", {"color": "C2", "linestyle": "--"}),
        ("patch", "the model", {"color": "C0", "marker": "o"}),
        ("best_copy", "copying one or two frames back", {"color": GREY, "linestyle": "--"}),
    ):
        if any(values["hard"] is None or values["hard"][key] is None for values in found):
            continue
        shares = np.array([[np.nan if one is None else one for one in values["hard"][key]] for values in found])
        known = ~np.isnan(shares).any(axis=0)
        axes.plot(frames[known], shares[:, known].mean(axis=0), markersize=4, linewidth=1.8, label=name, **style)
        if len(shares) > 1 and key == "patch":
            low, high = shares[:, known].min(axis=0), shares[:, known].max(axis=0)
            axes.fill_between(frames[known], low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.set(xlabel="frames seen before", ylabel="patches predicted", ylim=(-0.02, 1.02))
    finish_chart(axes, percent=True, num_columns=2)


def has_induction(rows: Sequence[Row]) -> bool:
    """Return whether the scores of heads were measured in all of these runs."""
    return bool(rows) and all(row["induction"] for row in rows)


def draw_strongest_heads(axes: Any, names: Sequence[str], groups: Sequence[Sequence[Row]], highest: float) -> None:
    """Draw the highest score above chance in each layer, as the mean over seeds, with a row for each group of runs."""
    scores = [np.mean([above_chance(row).max(axis=1) for row in rows], axis=0) for rows in groups]
    image = _padded([score[None] for score in scores])[:, 0]
    axes.imshow(image, cmap=_SCORES, vmin=0, vmax=highest, aspect="auto")
    if image.shape[1] <= _MOST_NUMBERED:
        for (y, x), score in np.ndenumerate(image):
            if not np.isnan(score):
                color = "#000000" if score > highest / 2 else "#f0f0f0"
                axes.text(x, y, f"{max(score, 0.0):.2f}", ha="center", va="center", fontsize=10, color=color)
    layers = max((rows[0]["induction"]["layers"] for rows in groups), key=len)
    axes.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("layer")
    hide_frame(axes)


def draw_heads(axes: Any, names: Sequence[str], runs: Sequence[Row], highest: float) -> None:
    """Draw the score of every head above chance, layer x head, with the runs below each other."""
    images = [above_chance(row) for row in runs]
    width = max(image.shape[1] for image in images)
    gap, rows, middles, top = 1, [], [], 0
    for image in images:
        rows += [
            np.pad(image, ((0, 0), (0, width - image.shape[1])), constant_values=np.nan),
            np.full((gap, width), np.nan),
        ]
        middles.append(top + (len(image) - 1) / 2)
        top += len(image) + gap
    canvas = np.concatenate(rows[:-1])
    drawn = axes.imshow(canvas, cmap=_SCORES, vmin=0, vmax=highest, aspect="auto")
    axes.set_yticks(middles, names)
    axes.set_xticks(range(width), [str(head + 1) for head in range(width)])
    axes.set_xlabel("head; each block has its layers from top to bottom")
    hide_frame(axes)
    axes.figure.colorbar(drawn, ax=axes, label="score above chance", pad=0.02)


def above_chance(row: Row) -> NDArray[np.float64]:
    """Return the induction scores of a run minus that of a head that attends to everything equally, [layers, heads].

    Chance depends on the vocabulary, so that scores of stage 1 and text are comparable only without it.
    """
    return np.array(row["induction"]["scores"], np.float64) - row["induction"]["chance"]


def highest_score(runs: Sequence[Row]) -> float:
    """Return the end of the range of colours: the highest score, but enough that noise has nearly no colour."""
    return max(_FAINTEST, *(float(above_chance(row).max()) for row in runs))


def _padded(images: Sequence[Any]) -> Any:
    width = max(image.shape[-1] for image in images)
    return np.stack([np.pad(image, ((0, 0), (0, width - image.shape[-1])), constant_values=np.nan) for image in images])


def data_of(stage: Stage1, seq_length: int) -> Samples:
    """Return the first samples on which a stage 1 of a source is trained."""
    assert stage.uri is not None
    return draw_samples(parse(stage.uri), _NUM_SEQUENCES, seq_length)


def draw_data(axes: Any, samples: Samples) -> None:
    """Draw the frames of samples, or their tokens if there are no frames."""
    if samples.grid is not None:
        sheet.draw_frames(axes, samples.grid)
    else:
        sheet.draw_strips(axes, samples, compressed_shares(samples.tokens))
