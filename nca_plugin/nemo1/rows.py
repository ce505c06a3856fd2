"""What a key of a NeMo 1 configuration means to Megatron-LM: the kinds of rows that the tables are made of."""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

#: Megatron-LM's arguments without their dashes.
type Arguments = dict[str, Any]

#: NeMo's own default where it differs from Megatron-LM's: a value, or a function where it depends on other keys.
type Default = Any


class CannotBeHad(Exception):
    """A value that Megatron-LM has nothing for, with the reason; `translate` names the key and collects them all.

    Attributes:
        key: whose value it is, None for the key of the row that is translated.
    """

    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason)
        self.key = key


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
    to: "Callable[[Any, Config], Arguments]"
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


@dataclass(frozen=True)
class Config:
    """The values of a configuration by dotted key, with NeMo's default for those that are absent or null."""

    values: Mapping[str, Any]
    defaults: Mapping[str, Default]

    def __getitem__(self, key: str) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        default = self.defaults[key]
        return default(self) if callable(default) else default

    def read[T](self, key: str, kind: Callable[[Any], T]) -> T:
        """Return what `kind` makes of the value of a key that another row reads: an error is of this key, not of that
        row's."""
        value = self.get(key, kind)
        if value is None:
            raise CannotBeHad("is required", key)
        return value

    def get[T](self, key: str, kind: Callable[[Any], T]) -> T | None:
        """Return the same, None where the key is absent and NeMo has no default."""
        try:
            value = self[key]
            return None if value is None else kind(value)
        except CannotBeHad as error:
            raise CannotBeHad(str(error), error.key or key) from None


def whole(value: Any) -> int:
    """Return a whole number, which the file may spell `1000`, `1e3` or `"1000"`."""
    # A float has not every one of them.
    with suppress(TypeError, ValueError, OverflowError):
        if isinstance(value, int | str) and not isinstance(value, bool):
            return int(value)
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and float(value).is_integer():
            return int(float(value))
    raise CannotBeHad("must be a whole number")


def count(value: Any) -> int:
    """Return a whole number that is not negative."""
    if (result := whole(value)) < 0:
        raise CannotBeHad("must not be negative")
    return result


def checked_number(value: Any) -> float:
    """Return a number, which the file may spell `"2e-4"`."""
    try:
        if not isinstance(value, bool) and math.isfinite(result := float(value)):
            return result
    except (TypeError, ValueError, OverflowError):
        pass
    raise CannotBeHad("must be a number")


def share(value: Any) -> float:
    """Return a number between 0 and 1."""
    if not 0 <= (result := checked_number(value)) <= 1:
        raise CannotBeHad("must be between 0 and 1")
    return result


def boolean(value: Any) -> bool:
    """Return true or false, which the file may spell 1 or 0."""
    if value in (True, False):
        return bool(value)
    raise CannotBeHad("must be true or false")


def name(value: Any) -> str:
    """Return a name or a path, which the file may spell as a number."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "":
        return str(value)
    raise CannotBeHad("must be a name or a path")


def integer(key: str, argument: str, *, is_required: bool = False) -> Translated:
    """A key that is an argument with a whole number."""
    return Translated(key, lambda value, _: {argument: whole(value)}, (argument,), is_required=is_required)


def real(
    key: str, argument: str, *, default: Default = None, source: str = "", is_required: bool = False
) -> Translated:
    """A key that is an argument with a number."""
    return Translated(
        key, lambda value, _: {argument: checked_number(value)}, (argument,), default, source, is_required=is_required
    )


def text(key: str, argument: str) -> Translated:
    """A key that is an argument with a string."""
    return Translated(key, lambda value, _: {argument: name(value)}, (argument,))


def switch(key: str, argument: str) -> Translated:
    """A key whose truth is an argument without a value."""
    return Translated(key, lambda value, _: {argument: True} if boolean(value) else {}, (argument,))


def off_switch(key: str, argument: str, *, default: Default = None, source: str = "") -> Translated:
    """A key whose falsehood is an argument without a value."""
    return Translated(key, lambda value, _: {} if boolean(value) else {argument: True}, (argument,), default, source)


def within(key: str, other: str, *, default: Default = None) -> Translated:
    """A key that the row of another one reads."""
    return Translated(key, lambda *_: {}, (), default, note=f"read by `{other}`")


def ignored(reason: str, keys: Iterable[str]) -> tuple[Ignored, ...]:
    """Several keys with one reason."""
    return tuple(Ignored(key, reason) for key in keys)
