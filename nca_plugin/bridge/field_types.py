"""Checks values of Megatron-Bridge's configuration classes against the types of their fields."""

import dataclasses
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from nca_plugin.errors import NCAPluginError


def check_type(owner: Any, name: str, value: Any, key: str) -> None:
    """Raise `NCAPluginError` if a field needs a number, bool, string or section and the value is something else.

    Args:
        owner: a configuration or its class.
        value: the value from YAML. Interpolations fit any field, and null any field but a section.
        key: how the user names the field.
    """
    kinds = list(_members(_hint(owner, name)))
    if isinstance(value, str) and "${" in value:
        return
    if value is None and not all(map(dataclasses.is_dataclass, kinds)):
        return
    if not any(_fits(value, kind) for kind in kinds):
        names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not NoneType)
        raise NCAPluginError(f"{key}={value}: must be {names}")


def takes_mapping(owner: Any, name: str) -> bool:
    """Return whether a field's type allows a mapping with any keys."""
    return any(kind is dict or getattr(kind, "__origin__", None) is dict for kind in _parts(_hint(owner, name, None)))


def _hint(owner: Any, name: str, default: Any = Any) -> Any:
    try:
        return get_type_hints(owner if isinstance(owner, type) else type(owner)).get(name, default)
    except NameError:  # A type that only a type checker imports.
        return default


def _fits(value: Any, kind: Any) -> bool:
    if kind in (int, float):
        numbers = int if kind is int else int | float
        return isinstance(value, numbers) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    if dataclasses.is_dataclass(kind):
        return isinstance(value, Mapping)
    # Megatron-Bridge itself checks lists, functions and types of PyTorch.
    return kind is not NoneType


def _members(hint: Any) -> Iterator[Any]:
    """Yield the members of a union, or the type itself if it is not a union."""
    if get_origin(hint) in (Union, UnionType):
        for part in get_args(hint):
            yield from _members(part)
    else:
        yield hint


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    if getattr(hint, "__origin__", None) is not dict:
        for part in get_args(hint):
            yield from _parts(part)
