"""Reading JSON files that users wrote, with limits and one-line errors."""

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from nca_plugin.errors import NCAPluginError, one_line

#: The largest file in bytes, so that a wrong file does not fill the memory.
_MAX_BYTES: Final = 1 << 24
#: JSON's names for the types of values.
_KINDS: Final[dict[type, str]] = {
    **{type(None): "null", bool: "true or false", int: "a number", float: "a number"},
    **{str: "a string", list: "a list", dict: "an object"},
}
_SHORT: Final = reprlib.Repr(maxstring=80, maxother=80)


def read_object(path: Path, max_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """Return the object in a JSON file. Time and memory are bounded by `max_bytes`.

    Raises:
        NCAPluginError: the file is missing, too large or unreadable, is not JSON, is nested too deeply, has an object
            with the same key twice, or holds something other than an object.
    """
    try:
        # Reading a pipe or a device might never end.
        if not path.is_file():
            raise NCAPluginError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise NCAPluginError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > max_bytes:
        raise NCAPluginError(f"{path} is too large: at most {max_bytes:,} bytes are read")
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
    """A JSONL file whose lines end in a lone carriage return, which JSON readers do not take for a line end."""


def check_line_ends(line: str, error: json.JSONDecodeError, where: str) -> None:
    """Raise `LineEndError` if that is why `line` is not JSON. `where` names its place for the message."""
    space = line[len(line[: error.pos].rstrip()) : error.pos]
    if error.msg == "Extra data" and "\r" in space and line[error.pos] in "{[":
        raise LineEndError(
            f"{where} is several lines, each ended by a carriage return (\\r) alone: end them with line feeds, such as "
            "with tr '\\r' '\\n'"
        ) from error


def kind_of(value: Any) -> str:
    """Return JSON's name for the type of `value`, for a message."""
    return _KINDS[type(value)]


def shown(value: Any) -> str:
    """Return a value for a message: on one line and, however large it is, in a few dozen characters."""
    # Python refuses to print integers of thousands of digits.
    if isinstance(value, int) and value.bit_length() > 10_000:
        return f"a number of {value.bit_length():,} bits"
    return _SHORT.repr(value)


def shown_names(names: Sequence[str], most: int = 8) -> str:
    """Return names for a message. If there are more than `most`, the rest is counted."""
    rest = len(names) - most
    return ", ".join(shown(name) for name in names[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {shown(twice)} twice")
    return result
