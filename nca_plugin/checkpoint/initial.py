"""New values for a tensor, by the rules of the model it belongs to (megatron.core.transformer.TransformerConfig).

Values are counter-based: they depend on the seed, the tensor's name, the layer and the position, and not on how the
checkpoint is sharded or which other tensors are drawn.
"""

import hashlib
import math
from argparse import Namespace
from typing import Final

import numpy as np
import torch

from nca_plugin.automata import rng
from nca_plugin.checkpoint.plan import Step
from nca_plugin.checkpoint.torch_dist import is_stacked
from nca_plugin.errors import NCAPluginError

#: Projections back into the residual stream, whose scale shrinks with depth.
_RESIDUAL_OUTPUTS: Final = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


def initial_values(step: Step, shape: torch.Size, dtype: torch.dtype, args: Namespace, seed: int) -> torch.Tensor:
    """Return the values that a tensor of a new model of arguments `args` would start with, of the given shape.

    Weights are N(0, std): `init_method_std`, `embedding_init_method_std` for embeddings if set, and for projections
    into the residual stream std / sqrt(2 * num_layers). Norm weights are 1 (0 if zero-centred), biases 0.

    Raises:
        NCAPluginError: the model is initialised by a rule that is not one of these.
    """
    for option in ("use_mup", "init_method_xavier_uniform", "hybrid_layer_pattern"):
        if getattr(args, option, None):
            raise NCAPluginError(f"the checkpoint's model has {option}: drawing its values anew is not supported")
    name = step.name
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=dtype)
    if step.role == "norm":
        is_zero_centred = getattr(args, "apply_layernorm_1p", False)
        return torch.full(shape, 0.0 if is_zero_centred else 1.0, dtype=dtype)
    std = _standard_deviation(name, args)
    layers = shape[0] if is_stacked(name) else 1
    count = math.prod(shape) // layers
    key = rng.stream_key(seed, "train", rng.WEIGHTS)
    stream = np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little"))
    values = np.stack([rng.normals(key, stream, np.uint64(layer), count) for layer in range(layers)])
    return torch.from_numpy(values * std).to(dtype).reshape(shape)


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """Return the rows that Megatron gives the embedding of a vocabulary (megatron.training.vocab_utils)."""
    multiple = divisible_by * tensor_parallel_size
    return math.ceil(vocab_size / multiple) * multiple


def _standard_deviation(name: str, args: Namespace) -> float:
    std = float(args.init_method_std)
    if name.startswith("embedding."):
        own = getattr(args, "embedding_init_method_std", None)
        return std if own is None else float(own)
    if name.endswith(_RESIDUAL_OUTPUTS):
        return std / math.sqrt(2.0 * args.num_layers)
    return std
