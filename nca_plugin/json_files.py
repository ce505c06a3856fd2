"""JSON files that anybody may have written."""

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nca_plugin.errors import NCAPluginError, one_line

#: Of a file, so that a wrong one does not fill the memory.
_MAX_BYTES: Final = 1 << 24
#: What JSON calls the values of a class.
_KINDS: Final[dict[type, str]] = {
    **{type(None): "null", bool: "true or false", int: "a number", float: "a number"},
    **{str: "a string", list: "a list", dict: "an object"},
}
_SHORT: Final = reprlib.Repr(maxstring=80, maxother=80)


def read_object(path: Path, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """Return the object that a JSON file holds. Time and memory are bounded by `max_bytes`.

    Raises:
        NCAPluginError: no file, one that is larger or cannot be read, text that is no JSON or is nested too deeply, a
            key that an object has twice, or anything else than an object.
    """
    try:
        # What is no plain file, such as a pipe, may have no end.
        if not path.is_file():
            raise NCAPluginError(f"{path} is no file" if path.exists() else f"{path} does not exist")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise NCAPluginError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise NCAPluginError(f"{path} is too large: such a file has at most {max_bytes:,} bytes")
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_object)
    except RecursionError:
        raise NCAPluginError(f"{path} cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise NCAPluginError(f"{path} is not JSON: {one_line(error)}") from error
    if not isinstance(value, dict):
        raise NCAPluginError(f"{path} holds {shown(value)}, where an object is expected")
    return value


class LineEndError(NCAPluginError):
    """Lines of JSON end in a carriage return alone, which no reader of them takes for the end of a line."""


def check_line_ends(line: str, error: json.JSONDecodeError, where: str) -> None:
    """Raise `LineEndError` if that is why a line, which stands at `where`, is not JSON."""
    space = line[len(line[: error.pos].rstrip()) : error.pos]
    if error.msg == "Extra data" and "\r" in space and line[error.pos] in "{[":
        raise LineEndError(
            f"{where} is several lines, each ended by a carriage return (\\r) alone: end them with line feeds, such as "
            "with tr '\\r' '\\n'"
        ) from error


def kind_of(value: Any) -> str:
    """Return what JSON calls a value of this kind, for a message."""
    return _KINDS[type(value)]


def shown(value: Any) -> str:
    """Return a value for a message: on one line, and however large it is, in a few dozen characters."""
    # Python refuses to write numbers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"a number of {value.bit_length():,} bits"
    return _SHORT.repr(value)


def shown_names(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message, the first ones if there are many."""
    rest = len(names) - most
    return ", ".join(shown(name) for name in names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return result
