"""The forward step of a GPT model, as in Megatron-LM's pretrain_gpt.py, which is not in the megatron-core wheel."""

from collections.abc import Callable, Iterator
from functools import partial
from inspect import signature
from typing import Any, cast

import torch
from megatron.core import mpu
from megatron.core.rerun_state_machine import get_rerun_state_machine
from megatron.core.transformer.multi_token_prediction import mtp_on_this_rank
from megatron.core.utils import (
    get_attr_wrapped_model,
    get_batch_on_this_cp_rank,
    get_batch_on_this_tp_rank,
    get_model_config,
)
from megatron.training import get_args, get_timers
from megatron.training.utils import is_first_or_last_pipeline_stage

from nca_plugin.megatron.dataset import check_ids

Batch = dict[str, torch.Tensor | None]
# In Megatron-LM's pretrain_gpt.py, a loss of ten times the largest one so far is a spike.
_SPIKE = 10
# The argument that says that samples are packed documents. 0.18 and 0.19 name it differently.
_PACKED = "has_cu_seqlens" if "has_cu_seqlens" in signature(get_batch_on_this_tp_rank).parameters else "is_sft"
_BATCH_KEYS = ("tokens", "labels", "loss_mask", "position_ids", "attention_mask")


def forward_step(data_iterator: Iterator[Batch], model: torch.nn.Module) -> tuple[torch.Tensor, Callable[..., Any]]:
    """Run one micro-batch through this stage. Returns the output and the loss as a function of it."""
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    batch = _next_batch(data_iterator, model)
    timers("batch-generator").stop()
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
    )
    # Megatron calls the loss only on the last stage, which has a mask.
    return output, partial(_loss, cast(torch.Tensor, batch["loss_mask"]))


def _next_batch(data_iterator: Iterator[Batch], model: torch.nn.Module) -> Batch:
    args = get_args()
    config = get_model_config(model)
    vp_stage = get_attr_wrapped_model(model, "vp_stage")
    has_mtp = mtp_on_this_rank(
        layout=config.pipeline_model_parallel_layout,
        mtp_num_layers=config.mtp_num_layers,
        ignore_virtual=False,
        vp_stage=vp_stage,
    )
    if not is_first_or_last_pipeline_stage(vp_stage) and not has_mtp:
        return dict.fromkeys(_BATCH_KEYS)
    tp_rank = mpu.get_tensor_model_parallel_rank()
    batch: Batch = {}
    if tp_rank == 0:
        loaded = next(data_iterator)
        tensors = {key: loaded.get(key) for key in _BATCH_KEYS}
        # Checked on the host, where this does not wait for the device.
        check_ids(tensors, args.padded_vocab_size, "a sample of the data")
        batch = {key: None if t is None else t.cuda(non_blocking=True) for key, t in tensors.items()}
    batch = get_batch_on_this_tp_rank(
        batch,
        **{_PACKED: False},
        is_hybrid_cp=False,
        create_attention_mask_in_dataloader=args.create_attention_mask_in_dataloader,
        broadcast_src_rank=mpu.get_tensor_model_parallel_src_rank(),
        broadcast_group=mpu.get_tensor_model_parallel_group(),
        cp_size=args.context_parallel_size,
        tp_rank=tp_rank,
        micro_batch_size=args.micro_batch_size if model.training else args.eval_micro_batch_size,
        seq_length=args.seq_length,
        mtp_on_this_rank=has_mtp,
        pipeline_model_parallel_size=args.pipeline_model_parallel_size,
        is_pipeline_first_stage=mpu.is_pipeline_first_stage(),
        is_pipeline_last_stage=mpu.is_pipeline_last_stage(),
    )
    batch = {key: batch[key] for key in _BATCH_KEYS}
    result: Batch = get_batch_on_this_cp_rank(batch, is_hybrid_cp=False, cp_group=mpu.get_context_parallel_group())
    return result


def _loss(loss_mask: torch.Tensor, output: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Return the summed loss of the supervised targets, their number, and both as Megatron reports them."""
    mask = loss_mask.view(-1).float()
    loss = torch.sum(output.view(-1).float() * mask)
    num_tokens = mask.sum().detach().to(torch.int)
    _validate(loss)
    return loss, num_tokens, {"lm loss": torch.stack([loss.detach(), num_tokens.to(loss.dtype)])}


def _validate(loss: torch.Tensor) -> None:
    """Let Megatron's rerun state machine check this rank's loss before it is reduced over data-parallel ranks."""
    args, machine = get_args(), get_rerun_state_machine()
    if args.check_for_nan_in_loss_and_grad:
        for rejected, name in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            machine.validate_result(
                result=loss,
                rejection_func=rejected,
                message=f"found {name} in local forward loss calculation",
                tolerance=0.0,
                fatal=True,
            )
    if args.check_for_spiky_loss:
        machine.validate_result(
            result=loss,
            rejection_func=partial(machine.is_unexpectedly_large, threshold=_SPIKE, context="loss"),
            message="Spiky loss",
            tolerance=0.0,
            fatal=False,
        )
