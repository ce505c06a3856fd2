"""The tables of a report on stage 1: whether it was learned, and its accuracy by frame."""

from functools import reduce
from typing import Final

import numpy as np

from nca_plugin.display.terminal import short
from nca_plugin.study.report.parts import LEARNED, Rows, Stage1, Values, label, learned, stages1


def stage1(values: Values) -> list[Rows]:
    """Return tables on what was learned in stage 1, and how well frames are predicted; none without a stage 1."""
    stages = stages1(values)
    if not stages:
        return []
    rows = [
        [
            f"{stage.title}\n{'; '.join(label(values, arm) for arm in stage.arms)}",
            short(stage.rows[0]["tokens"]),
            f"{_mean(stage, 'loss'):.3f}",
            *(
                "" if (value := _mean(stage, key)) is None else f"{value:.3f}"
                for key in ("oracle_loss", "unigram_loss")
            ),
            "" if (share := learned(stage.rows)) is None else f"{100 * share:.0f}",
        ]
        for stage in stages
    ]
    heads = ("stage 1", "tokens", "held-out loss", "oracle", "token frequencies alone", "learned, %")
    note = (
        "Loss in nats a supervised token, mean over seeds. The oracle knows the law of the source; token frequencies "
        "alone is a model that knows how often each token occurs. Learned: for frames of cells, how far the accuracy "
        "comes from copying (0 %) to looking up the neighbourhoods seen so far in the sequence (100 %), on samples "
        "that copying does not predict; for other sources, how far the loss comes from token frequencies to the "
        f"oracle. Below {100 * LEARNED:.0f} %, a stage 1 is called not learned."
    )
    found = [Rows("Stage 1: was it learned?", heads, rows, note)]
    seen = [stage for stage in stages if stage.rows[0]["in_context"]]
    if seen:
        columns = ("stage 1", "frames seen", *(name for name, _ in _ACCURACIES))
        note = (
            "Held-out accuracy in %, mean over seeds: after one frame, and after the most frames of a sequence. "
            "Copying is the better of repeating the frame before and the one before that; looking up takes the "
            "neighbourhoods that were seen in the same sequence; not copied are the "
            "samples that copying does not predict, with their share of all samples."
        )
        lines = [[stage.title, *_accuracies(stage)] for stage in seen]
        found.append(Rows("Stage 1: is the rule inferred from the context?", columns, lines, note))
    return found


def _mean(stage: Stage1, key: str) -> float | None:
    values = [row[key] for row in stage.rows]
    return None if any(value is None for value in values) else float(np.mean(values))


#: Columns of the table of accuracies, with the keys of their values.
_ACCURACIES: Final = (
    ("patch", ("patch",)),
    ("copying", ("best_copy",)),
    ("looking up", ("lookup",)),
    ("patch\nnot copied", ("hard", "patch")),
    ("copying\nnot copied", ("hard", "best_copy")),
    ("looking up\nnot copied", ("hard", "lookup")),
    ("share\nnot copied", ()),
)


def _accuracies(stage: Stage1) -> list[str]:
    found = [row["in_context"] for row in stage.rows]
    frames = found[0]["frames"]
    # No model can know the first frame.
    first, last = min(1, len(frames) - 1), len(frames) - 1
    cells = [f"{frames[first]} to {frames[last]}"]
    for _, keys in _ACCURACIES:
        if not keys:
            shares = [row["hard_share"] for row in stage.rows]
            cells.append("" if None in shares else f"{100 * float(np.mean(shares)):.0f}")
            continue
        of_rows = [reduce(lambda values, key: (values or {}).get(key), keys, values) for values in found]
        known = [] if None in of_rows else [i for i in range(first, last + 1) if None not in [v[i] for v in of_rows]]
        if not known:
            cells.append("")
            continue
        ends = [100 * float(np.mean([values[i] for values in of_rows])) for i in (known[0], known[-1])]
        cells.append(f"{ends[0]:.1f} to {ends[1]:.1f}")
    return cells
