"""New values of a tensor, by the initialisation rules of its model (megatron.core.transformer.TransformerConfig).

Each value depends only on the seed, the parameter's name, its layer and its place within the layer. It does not depend
on how the checkpoint is cut into files and ranks, or on what else is drawn.
"""

import functools
import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from nca_plugin.arithmetic import exp, log
from nca_plugin.checkpoint.contents import Region
from nca_plugin.checkpoint.dtypes import DType, Values
from nca_plugin.checkpoint.model_config import ModelConfig, standard_deviation
from nca_plugin.checkpoint.names import Parameter
from nca_plugin.errors import NCAPluginError
from nca_plugin.transition.random_numbers import STREAM_LENGTH, normals, uniforms

#: Projections into the residual stream. Their initial scale shrinks with the number of layers.
_RESIDUAL_OUTPUTS: Final = (
    "linear_proj.weight",
    "linear_fc2.weight",
    "fc2_latent_proj.weight",
    "mixer.out_proj.weight",
)
_NORMAL_INITIALISER: Final = "torch.nn.init.normal_"
#: Defaults of MambaMixer, which no option changes: the width of the convolution; minimum, maximum and floor of the
#: time step; the range of A.
_MAMBA_CONV: Final = 4
_MAMBA_STEP: Final = (1e-3, 0.1, 1e-4)
_MAMBA_A: Final = (1.0, 16.0)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A distribution of new values: N(0, scale), U(-scale, scale), the constant `scale`, or one of Mamba's two."""

    kind: Literal["normal", "uniform", "constant", "mamba_step", "mamba_a"]
    scale: float = 0.0

    def __str__(self) -> str:
        return {
            "normal": f"N(0, {self.scale:.4g})",
            "uniform": f"U(-{self.scale:.4g}, {self.scale:.4g})",
            "constant": f"{self.scale:g}",
            "mamba_step": "Mamba's time steps",
            "mamba_a": "Mamba's decays",
        }[self.kind]


def distribution(name: str, parameter: Parameter, model: ModelConfig) -> Distribution:
    """Return the distribution that the model's own rules give a parameter.

    Weights are N(0, std) with `init_method_std`; embeddings take `embedding_init_method_std` if it is set. Projections
    into the residual stream have std / sqrt(2 * num_layers), in a hybrid model std / sqrt(num_layers). Under mu-P, all
    but embeddings and an untied output are divided by sqrt(width / base width). Norm weights are 1 (0 if zero-centred),
    biases are 0.

    Raises:
        NCAPluginError: if the model initialises the parameter by another rule.
    """
    # A checkpoint stores the parts of MambaMixer's packed tensors under names of their own.
    part = re.sub(r"(\.mixer\..*)\.(z|x|B|C|dt)", r"\1", parameter.canonical)
    if part.endswith(("norm.weight", "norm_weight")) and ".mixer.norm." not in part:
        return Distribution("constant", 0.0 if model.is_zero_centred else 1.0)
    if ".mixer." in part and not part.endswith(("in_proj.weight", "out_proj.weight")):
        return _mamba(part)
    if part.endswith(("router.bias", "softmax_offset")):
        return Distribution("normal", _std(model))
    if part.endswith("bias"):
        return Distribution("constant", 0.0)
    if not part.endswith("weight"):
        raise NCAPluginError(f"'{name}' cannot be drawn anew, because its initialisation is unknown: keep or drop it")
    if parameter.role in ("embedding", "position"):
        return Distribution("normal", _embedding_std(model))
    if parameter.role == "output":
        return Distribution("normal", _embedding_std(model) if model.get("use_mup") else _std(model))
    return Distribution("normal", _residual_std(model) if part.endswith(_RESIDUAL_OUTPUTS) else _std(model))


def draw(
    drawn: Distribution, parameter: Parameter, shape: tuple[int, ...], region: Region, dtype: DType, seed: int
) -> Values:
    """Return new values for a part of a tensor.

    Args:
        shape: the shape of the whole tensor.
        region: the part, a contiguous run of values within one layer.
    """
    sizes = tuple(stop - start for start, stop in region)
    count = math.prod(sizes)
    if drawn.kind == "constant":
        return dtype.from_float32(np.full(sizes, drawn.scale, np.float32))
    layer = region[0][0] if parameter.is_stacked else parameter.layer or 0
    own, starts = shape, [start for start, _ in region]
    if parameter.is_stacked:
        own, starts = shape[1:], starts[1:]
    first = sum(start * math.prod(own[axis + 1 :]) for axis, start in enumerate(starts))
    size = math.prod(own)
    # Experts and halves of a gated projection may be stored as one tensor or under names of their own. Both ways must
    # give the same values, so they share one stream.
    if parameter.half is not None:
        first += parameter.half * size
        size *= 2
    first += (parameter.expert or 0) * size
    if first + count > STREAM_LENGTH:
        raise NCAPluginError(f"'{parameter.canonical}' has more than 2^34 values in a layer, which cannot be drawn")
    stream = _stream(parameter.canonical)
    if drawn.kind == "normal":
        values = normals(seed, stream, layer, first, count, drawn.scale)
    else:
        values = uniforms(seed, stream, layer, first, count, drawn.scale or 1.0)
    if drawn.kind == "mamba_step":
        values = _each(_mamba_step, values)
    elif drawn.kind == "mamba_a":
        values = _each(_mamba_a, values)
    return dtype.from_float32(values.reshape(sizes))


def _std(model: ModelConfig) -> float:
    own = _own_std(model, "init_method")
    return model.scale("init_method_std") / math.sqrt(model.width_multiplier) if own is None else own


def _residual_std(model: ModelConfig) -> float:
    own = _own_std(model, "output_layer_init_method")
    multiplier = 1.0 if model.is_hybrid else 2.0
    return _std(model) / math.sqrt(multiplier * model.integer("num_layers")) if own is None else own


def _embedding_std(model: ModelConfig) -> float:
    own = _own_std(model, "embedding_init_method")
    name = "init_method_std" if model.get("embedding_init_method_std") is None else "embedding_init_method_std"
    return model.scale(name) if own is None else own


def _own_std(model: ModelConfig, option: str) -> float | None:
    """Return the standard deviation of an initialiser that the configuration names, as Megatron-Bridge's does."""
    if model.get("init_method_xavier_uniform"):
        raise NCAPluginError(
            "the checkpoint's model is initialised by --init-method-xavier-uniform, whose values depend on the tensor-"
            "parallel size: drawing them anew is not supported"
        )
    own = model.get(option)
    if not isinstance(own, dict):
        return None
    if own.get("_target_") != _NORMAL_INITIALISER or own.get("mean", 0.0) != 0.0 or "std" not in own:
        raise NCAPluginError(
            f"the checkpoint's model has {option} {own.get('_target_')!r}: drawing its values anew is not supported"
        )
    return standard_deviation(f"{option}.std", own["std"])


def _mamba(part: str) -> Distribution:
    if "conv1d" in part:
        return Distribution("uniform", 1 / math.sqrt(_MAMBA_CONV))
    kinds = {
        "dt_bias": Distribution("mamba_step"),
        "A_log": Distribution("mamba_a"),
        "D": Distribution("constant", 1.0),
        "norm.weight": Distribution("constant", 1.0),
    }
    name = part.split(".mixer.", 1)[1]
    if name not in kinds:
        raise NCAPluginError(f"'{part}' cannot be drawn anew, because its initialisation is unknown: keep or drop it")
    return kinds[name]


def _mamba_step(u: float) -> float:
    """Return the inverse softplus of a log-uniform time step. `u` is uniform in (-1, 1)."""
    low, high, floor = _MAMBA_STEP
    step = max(floor, exp(log(low) + (log(high) - log(low)) * (u + 1) / 2))
    return step + float(log(1 - exp(-step)))


def _mamba_a(u: float) -> float:
    low, high = _MAMBA_A
    return float(log(low + (high - low) * (u + 1) / 2))


def _each(function: Callable[[float], float], values: np.ndarray) -> np.ndarray:
    return np.array([function(float(value)) for value in values], np.float32)


@functools.cache
def _stream(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
