"""Checks of YAML files before they are loaded, because some would take a loader forever or all memory."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from nca_plugin.errors import NCAPluginError, one_line

#: These limits are far above any real configuration. OmegaConf takes about a millisecond for each node.
_MAX_BYTES: Final = 4_000_000
_MAX_RESOLVED: Final = 100_000
_MAX_NODES: Final = 20_000
_MAX_DEPTH: Final = 50
_MAX_INTERPOLATIONS: Final = 20

#: What separates the names in an interpolation such as `${multiply:4,${model.sizes[0]}}`.
_BETWEEN_NAMES: Final = re.compile(r"""[\\${}()\[\]:,\s'"]+""")

# The loader of libyaml is faster, if PyYAML was built with it.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Node:
    """A mapping or list whose end has not been read yet."""

    anchor: str | None
    size: int = 1


def check_yaml(path: Path) -> None:
    """Check that a file is a YAML mapping, and not larger or deeper than a configuration can be.

    Raises:
        NCAPluginError: it is not, or it cannot be read. The message does not name the file.
    """
    try:
        size = path.stat().st_size
        if size > _MAX_BYTES:
            raise NCAPluginError(f"holds {size:,} bytes, more than the {_MAX_BYTES:,} that a configuration may have")
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise NCAPluginError(f"is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise NCAPluginError(f"cannot be read: {error.strerror}") from error
    try:
        _check_events(text)
    except yaml.YAMLError as error:
        where = one_line(error).replace('in "<unicode string>", ', "at ")
        raise NCAPluginError(f"is not YAML: {where}") from error


def check_interpolations(config: Mapping[Any, Any]) -> None:
    """Check that interpolations do not multiply, as in `a: ${b}${b}`, `b: ${c}${c}` and so on.

    Raises:
        NCAPluginError: they stand for too many values. The message does not name the file.
    """
    values: dict[str, list[Any]] = {}

    def collect(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            values.setdefault(str(key), []).append(inner)
            if isinstance(inner, Mapping | list):
                collect(inner)

    collect(config)
    sizes: dict[str, int] = {}

    def size(value: Any) -> int:
        if isinstance(value, Mapping | list):
            return 1 + sum(map(size, value.values() if isinstance(value, Mapping) else value))
        if not isinstance(value, str) or "${" not in value:
            return 1
        # Paths may be relative, so only the last name counts, wherever it is. Counting a name too many does no harm.
        return 1 + sum(size_of(path.rpartition(".")[2]) for path in _BETWEEN_NAMES.split(value))

    def size_of(name: str) -> int:
        if name not in sizes:
            # Cycles are reported when the interpolation is resolved.
            sizes[name] = 0
            sizes[name] = max(map(size, values.get(name, [])), default=0)
            if sizes[name] > _MAX_RESOLVED:
                raise NCAPluginError(f"interpolations of '{name}' stand for more than {_MAX_RESOLVED:,} values")
        return sizes[name]

    for name in values:
        size_of(name)


def _check_events(text: str) -> None:
    """Count the nodes that a loader would make. An alias counts as a copy of the node that it names."""
    sizes: dict[str, int] = {}
    unended = [_Node(None)]
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.NodeEvent) and len(unended) == 1 and not isinstance(event, yaml.MappingStartEvent):
            raise NCAPluginError("must be a mapping of names to values")
        if isinstance(event, yaml.CollectionStartEvent):
            unended.append(_Node(event.anchor))
            if len(unended) > _MAX_DEPTH:
                raise NCAPluginError(f"nests deeper than {_MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = unended.pop()
            if ended.anchor is not None:
                sizes[ended.anchor] = ended.size
            unended[-1].size += ended.size
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in {node.anchor for node in unended}:
                raise NCAPluginError(f"*{event.anchor} is inside the value that it names, which never ends")
            unended[-1].size += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            if event.value.count("${") > _MAX_INTERPOLATIONS:
                raise NCAPluginError(f"a value has more than {_MAX_INTERPOLATIONS} interpolations")
            unended[-1].size += 1
        if unended[-1].size > _MAX_NODES:
            raise NCAPluginError(f"stands for more than the {_MAX_NODES:,} values that a configuration may have")
