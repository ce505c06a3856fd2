"""The model of a Megatron run and its forward passes, at any tensor, pipeline and data parallelism.

Every rank calls these functions with the same arguments and gets the complete results. Model, checkpoint and schedule
are Megatron's own.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from megatron.core import mpu
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.training import argument_utils
from megatron.training import pretrain as megatron_pretrain
from megatron.training.checkpointing import load_checkpoint
from megatron.training.initialize import initialize_megatron
from megatron.training.training import get_model
from numpy.typing import NDArray
from torch.distributed.checkpoint.api import CheckpointException

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.megatron.pretraining import embedding_ranks, model_provider_of_megatron_lm, needs_model_provider
from nca_plugin.probes.attention import induction_scores


@dataclass(frozen=True, eq=False, slots=True)
class InductionScores:
    """Prefix-matching scores of a model.

    Attributes:
        layers: numbers of the layers with attention, from 1, in order.
        scores: float64 [heads] for each of these layers, 0 .. 1.
    """

    layers: tuple[int, ...]
    scores: tuple[NDArray[np.float64], ...]


def build_model(args: Namespace) -> list[torch.nn.Module]:
    """Return the parts of the model on this rank, as `pretrain` builds them but without what only training needs. This
    starts Megatron's process groups.

    Raises:
        NCAPluginError: with megatron-core 0.18, Megatron-LM's files are not on the path.
    """
    initialize_megatron(get_embedding_ranks=partial(embedding_ranks, args))
    if needs_model_provider(megatron_pretrain):
        model: list[torch.nn.Module] = get_model(model_provider_of_megatron_lm(args), wrap_with_ddp=False)
    else:
        is_hybrid = args.hybrid_layer_pattern is not None
        config_from_args = argument_utils.hybrid_config_from_args if is_hybrid else argument_utils.gpt_config_from_args
        config = config_from_args(args)
        model = config.get_builder_cls()(config).build_distributed_models(
            pg_collection=ProcessGroupCollection.use_mpu_process_groups(), wrap_with_ddp=False
        )
    for chunk in model:
        # With --use-cpu-initialization the builder leaves the weights on the CPU.
        chunk.cuda(torch.cuda.current_device())
        chunk.eval()
    return model


def load_weights(model: list[torch.nn.Module], args: Namespace) -> int:
    """Load the weights of the checkpoint `--load`. Return its iteration, 0 for a start checkpoint.

    Raises:
        NCAPluginError: the checkpoint cannot be loaded into this model.
    """
    failure: BaseException
    try:
        return int(load_checkpoint(model, None, None)[0])
    # CheckpointException is not an Exception, and Megatron exits the process on some errors.
    except CheckpointException as error:
        failure = next(iter(error.failures.values()))[0]
    except (Exception, SystemExit) as error:
        failure = error
    raise NCAPluginError(
        f"checkpoint {args.load} cannot be loaded into this model: {one_line(failure) or repr(failure)}; give the "
        "arguments of the run that wrote it"
    ) from failure


def predictions(
    model: list[torch.nn.Module], tokens: NDArray[np.int32], micro_batch_size: int, num_ids: int
) -> NDArray[np.int32]:
    """Return the most likely next token at each position, int32 [samples, S]; the lowest id if several are equal.

    Args:
        tokens: int32 [samples, S], the inputs.
        num_ids: vocabulary size; output rows above it are padding.
    """
    shares = _Shares.of(tokens.shape[0], micro_batch_size)
    output = _forward(model, tokens, shares, partial(_most_likely, num_ids=num_ids))
    result = np.empty(tokens.shape, np.int32)
    _collect(output, shares, result)
    return result


def token_losses(model: list[torch.nn.Module], tokens: NDArray[np.int32], micro_batch_size: int) -> NDArray[np.float32]:
    """Return Megatron's own loss of each target in nats, float32 [samples, S].

    Args:
        tokens: int32 [samples, S + 1], the inputs and the last target.
    """
    shares = _Shares.of(tokens.shape[0], micro_batch_size)
    output = _forward(model, tokens, shares, lambda losses: losses.float(), of_targets=True)
    result = np.empty((tokens.shape[0], tokens.shape[1] - 1), np.float32)
    _collect(output, shares, result)
    return result


def model_induction_scores(
    model: list[torch.nn.Module], tokens: NDArray[np.int32], period: int, micro_batch_size: int
) -> InductionScores:
    """Return the prefix-matching scores of all heads of the model.

    Args:
        tokens: int32 [samples, S], which repeat blocks of `period` tokens.

    Raises:
        NCAPluginError: the probabilities of an attention cannot be recomputed.
    """
    shares = _Shares.of(tokens.shape[0], micro_batch_size)
    with induction_scores(model, period) as scores:
        _forward(model, tokens, shares, lambda _: None)
    mine = {layer: torch.cat(batches).double().numpy() for layer, batches in scores.items()}
    heads: dict[int, dict[int, NDArray[np.float64]]] = {}
    ranks = (mpu.get_data_parallel_rank(), mpu.get_tensor_model_parallel_rank())
    for (dp_rank, tp_rank), by_layer in _gathered((ranks, mine)):
        indices = shares.samples_of(dp_rank)
        for layer, rows in by_layer.items():
            of_rank = heads.setdefault(layer, {}).setdefault(tp_rank, np.empty((tokens.shape[0], rows.shape[1])))
            of_rank[indices] = rows[: indices.size]
    layers = tuple(sorted(heads))
    # Tensor-parallel ranks hold consecutive heads. The mean is over samples in one order, whichever rank had them.
    whole = (np.concatenate([by_rank for _, by_rank in sorted(heads[layer].items())], axis=1) for layer in layers)
    return InductionScores(layers, tuple(of_layer.mean(axis=0) for of_layer in whole))


@dataclass(frozen=True, slots=True)
class _Shares:
    """Which samples each data-parallel rank passes through the model. All ranks pass the same number of micro-batches,
    because experts may be spread over them."""

    num_samples: int
    micro_batch_size: int
    num_ranks: int
    num_micro_batches: int

    @classmethod
    def of(cls, num_samples: int, micro_batch_size: int) -> "_Shares":
        num_ranks = mpu.get_data_parallel_world_size()
        num_micro_batches = -(-num_samples // (num_ranks * micro_batch_size))
        if mpu.get_virtual_pipeline_model_parallel_world_size() is not None:
            # The interleaved schedule needs a multiple of the number of pipeline stages.
            stages = mpu.get_pipeline_model_parallel_world_size()
            num_micro_batches = -(-num_micro_batches // stages) * stages
        return cls(num_samples, micro_batch_size, num_ranks, num_micro_batches)

    def samples_of(self, rank: int) -> NDArray[np.int64]:
        """Return the indices of a rank's samples, in the order in which the rank passes them."""
        return np.arange(rank, self.num_samples, self.num_ranks)

    def micro_batches(self, tokens: NDArray[np.int32], rank: int) -> Iterator[torch.Tensor]:
        """Yield int64 [micro_batch_size, S] on the device. Sample 0 fills the empty places at the end."""
        indices = np.zeros(self.num_micro_batches * self.micro_batch_size, np.int64)
        own = self.samples_of(rank)
        indices[: own.size] = own
        for batch in indices.reshape(self.num_micro_batches, self.micro_batch_size):
            yield torch.from_numpy(tokens[batch]).long().cuda()


def _forward(
    model: list[torch.nn.Module], tokens: NDArray[np.int32], shares: _Shares, reduce: Any, of_targets: bool = False
) -> list[Any]:
    """Pass this rank's samples through the model. Return `reduce(output)` for each micro-batch on the last stage.

    Args:
        of_targets: whether the last token of a sample is only a target, and the output is the loss of each target.
    """

    def forward_step(data_iterator: Iterator[torch.Tensor], chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
        batch = next(data_iterator)
        inputs, labels = (batch[:, :-1], batch[:, 1:].contiguous()) if of_targets else (batch, None)
        positions = torch.arange(inputs.size(1), device=batch.device).expand_as(inputs)
        # Without a mask, attention is causal. Without labels, the output is logits, [batch, S, rows of this rank].
        return chunk(inputs, positions, None, labels=labels), lambda output, non_loss_data: reduce(output)

    rank = mpu.get_data_parallel_rank()
    iterators = [shares.micro_batches(tokens, rank) for _ in model]
    with torch.no_grad():
        result: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iterators if len(model) > 1 else iterators[0],
            model=model,
            num_microbatches=shares.num_micro_batches,
            seq_length=tokens.shape[1] - of_targets,
            micro_batch_size=shares.micro_batch_size,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return result


def _collect(output: list[torch.Tensor], shares: _Shares, result: NDArray[Any]) -> None:
    """Fill `result`, which has a row for each sample, on every rank with the outputs of `_forward` on all ranks."""
    # Only the last stage has an output, which is the same on all its tensor-parallel ranks.
    is_mine = output and mpu.get_tensor_model_parallel_rank() == 0
    mine = np.concatenate([batch.cpu().numpy() for batch in output]) if is_mine else None
    for rank, rows in _gathered((mpu.get_data_parallel_rank(), mine)):
        if rows is not None:
            indices = shares.samples_of(rank)
            result[indices] = rows[: indices.size]


def _most_likely(logits: torch.Tensor, num_ids: int) -> torch.Tensor:
    """Return the ids of the largest logits of all ranks, int32 [batch, S], for this rank's [batch, S, rows]."""
    group = mpu.get_tensor_model_parallel_group()
    first = mpu.get_tensor_model_parallel_rank() * logits.size(-1)
    logits[..., max(0, num_ids - first) :] = -torch.inf
    best, rows = (tensor.contiguous() for tensor in logits.float().max(dim=-1))
    values, ids = ([torch.empty_like(tensor) for _ in range(group.size())] for tensor in (best, rows))
    torch.distributed.all_gather(values, best, group=group)
    torch.distributed.all_gather(ids, rows + first, group=group)
    # argmax takes the first of equal values, as within a rank.
    winner = torch.stack(values).argmax(dim=0, keepdim=True)
    return torch.stack(ids).gather(0, winner)[0].int()


def _gathered(mine: Any) -> Sequence[Any]:
    result: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(result, mine)
    return result
