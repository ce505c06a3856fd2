"""The presets of a transition: what each keeps, and what new rows of embedding and output start with."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from nca_plugin.checkpoint.contents import Tensor, contiguous_regions
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.checkpoint.names import Parameter
from nca_plugin.errors import NCAPluginError
from nca_plugin.transition.model_initialisation import Distribution, distribution

_PIECE_VALUES: Final = 1 << 22
#: Standard deviation of embedding and output with the option that commit 768a54c adds to the released code.
_FIXED_SCALE: Final = 0.02


@dataclass(frozen=True)
class Preset:
    """A plan that --keep, --reinit and --drop change.

    Attributes:
        about: a description of one line.
        rest: what happens to everything but the roles `others`, to which the opposite happens.
        rows: the rule for new rows of embedding and output, see `row_distribution`.
        is_rescaled: whether all other new values have the scale of the trained ones, see `rescaled`.
    """

    about: str
    rest: Literal["keep", "reinit"]
    others: tuple[str, ...] = ()
    rows: Literal["model", "release", "release-fixed", "matched"] = "model"
    is_rescaled: bool = False


_VOCABULARY: Final = ("embedding", "output")
PRESETS: Final[Mapping[str, Preset]] = {
    "default": Preset("embedding and output drawn anew, all else kept", "keep", _VOCABULARY),
    "attention-only": Preset("attention kept, all else drawn anew", "reinit", ("attention",)),
    "mlp-only": Preset(
        "MLPs kept, with the routers they were trained under; all else anew", "reinit", ("mlp", "router")
    ),
    "no-norm": Preset("as default, and norms drawn anew", "keep", (*_VOCABULARY, "norm", "final_norm")),
    "scratch": Preset("everything drawn anew", "reinit"),
    "release": Preset(
        "as default, with the released code's N(0, 1) embedding and U(-1/sqrt(d), 1/sqrt(d)) output",
        "keep",
        _VOCABULARY,
        rows="release",
    ),
    "release-fixed": Preset(
        "as release, with the N(0, 0.02) embedding and output of the released code's fixed_embed_init",
        "keep",
        _VOCABULARY,
        rows="release-fixed",
    ),
    "rescaled": Preset(
        "everything drawn anew, each tensor at the scale of its trained values",
        "reinit",
        rows="matched",
        is_rescaled=True,
    ),
    "matched": Preset(
        "as default, with new rows at the scale of the trained ones", "keep", _VOCABULARY, rows="matched"
    ),
}


def row_distribution(
    preset: str, parameter: Parameter, tensor: Tensor, trained_rows: int, model: ModelConfig
) -> Distribution:
    """Return the distribution of the new rows of embedding or output under a preset.

    It is the model's own for most presets: N(0, `embedding_init_method_std`), or `init_method_std` where the model has
    no other for its embedding, and N(0, `init_method_std`) for the output.

    Args:
        tensor: the tensor of the finished stage.
        trained_rows: the number of its rows that are not padding.
        model: the model of the finished stage.
    """
    rule = PRESETS[preset].rows
    if rule == "release-fixed":
        return Distribution("normal", _FIXED_SCALE)
    if rule == "release":
        is_output = parameter.role == "output"
        return Distribution("uniform", tensor.shape[1] ** -0.5) if is_output else Distribution("normal", 1.0)
    if rule == "matched":
        return Distribution("normal", _root_mean_square(tensor, trained_rows))
    return distribution(tensor.name, parameter, model)


def rescaled(drawn: Distribution, tensor: Tensor) -> Distribution:
    """Return the distribution of a tensor's new values at the root mean square of its trained values.

    If a tensor holds several layers, all of them get the same scale.

    Args:
        drawn: the distribution that the model's own rules give the tensor.
    """
    if drawn.kind not in ("normal", "constant") or drawn == Distribution("constant", 0.0):
        # Values such as biases start at 0, and have no scale to keep; Mamba's have a law of their own.
        return drawn
    return Distribution(drawn.kind, _root_mean_square(tensor, tensor.shape[0]))


def _root_mean_square(tensor: Tensor, rows: int) -> float:
    """Return the root mean square of the trained rows, without the padding."""
    opened = tensor.opened()
    total = 0.0
    for region in contiguous_regions((rows, *tensor.shape[1:]), _PIECE_VALUES):
        total += float(np.square(tensor.dtype.to_float32(opened.read(*region)), dtype=np.float64).sum())
    scale = math.sqrt(total / (rows * math.prod(tensor.shape[1:])))
    if not 0 < scale < math.inf:
        raise NCAPluginError(f"'{tensor.name}' has no scale to match: its values are all 0, or not all finite")
    return scale
