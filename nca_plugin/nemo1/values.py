"""How the values of a NeMo 1 configuration are read: each kind that keys.yaml names is a function here."""

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

#: Megatron-LM's arguments without their dashes.
type Arguments = dict[str, Any]

#: NeMo's own default where it differs from Megatron-LM's: a value, or a function where it depends on other keys.
type Default = Any

#: NeMo's spellings (nemo/collections/nlp/parts/utils_funcs.py).
_PRECISIONS: Final = {"bf16": "bf16", "bf16-mixed": "bf16", "16": "fp16", "16-mixed": "fp16", "32": "", "32-true": ""}


class CannotBeHad(Exception):
    """A value that Megatron-LM has nothing for, with the reason; `translate` names the key and collects them all.

    Attributes:
        key: whose value it is, None for the key of the row that is translated.
    """

    def __init__(self, reason: str, key: str | None = None) -> None:
        super().__init__(reason)
        self.key = key


def check(is_right: bool, reason: str) -> None:
    """Raise `CannotBeHad` with the reason, unless all is right."""
    if not is_right:
        raise CannotBeHad(reason)


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
    check((result := whole(value)) >= 0, "must not be negative")
    return result


def number(value: Any) -> float:
    """Return a number, which the file may spell `"2e-4"`."""
    with suppress(TypeError, ValueError, OverflowError):
        if not isinstance(value, bool) and math.isfinite(result := float(value)):
            return result
    raise CannotBeHad("must be a number")


def share(value: Any) -> float:
    """Return a number between 0 and 1."""
    check(0 <= (result := number(value)) <= 1, "must be between 0 and 1")
    return result


def boolean(value: Any) -> bool:
    """Return true or false, which the file may spell 1 or 0."""
    check(value in (True, False), "must be true or false")
    return bool(value)


def name(value: Any) -> str:
    """Return a name or a path, which the file may spell as a number."""
    is_name = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
    check(is_name, "must be a name or a path")
    return str(value)


def lower(value: Any) -> str:
    """Return a text in lower case."""
    return str(value).lower()


def dtype(value: Any) -> str:
    """Return the name of a type of numbers, which the file may spell `torch.bfloat16`."""
    return str(value).removeprefix("torch.")


def precision(value: Any) -> str:
    """Return `bf16`, `fp16` or, for float32, an empty string."""
    check(str(value) in _PRECISIONS, f"NeMo's precisions are {', '.join(_PRECISIONS)}")
    return _PRECISIONS[str(value)]


def switch(value: Any) -> bool | None:
    """Return true for an argument without a value, None where it is not given."""
    return boolean(value) or None


def off_switch(value: Any) -> bool | None:
    """Return the same for an argument that turns something off."""
    return not boolean(value) or None


def training_steps(value: Any) -> int:
    """Return the length of the run."""
    check((steps := whole(value)) > 0, "must be a number of steps: Megatron-LM has no epochs")
    return steps


def eval_interval(value: Any) -> int:
    """Return the steps between two validations: a fraction, and 1.0, is a part of an epoch to Lightning."""
    is_part = isinstance(value, float) and value <= 1
    check(not is_part, "must be a whole number of steps: a part of an epoch has no counterpart")
    return whole(value)


def eval_iters(value: Any) -> int:
    """Return the batches of a validation: 1.0 is the whole set to Lightning."""
    is_all = isinstance(value, float) and value == 1
    check(not is_all, "the whole set, which is NeMo's default: set a whole number of batches")
    return whole(value)


def clip_norm(value: Any) -> float:
    """Return the norm that gradients are clipped to, 0 where they are not."""
    return max(number(value), 0.0)


def minutes(value: Any) -> int:
    """Return Lightning's `days:hours:minutes:seconds` in minutes."""
    parts = str(value).split(":")
    check(len(parts) == 4, "must be days:hours:minutes:seconds")
    days, hours, minutes, seconds = map(whole, parts)
    return ((days * 24 + hours) * 60 + minutes) + seconds // 60


def processes(value: Any) -> int | None:
    """Return how many devices or nodes a value stands for, None where it leaves it open."""
    if value in ("auto", -1, "-1"):
        return None
    return len(value) if isinstance(value, list) else whole(value)


def weights(value: Any) -> str:
    """Return a checkpoint whose weights the run starts from, at step 0."""
    is_nemos = name(value).endswith((".nemo", ".ckpt"))
    check(not is_nemos, "Megatron-LM cannot read NeMo's checkpoints: name the folder of a Megatron-LM checkpoint")
    return str(value)


def virtual_stages(value: Any) -> int | None:
    """Return a number of stages; one is none."""
    return stages if (stages := whole(value)) > 1 else None


def window(value: Any) -> str:
    """Return how many tokens before and after its own a token sees."""
    check(isinstance(value, list) and len(value) == 2, "must be a list of two whole numbers")
    return ",".join(str(whole(part)) for part in value)


#: By the names that keys.yaml has for them. Each returns an argument's value, None where the argument is not given.
KINDS: Final[Mapping[str, Callable[[Any], Any]]] = {
    kind.__name__: kind
    for kind in (
        *(whole, number, name, lower, dtype, switch, off_switch, training_steps, eval_interval, eval_iters, clip_norm),
        *(minutes, processes, weights, virtual_stages, window),
    )
}
