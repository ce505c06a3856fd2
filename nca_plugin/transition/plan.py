"""The plan of a transition: what happens to every entry of the checkpoint, and why."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from nca_plugin.checkpoint.names import Parameter, parameter
from nca_plugin.errors import NCAPluginError
from nca_plugin.transition.presets import _VOCABULARY, PRESETS
from nca_plugin.transition.selectors import Selector, parse_selector

Action = Literal["keep", "reinit", "resize", "drop"]


@dataclass(frozen=True, slots=True)
class PlannedEntry:
    """What happens to an entry, or to some of its layers.

    Attributes:
        layers: start and stop of the layers in question, if the tensor holds layers on axis 0; otherwise None.
    """

    name: str
    parameter: Parameter
    action: Action
    reason: str
    layers: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class _Rule:
    action: Action
    selector: Selector
    reason: str
    is_users: bool


def plan_transfer(
    tensors: Mapping[str, tuple[int, ...]],
    objects: Iterable[str],
    num_layers: int,
    *,
    preset: str = "default",
    keep: Iterable[str] = (),
    reinit: Iterable[str] = (),
    drop: Iterable[str] = (),
    kept_rows: str = "",
) -> list[PlannedEntry]:
    """Return what happens to every entry of a checkpoint.

    A tensor that holds several layers has one planned entry for each run of layers with the same fate. A preset says
    what is kept, and `keep`, `reinit` and `drop` change it for what they select. The most specific selector decides.
    From least to most specific they are: `all`, a role, a part of a role, a range of layers, a pattern.

    Args:
        tensors: shapes by name.
        objects: names of the entries that are not tensors.
        num_layers: the number of layers of the decoder.
        kept_rows: the option that keeps rows of embedding and output, which the plan then keeps; "" without one.

    Raises:
        NCAPluginError: if the preset or a selector is unknown, selectors contradict each other, one matches or changes
            nothing, or an entry is of unknown kind and no selector names it.
    """
    names = [*tensors, *objects]
    parameters = {name: parameter(name) for name in names}
    rules = _rules(preset, {"keep": keep, "reinit": reinit, "drop": drop}, num_layers, kept_rows)
    unknown = [name for name, found in parameters.items() if found.role == "unknown"]
    unknown = [
        name for name in unknown if not any(rule.selector.matches(name, parameters[name], None) for rule in rules)
    ]
    if unknown:
        shown = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        raise NCAPluginError(
            f"{len(unknown)} entries of this checkpoint are of no known kind: {shown}; say what to do with them, with "
            f"--keep 're:{unknown[0]}', --reinit or --drop"
        )
    places = [
        (name, layer)
        for name in names
        for layer in (range(tensors[name][0]) if parameters[name].is_stacked else [parameters[name].layer])
    ]
    matching = {
        place: [rule for rule in rules if rule.selector.matches(place[0], parameters[place[0]], place[1])]
        for place in places
    }
    planned: list[PlannedEntry] = []
    own: list[PlannedEntry]
    for name, group in itertools.groupby(places, key=lambda place: place[0]):
        found = parameters[name]
        decided = [(place[1], *_decision(name, found, matching[place])) for place in group]
        own = []
        for (action, reason), run in itertools.groupby(decided, key=lambda entry: entry[1:]):
            layers = [layer for layer, *_ in run if layer is not None]
            stacked = (layers[0], layers[-1] + 1) if found.is_stacked else None
            own.append(PlannedEntry(name, found, action, reason, stacked))
        _check_whole(own)
        planned += own
    for rule in rules:
        if rule.is_users:
            _check_effect(rule, matching, preset)
    return planned


def _rules(preset: str, chosen: Mapping[Action, Iterable[str]], num_layers: int, kept_rows: str) -> list[_Rule]:
    if preset not in PRESETS:
        raise NCAPluginError(f"unknown preset '{preset}': choose from {', '.join(PRESETS)}")
    base = PRESETS[preset]
    other: Action = "reinit" if base.rest == "keep" else "keep"
    rules = [
        _Rule(base.rest, Selector("all", "all"), f"preset {preset}", is_users=False),
        *(_Rule(other, Selector(role, role), f"preset {preset}", is_users=False) for role in base.others),
    ]
    if kept_rows:
        rules = [rule for rule in rules if rule.selector.role not in _VOCABULARY]
        rules += [_Rule("keep", Selector(role, role), kept_rows, is_users=False) for role in _VOCABULARY]
    # The last matching rule decides. Of two equally specific rules, the user's overrides the preset's.
    own = [
        _Rule(action, parse_selector(text, num_layers), f"--{action} {text}", is_users=True)
        for action, texts in chosen.items()
        for text in dict.fromkeys(texts)
    ]
    return sorted([*rules, *own], key=lambda rule: (rule.selector.specificity, rule.is_users))


def _decision(name: str, found: Parameter, matching: list[_Rule]) -> tuple[Action, str]:
    if matching:
        last = matching[-1]
        for rule in matching:
            equal = (rule.is_users, rule.selector.specificity) == (last.is_users, last.selector.specificity)
            if equal and rule.action != last.action:
                raise NCAPluginError(f"'{name}': {rule.reason} contradicts {last.reason}")
        return last.action, last.reason
    if found.role == "run":
        return "drop", "state of the finished run"
    return "keep", "state of a module"


def _check_whole(planned: list[PlannedEntry]) -> None:
    """Refuse to drop some layers of a tensor that holds all layers: the others would move to other layers' places."""
    dropped = next((entry for entry in planned if entry.action == "drop"), None)
    if dropped is not None and any(entry.action != "drop" for entry in planned):
        raise NCAPluginError(
            f"{dropped.reason}: '{dropped.name}' holds all layers of the model, of which none can be left out alone; "
            "draw these layers anew with --reinit, or drop all of them"
        )


def _check_effect(rule: _Rule, matching: Mapping[tuple[str, int | None], list[_Rule]], preset: str) -> None:
    places = [rules for rules in matching.values() if rule in rules]
    if not places:
        raise NCAPluginError(f"selector '{rule.selector.text}' matches nothing in this checkpoint")
    for rules in places:
        others = [other for other in rules if other is not rule]
        if rules[-1].action == rule.action and (not others or others[-1].action != rule.action):
            return
    raise NCAPluginError(
        f"{rule.reason} changes nothing: preset {preset} and the other selectors {rule.action} it already"
        + ("; to keep nothing else, add --reinit all" if rule.action == "keep" else "")
    )
