"""The tables of a report, for the terminal and for the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from rich.table import Table
from rich.text import Text

from nca_plugin.display.terminal import short
from nca_plugin.study.comparison import POWER
from nca_plugin.study.paper import FIGURES, SETTING, SOURCE
from nca_plugin.study.report.parts import (
    Stage1,
    Values,
    cost,
    is_scratch,
    label,
    sweep_flops,
    sweep_seconds,
)
from nca_plugin.study.report.parts import stages1 as all_stages1

_SHOWN = {"better": "better", "worse": "worse", "none": "none shown", "one seed": "one seed", "baseline": "baseline"}

#: Least width of the column of names, so that words are not cut in a narrow terminal.
_WIDTH_OF_NAMES: Final = 18


@dataclass(frozen=True, slots=True)
class Rows:
    """A table of plain text. Text after a line break in a cell is less important.

    Attributes:
        note: how to read the table.
    """

    title: str
    heads: Sequence[str]
    rows: list[list[str]]
    note: str = ""


def tables(values: Values) -> list[Table]:
    """Return the tables of a study's results for the terminal."""
    found = [comparison(values, domain) for domain in values["domains"]]
    found += [*tasks(values), *stage1(values), *sweep(values)]
    return [_drawn(rows) for rows in found]


def comparison(values: Values, domain: str) -> Rows:
    """Return the comparison of the arms of a domain with the baseline."""
    seeds = len(values["seeds"])
    base = label(values, values["baseline"])
    tokens = values["domains"][domain]["tokens"]
    rows = []
    for arm, found in values["summary"][domain].items():
        effect = found["smallest_effect"]
        rows.append(
            [
                label(values, arm),
                _estimate(found["perplexity"], "{:.2f}" if found["perplexity"]["mean"] >= 10 else "{:.3f}"),
                _gain(found["gain_percent"], found["verdict"]),
                _speed_up(found["speed_up"]),
                _equal_compute(found["equal_compute"], arm == values["baseline"] or is_scratch(values, arm)),
                "" if effect is None else f"{100 * (1 - math.exp(-effect)):.1f}",
            ]
        )
    over = "1 seed" if seeds == 1 else f"mean over {seeds} seeds with its 95 % interval"
    heads = (
        "arm",
        "held-out perplexity",
        "gain, %, equal tokens",
        "speed-up",
        "gain, %, equal compute",
        "smallest gain to be seen, %",
    )
    note = (
        f"Gain: by how much the perplexity is below that of '{base}', paired by seed. Speed-up: tokens at the end of "
        f"'{base}' over tokens at which the arm first reaches its final perplexity. Equal compute: against '{base}' "
        f"trained longer by what stage 1 takes. Smallest gain to be seen: what so many seeds show with "
        f"{100 * POWER:.0f} % probability, given how much these differ."
    )
    return Rows(f"{domain}: after {tokens:,} tokens, {over}", heads, rows, note)


def tasks(values: Values) -> list[Rows]:
    """Return the results of the tasks, as a table for each task and domain."""
    found = []
    for entry in values.get("tasks", []):
        metrics = list(entry["summary"][values["baseline"]])
        rows = [
            [label(values, arm), *(_metric(of_arm[metric]) for metric in metrics)]
            for arm, of_arm in entry["summary"].items()
        ]
        tuned = f"tuned for {entry['updates']:,} updates" if entry["updates"] else "not tuned"
        title = f"{entry['name']} ({entry['task']}), models of {entry['domain']}, {tuned}"
        base = label(values, values["baseline"])
        note = f"Mean over seeds; below it, the difference from '{base}', paired by seed, with its 95 % interval."
        found.append(Rows(title, ("arm", *metrics), rows, note))
    return found


def stage1(values: Values) -> list[Rows]:
    """Return tables on what was learned in stage 1, and how well frames are predicted; none without a stage 1."""
    stages = all_stages1(values)
    if not stages:
        return []
    rows = [
        [
            f"{stage.title}\n{'; '.join(label(values, arm) for arm in stage.arms)}",
            short(stage.rows[0]["tokens"]),
            f"{_mean(stage, 'loss'):.3f}",
            *(
                "" if (value := _mean(stage, key)) is None else f"{value:.3f}"
                for key in ("unigram_loss", "uniform_loss")
            ),
            _learned(stage),
        ]
        for stage in stages
    ]
    heads = ("stage 1", "tokens", "held-out loss", "token frequencies alone", "uniform", "context used")
    note = (
        "Loss in nats a supervised token, mean over seeds. Token frequencies alone: the loss of a model that knows how "
        "often each token occurs and nothing else; only a lower loss used the context."
    )
    found = [Rows("Stage 1: was anything learned?", heads, rows, note)]
    seen = [stage for stage in stages if stage.rows[0]["in_context"]]
    if seen:
        heads = ("stage 1", "frames seen", "patch, %", "cell, %", "whole grid, %", "copying the last frame, %")
        note = (
            "Held-out accuracy of the next token, mean over seeds: after one frame, and after the most frames that the "
            "sequence has. Copying is the patch accuracy of repeating the frame before."
        )
        lines = [[stage.title, *_accuracies(stage)] for stage in seen]
        found.append(Rows("Stage 1: is the rule inferred from the context?", heads, lines, note))
    return found


def sweep(values: Values) -> list[Rows]:
    """Return the table of the baseline's sweep; none without a sweep."""
    tried = values["sweep"]["tried"]
    if not tried:
        return []
    names = list(tried[0]["arguments"])
    rows = [
        [run["domain"], *(f"{run['arguments'][name]}" for name in names), _loss(run), _best(values, run)]
        for run in tried
    ]
    title = (
        f"Sweep of '{label(values, values['baseline'])}' on seed {values['sweep']['seed']}: {len(tried)} runs, "
        f"{short(values['sweep']['tokens'])} tokens"
    )
    return [
        Rows(title, ("domain", *names, "held-out loss", ""), rows, "Every arm has the best, unless it names its own.")
    ]


def costs(values: Values) -> Rows:
    """Return the costs of each arm for one seed, and those of the sweep."""
    rows = []
    for domain in values["domains"]:
        for arm in values["arms"]:
            own = cost(values, domain, arm)
            tokens = (
                f"{short(own.stage1_tokens)}\n{short(own.supervised_tokens)} supervised" if own.stage1_tokens else "-"
            )
            rows.append(
                [
                    label(values, arm) if len(values["domains"]) == 1 else f"{label(values, arm)}\n{domain}",
                    tokens,
                    short(own.language_tokens),
                    f"{own.stage1_flops:.2e}" if own.stage1_flops else "-",
                    f"{own.language_flops:.2e}",
                    f"{own.stage1_flops + own.language_flops:.2e}",
                    f"{own.seconds:,.0f}",
                ]
            )
    if values["sweep"]["tried"]:
        flops = f"{sweep_flops(values):.2e}"
        rows.append(
            [
                "the sweep, all its runs",
                "-",
                short(values["sweep"]["tokens"]),
                "-",
                flops,
                flops,
                f"{sweep_seconds(values):,.0f}",
            ]
        )
    heads = (
        "a run with its stage 1",
        "tokens of stage 1",
        "tokens of text",
        "FLOPs of stage 1",
        "FLOPs of text",
        "FLOPs together",
        "seconds",
    )
    note = (
        "FLOPs are those of training by the size of the model (forward and backward). Seconds are wall time of this "
        "machine, mean over seeds. Arms that share a stage 1 trained it once."
    )
    return Rows("What it cost", heads, rows, note)


def published(names: Sequence[str]) -> Rows:
    """Return the paper's figures for some of its corpora, marked as such."""
    heads = ("the paper's corpus", "scratch", "C4", "Dyck", "NCA", "gain of NCA, %", "speed-up of NCA")
    rows = []
    for found in map(FIGURES.__getitem__, names):
        perplexities = (f"{value:.2f}" for value in (found.scratch, found.c4, found.dyck, found.nca))
        rows.append([found.title, *perplexities, f"{found.gain_percent:.1f}", f"{found.speed_up:.2f}"])
    note = f"Held-out perplexities of another model, text and budget: {SETTING}. {SOURCE}."
    return Rows("The paper's figures, not measured here", heads, rows, note)


def _drawn(rows: Rows) -> Table:
    # A label may look like rich's markup, which `Text` does not interpret.
    drawn = Table(title=Text(rows.title), caption=Text(rows.note), caption_justify="left")
    for i, head in enumerate(rows.heads):
        width = 0 if i else _WIDTH_OF_NAMES
        drawn.add_column(Text(head), justify="right" if i else "left", overflow="fold", min_width=width)
    for row in rows.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def _estimate(found: dict[str, Any] | None, form: str) -> str:
    if found is None:
        return ""
    text = form.format(found["mean"])
    if found["low"] is None:
        return text
    return f"{text}\n{form.format(found['low'])} to {form.format(found['high'])}"


def _gain(found: dict[str, Any] | None, shown: str) -> str:
    if found is None:
        return _SHOWN[shown]
    return f"{_estimate(found, '{:+.1f}')}\n{_SHOWN[shown]}"


def _speed_up(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["estimate"] is not None:
        return _estimate(found["estimate"], "{:.2f}")
    return f"reached by\n{found['reached']} of {len(found['values'])} seeds"


def _metric(found: dict[str, Any]) -> str:
    mean = f"{found['estimate']['mean']:.3f}"
    difference = found["difference"]
    if difference is None:
        return mean
    if difference["low"] is None:
        return f"{mean}\n{difference['mean']:+.3f}, one seed"
    shown = "" if found["is_shown"] else ", none shown"
    return f"{mean}\n{difference['mean']:+.3f} ({difference['low']:+.3f} to {difference['high']:+.3f}){shown}"


def _equal_compute(found: dict[str, Any] | None, has_no_stage1: bool) -> str:
    if found is None:
        return "" if has_no_stage1 else "not run"
    return _gain(found["gain_percent"], found["verdict"])


def _mean(stage: Stage1, key: str) -> float | None:
    values = [row[key] for row in stage.rows]
    return None if any(value is None for value in values) else float(np.mean(values))


def _learned(stage: Stage1) -> str:
    unigram = [row["unigram_loss"] for row in stage.rows]
    if any(value is None for value in unigram):
        return ""
    used = sum(row["loss"] < row["unigram_loss"] for row in stage.rows)
    return "yes" if used == len(stage.rows) else "no" if not used else f"{used} of {len(stage.rows)} seeds"


def _accuracies(stage: Stage1) -> list[str]:
    found = [row["in_context"] for row in stage.rows]
    frames = found[0]["frames"]
    # No model can know the first frame.
    first, last = min(1, len(frames) - 1), len(frames) - 1
    cells = [f"{frames[first]} to {frames[last]}"]
    for name in ("patch", "cell", "grid", "copy"):
        # The last frame may be cut off, and then has no accuracy of the whole grid.
        known = [i for i in range(first, last + 1) if found[0][name][i] is not None]
        if not known:
            cells.append("")
            continue
        ends = [100 * float(np.mean([values[name][i] for values in found])) for i in (known[0], known[-1])]
        cells.append(f"{ends[0]:.1f} to {ends[1]:.1f}")
    return cells


def _loss(run: dict[str, Any]) -> str:
    return "diverged" if run["loss"] is None else f"{run['loss']:.4f}"


def _best(values: Values, run: dict[str, Any]) -> str:
    if not run["is_best"]:
        return ""
    names = values["sweep"]["at_edge"][run["domain"]]
    return f"best, {' and '.join(names)} at the edge of what was tried" if names else "best"
