"""YAML files before they are read: some would take a reader for ever, or all its memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from nca_plugin.errors import NCAPluginError, one_line

#: Far more than a configuration has. OmegaConf spends about a millisecond on each node.
_MAX_BYTES: Final = 4_000_000
_MAX_NODES: Final = 20_000
_MAX_DEPTH: Final = 50
_MAX_INTERPOLATIONS: Final = 20

# libyaml's, if PyYAML was built with it.
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Node:
    """A mapping or list that has not ended."""

    anchor: str | None
    size: int = 1


def check_yaml(path: Path) -> None:
    """Check that a file is a mapping in YAML, and no larger or deeper than a configuration can be.

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
        raise NCAPluginError(f"is no YAML: {where}") from error


def _check_events(text: str) -> None:
    """Count the nodes that a reader would make: an alias stands for a copy of what it names."""
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
                raise NCAPluginError(f"*{event.anchor} stands within what it names, which has no end")
            unended[-1].size += sizes.get(event.anchor, 1)
        elif isinstance(event, yaml.ScalarEvent):
            if event.value.count("${") > _MAX_INTERPOLATIONS:
                raise NCAPluginError(f"a value has more than {_MAX_INTERPOLATIONS} interpolations")
            unended[-1].size += 1
        if unended[-1].size > _MAX_NODES:
            raise NCAPluginError(f"stands for more than the {_MAX_NODES:,} values that a configuration may have")
