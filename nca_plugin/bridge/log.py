"""Reports on the data of a Megatron-Bridge run, in the same places as its own figures: log, TensorBoard and W&B."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from megatron.bridge.training import gpt_step
from megatron.bridge.training.callbacks import Callback, CallbackContext
from megatron.bridge.training.state import GlobalState
from megatron.core.num_microbatches_calculator import get_current_global_batch_size, get_num_microbatches

from nca_plugin.bridge.dataset import SourceDatasetConfig
from nca_plugin.megatron.metrics import with_supervised_tokens, write_progress


def forward_step(
    state: GlobalState, data_iterator: Iterable[Any], model: torch.nn.Module, return_schedule_plan: bool = False
) -> tuple[torch.Tensor, Callable[[torch.Tensor], Any]]:
    """Run Megatron-Bridge's forward step of a GPT model, whose training loss then also reports supervised tokens."""
    output, loss = gpt_step.forward_step(state, data_iterator, model, return_schedule_plan)
    if not model.training or not isinstance(state.cfg.dataset, SourceDatasetConfig):
        return output, loss
    ranks = state.cfg.data_parallel_size * state.cfg.model.context_parallel_size
    return output, with_supervised_tokens(loss, ranks * get_num_microbatches())


class DataReport(Callback):
    """Writes the number of tokens and the generator's time on the rank that has Megatron-Bridge's writers."""

    def on_train_step_end(self, context: CallbackContext) -> None:
        state, dataset = context.state, context.state.cfg.dataset
        # This is called before the step is counted.
        iteration = state.train_state.step + 1
        if isinstance(dataset, SourceDatasetConfig) and iteration % state.cfg.logger.tensorboard_log_interval == 0:
            samples = state.train_state.consumed_train_samples + get_current_global_batch_size()
            write_progress(
                samples * dataset.seq_length,
                dataset.sample_milliseconds(),
                iteration,
                state.tensorboard_logger,
                state.wandb_logger,
            )
