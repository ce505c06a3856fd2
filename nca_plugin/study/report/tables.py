"""The tables of a report, for the terminal and for the page."""

import math
from collections.abc import Sequence
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from nca_plugin.display.terminal import short
from nca_plugin.study.linear_model import POWER
from nca_plugin.study.paper import FIGURES, SETTING, SOURCE
from nca_plugin.study.report.parts import (
    Rows,
    Values,
    cost,
    is_scratch,
    label,
    not_learned,
)
from nca_plugin.study.report.stage1_tables import stage1

_SHOWN: Final = {
    **{name: name for name in ("better", "worse", "baseline")},
    "none": "none shown",
    "few seeds": "too few seeds",
}

#: Least width of the column of names, so that words are not cut in a narrow terminal.
_WIDTH_OF_NAMES: Final = 18


def tables(values: Values) -> list[Table]:
    """Return the tables of a study's results for the terminal."""
    found = [comparison(values, domain) for domain in values["domains"]]
    found += [*tasks(values), *stage1(values), *sweep(values)]
    return [_drawn(rows) for rows in found]


def stage1_tables(values: Values) -> list[Table]:
    """Return the tables on stage 1 for the terminal."""
    sweep_of_stage1 = {**values, "sweep": {"tried": []}}
    return [_drawn(rows) for rows in [*stage1(values), *sweep(sweep_of_stage1)]]


def comparison(values: Values, domain: str) -> Rows:
    """Return the comparison of the arms of a domain with the baseline, and what counting n-grams reaches."""
    seeds, facts = len(values["seeds"]), values["domains"][domain]
    base = label(values, values["baseline"])
    rows = []
    for arm, found in values["summary"][domain].items():
        effect = found["smallest_effect"]
        mark = "\nstage 1 not learned" if not_learned(values, arm) else ""
        rows.append(
            [
                f"{label(values, arm)}{mark}",
                _perplexity(found["loss"], facts["bytes_per_token"]),
                _gain(found["gain_percent"], found["verdict"]),
                _speed_up(found["speed_up"]),
                _equal_compute(found["equal_compute"], arm == values["baseline"] or is_scratch(values, arm)),
                "" if effect is None else f"{100 * (1 - math.exp(-effect)):.1f}",
            ]
        )
    for order, loss in (facts["ngram_losses"] or {}).items():
        rows.append([f"{order}-grams, counted", _perplexity(loss, facts["bytes_per_token"]), "", "", "", ""])
    over = "1 seed" if seeds == 1 else f"mean over {seeds} seeds with 95 % intervals"
    heads = (
        "arm",
        "held-out perplexity\nbits per byte",
        "gain, %, equal tokens",
        "speed-up",
        "gain, %, equal compute",
        "smallest gain to be seen, %",
    )
    note = (
        f"Gain: by how much the perplexity is below that of '{base}'. Its intervals hold together for all arms, and "
        "contain the variation between seeds, pooled over all arms, and between held-out documents. Speed-up: how many "
        f"times as fast the final perplexity of '{base}' is reached; below 1, '{base}' reaches the arm's faster. "
        f"Equal compute: against '{base}' trained longer by what stage 1 takes. Smallest gain to be seen: what these "
        f"seeds show with {100 * POWER:.0f} % probability."
    )
    return Rows(f"{domain}: after {facts['tokens']:,} tokens, {over}", heads, rows, note)


def tasks(values: Values) -> list[Rows]:
    """Return the results of the tasks, as a table for each task and domain."""
    found = []
    for entry in values["tasks"]:
        metrics = list(entry["summary"][values["baseline"]])
        rows = [
            [label(values, arm), *(_metric(of_arm[metric]) for metric in metrics)]
            for arm, of_arm in entry["summary"].items()
        ]
        tuned = f"tuned for {entry['updates']:,} updates" if entry["updates"] else "not tuned"
        title = f"{entry['name']} ({entry['task']}), models of {entry['domain']}, {tuned}"
        base = label(values, values["baseline"])
        note = (
            f"Mean over seeds; below it, the difference from '{base}' with its 95 % interval, which contains the "
            "variation between seeds and not that between questions."
        )
        found.append(Rows(title, ("arm", *metrics), rows, note))
    return found


def sweep(values: Values) -> list[Rows]:
    """Return the tables of the sweeps, of the baseline and of each stage 1; none without a sweep."""
    found = []
    if tried := values["sweep"]["tried"]:
        title = (
            f"Sweep of '{label(values, values['baseline'])}' on seed {values['sweep']['seed']}: {len(tried)} runs, "
            f"{short(values['sweep']['tokens'])} tokens"
        )
        edges = values["sweep"]["at_edge"]
        rows = [(run["domain"], run, edges[run["domain"]]) for run in tried]
        found.append(_swept(title, "domain", rows, "Every arm has the best, unless it names its own."))
    if tried := values["stage1_sweep"]["tried"]:
        title = f"Sweep of stage 1 on seed {values['stage1_sweep']['seed']}: {len(tried)} runs"
        rows = [("; ".join(label(values, arm) for arm in run["arms"]), run, run["at_edge"]) for run in tried]
        found.append(_swept(title, "stage 1 of", rows, "The loss is that of stage 1 on held-out samples."))
    return found


def _swept(title: str, head: str, rows: list[tuple[str, dict[str, Any], list[str]]], note: str) -> Rows:
    names = list(rows[0][1]["arguments"])
    lines = [
        [name, *(f"{run['arguments'][argument]}" for argument in names), _loss(run), _best(run, edges)]
        for name, run, edges in rows
    ]
    return Rows(title, (head, *names, "held-out loss", ""), lines, note)


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
    for name, sweep, stage in (("the sweep", "sweep", "text"), ("the sweep of stage 1", "stage1_sweep", "stage 1")):
        if tried := values[sweep]["tried"]:
            flops, tokens = f"{sum(run['flops'] for run in tried):.2e}", short(values[sweep]["tokens"])
            seconds = sum(values["timings"][run["folder"]] for run in tried)
            of_stage = ["-", tokens, "-", flops] if stage == "text" else [tokens, "-", flops, "-"]
            rows.append([f"{name}, all its runs", *of_stage, flops, f"{seconds:,.0f}"])
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


def _perplexity(loss: float, bytes_per_token: float | None) -> str:
    perplexity = math.exp(loss)
    text = f"{perplexity:.2f}" if perplexity >= 10 else f"{perplexity:.3f}"
    return text if bytes_per_token is None else f"{text}\n{loss / math.log(2) / bytes_per_token:.3f} bits"


def _gain(found: dict[str, Any] | None, shown: str) -> str:
    if found is None:
        return _SHOWN[shown]
    ends = "" if found["low"] is None else f"\n{found['low']:+.1f} to {found['high']:+.1f}"
    return f"{found['mean']:+.1f}{ends}\n{_SHOWN[shown]}"


def _speed_up(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    values = found["values"]
    spread = "" if len(values) == 1 else f"\n{min(values):.2f} to {max(values):.2f}"
    return f"{found['mean']:.2f}{spread}"


def _metric(found: dict[str, Any]) -> str:
    mean = f"{found['mean']:.3f}"
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


def _loss(run: dict[str, Any]) -> str:
    return "diverged" if run["loss"] is None else f"{run['loss']:.4f}"


def _best(run: dict[str, Any], edges: list[str]) -> str:
    if not run["is_best"]:
        return ""
    return f"best, {' and '.join(edges)} at the edge of what was tried" if edges else "best"
