"""Attention over context-parallel ranks without Transformer Engine, whose own takes a GPU."""

from typing import Any


def install() -> None:
    """Let Megatron's own attention, which refuses context parallelism, do it: each rank gathers all keys and values.

    A rank holds the chunks r and 2n - 1 - r of the 2n that a sequence is cut into.
    """
    import copy

    import torch
    from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    initialize, attend = DotProductAttention.__init__, DotProductAttention.forward

    def initialize_any(self: Any, config: Any, *args: Any, pg_collection: Any = None, **options: Any) -> None:
        without = copy.copy(config)
        without.context_parallel_size = 1
        initialize(self, without, *args, pg_collection=pg_collection, **options)
        self.cp_group = None if config.context_parallel_size == 1 else pg_collection.cp

    def attend_to_all(self: Any, query: Any, key: Any, value: Any, *args: Any, **options: Any) -> Any:
        if self.cp_group is None:
            return attend(self, query, key, value, *args, **options)
        ranks, own = self.cp_group.size(), len(query)
        key, value = (
            gather_from_sequence_parallel_region(tensor, tensor_parallel_output_grad=True, group=self.cp_group)
            for tensor in (key, value)
        )
        chunks = torch.arange(own * ranks).view(2 * ranks, -1)
        positions = torch.stack([torch.cat([chunks[rank], chunks[2 * ranks - 1 - rank]]) for rank in range(ranks)])
        allowed = positions[self.cp_group.rank()][:, None] >= positions.view(-1)[None, :]
        batched = [tensor.permute(1, 2, 0, 3) for tensor in (query, key, value)]
        result = torch.nn.functional.scaled_dot_product_attention(*batched, attn_mask=allowed, scale=self.softmax_scale)
        return result.permute(2, 0, 1, 3).reshape(own, query.shape[1], -1)

    DotProductAttention.__init__ = initialize_any
    DotProductAttention.forward = attend_to_all
