"""Messages for unknown names, with the known name that was probably meant."""

import difflib
import re
from collections.abc import Iterable
from typing import Final

#: The largest numbers of known and of unknown names that a message lists.
_FEW: Final = 15
_MANY: Final = 20

#: Longer names are not compared; every known name is shorter.
_LONGEST: Final = 200

#: The least similarity ratio of two names, and the shortest abbreviation of a longer name.
_SIMILAR: Final = 0.85
_ABBREVIATION: Final = 5


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "") -> str:
    """Return the message for a name that is not in `known`. See `unknown_names`.

    >>> unknown_name("preset", "wbe", ["web", "code"])
    "unknown preset 'wbe': did you mean 'web'?"
    """
    return unknown_names(kind, [name], known, where)


def unknown_names(kind: str, names: Iterable[str], known: Iterable[str], where: str = "") -> str:
    """Return the message for names that are not in `known`, each with the nearest known name if there is one.

    If some have none, the message lists `known`, or tells `where` to find the names if there are many.

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
    """Return the name in `known` that `name` probably stands for, None if no name is near.

    Near are: a typo of one or two letters, the same words in another order, one word more or less, another ending, and
    a missing or wrong section. Examples: `nun_layers`, `size-hidden`, `layers`, `rotary-percentage`, `model.max_steps`.
    """
    if len(name) > _LONGEST:
        return None
    ranked = [(rank, other) for other in known if (rank := _remoteness(name, other)) is not None]
    return min(ranked, key=lambda pair: pair[0])[1] if ranked else None


def _remoteness(name: str, other: str) -> tuple[int, int] | None:
    """Return how far a name is from another one (lower is nearer), None if they are not related."""
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
    # get_close_matches is fast: it rules most names out before it compares letters.
    if difflib.get_close_matches(mine, [its], 1, _SIMILAR):
        return 2, 1
    tail_edits = _edits(names[-1], others[-1])
    if tail_edits == 0 or (len(names) == 1 < len(others) and tail_edits <= _allowed_edits(mine)):
        return 3, tail_edits
    return None


def _allowed_edits(name: str) -> int:
    return 0 if len(name) < 3 else 1 if len(name) < 6 else 2


def _edits(one: str, other: str) -> int:
    """Return the number of letters to insert, delete, change or swap with a neighbour; 3 for 3 or more."""
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
