"""Megatron checkpoints of many architectures and layouts, saved and loaded by Megatron itself.

One start does a list of jobs, each with its own arguments and parallel layout. This module is also the script that is
started.
"""

import contextlib
import functools
import inspect
import os
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import forked_ranks
from forked_ranks import Results

BASE = (
    *("--num-layers", "4", "--hidden-size", "32", "--num-attention-heads", "4"),
    *("--seq-length", "32", "--max-position-embeddings", "32"),
    *("--attention-dropout", "0", "--hidden-dropout", "0"),
    *("--tokenizer-type", "NullTokenizer", "--vocab-size", "100", "--make-vocab-size-divisible-by", "8"),
    *(
        "--micro-batch-size",
        "2",
        "--train-iters",
        "10",
        "--lr",
        "1e-3",
        "--save-interval",
        "10",
        "--no-create-attention-mask-in-dataloader",
    ),
)

_UNTIED = "--untie-embeddings-and-output-weights"
_ROPE = ("--position-embedding-type", "rope")
_LLAMA = (
    *(_UNTIED, *_ROPE, "--normalization", "RMSNorm", "--swiglu", "--disable-bias-linear", "--ffn-hidden-size", "96"),
    *("--group-query-attention", "--num-query-groups", "2"),
)
_MOE = (
    *("--num-experts", "4", "--moe-router-topk", "2", "--moe-ffn-hidden-size", "48"),
    *("--moe-router-load-balancing-type", "aux_loss", "--moe-aux-loss-coeff", "0.01"),
    # The other dispatcher hands gloo what it does not take.
    *("--moe-token-dispatcher-type", "allgather"),
)
_HYBRID = (_UNTIED, *_ROPE, "--spec", "local_hybrid", "SPEC", "--disable-bias-linear", "--normalization", "RMSNorm")

#: Megatron-LM arguments by architecture, in addition to BASE.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "gpt": (_UNTIED,),
    "tied": (*_ROPE, "--apply-layernorm-1p"),
    "llama": _LLAMA,
    "qk_norm": (*_LLAMA, "--qk-layernorm"),
    "add_qkv_bias": (*_LLAMA, "--add-qkv-bias"),
    "moe": (*_LLAMA, *_MOE, "--moe-shared-expert-intermediate-size", "64"),
    "moe_bias": (
        *(*_LLAMA, *_MOE, "--moe-router-enable-expert-bias", "--moe-router-score-function", "sigmoid"),
        "--moe-shared-expert-intermediate-size",
        "64",
    ),
    "moe_freq": (*_LLAMA, *_MOE, "--moe-layer-freq", "([0,1]*2)"),
    "mtp": (*_LLAMA, "--mtp-num-layers", "1"),
    "mla": (
        *(_UNTIED, *_ROPE, "--normalization", "RMSNorm", "--swiglu", "--disable-bias-linear"),
        *("--multi-latent-attention", "--q-lora-rank", "16", "--kv-lora-rank", "16"),
        *("--qk-head-dim", "8", "--qk-pos-emb-head-dim", "4", "--v-head-dim", "8", "--qk-layernorm"),
    ),
    "hybrid": (*_HYBRID, "--hybrid-layer-pattern", "*-*-"),
    # Only to save and load: it cannot run here, so it has neither loss nor optimizer.
    "mamba": (
        *(*_HYBRID, "--hybrid-layer-pattern", "M*M-"),
        *("--mamba-head-dim", "8", "--mamba-num-groups", "2", "--mamba-state-dim", "16"),
    ),
    "mup": (_UNTIED, *_ROPE, "--use-mup", "--mup-base-hidden-size", "16"),
}


@dataclass(frozen=True)
class Layout:
    """Parallel sizes. Data parallelism takes the ranks that are left."""

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1


@dataclass(frozen=True, kw_only=True)
class SaveJob(Layout):
    """A checkpoint to save below the output folder. With an optimizer, after one training step."""

    name: str
    arch: str
    optimizer: Literal["none", "plain", "distributed"] = "none"
    format: Literal["torch_dist", "torch"] = "torch_dist"
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoadJob(Layout):
    """A checkpoint to start from, as `--pretrained-checkpoint`, in a model of other random weights."""

    name: str
    arch: str
    checkpoint: str
    arguments: tuple[str, ...] = ()
    #: Where to save the loaded model again, as torch_dist without optimizer.
    save: str | None = None
    #: Where to save the logits of the batch, as .npy: only without tensor and pipeline parallelism.
    logits: str | None = None


def save_checkpoints(folder: Path, jobs: Iterable[SaveJob], ranks: int = 4) -> Results:
    """Save the checkpoint of each job as `folder/<name>`. Fails if one cannot be saved.

    Returns by name:
        loss: of the saved weights, on the batch that `load_checkpoints` takes; None for mamba.
        seconds: that the job took.
    """
    return _run(folder, "save", jobs, ranks, may_fail=False)


def load_checkpoints(folder: Path, jobs: Iterable[LoadJob], ranks: int = 4, may_fail: bool = False) -> Results:
    """Load the checkpoint of each job; `folder` gets the log. Fails if one cannot be loaded, unless it may.

    Returns by name:
        loss: of a batch that depends on nothing but the size of the vocabulary; None for mamba.
        iteration: that a run would start from.
        passed_over: what Megatron said of weights that did not fit, and then passed over.
        seconds: that the job took.
        error: where the job failed, which then has nothing else.
    """
    return _run(folder, "load", jobs, ranks, may_fail)


def _run(folder: Path, command: str, jobs: Iterable[SaveJob | LoadJob], ranks: int, may_fail: bool) -> Results:
    return forked_ranks.run(__file__, folder, command, [{**asdict(job), "ranks": ranks} for job in jobs], may_fail)


def main() -> None:
    forked_ranks.import_megatron()
    _allow_more_norms()
    _allow_latent_attention()
    forked_ranks.serve(_work)


def _work(command: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    del job["ranks"]
    return _save(SaveJob(**job), folder) if command == "save" else _load(LoadJob(**job))


def _allow_more_norms() -> None:
    """Give `--apply-layernorm-1p` and `--sequence-parallel` the norms that only Transformer Engine and Apex have."""
    import torch
    from megatron.core.transformer.torch_norm import WrappedTorchNorm

    class ZeroCenteredLayerNorm(torch.nn.LayerNorm):
        def reset_parameters(self) -> None:
            torch.nn.init.zeros_(self.weight)
            torch.nn.init.zeros_(self.bias)

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.layer_norm(hidden, self.normalized_shape, self.weight + 1, self.bias, self.eps)

    def make_norm(cls: type, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> torch.nn.Module:
        kind: type[torch.nn.Module] = torch.nn.RMSNorm if config.normalization == "RMSNorm" else torch.nn.LayerNorm
        norm = (ZeroCenteredLayerNorm if config.layernorm_zero_centered_gamma else kind)(hidden_size, eps=eps)
        for parameter in norm.parameters():
            parameter.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
        return norm

    WrappedTorchNorm.__new__ = make_norm


def _allow_latent_attention() -> None:
    """Let multi-latent attention have Megatron's own attention, which lacks two arguments of Transformer Engine's."""
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    initialize = DotProductAttention.__init__

    @functools.wraps(initialize)
    def initialize_any(self: Any, *args: Any, k_channels: int = 0, v_channels: int = 0, **options: Any) -> None:
        initialize(self, *args, **options)

    DotProductAttention.__init__ = initialize_any


def _save(job: SaveJob, folder: Path) -> dict[str, Any]:
    options = {
        "none": ("--skip-train", "--no-save-optim"),
        "plain": (),
        "distributed": ("--use-distributed-optimizer",),
    }
    args, model, optimizer, scheduler = _set_up(
        job, *options[job.optimizer], "--ckpt-format", job.format, "--save", str(folder / job.name)
    )
    if optimizer is not None:
        _train(args, model, optimizer, scheduler)
    _save_checkpoint(model, optimizer, scheduler)
    return {"loss": _loss(args, model)}


def _load(job: LoadJob) -> dict[str, Any]:
    options: tuple[str, ...] = ("--skip-train", "--no-save-optim", "--no-save-rng", "--seed", "4321")
    if job.save is not None:
        options += ("--save", job.save)
    with _passed_over() as refusals:
        args, model, _, _ = _set_up(job, *options, "--pretrained-checkpoint", job.checkpoint)
    result = {"loss": _loss(args, model), "iteration": args.iteration, "passed_over": _of_all_ranks(refusals)}
    if job.logits is not None:
        _save_logits(Path(job.logits), args, model)
    if job.save is not None:
        _save_checkpoint(model, None, None)
    return result


def _set_up(job: SaveJob | LoadJob, *options: str) -> tuple[Namespace, list[Any], Any, Any]:
    """Return arguments, model chunks, optimizer and scheduler as Megatron's `pretrain` makes them."""
    from megatron.core.enums import ModelType
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training import argument_utils, pretrain
    from megatron.training.arguments import parse_and_validate_args
    from megatron.training.initialize import initialize_megatron
    from megatron.training.training import setup_model_and_optimizer

    from nca_plugin.megatron.pretraining import model_provider_of_megatron_lm, needs_model_provider

    sys.argv[1:] = _arguments(job, *options)
    args = parse_and_validate_args()
    initialize_megatron()
    if needs_model_provider(pretrain):
        provider = model_provider_of_megatron_lm(args)
        return args, *setup_model_and_optimizer(provider, ModelType.encoder_or_decoder, checkpointing_context={})
    config_from_args = (
        argument_utils.gpt_config_from_args
        if args.hybrid_layer_pattern is None
        else argument_utils.hybrid_config_from_args
    )
    model, optimizer, scheduler = setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        checkpointing_context={},
        cfg_container=argument_utils.pretrain_cfg_container_from_args(args, config_from_args(args)),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    return args, model, optimizer, scheduler


def _arguments(job: SaveJob | LoadJob, *options: str) -> list[str]:
    from nca_plugin.megatron.cuda_on_cpu import CPU_ARGUMENTS

    architecture = list(ARCHITECTURES[job.arch])
    virtual: tuple[str, ...] = ()
    if "--hybrid-layer-pattern" in architecture:
        # A hybrid's pattern says where the stages are.
        at = architecture.index("--hybrid-layer-pattern") + 1
        pattern, stages = architecture[at], job.pp * job.vpp
        length = len(pattern) // stages
        architecture[at] = "|".join(pattern[i : i + length] for i in range(0, len(pattern), length))
    elif job.vpp > 1:
        virtual = ("--num-virtual-stages-per-pipeline-rank", str(job.vpp))
    data_parallel = int(os.environ["WORLD_SIZE"]) // (job.tp * job.pp)
    # Megatron trains experts on tensor-parallel ranks only with it.
    sequence_parallel = ("--sequence-parallel",) if "--num-experts" in architecture and job.tp > 1 else ()
    # The interleaved schedule needs a multiple of the stages.
    micro_batches = job.pp if job.vpp > 1 else 1
    return [
        *(*BASE, *architecture, *virtual, *sequence_parallel, *options),
        *("--tensor-model-parallel-size", str(job.tp), "--pipeline-model-parallel-size", str(job.pp)),
        *("--expert-model-parallel-size", str(job.ep)),
        *("--global-batch-size", str(2 * data_parallel * micro_batches)),
        *(*CPU_ARGUMENTS, *job.arguments),
    ]


def _batches(args: Namespace) -> Iterator[dict[str, Any]]:
    """Yield one batch over and over: the same at every layout."""
    import torch

    generator = torch.Generator().manual_seed(args.vocab_size)
    shape = (args.micro_batch_size, args.seq_length + 1)
    tokens = torch.randint(args.vocab_size, shape, generator=generator)
    positions = torch.arange(args.seq_length).expand(shape[0], -1).contiguous()
    batch = {
        "tokens": tokens[:, :-1].contiguous(),
        "labels": tokens[:, 1:].contiguous(),
        "loss_mask": torch.ones(shape[0], args.seq_length),
        "position_ids": positions,
    }
    while True:
        yield batch


def _iterators(args: Namespace, model: list[Any]) -> Any:
    from megatron.core.rerun_state_machine import RerunDataIterator

    iterators = [RerunDataIterator(_batches(args)) for _ in model]
    return iterators if len(iterators) > 1 else iterators[0]


def _train(args: Namespace, model: list[Any], optimizer: Any, scheduler: Any) -> None:
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.utils import get_model_config
    from megatron.training.training import train_step

    from nca_plugin.megatron.step import forward_step

    for chunk in model:
        chunk.train()
    config = get_model_config(model[0])
    # What Megatron's `train` sets.
    config.grad_scale_func = optimizer.scale_loss
    from megatron.core.distributed import finalize_model_grads

    config.finalize_model_grads_func = finalize_model_grads
    train_step(
        forward_step,
        _iterators(args, model),
        model,
        optimizer,
        scheduler,
        config,
        get_forward_backward_func(),
        iteration=0,
    )


def _loss(args: Namespace, model: list[Any]) -> float | None:
    """Return the loss of the batch, None if the model cannot run; only the last rank's is right."""
    if "M" in (args.hybrid_layer_pattern or ""):
        return None
    import torch
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.rerun_state_machine import RerunMode, get_rerun_state_machine

    from nca_plugin.megatron.step import forward_step

    for chunk in model:
        chunk.eval()
    # As Megatron's `evaluate` does.
    get_rerun_state_machine().set_mode(RerunMode.DISABLED)
    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=_iterators(args, model),
            model=model,
            num_microbatches=get_num_microbatches(),
            seq_length=args.seq_length,
            micro_batch_size=args.micro_batch_size,
            forward_only=True,
        )
    total, tokens = outputs[0]["lm loss"].tolist() if outputs else (0.0, 1.0)
    return total / tokens


def _save_logits(path: Path, args: Namespace, model: list[Any]) -> None:
    import numpy as np
    import torch

    batch = next(_batches(args))
    with torch.no_grad():
        logits = model[0](batch["tokens"], batch["position_ids"], None)
    if torch.distributed.get_rank() == 0:
        np.save(path, logits.numpy())


def _save_checkpoint(model: list[Any], optimizer: Any, scheduler: Any) -> None:
    """Save as iteration 1."""
    from megatron.core.utils import unwrap_model
    from megatron.training.checkpointing import save_checkpoint
    from megatron.training.training import preprocess_common_state_dict

    groups = unwrap_model(model)[0].pg_collection
    of_save = {
        "tp_group": groups.tp,
        "pp_group": groups.pp,
        # megatron-core 0.18 has no groups of rematerialised weights, and asks for fewer.
        "dp_cp_group": getattr(groups, "dp_cp_gtp_remat", groups.dp_cp),
        "dp_group": groups.dp,
        "expt_dp_group": groups.expt_dp,
    }
    parameters = inspect.signature(save_checkpoint).parameters
    save_checkpoint(
        1,
        model,
        optimizer,
        scheduler,
        num_floating_point_operations_so_far=0,
        preprocess_common_state_dict_fn=preprocess_common_state_dict,
        **{name: group for name, group in of_save.items() if name in parameters},
    )


@contextlib.contextmanager
def _passed_over() -> Iterator[list[str]]:
    """Note what strict loading refuses: Megatron then loads again without strictness, and only prints what it left."""
    import torch

    load_state_dict, refusals = torch.nn.Module.load_state_dict, []

    @functools.wraps(load_state_dict)
    def load(self: torch.nn.Module, *args: Any, **options: Any) -> Any:
        try:
            return load_state_dict(self, *args, **options)
        except RuntimeError as error:
            refusals.append(" ".join(str(error).split()))
            raise

    torch.nn.Module.load_state_dict = load  # type: ignore[method-assign]
    yield refusals
    torch.nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _of_all_ranks(refusals: list[str]) -> list[str]:
    import torch

    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, refusals)
    return list(dict.fromkeys(refusal for of_rank in everyone for refusal in of_rank))


if __name__ == "__main__":
    main()
