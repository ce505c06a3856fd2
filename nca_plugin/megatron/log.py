"""Reports on the data of a Megatron-LM run, in the same places as Megatron's figures: log, TensorBoard and W&B."""

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import mpu
from megatron.core.num_microbatches_calculator import get_current_global_batch_size, get_num_microbatches
from megatron.training import get_args, get_tensorboard_writer, get_wandb_writer, print_rank_0

from nca_plugin.megatron.metrics import SampleMeter, with_supervised_tokens, write_progress

ForwardStep = Callable[[Any, torch.nn.Module], tuple[torch.Tensor, Callable[[torch.Tensor], Any]]]


def reporting(forward_step: ForwardStep, meter: SampleMeter) -> ForwardStep:
    """Return a forward step that also reports on the data of the run.

    Args:
        meter: the meter in which the run's dataset counts.
    """
    reported = 0

    def reporting_step(
        data_iterator: Any, model: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        nonlocal reported
        output, loss = forward_step(data_iterator, model)
        if not model.training:
            return output, loss
        args = get_args()
        iteration = args.curr_iteration + 1
        if iteration != reported and args.tensorboard_dir and iteration % args.tensorboard_log_interval == 0:
            reported = iteration
            _report(meter, iteration)
        ranks = args.data_parallel_size * args.context_parallel_size * getattr(args, "gtp_weight_remat_size", 1)
        return output, with_supervised_tokens(loss, ranks * get_num_microbatches())

    return reporting_step


def announcing(forward_step: ForwardStep, lines: list[str]) -> ForwardStep:
    """Return a forward step that first prints `lines` once, after Megatron's start-up output, where users find them.

    Args:
        lines: the lines to print, to which others may be added until the first step.
    """

    def announcing_step(
        data_iterator: Any, model: torch.nn.Module
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
        while lines:
            print_rank_0(lines.pop(0))
        return forward_step(data_iterator, model)

    return announcing_step


def _report(meter: SampleMeter, iteration: int) -> None:
    # Only the last rank has Megatron's writers.
    if not mpu.is_pipeline_last_stage(ignore_virtual=True):
        return
    milliseconds = torch.tensor(meter.milliseconds(), dtype=torch.float64, device="cuda")
    if mpu.get_tensor_model_parallel_world_size() > 1:
        # Only the first tensor-parallel rank loads samples.
        torch.distributed.broadcast(
            milliseconds, mpu.get_tensor_model_parallel_src_rank(), group=mpu.get_tensor_model_parallel_group()
        )
    args = get_args()
    samples = args.consumed_train_samples + get_current_global_batch_size()
    write_progress(
        samples * args.seq_length, milliseconds.item(), iteration, get_tensorboard_writer(), get_wandb_writer()
    )
