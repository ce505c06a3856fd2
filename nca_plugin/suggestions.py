"""What to say of a name that is unknown: the known name that the user is likely to have meant."""

import difflib
import re
from collections.abc import Iterable
from typing import Final

#: How many known names a message lists, and how many unknown ones.
_FEW: Final = 15
_MANY: Final = 20

#: No known name is longer.
_LONGEST: Final = 200

#: The least ratio of what two names have in common, and the fewest letters that may stand for a longer name.
_SIMILAR: Final = 0.85
_ABBREVIATION: Final = 5


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """Return the message for a name that is none of `known`; see `unknown_names`.

    >>> unknown_name("preset", "wbe", ["web", "code"])
    "unknown preset 'wbe': did you mean 'web'?"
    """
    return unknown_names(kind, [name], known, where)


def unknown_names(kind: str, names: Iterable[str], known: Iterable[str], where: str = "") -> str:
    """Return the message for names that are none of `known`: each with one that is near it, if there is one. For the
    others, the message lists `known` if that is short, and else tells where a reader finds it.

    >>> unknown_names("key", ["sed", "colour"], ["seed", "band"])
    "unknown keys 'sed' (did you mean 'seed'?), 'colour': known: seed, band"
    """
    known, names = list(known), list(dict.fromkeys(names))
    near = {name: near_name(name, known) for name in names[:_MANY]}
    help_ = f": known: {', '.join(known)}" if len(known) <= _FEW else where and f": {where}"
    if len(names) == 1:
        (name, found), *_ = near.items()
        return f"unknown {kind} {_quoted(name)}" + (help_ if found is None else f": did you mean '{found}'?")
    shown = [_quoted(name) + (f" (did you mean '{found}'?)" if found else "") for name, found in near.items()]
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return f"unknown {kind}s {', '.join(shown)}{more}" + ("" if all(near.values()) else help_)


def _quoted(name: str) -> str:
    shown = name if len(name) <= 100 else f"{name[:100]}..."
    return f"'{shown}'" if shown.isprintable() else repr(shown)


def near_name(name: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `name` is likely to stand for, None if none is near.

    Near is a typo of one or two letters, the same words in another order, a word too many or too few, another ending,
    or a missing or wrong section: `nun_layers`, `size-hidden`, `layers`, `rotary-percentage`, `model.max_steps`.
    """
    if len(name) > _LONGEST:
        return None
    ranked = [(rank, other) for other in known if (rank := _remoteness(name, other)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _remoteness(name: str, other: str) -> tuple[int, int] | None:
    """Return how far a name is from another one, None if they have nothing to do with each other."""
    names, others = (re.split(r"\.|://", text.lower().lstrip("-")) for text in (name, other))
    while len(names) > 1 and len(others) > 1 and names[0] == others[0]:
        del names[0], others[0]
    mine, its = ".".join(names), ".".join(others)
    if (edits := _edits(mine, its)) <= _allowed_edits(mine):
        return 0, edits
    words, its_words = (set(re.findall(r"[a-z0-9]+", text)) for text in (mine, its))
    if words and len(words ^ its_words) <= 1 and words & its_words:
        return 1, len(words ^ its_words)
    if its.startswith(mine) and len(mine) >= _ABBREVIATION and len(its) <= len(mine) * 3 // 2:
        return 2, 0
    # get_close_matches rules most names out before it compares them letter by letter.
    if difflib.get_close_matches(mine, [its], 1, _SIMILAR):
        return 2, 1
    tail_edits = _edits(names[-1], others[-1])
    if tail_edits == 0 or (len(names) == 1 < len(others) and tail_edits <= _allowed_edits(mine)):
        return 3, tail_edits
    return None


def _allowed_edits(name: str) -> int:
    return 0 if len(name) < 3 else 1 if len(name) < 6 else 2


def _edits(one: str, other: str) -> int:
    """Return how many letters are to be added, dropped, changed or swapped with their neighbours; 3 for more than 2."""
    if abs(len(one) - len(other)) > 2:
        return 3
    previous: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, previous, row = previous, row, [i]
        for j, its in enumerate(other, start=1):
            row.append(min(previous[j] + 1, row[j - 1] + 1, previous[j - 1] + (letter != its)))
            if i > 1 and j > 1 and (letter, one[i - 2]) == (other[j - 2], its):
                row[j] = min(row[j], before[j - 2] + 1)
        if min(row) > 2:
            return 3
    return min(row[-1], 3)
