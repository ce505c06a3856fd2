"""Stands in for the file of this name in Megatron-LM core_v0.18.2: a GPT of plain PyTorch layers."""

from argparse import Namespace
from typing import Any

from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_decoder_block_spec,
    get_gpt_decoder_layer_specs,
    get_gpt_mtp_block_spec,
)
from megatron.training.arguments import core_transformer_config_from_args


def gpt_builder(
    args: Namespace,
    pre_process: bool,
    post_process: bool,
    vp_stage: int | None = None,
    config: Any = None,
    pg_collection: Any = None,
) -> GPTModel:
    """Return the part of the model that this pipeline stage holds."""
    config = config or core_transformer_config_from_args(args)
    kinds = {"use_transformer_engine": False, "normalization": args.normalization, "qk_l2_norm": args.qk_l2_norm}
    mtp_block_spec = None
    if args.mtp_num_layers is not None:
        last = get_gpt_decoder_layer_specs(config, **kinds)[-1]
        mtp_block_spec = get_gpt_mtp_block_spec(config, last, use_transformer_engine=False, vp_stage=vp_stage)
    return GPTModel(
        config=config,
        transformer_layer_spec=get_gpt_decoder_block_spec(config, **kinds, vp_stage=vp_stage),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        mtp_block_spec=mtp_block_spec,
        vp_stage=vp_stage,
        pg_collection=pg_collection,
    )
