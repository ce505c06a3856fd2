"""NeMo 1 configurations (`megatron_gpt_config.yaml` and its kin, 1.8 to 2.4) as arguments of Megatron-LM.

What they say is trained, by Megatron-LM's own loop: every key is translated, ignored because it does not change the
training, or refused because it does and Megatron-LM has nothing for it. Where a key is absent, NeMo's own default is
what counts. Each key has a row in keys.yaml.
"""

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from nca_plugin.errors import NCAPluginError
from nca_plugin.nemo1.rows import KEYS, Ignored, Refused, Row, Translated, read_rows
from nca_plugin.nemo1.rules import world_size
from nca_plugin.nemo1.values import Arguments, CannotBeHad, Config
from nca_plugin.suggestions import unknown_names

ROWS: Final[Mapping[str, Row]] = MappingProxyType({row.key: row for row in read_rows(KEYS.read_text())})

_SECTIONS: Final = frozenset(
    ".".join(parts[:length]) for parts in (key.split(".") for key in ROWS) for length in range(1, len(parts))
)

#: What an unknown key might have been.
_NAMES: Final = tuple(name for name in (*ROWS, *sorted(_SECTIONS)) if not name.endswith(".*"))

_DEFAULTS: Final = {row.key: row.default for row in ROWS.values() if isinstance(row, Translated)}

#: What `${multiply:4,${.hidden_size}}` and the like need before a configuration is resolved: OmegaConf's resolvers of
#: NeMo (nemo/core/config/hydra_runner.py) and of its launcher (launcher_scripts/main.py).
RESOLVERS: Final[Mapping[str, Callable[[Any, Any], Any]]] = MappingProxyType(
    {
        "multiply": lambda x, y: _result(operator.mul, x, y),
        "sum": lambda x, y: _result(operator.add, x, y),
        "divide_ceil": lambda x, y: math.ceil(_result(operator.truediv, x, y)),
        "divide_floor": lambda x, y: math.floor(_result(operator.truediv, x, y)),
    }
)
#: Of what resolvers take and return: products of products would grow without end.
_MAX_NUMBER: Final = 1e18


def _result(operation: Callable[[Any, Any], Any], x: Any, y: Any) -> Any:
    """Return what an operation makes of two numbers. Python's also take texts, which grow to any size."""
    for value in (x, y):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{_short(value)} is no number")
        if not abs(value) <= _MAX_NUMBER:
            raise ValueError(f"numbers end at {_MAX_NUMBER:g}")
    return operation(x, y)


@dataclass(frozen=True)
class Translation:
    """A NeMo 1 configuration as Megatron-LM arguments.

    Attributes:
        arguments: without their dashes, as `nca_plugin.megatron.arguments.megatron_arguments` takes them.
        translated: key, value and what it became, in the file's order.
        defaults: the same for keys that the file does not have and where NeMo's default is not Megatron-LM's.
        ignored: key and reason.
        world_size: the number of processes that the file is for, None if it leaves it open.
    """

    arguments: Arguments
    translated: tuple[tuple[str, Any, Arguments], ...]
    defaults: tuple[tuple[str, Any, Arguments], ...]
    ignored: tuple[tuple[str, str], ...]
    world_size: int | None


def is_nemo1(config: Mapping[Any, Any]) -> bool:
    """Return whether a configuration is NeMo 1's: it has `trainer` and `model`."""
    return "trainer" in config and "model" in config


def unset_required(config: Any) -> list[str]:
    """Return the keys of a configuration that are `???` and must have a value, for which neither NeMo nor Megatron-LM
    has a default."""
    unset = [key for key, value in _entries(config) if value == "???"]
    return [key for key in unset if isinstance(row := ROWS.get(key), Translated) and row.is_required]


def translate(config: Mapping[Any, Any]) -> Translation:
    """Return a NeMo 1 configuration, resolved, as Megatron-LM arguments.

    Raises:
        NCAPluginError: an unknown key, or what Megatron-LM has nothing for, every such key in one message.
    """
    entries = dict(_entries(config))
    unknown = [key for key in entries if key not in _SECTIONS and _row_of(key) not in ROWS]
    # Null and what is still to be filled in are absent.
    given = {key: value for key, value in entries.items() if value not in (None, "???") and key not in unknown}
    values = {key: value for key, value in given.items() if _row_of(key) in ROWS}
    problems = [
        f"{key}={_short(value)} (must be a mapping of names to values)"
        for key, value in given.items()
        if key not in values
    ]
    view = Config(values, _DEFAULTS)
    done: dict[str, tuple[Any, Arguments]] = {}
    for key in (*values, *(key for key in _DEFAULTS if key not in values)):
        row = ROWS[_row_of(key)]
        try:
            if isinstance(row, Translated):
                done[key] = view[key], _translated(row, view)
            elif isinstance(row, Refused) and values[key] not in row.unless:
                raise CannotBeHad(row.reason)
        except CannotBeHad as error:
            # Of two rows that read one key.
            if (problem := _described(error.key or key, error, view)) not in problems:
                problems.append(problem)
    arguments = _merged(done, problems)
    messages = [unknown_names("key", unknown, _NAMES, "docs/nemo1.md lists all")] if unknown else []
    if problems:
        messages.append(f"cannot be translated to Megatron-LM: {'; '.join(problems)}")
    if messages:
        raise NCAPluginError(f"NeMo 1 configuration: {'; '.join(messages)}")
    return Translation(
        arguments=arguments,
        translated=tuple((key, value, made) for key, (value, made) in done.items() if key in values),
        defaults=tuple((key, value, made) for key, (value, made) in done.items() if key not in values and made),
        ignored=tuple((key, row.reason) for key in values if isinstance(row := ROWS[_row_of(key)], Ignored)),
        world_size=world_size(view),
    )


def _described(key: str, error: CannotBeHad, config: Config) -> str:
    default = config.defaults.get(key)
    value = config.values.get(key, None if callable(default) else default)
    return f"{key} {error}" if value is None else f"{key}={_short(value)} ({error})"


def _translated(row: Translated, config: Config) -> Arguments:
    value = config[row.key]
    if value is None:
        if row.is_required:
            raise CannotBeHad("is required")
        return {}
    return row.to(value, config)


def _merged(done: Mapping[str, tuple[Any, Arguments]], problems: list[str]) -> Arguments:
    """Return the arguments of all keys together; two keys that say different things are a problem."""
    arguments: Arguments = {}
    for key, (value, made) in done.items():
        for name, argument in made.items():
            if arguments.setdefault(name, argument) != argument:
                problems.append(f"{key}={_short(value)} (another key says {_short(arguments[name])})")
    return arguments


def _entries(section: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with their values: those of a section for the section that is known."""
    for name, value in section.items():
        key = f"{prefix}{name}"
        if key in _SECTIONS and isinstance(value, Mapping):
            yield from _entries(value, f"{key}.")
        else:
            yield key, value


def _row_of(key: str) -> str:
    """Return the row's key: the key itself, or `<section>.*` that covers it."""
    if key not in ROWS:
        sections = key.split(".")
        for length in range(len(sections) - 1, 0, -1):
            if (row := f"{'.'.join(sections[:length])}.*") in ROWS:
                return row
    return key


def report(translation: Translation, *, is_full: bool = False) -> str:
    """Return what became of a configuration, for the log: the ignored keys by reason, or every key with `is_full`."""
    lines = [
        f"NeMo 1 configuration: {len(translation.translated)} keys translated to Megatron-LM arguments, "
        f"{len(translation.defaults)} defaults of NeMo's added, {len(translation.ignored)} keys ignored"
    ]
    if is_full:
        lines += [_line("translated", *entry) for entry in translation.translated if entry[2]]
        others = ", ".join(f"{key}={_short(value)}" for key, value, made in translation.translated if not made)
        lines.append(f"  read by another key, or Megatron-LM's own value: {others}")
    lines += [_line("default of NeMo's", *entry) for entry in translation.defaults]
    reasons: dict[str, list[str]] = {}
    for key, reason in translation.ignored:
        reasons.setdefault(reason, []).append(key)
    lines += [f"  ignored ({reason}): {', '.join(keys)}" for reason, keys in reasons.items()]
    return "\n".join(lines)


def _line(kind: str, key: str, value: Any, arguments: Arguments) -> str:
    spelled = (
        f"--{name}" if argument is True else f"--{name} {_short(argument)}" for name, argument in arguments.items()
    )
    return f"  {kind}: {key}={_short(value)}: {' '.join(spelled)}"


def _short(value: Any) -> str:
    """Return a value for people to read, without the end of a long list of files."""
    text = " ".join(map(str, value)) if isinstance(value, list) and value else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:80]}..."
