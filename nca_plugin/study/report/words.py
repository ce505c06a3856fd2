"""Describes the results of a study in sentences. If the interval of a difference contains 0, no difference is shown."""

from typing import Any, Final

from nca_plugin.display.terminal import short
from nca_plugin.study.report.parts import Values, gain_over, is_scratch, label, others

#: If more arms show no difference, only their number is given.
_MOST_NAMED: Final = 3


def headline(values: Values) -> str:
    """Return the result as a sentence."""
    base = _quoted(values, values["baseline"])
    best = {domain: arm for domain in values["domains"] if (arm := _best(values, domain)) is not None}
    if not best:
        return f"No arm with a stage 1 is compared with {base}."
    summary = values["summary"]
    if len(values["seeds"]) == 1:
        clauses = [f"{_end(values, domain, arm)} on {domain}" for domain, arm in best.items()]
        return f"One seed, so nothing is shown: {'; '.join(clauses)}."
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
    return f"{text[0].upper()}{text[1:]} ({len(values['seeds'])} seeds)."


def verdict(values: Values) -> str:
    """Return what the numbers show and do not show: a paragraph for each domain, then statements about all domains."""
    lines = [f"{domain}: {_domain(values, domain)}" for domain in values["domains"]]
    lines += _released(values)
    lines += _sweep(values)
    if len(values["seeds"]) == 1:
        lines.append(
            "One seed shows that the path works, and no difference between arms: runs differ from seed to seed. Add "
            "seeds, such as seeds=[1,2,3,4,5]."
        )
    else:
        lines.append(
            f"Intervals are 95 %, paired over {len(values['seeds'])} seeds, for each comparison alone: they are not "
            f"corrected for the number of arms, {len(others(values))}, and the best of many looks better than it is."
        )
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
    return [
        f"One model ({', '.join(size)}), trained on {budgets}. Larger ones may differ in either direction.",
        f"{seeds} seed{'s' if seeds > 1 else ''}. "
        + (
            "The intervals take differences over seeds to be normal."
            if seeds > 1
            else "There is no interval, and so no difference is shown."
        ),
        f"{len(others(values))} comparisons a domain, each with its own interval: the more arms, the more likely that "
        "one of them looks better by chance.",
        f"Held-out tokens: {held_out}. The same ones are evaluated every time, and chance in which text they are is in "
        "no interval.",
        "What was swept was chosen for the baseline alone; the other arms have the same values, unless they name their "
        "own.",
    ]


def _best(values: Values, domain: str) -> str | None:
    """Return the best arm with a stage 1; None without one."""
    summary = values["summary"][domain]
    arms = [arm for arm in others(values) if not is_scratch(values, arm)]
    # The verdict counts first, and then the mean gain.
    order = ("worse", "none", "one seed", "better")
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
    is_one_seed = found["verdict"] == "one seed"
    if found["verdict"] == "better":
        text = f"{_end(values, domain, best)} ({_interval(found['gain_percent'])}){_speed(found['speed_up'], base)}."
    else:
        shown = "nothing is shown by one seed" if is_one_seed else f"no stage 1 is shown to beat {base} at equal tokens"
        text = f"{shown}; the best is {_quoted(values, best)}, with {_amount(found['gain_percent']['mean'])} perplexity"
        text += f" than {base}." if is_one_seed else f" ({_interval(found['gain_percent'])})."
    equal = found["equal_compute"]
    if equal is not None:
        gain = equal["gain_percent"]
        text += f" At equal compute, {base} trained on {short(equal['extra_tokens'])} tokens more, it has "
        text += f"{_amount(gain['mean'])} perplexity"
        text += "." if is_one_seed else f" ({_interval(gain)}{_none(equal['verdict'])})."
    if not is_one_seed:
        text += _others(values, domain, best)
    lower = [arm for arm in others(values) if is_scratch(values, arm) and summary[arm]["difference"]["mean"] < 0]
    for arm in lower:
        text += f" {_quoted(values, arm)}, without a stage 1 too, ends lower than {base}"
        text += f"{_none(summary[arm]['verdict'])}: it is the one to beat."
        gain = gain_over(values, domain, best, arm)
        text += f" Against it {_quoted(values, best)} has {_amount(gain.mean)} perplexity"
        text += "." if gain.low is None else f" ({gain.low:+.1f} to {gain.high:+.1f} % gain)."
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
    if speed_up["estimate"] is not None:
        return f", and reaches the perplexity that {base} ends with {speed_up['estimate']['mean']:.2f} times as fast"
    reached, seeds = speed_up["reached"], len(speed_up["values"])
    return f"; {reached} of {seeds} seeds reach the perplexity that {base} ends with"


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
                shown = "one seed" if gain.low is None else f"{gain.low:+.1f} to {gain.high:+.1f} % gain"
                text += f" Against {_quoted(values, start)} it has {_amount(gain.mean)} perplexity ({shown}"
                text += ")." if gain.low is None or gain.is_shown else ": no difference shown)."
            lines.append(text)
    return lines


def _sweep(values: Values) -> list[str]:
    base = _quoted(values, values["baseline"])
    if not values["sweep"]["tried"]:
        return [f"{base} was not swept: at better settings of its own there may be less to gain."]
    edges = []
    for domain, names in values["sweep"]["at_edge"].items():
        best = values["domains"][domain]["best_arguments"]
        edges += [f"{name} {best[name]} on {domain}" for name in names]
    if not edges:
        return []
    return [
        f"The sweep is best at the edge of what was tried: {_listed(edges)}. Beyond it {base} may be better, and less "
        "may be left to gain."
    ]


def _interval(found: dict[str, Any]) -> str:
    """Return the interval of a gain in words."""
    if found["low"] is None:
        return "one seed"
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
