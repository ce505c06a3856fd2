"""Parsing of numbers as users type them, on the command line and in URIs."""

import math
import re
from typing import Final

#: Digits, optionally in groups of three, a fraction, a power of ten, a suffix.
_WHOLE: Final = re.compile(
    r"([0-9]{1,30}|[0-9]{1,3}(?:,[0-9]{3}){1,9}|[0-9]{1,3}(?:_[0-9]{3}){1,9})"
    r"(?:\.([0-9]{1,30}))?(?:E\+?([0-9]{1,2}))?([KMGBT]?)"
)
_SUFFIXES: Final = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
#: Narrower than Python's float(), which also takes 1_000, digits of other scripts, and spaces around a number.
_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class UnderflowError(ValueError):
    """A number that is not 0 but too small for a float."""


def whole_number(text: str) -> int | None:
    """Return the whole number, 0 or more, that a text stands for, None if it stands for none.

    >>> [whole_number(text) for text in ("164M", "2.5B", "1e6", "1_000", "1,000", "164000000", "1.5")]
    [164000000, 2500000000, 1000000, 1000, 1000, 164000000, None]
    """
    match = _WHOLE.fullmatch(text.upper())
    if match is None:
        return None
    whole, fraction, exponent, suffix = match.groups("")
    digits = re.sub("[_,]", "", whole) + fraction
    shift = int(exponent or 0) - len(fraction)
    value = int(digits) * _SUFFIXES[suffix] * 10 ** max(shift, 0)
    count, rest = divmod(value, 10 ** max(-shift, 0))
    return None if rest else count


def number[N: (int, float)](kind: type[N], text: str) -> N:
    """Return the number that `text` holds, with or without a sign: whole for int, finite for float.

    Raises:
        UnderflowError: the number is not 0, but a float of it would be.
        ValueError: the text does not hold such a number.
    """
    if kind is int:
        count = whole_number(text[1:] if text[:1] in ("+", "-") else text)
        if count is None:
            raise ValueError(f"'{text}' is not a whole number")
        return kind(-count if text.startswith("-") else count)
    if not _FLOAT.fullmatch(text):
        raise ValueError(f"'{text}' is not a finite number")
    value = kind(text)
    if not math.isfinite(value):
        raise ValueError(f"'{text}' is larger than any float")
    if value == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        raise UnderflowError(f"'{text}' is too near to 0 for a float: write 0, or {5e-324} or more")
    # Turns -0.0 into 0.0: otherwise equal samples would have two URIs.
    return value + kind(0)


def is_number(text: str) -> bool:
    """Whether Python reads a text as a number, as Megatron does to tell a weight in a blend from a path."""
    try:
        float(text)
    except ValueError:
        return False
    return True
