"""What a key of a NeMo 1 configuration means to Megatron-LM: the rows of keys.yaml, checked."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.nemo1.rules import CONDITIONS, DEFAULTS, RULES
from nca_plugin.nemo1.values import KINDS, Arguments, CannotBeHad, Config, Default

KEYS: Final = Path(__file__).with_name("keys.yaml")

_DEFAULT: Final = frozenset(("default", "default_rule"))
_TRANSLATED: Final = _DEFAULT | {"source", "required", "note"}
#: What may stand in a row beside the field that says what the row is.
_FIELDS: Final[Mapping[str, frozenset[str]]] = {
    "ignored": frozenset(),
    "refused": frozenset(("unless",)),
    "read_by": _DEFAULT,
    "rule": _TRANSLATED | {"to"},
    "choices": _TRANSLATED | {"kind", "if", "otherwise"},
    "kind": _TRANSLATED | {"to", "if"},
}
#: Whether a field has a value of its type, for those that are not texts.
_CHECKS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "to": lambda value: isinstance(value, str | list) and all(isinstance(name, str) for name in value),
    "choices": lambda value: isinstance(value, dict) and all(isinstance(made, dict) for made in value.values()),
    "unless": lambda value: isinstance(value, list),
    "required": lambda value: isinstance(value, bool),
    "default": lambda value: value is not None,
}


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
    """Yield the rows of a file like keys.yaml.

    Raises:
        NCAPluginError: a row that is not as the file's comment says.
    """
    # libyaml's, if PyYAML was built with it.
    document = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for key, fields in document["keys"].items():
        with in_context(f"{KEYS.name}: {key}"):
            yield _row(key, fields)


def _row(key: str, fields: Any) -> Row:
    what = _checked(fields)
    if what == "ignored":
        return Ignored(key, fields[what])
    if what == "refused":
        return Refused(key, fields[what], tuple(fields.get("unless", (False,))))
    default = _named(DEFAULTS, fields["default_rule"]) if "default_rule" in fields else fields.get("default")
    if what == "read_by":
        return Translated(key, lambda *_: {}, (), default, note=f"read by `{fields[what]}`")
    to, arguments = _translation(what, fields)
    required, note = fields.get("required", False), fields.get("note", "")
    return Translated(key, to, arguments, default, fields.get("source", ""), required, note)


def _checked(fields: Any) -> str:
    """Return the field that says what a row is, if the others fit it."""
    if not isinstance(fields, dict):
        raise NCAPluginError("it is no mapping")
    what = next((what for what in _FIELDS if what in fields), None)
    if what is None:
        raise NCAPluginError(f"it has none of {', '.join(_FIELDS)}")
    if unknown := fields.keys() - _FIELDS[what] - {what}:
        raise NCAPluginError(f"{', '.join(sorted(unknown))} beside {what}")
    for field, value in fields.items():
        if not _CHECKS.get(field, lambda value: isinstance(value, str))(value):
            raise NCAPluginError(f"{field} has a value of another type")
    if what == "choices" and "otherwise" not in fields:
        raise NCAPluginError("choices without otherwise")
    if fields.keys() >= _DEFAULT:
        raise NCAPluginError("default and default_rule contradict each other")
    return what


def _translation(what: str, fields: Mapping[str, Any]) -> tuple[Callable[[Any, Config], Arguments], tuple[str, ...]]:
    """Return what translates a key's value, and every argument that it can return."""
    named = fields.get("to", [])
    arguments = (named,) if isinstance(named, str) else tuple(named)
    if what == "rule":
        return _named(RULES, fields["rule"]), arguments
    kind = _named(KINDS, fields["kind"]) if "kind" in fields else lambda value: value
    condition = _named(CONDITIONS, fields["if"]) if "if" in fields else lambda _: True
    choices = fields.get("choices", {})

    def make(value: Any) -> Arguments:
        if (made := kind(value)) is None:
            return {}
        if not choices:
            return dict.fromkeys(arguments, made)
        for choice, chosen in choices.items():
            if choice == made:
                return dict(chosen)
        raise CannotBeHad(fields["otherwise"])

    def to(value: Any, config: Config) -> Arguments:
        return made if (made := make(value)) and condition(config) else {}

    return to, arguments or tuple(dict.fromkeys(argument for chosen in choices.values() for argument in chosen))


def _named[T](table: Mapping[str, T], name: str) -> T:
    if name not in table:
        raise NCAPluginError(f"{name} is none of {', '.join(table)}")
    return table[name]
