"""Computes Megatron's local attention in CPU mode without a matrix of all scores."""

import functools
from typing import Any

import torch
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType


def use_flash_attention() -> None:
    """Let Megatron's local attention call PyTorch's where both compute the same.

    Megatron's writes scores of heads * sequence length^2 values per sample, several times, and small models then spend
    more time on them than on all matrix products. The results are equal up to float32 rounding.
    """
    plain_forward = DotProductAttention.forward

    @functools.wraps(plain_forward)
    def forward(
        self: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *args: Any,
        **options: Any,
    ) -> torch.Tensor:
        others = (attention_mask, *args[1:], options.get("attention_bias"), options.get("packed_seq_params"))
        if any(other is not None for other in others) or not _is_plain_causal(self, query, key):
            result: torch.Tensor = plain_forward(self, query, key, value, attention_mask, *args, **options)
            return result
        # (sequence, batch, heads, channels) to (batch, heads, sequence, channels)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        context = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self.softmax_scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        return context.permute(2, 0, 1, 3).flatten(2)

    DotProductAttention.forward = forward


def _is_plain_causal(attention: Any, query: torch.Tensor, key: torch.Tensor) -> bool:
    """Return whether the attention is causal over whole sequences in float32, with a common softmax and no dropout."""
    softmax = attention.scale_mask_softmax
    return (
        attention.attn_mask_type == AttnMaskType.causal
        and query.dtype == torch.float32
        and len(query) == len(key)
        and softmax.scale is None
        and getattr(softmax, "window_size", None) is None
        and getattr(attention, "softmax_offset", None) is None
        and not (attention.training and attention.attention_dropout.p)
    )
