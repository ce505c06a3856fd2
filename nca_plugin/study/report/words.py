"""Describes the results of a study in sentences. If the interval of a difference contains 0, no difference is shown."""

import math
from typing import Any, Final

from nca_plugin.display.terminal import short
from nca_plugin.study.linear_model import LEAST_SEEDS
from nca_plugin.study.report.parts import (
    LEARNED,
    Values,
    best_ngrams,
    gain_over,
    is_scratch,
    label,
    learned,
    others,
    stages1,
)

#: If more arms show no difference, only their number is given.
_MOST_NAMED: Final = 3
#: If equal spreads of the arms are less probable than this, the report says that they differ.
_UNLIKELY: Final = 0.01


def headline(values: Values) -> str:
    """Return the result as a sentence."""
    base = _quoted(values, values["baseline"])
    best = {domain: arm for domain in values["domains"] if (arm := _best(values, domain)) is not None}
    if not best:
        return f"No arm with a stage 1 is compared with {base}."
    summary, seeds = values["summary"], len(values["seeds"])
    unlearned = _unlearned(values)
    if seeds < LEAST_SEEDS:
        clauses = [f"{_end(values, domain, arm)} on {domain}" for domain, arm in best.items()]
        return f"{unlearned}{_few_seeds(seeds)}, so nothing is shown: {'; '.join(clauses)}."
    won: dict[str, list[str]] = {}
    for domain, arm in best.items():
        if summary[domain][arm]["verdict"] == "better":
            won.setdefault(arm, []).append(domain)
    clauses = []
    if won:
        gains = [
            f"{_quoted(values, arm)} by "
            + _listed([f"{summary[domain][arm]['gain_percent']['mean']:.1f} % on {domain}" for domain in domains])
            for arm, domains in won.items()
        ]
        clauses.append(f"perplexity is lower than that of {base} after {'; after '.join(gains)}, at equal tokens")
        clauses += _at_equal_compute(values, [(domain, arm) for arm, domains in won.items() for domain in domains])
    worse = [domain for domain, arm in best.items() if summary[domain][arm]["verdict"] == "worse"]
    if worse:
        clauses.append(f"every stage 1 ends with higher perplexity than {base} on {_listed(worse)}")
    if unsettled := [domain for domain, arm in best.items() if summary[domain][arm]["verdict"] == "none"]:
        clauses.append(f"no stage 1 is shown to beat {base} on {_listed(unsettled)}")
    text = "; ".join(clauses)
    return f"{unlearned}{text[0].upper()}{text[1:]} ({seeds} seeds)."


def verdict(values: Values) -> str:
    """Return what the numbers show and do not show: a paragraph for each domain, then statements about all domains."""
    lines = [f"{domain}: {_domain(values, domain)}" for domain in values["domains"]]
    lines += [*_counted(values), *_released(values)]
    lines += _sweep(values)
    if len(values["seeds"]) < LEAST_SEEDS:
        lines.append(
            f"{_few_seeds(len(values['seeds']))} cannot show a difference between arms, because runs differ from seed "
            f"to seed. Add seeds, such as seeds=[1,2,3,4,5]."
        )
    else:
        lines.append(
            f"The 95 % intervals hold together for all {len(others(values))} comparisons of a domain. They come from "
            "one model of all runs (arm, seed, and noise pooled over all arms) and the variation between held-out "
            "documents."
        )
        lines += _of_shared_stage1(values)
        lines += _spread(values)
    lines.append("All this holds for this model, text and budget; it promises nothing for others.")
    return "\n".join(lines)


def limits(values: Values) -> list[str]:
    """Return the limits of the result, each as one or two sentences."""
    arguments = values["study"]["arguments"]
    size = [f"{arguments[key]} {word}" for key, word in (("num-layers", "layers"),) if key in arguments]
    size += [f"hidden size {arguments['hidden-size']}"] if "hidden-size" in arguments else []
    budgets = ", ".join(f"{short(domain['tokens'])} tokens of {name}" for name, domain in values["domains"].items())
    held_out = ", ".join(f"{domain['validation_tokens']:,} ({name})" for name, domain in values["domains"].items())
    seeds = len(values["seeds"])
    documents = ", ".join(f"{domain['validation_documents']} ({name})" for name, domain in values["domains"].items())
    return [
        f"One model ({', '.join(size)}), trained on {budgets}. Larger ones may differ in either direction.",
        f"{seeds} seed{'s' if seeds > 1 else ''}. "
        + (
            "The intervals take the noise of a run to be normal and of one size for all arms."
            if seeds >= LEAST_SEEDS
            else "No difference is shown."
        ),
        f"Held-out tokens: {held_out}, from this number of documents: {documents}. The same ones are evaluated every "
        "time; the intervals hold for other documents of the same kind.",
        *_of_sweep(values),
    ]


def _of_sweep(values: Values) -> list[str]:
    found = []
    if values["sweep"]["tried"]:
        found.append(
            "The settings of the language stage were chosen for the baseline alone; the other arms have the same ones, "
            "unless they name their own."
        )
    if values["stage1_sweep"]["tried"]:
        found.append("The settings of each stage 1 were chosen for its own loss, not for what the text gains from it.")
    return found


def _best(values: Values, domain: str) -> str | None:
    """Return the best arm with a stage 1; None without one."""
    summary = values["summary"][domain]
    arms = [arm for arm in others(values) if not is_scratch(values, arm)]
    # The verdict counts first, and then the mean gain.
    order = ("worse", "none", "few seeds", "better")
    return max(
        arms, key=lambda arm: (order.index(summary[arm]["verdict"]), summary[arm]["gain_percent"]["mean"]), default=None
    )


def _end(values: Values, domain: str, arm: str) -> str:
    gain = values["summary"][domain][arm]["gain_percent"]["mean"]
    base = _quoted(values, values["baseline"])
    return f"{_quoted(values, arm)} ends with {_amount(gain)} perplexity than {base} at equal tokens"


def _at_equal_compute(values: Values, winners: list[tuple[str, str]]) -> list[str]:
    """Return a clause on the gains at equal compute of arms that win at equal tokens; none if it was not measured."""
    equal = {domain: values["summary"][domain][arm]["equal_compute"] for domain, arm in winners}
    if any(found is None for found in equal.values()):
        return []
    parts = [
        f"{_amount(found['gain_percent']['mean'])} on {domain}"
        for domain, found in equal.items()
        if found["verdict"] != "none"
    ]
    if none := [domain for domain, found in equal.items() if found["verdict"] == "none"]:
        parts.append(f"no difference shown on {_listed(none)}")
    return [f"at equal compute {_listed(parts)}"]


def _domain(values: Values, domain: str) -> str:
    best = _best(values, domain)
    summary = values["summary"][domain]
    base = _quoted(values, values["baseline"])
    if best is None:
        return "no arm has a stage 1."
    found = summary[best]
    is_few_seeds = found["verdict"] == "few seeds"
    if found["verdict"] == "better":
        text = f"{_end(values, domain, best)} ({_interval(found['gain_percent'])}), {_speed(found['speed_up'], base)}."
    else:
        shown = (
            "nothing is shown by so few seeds"
            if is_few_seeds
            else f"no stage 1 is shown to beat {base} at equal tokens"
        )
        text = f"{shown}; the best is {_quoted(values, best)}, with {_amount(found['gain_percent']['mean'])} perplexity"
        text += f" than {base}." if is_few_seeds else f" ({_interval(found['gain_percent'])})."
    equal = found["equal_compute"]
    if equal is not None:
        gain = equal["gain_percent"]
        text += f" At equal compute, {base} trained on {short(equal['extra_tokens'])} tokens more, it has "
        text += f"{_amount(gain['mean'])} perplexity"
        text += "." if is_few_seeds else f" ({_interval(gain)}{_none(equal['verdict'])})."
    if not is_few_seeds:
        text += _others(values, domain, best)
    lower = [arm for arm in others(values) if is_scratch(values, arm) and summary[arm]["difference"]["mean"] < 0]
    for arm in lower:
        text += f" {_quoted(values, arm)}, without a stage 1 too, ends lower than {base}"
        text += f"{_none(summary[arm]['verdict'])}: it is the one to beat."
        gain = gain_over(values, domain, best, arm)
        text += f" Against it {_quoted(values, best)} has {_amount(gain.mean)} perplexity"
        text += "." if gain.low is None else f" ({gain.low:+.1f} to {gain.high:+.1f} % gain, this comparison alone)."
    return text


def _others(values: Values, domain: str, best: str) -> str:
    text = ""
    for kind, words in (("better", "Also lower"), ("worse", "Higher"), ("none", "No difference shown")):
        arms = [arm for arm in others(values) if values["summary"][domain][arm]["verdict"] == kind]
        if kind == "better":
            arms = [arm for arm in arms if arm != best]
        if len(arms) > _MOST_NAMED and kind == "none":
            text += f" {words} for {len(arms)} arms."
        elif arms:
            text += f" {words}: {', '.join(_quoted(values, arm) for arm in arms)}."
    return text


def _speed(speed_up: dict[str, Any], base: str) -> str:
    if speed_up["mean"] >= 1:
        return f"and reaches the perplexity that {base} ends with {speed_up['mean']:.2f} times as fast"
    return f"while {base} reaches its perplexity {1 / speed_up['mean']:.2f} times as fast"


def _unlearned(values: Values) -> str:
    """Return a sentence that names the stages 1 that were not learned; empty if there are none."""
    found = []
    for stage in stages1(values):
        share = learned(stage.rows)
        if share is not None and share < LEARNED:
            found.append(f"{stage.title} ({100 * share:.0f} %)")
    return f"Stage 1 was not learned: {_listed(found)}. " if found else ""


def _few_seeds(seeds: int) -> str:
    return "One seed" if seeds == 1 else f"{seeds} seeds"


def _of_shared_stage1(values: Values) -> list[str]:
    shared = [arm for arm in others(values) if values["study"]["arms"][arm]["stage1_seed"] is not None]
    if not shared:
        return []
    return [
        f"In {_listed([_quoted(values, arm) for arm in shared])}, the runs of all seeds share one stage 1. Their "
        "intervals do not contain the variation from one stage 1 to the next."
    ]


def _spread(values: Values) -> list[str]:
    """Return a sentence if the arms differ in noise."""
    unequal = [name for name, facts in values["domains"].items() if facts["noise"]["unequal_spread"] < _UNLIKELY]
    if not unequal:
        return []
    return [
        f"On {_listed(unequal)} the seeds of some arms lie further apart than those of others, so that the intervals "
        "of these arms are too short and those of the others too long."
    ]


def _counted(values: Values) -> list[str]:
    """Return a sentence for each domain on which counting n-grams does better than the baseline."""
    lines = []
    for domain in values["domains"]:
        order, loss = best_ngrams(values, domain)
        base = values["summary"][domain][values["baseline"]]["loss"]
        if loss < base:
            lines.append(
                f"On {domain} {_quoted(values, values['baseline'])} loses to counting {order}-grams in the same tokens "
                f"({math.exp(base):.2f} against {math.exp(loss):.2f}): such a run says little about language models."
            )
    return lines


def _released(values: Values) -> list[str]:
    """Return sentences that compare the released recipe with the baseline and with the released start from scratch."""
    arms = values["arms"]
    recipes = [a for a in others(values) if (arms[a]["preset"], arms[a]["schedule"]) == ("release", "release")]
    starts = [a for a in arms if is_scratch(values, a) and arms[a]["preset"] == "release" and a != values["baseline"]]
    lines = []
    for arm in recipes:
        for domain in values["domains"]:
            found = values["summary"][domain][arm]
            text = f"The released recipe on {domain}: {_end(values, domain, arm)}{_inside(found)}."
            for start in starts:
                gain = gain_over(values, domain, arm, start)
                shown = "no interval"
                if gain.low is not None:
                    shown = f"{gain.low:+.1f} to {gain.high:+.1f} % gain, this comparison alone"
                text += f" Against {_quoted(values, start)} it has {_amount(gain.mean)} perplexity ({shown}"
                text += ")." if gain.low is None or gain.is_shown else ": no difference shown)."
            lines.append(text)
    return lines


def _sweep(values: Values) -> list[str]:
    base = _quoted(values, values["baseline"])
    if not values["sweep"]["tried"]:
        return [f"{base} was not swept: at better settings of its own there may be less to gain."]
    lines = []
    edges = []
    for domain, names in values["sweep"]["at_edge"].items():
        best = values["domains"][domain]["best_arguments"]
        edges += [f"{name} {best[name]} on {domain}" for name in names]
        runner_up = _runner_up(values, domain)
        if runner_up is not None:
            lines.append(runner_up)
    if edges:
        lines.append(
            f"The sweep is best at the edge of what was tried: {_listed(edges)}. Beyond it {base} may be better, and "
            "less may be left to gain."
        )
    return lines


def _runner_up(values: Values, domain: str) -> str | None:
    """Return a sentence if the second best of the sweep is as good as the best within the noise of a run."""
    tried = [run for run in values["sweep"]["tried"] if run["domain"] == domain and run["loss"] is not None]
    deviation = values["domains"][domain]["noise"]["deviation"]
    if len(tried) < 2 or deviation is None:
        return None
    best, second = sorted(tried, key=lambda run: run["loss"])[:2]
    gap = second["loss"] - best["loss"]
    if gap > math.sqrt(2) * deviation:
        return None
    changed = [f"{name} {value}" for name, value in second["arguments"].items() if value != best["arguments"][name]]
    return (
        f"The sweep's runner-up on {domain}, {_listed(changed)}, ends {gap:.4f} nats behind its best, which is within "
        f"the noise of two runs ({math.sqrt(2) * deviation:.4f})."
    )


def _interval(found: dict[str, Any]) -> str:
    """Return the interval of a gain in words."""
    if found["low"] is None:
        return "no interval"
    return f"95 % interval of the gain {found['low']:+.1f} to {found['high']:+.1f} %"


def _inside(found: dict[str, Any]) -> str:
    gain = _interval(found["gain_percent"])
    return f" ({gain}{_none(found['verdict'])})"


def _none(shown: str) -> str:
    return ": no difference shown" if shown == "none" else ""


def _amount(gain: float) -> str:
    return f"{abs(gain):.1f} % {'lower' if gain >= 0 else 'higher'}"


def _quoted(values: Values, arm: str) -> str:
    return f"'{label(values, arm)}'"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
