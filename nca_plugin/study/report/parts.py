"""Extracts the parts of a report from the values of `results.json`: runs, stages 1, ablations, costs."""

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.study.linear_model import Estimate
from nca_plugin.study.summary import Comparison, as_gain

#: What `nca_plugin.study.results.results` returns.
Values = dict[str, Any]
Row = dict[str, Any]

#: A stage 1 below this share of what can be learned from the context is called not learned.
LEARNED: Final = 0.8
#: Presets that draw anew more than `default`, with what they draw in words.
_ABLATIONS: Final = {
    "attention-only": "all but attention",
    "mlp-only": "all but MLPs",
    "no-norm": "norms",
}


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


@dataclass(frozen=True, slots=True)
class Stage1:
    """The runs of a stage 1, one for each seed.

    Attributes:
        title: the source or text, and what distinguishes this stage 1 from others with the same.
        arms: the arms that start from this stage 1.
        uri: the source of the first seed; None for text.
    """

    title: str
    arms: list[str]
    domains: list[str]
    rows: list[Row]

    @property
    def uri(self) -> str | None:
        return self.rows[0]["source"]


@dataclass(frozen=True, slots=True)
class Ablation:
    """An arm that takes over less than another arm with the same stage 1.

    Attributes:
        whole: the other arm.
        component: what the arm draws anew, in words.
    """

    arm: str
    whole: str
    component: str


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of an arm on a domain for one seed. `seconds` is the mean over seeds."""

    stage1_tokens: int
    supervised_tokens: int
    stage1_flops: float
    language_tokens: int
    language_flops: float
    seconds: float


def label(values: Values, arm: str) -> str:
    """Return the name of an arm for people."""
    return str(values["arms"][arm]["label"])


def is_scratch(values: Values, arm: str) -> bool:
    """Return whether an arm has no stage 1."""
    return values["arms"][arm]["source"] is None and values["arms"][arm]["text"] is None


def others(values: Values) -> list[str]:
    """Return all arms but the baseline."""
    return [arm for arm in values["arms"] if arm != values["baseline"]]


def language_rows(values: Values, domain: str, arm: str, extra_updates: int = 0) -> list[Row]:
    """Return the rows of an arm on a domain, one for each seed."""
    wanted = (domain, arm, extra_updates)
    return [row for row in values["language"] if (row["domain"], row["arm"], row["extra_updates"]) == wanted]


def longer_baselines(values: Values, domain: str) -> list[list[Row]]:
    """Return the baseline's runs of equal compute: for each length a list with a row for each seed."""
    arm = values["baseline"]
    rows = [row for row in values["language"] if (row["domain"], row["arm"]) == (domain, arm)]
    lengths = sorted({row["extra_updates"] for row in rows if row["extra_updates"]})
    return [language_rows(values, domain, arm, extra) for extra in lengths]


def losses(rows: list[Row]) -> NDArray[np.float64]:
    """Return the held-out losses of runs of equal length, [seeds, evaluations]."""
    return np.array([[loss for _, loss in row["validation"]] for row in rows], np.float64)


def tokens_of(rows: list[Row]) -> NDArray[np.float64]:
    """Return the numbers of tokens after which the losses were measured, [evaluations]."""
    return np.array([tokens for tokens, _ in rows[0]["validation"]], np.float64)


def comparison(values: Values, domain: str) -> Comparison:
    """Return the comparison of a domain's arms."""
    rows = [row for row in values["language"] if row["domain"] == domain]
    return Comparison(rows, list(values["arms"]), values["baseline"], {})


def gain_over(values: Values, domain: str, arm: str, other: str) -> Estimate:
    """Return by how many per cent the final perplexity of an arm is below another's."""
    return as_gain(comparison(values, domain).difference((arm, 0), (other, 0)))


def learned(rows: list[Row]) -> float | None:
    """Return how much the runs of a stage 1 have learned of what they could, 0 .. 1, as a mean over seeds.

    Seeds of which it is not known are left out; None if it is known of none.
    """
    known = [row["learned"] for row in rows if row["learned"] is not None]
    return float(np.mean(known)) if known else None


def not_learned(values: Values, arm: str) -> bool:
    """Return whether the stage 1 of an arm has learned less than `LEARNED`."""
    share = learned([row for row in values["stage1"] if arm in row["arms"]])
    return share is not None and share < LEARNED


def best_ngrams(values: Values, domain: str) -> tuple[str | None, float]:
    """Return the n of the best n-gram model of a domain, and its loss; None and infinity if none was counted."""
    losses = values["domains"][domain]["ngram_losses"] or {}
    return min(losses.items(), key=lambda pair: pair[1], default=(None, math.inf))


def stages1(values: Values) -> list[Stage1]:
    """Return every stage 1. Arms that share one are listed together."""
    by_folder: dict[str, list[Row]] = {}
    for row in values["stage1"]:
        # A run's folder is that of its seed, and its name says the rest. An arm may share some seeds' runs alone.
        by_folder.setdefault(PurePath(row["folder"]).name, []).append(row)
    grouped = {
        (_union(row["arms"] for row in rows), _union(row["domains"] for row in rows)): rows
        for rows in by_folder.values()
    }
    facts = {}
    for (arms, domains), rows in grouped.items():
        arm = values["arms"][arms[0]]
        origin = arm["source"] or f"text {arm['text']}"
        tokens = f"{rows[0]['tokens']:,} tokens"
        facts[arms, domains] = (origin, f"schedule {arm['schedule']}", tokens, f"for {', '.join(domains)}", arms[0])
    found = []
    for (arms, domains), rows in grouped.items():
        own = facts[arms, domains]
        same = [other for other in facts.values() if other[0] == own[0]]
        # The title names the first fact in which all stages with the same origin differ.
        differing = next(
            (i for i in range(1, len(own)) if len({other[i] for other in same}) == len(same)), len(own) - 1
        )
        title = own[0] if len(same) == 1 else f"{own[0]}, {own[differing]}"
        found.append(Stage1(title, list(arms), list(domains), rows))
    return found


def _union(lists: Iterable[list[str]]) -> tuple[str, ...]:
    """Return the names in some lists, each once, in order."""
    return tuple(dict.fromkeys(itertools.chain.from_iterable(lists)))


def ablations(values: Values) -> list[Ablation]:
    """Return the arms that differ from another arm only in what they draw anew."""
    arms = values["arms"]
    found = []
    for name in arms:
        for whole in arms:
            component = _component(values, name, whole)
            if component is not None:
                found.append(Ablation(name, whole, component))
                break
    return found


def _component(values: Values, name: str, whole: str) -> str | None:
    """Return what arm `name` draws anew in addition to arm `whole`; None if they also differ otherwise."""
    arm, other = values["arms"][name], values["arms"][whole]
    own, others_own = values["study"]["arms"][name], values["study"]["arms"][whole]
    if name == whole or is_scratch(values, name) or other["reinit"] or other["preset"] in _ABLATIONS:
        return None
    if any(arm[key] != other[key] for key in ("source", "text", "schedule", "tokens", "keep")):
        return None
    settings = ("arguments", "stage1_arguments", "language_arguments", "stage1_seed")
    if any(own[key] != others_own[key] for key in settings):
        return None
    parts = list(arm["reinit"])
    if arm["preset"] in _ABLATIONS and other["preset"] == "default":
        parts.insert(0, _ABLATIONS[arm["preset"]])
    elif arm["preset"] != other["preset"]:
        return None
    return ", ".join(parts) or None


def cost(values: Values, domain: str, arm: str) -> Cost:
    """Return the cost of an arm on a domain."""
    rows = language_rows(values, domain, arm)
    first = rows[0]
    stage1 = [row for row in values["stage1"] if arm in row["arms"] and domain in row["domains"]]
    parts = [[values["timings"][row["folder"]] for row in of_stage] for of_stage in (rows, stage1)]
    return Cost(
        stage1_tokens=first["stage1_tokens"],
        supervised_tokens=stage1[0]["supervised_tokens"] if stage1 else 0,
        stage1_flops=first["flops_with_stage1"] - first["flops"],
        language_tokens=first["tokens"],
        language_flops=first["flops"],
        seconds=sum(statistics.fmean(seconds) for seconds in parts if seconds),
    )
