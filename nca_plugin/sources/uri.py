"""Conversion between `scheme://preset?option=value&...` and the fields of a configuration dataclass."""

import dataclasses
import re
import types
import typing
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote, unquote

from nca_plugin.errors import NCAPluginError
from nca_plugin.suggestions import unknown_names
from nca_plugin.typed_numbers import UnderflowError, number

#: Options of every source, beside the fields of its configuration.
VOCAB_OFFSET: Final = "vocab_offset"
COMMON_OPTIONS: Final = ("split", VOCAB_OFFSET)

#: Characters that show that options follow, though the question mark is missing or was escaped.
_OPTION_MARKS: Final = re.compile(r"[&=;?#]|%3[Ff]")


@dataclasses.dataclass(frozen=True, slots=True)
class ParsedURI:
    """The parts of a URI. The values in `options` are raw text."""

    scheme: str
    preset: str
    options: dict[str, str]


def split_uri(uri: str) -> ParsedURI:
    """Split a URI or a lone scheme into parts. Raises `NCAPluginError` if it is malformed or repeats an option."""
    if not unquote(uri).isprintable():
        raise NCAPluginError(f"source {uri!r}: holds a control character or an invisible character")
    scheme, separator, rest = uri.partition("://")
    preset, _, query = rest.partition("?")
    preset = preset.removesuffix("/")
    context = f"source '{uri}'"
    if not separator and _OPTION_MARKS.search(uri):
        raise NCAPluginError(f"{context}: options follow {_OPTION_MARKS.split(uri)[0]}://?, as in nca://?seed=1")
    if "://" in rest:
        raise NCAPluginError(f"{context}: names a scheme twice; name one source, or several as a blend")
    if _OPTION_MARKS.search(preset):
        raise NCAPluginError(
            f"{context}: options follow a question mark, as in {scheme}://{_OPTION_MARKS.split(preset)[0]}?seed=1"
        )
    if "/" in preset or "#" in rest:
        raise NCAPluginError(f"{context}: must look like scheme://preset?option=value&option=value")
    if "?" in query or ";" in query:
        raise NCAPluginError(f"{context}: options are separated by &, as in option=value&option=value")
    try:
        # parse_qsl would read a plus sign, as in 1e+16, as a space.
        pairs = parse_qsl(query.replace("+", "%2B"), keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise NCAPluginError(f"{context}: options must look like option=value&option=value") from None
    options = dict(pairs)
    if len(options) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise NCAPluginError(f"{context}: option '{twice}' is given twice")
    return ParsedURI(scheme.lower(), preset, options)


def join_uri(scheme: str, preset: str, options: dict[str, object]) -> str:
    """Return the URI with these options, in a form that `parse_options` reads back."""
    query = "&".join(f"{name}={quote(format_value(value), safe=':,@+')}" for name, value in options.items())
    return f"{scheme}://{preset}?{query}"


def parse_options(config: type, options: dict[str, str], context: str) -> dict[str, Any]:
    """Return `options` converted to the types of the fields of the dataclass `config`.

    Raises:
        NCAPluginError: an unknown option, or a value of the wrong type.
    """
    hints = typing.get_type_hints(config)
    field_types = {field.name: hints[field.name] for field in dataclasses.fields(config)}
    unknown = [name for name in options if name not in field_types]
    if unknown:
        where = f"{config.__module__}.{config.__name__} describes all"
        raise NCAPluginError(f"{context}: {unknown_names('option', unknown, (*field_types, *COMMON_OPTIONS), where)}")
    values = {}
    for name, text in options.items():
        try:
            values[name] = _parse_value(field_types[name], text)
        except UnderflowError as error:
            raise NCAPluginError(f"{context}: option {name}: {error}") from None
        except ValueError:
            raise NCAPluginError(f"{context}: option {name}='{text}' must be {_describe(field_types[name])}") from None
    return values


def format_value(value: object) -> str:
    """Return the text of an option's value: floats with all bits, a band as low:high, None as none."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return (":" if isinstance(value[0], int | float) else ",").join(map(format_value, value))
    if isinstance(value, float):
        # float() because NumPy's floats have another repr; + 0.0 turns a negative zero into 0.
        return repr(float(value) + 0.0).removesuffix(".0")
    return str(value)


def _parse_value(kind: Any, text: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if text == "none" else _parse_value(arguments[0], text)
    if origin is Literal:
        if text not in arguments:
            raise ValueError
        return text
    if origin is tuple and arguments[-1] is Ellipsis:
        return tuple(arguments[0].from_text(part) for part in text.split(","))
    if origin is tuple:
        parts = text.split(":")
        if len(parts) != len(arguments):
            raise ValueError
        return tuple(_parse_value(a, p) for a, p in zip(arguments, parts, strict=True))
    return number(kind, text)


def _describe(kind: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return f"{_describe(arguments[0])} or none"
    if origin is Literal:
        return " or ".join(arguments)
    if origin is tuple:
        return "START@LOW:HIGH,START@LOW:HIGH,..." if arguments[-1] is Ellipsis else "LOW:HIGH"
    return {int: "a whole number", float: "a finite number"}[kind]
