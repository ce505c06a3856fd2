"""What a key of a NeMo 1 configuration means to Megatron-LM: the rows of keys.yaml, checked."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from nca_plugin.errors import NCAPluginError
from nca_plugin.nemo1.rules import CONDITIONS, DEFAULTS, RULES
from nca_plugin.nemo1.values import KINDS, Arguments, CannotBeHad, Config, Default

KEYS: Final = Path(__file__).with_name("keys.yaml")


@dataclass(frozen=True)
class Translated:
    """A key that becomes Megatron-LM arguments.

    Attributes:
        key: dotted path in the file.
        to: called with the key's value, never null, and the whole configuration.
        arguments: every argument that `to` can return.
        default: what NeMo takes where the key is absent or null, if Megatron-LM's default is another one.
        source: where NeMo says so.
        is_required: whether the key must be there.
        note: what a reader needs to know besides the arguments.
    """

    key: str
    to: Callable[[Any, Config], Arguments]
    arguments: tuple[str, ...]
    default: Default = None
    source: str = ""
    is_required: bool = False
    note: str = ""


@dataclass(frozen=True)
class Ignored:
    """A key that does not change the training; `key` may end in `.*`, for everything below it."""

    key: str
    reason: str


@dataclass(frozen=True)
class Refused:
    """A key that would change the training and that Megatron-LM has nothing for, `unless` it has one of these values.

    Null is always right: it means that the key is absent.
    """

    key: str
    reason: str
    unless: tuple[Any, ...] = (False,)


type Row = Translated | Ignored | Refused


def read_rows(text: str) -> Iterator[Row]:
    """Yield the rows of a text like keys.yaml, whose comment says what a row is.

    Raises:
        NCAPluginError: a malformed row.
    """
    # libyaml's, if PyYAML was built with it.
    document = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for key, fields in document["keys"].items():
        try:
            yield _row(key, fields)
        # What a keyword, a table or a type of Python's does not take.
        except (AttributeError, KeyError, TypeError) as error:
            raise NCAPluginError(f"{KEYS.name}: the row of {key} is malformed: {error}") from error


def _row(key: str, fields: dict[str, Any]) -> Row:
    match fields:
        case {"ignored": reason, **rest}:
            return Ignored(key, reason, **rest)
        case {"refused": reason, "unless": values, **rest}:
            return Refused(key, reason, tuple(values), **rest)
        case {"refused": reason, **rest}:
            return Refused(key, reason, **rest)
        case {"read_by": other, **rest}:
            return _translated(key, lambda *_: {}, note=f"read by `{other}`", **rest)
        case {"rule": rule, **rest}:
            return _translated(key, RULES[rule], **rest)
        case {"kind": _} | {"choices": _, "otherwise": _}:
            return _by_kind(key, **fields)
    raise TypeError("nothing says what becomes of the key")


def _translated(
    key: str,
    make: Callable[[Any, Config], Arguments],
    to: str | Iterable[str] = (),
    default: Any = None,
    default_rule: str | None = None,
    source: str = "",
    required: bool = False,
    note: str = "",
) -> Translated:
    """Return a row with the fields that every translated one may have."""
    of_nemo = default if default_rule is None else DEFAULTS[default_rule]
    return Translated(key, make, _names(to), of_nemo, source, required, note)


def _names(to: str | Iterable[str]) -> tuple[str, ...]:
    return (to,) if isinstance(to, str) else tuple(to)


def _by_kind(
    key: str,
    *,
    kind: str | None = None,
    to: str | Iterable[str] = (),
    choices: Mapping[Any, Arguments] | None = None,
    otherwise: str = "",
    when: str | None = None,
    **fields: Any,
) -> Translated:
    """Return a row whose arguments are made of the key's value alone, and given `when` something is so, or always."""
    read: Callable[[Any], Any] = (lambda value: value) if kind is None else KINDS[kind]
    condition: Callable[[Config], bool] = (lambda _: True) if when is None else CONDITIONS[when]
    names = _names(to) if choices is None else tuple(dict.fromkeys(name for made in choices.values() for name in made))

    def make(value: Any, config: Config) -> Arguments:
        if (value := read(value)) is None:
            return {}
        made = dict.fromkeys(names, value) if choices is None else _chosen(choices, value, otherwise)
        return made if made and condition(config) else {}

    return _translated(key, make, names, **fields)


def _chosen(choices: Mapping[Any, Arguments], value: Any, otherwise: str) -> Arguments:
    """Return the arguments of a value, which may be one that no mapping can look up."""
    for choice, made in choices.items():
        if choice == value:
            return dict(made)
    raise CannotBeHad(otherwise)
