"""The configuration of a model, from the arguments or the configuration file that its checkpoint keeps.

Values are checked against limits that no model exceeds, because a checkpoint may be damaged or hostile.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nca_plugin.errors import NCAPluginError
from nca_plugin.json_files import shown

_MOST: Final = 1 << 31
#: Limits of standard deviations. With smaller ones, values would be zeros in float32.
_SMALLEST_SCALE: Final = 1e-30
_LARGEST_SCALE: Final = 1e6


@dataclass(frozen=True)
class ModelConfig:
    """A model and the vocabulary that it was trained with.

    Attributes:
        values: everything that the checkpoint says, under the names of Megatron-LM's arguments or TransformerConfig.
    """

    values: Mapping[str, Any]

    def get(self, *names: str, default: Any = None) -> Any:
        """Return the first of the values `names` that the checkpoint has; `default` if it has none of them."""
        return next((self.values[name] for name in names if self.values.get(name) is not None), default)

    def need(self, name: str) -> Any:
        """Return a value. Raises `NCAPluginError` if the checkpoint does not have it."""
        value = self.get(name)
        if value is None:
            raise NCAPluginError(f"the checkpoint does not say the model's {name}: nothing can be drawn anew")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """Return an integer of at least 1. Raises `NCAPluginError` for another value, or if absent without default."""
        value = self.need(name) if default is None else self.get(name, default=default)
        if type(value) is not int or not 1 <= value <= _MOST:
            raise NCAPluginError(
                f"the checkpoint says that the model's {name} is {shown(value)}: it must be a number of at least 1"
            )
        return value

    def scale(self, name: str) -> float:
        """Return a standard deviation. Raises `NCAPluginError` if it is absent or not one."""
        return standard_deviation(name, self.need(name))

    @property
    def is_hybrid(self) -> bool:
        return bool(self.get("hybrid_layer_pattern", "hybrid_override_pattern")) or bool(self.get("is_hybrid_model"))

    @property
    def is_zero_centred(self) -> bool:
        """Whether norm weights are stored as their difference from 1."""
        return bool(self.get("apply_layernorm_1p", "layernorm_zero_centered_gamma"))

    @property
    def width_multiplier(self) -> float:
        """The model's width divided by mu-P's base width; 1 without mu-P."""
        if not self.get("use_mup"):
            return 1.0
        hidden_size = self.integer("hidden_size")
        return hidden_size / self.integer("mup_base_hidden_size", hidden_size)

    @property
    def vocab_size(self) -> int | None:
        """The vocabulary size; None if the checkpoint does not have it."""
        return None if self.get("vocab_size") is None else self.integer("vocab_size")

    @property
    def pads_vocabulary(self) -> bool:
        """Whether `vocab_size` is the number of ids, to which rows are padded; otherwise it is the number of rows."""
        return bool(self.get("should_pad_vocab", default=True))

    @property
    def divisible_by(self) -> int:
        return self.integer("make_vocab_size_divisible_by", 128) if self.pads_vocabulary else 1

    @property
    def tensor_parallel_size(self) -> int:
        return self.integer("tensor_model_parallel_size", 1)


def standard_deviation(name: str, value: Any) -> float:
    """Return a configuration value as a standard deviation above 0. Raises `NCAPluginError` if it is not one."""
    # From a configuration file the number may come as a string: YAML reads 1e-2 as one.
    try:
        scale = float(value) if type(value) in (int, float, str) else math.nan
    except (ValueError, OverflowError):
        scale = math.nan
    if not _SMALLEST_SCALE <= scale <= _LARGEST_SCALE:
        raise NCAPluginError(
            f"the checkpoint says that the model's {name} is {shown(value)}: no standard deviation to draw values with"
        )
    return scale
