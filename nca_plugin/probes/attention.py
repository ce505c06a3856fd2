"""The attention of a Megatron model's layers, recomputed from the queries and keys of its core attention.

Transformer Engine's fused kernels never compute the probabilities, and the local implementation does not return them.
Both get the same queries and keys, after rotary embedding. Only scores are kept, not probabilities.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from megatron.core.transformer.attention import Attention, SelfAttention
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.utils import get_model_config

from nca_plugin.errors import NCAPluginError
from nca_plugin.probes.induction import prefix_matching_scores

#: Scores of this rank's heads by layer, counted from 1 over the whole model: [batch, heads] for each micro-batch.
LayerScores = dict[int, list[torch.Tensor]]


def causal_attention(query: torch.Tensor, key: torch.Tensor, scale: float) -> torch.Tensor:
    """Return causal softmax(q k^T * scale) in float32, [batch, heads, S, S].

    Args:
        query: [S, batch, heads, channels].
        key: [S, batch, groups, channels]; each group serves heads / groups consecutive heads.
    """
    query, key = query.float(), key.float()
    key = key.repeat_interleave(query.size(2) // key.size(2), dim=2)
    logits = torch.einsum("sbhc,tbhc->bhst", query, key) * scale
    is_future = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
    return logits.masked_fill(is_future, -math.inf).softmax(-1)


def attention_scale(config: TransformerConfig) -> float:
    """Return the factor of a layer's products of queries and keys.

    `--apply-query-key-layer-scaling` divides by the layer's number and multiplies by it again.
    """
    return config.softmax_scale or 1 / math.sqrt(config.kv_channels)


@contextmanager
def induction_scores(chunks: Sequence[torch.nn.Module], period: int) -> Iterator[LayerScores]:
    """Collect the prefix-matching scores of all heads in forward passes within the block.

    Layers without attention, and layers for multi-token prediction, have no scores.

    Args:
        chunks: the parts of the model on this rank.
        period: period of the sequences, see `prefix_matching_scores`.

    Raises:
        NCAPluginError: a layer's attention is not the softmax over all previous tokens.
    """
    scores: LayerScores = {}
    handles = []
    for chunk in chunks:
        config = get_model_config(chunk)
        for name, module in chunk.named_modules():
            if isinstance(module, Attention) and "mtp" not in name.split("."):
                _check_attention(module, config)
                collect = partial(_collect, scores.setdefault(module.layer_number, []), attention_scale(config), period)
                handles.append(module.core_attention.register_forward_pre_hook(collect))
    try:
        yield scores
    finally:
        for handle in handles:
            handle.remove()


def _check_attention(module: Attention, config: TransformerConfig) -> None:
    if not isinstance(module, SelfAttention):
        kind = f"{type(module).__name__}, whose queries and keys are compressed or chosen,"
    elif config.window_size is not None:
        kind = "attention within a window (--window-size)"
    elif config.softmax_type != "vanilla":
        kind = f"attention with --softmax-type {config.softmax_type}"
    else:
        return
    raise NCAPluginError(f"induction scores of {kind} are not supported: add --induction-samples 0")


def _collect(
    scores: list[torch.Tensor], scale: float, period: int, _: torch.nn.Module, inputs: tuple[Any, ...]
) -> None:
    query, key = inputs[:2]
    heads_per_group = query.size(2) // key.size(2)
    of_heads = []
    # Head by head, because the probabilities of a whole layer may not fit in GPU memory.
    for head in range(query.size(2)):
        group = head // heads_per_group
        probabilities = causal_attention(query[:, :, head : head + 1], key[:, :, group : group + 1], scale)
        of_heads.append(prefix_matching_scores(probabilities, period))
    scores.append(torch.cat(of_heads, dim=1).cpu())
