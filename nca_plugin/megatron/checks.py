"""Refuses arguments of Megatron-LM that would train on less or other data than they say, or end a run halfway.

They are refused before a model is built. The checks follow megatron-core 0.19.2.
"""

import re
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator
from megatron.training.utils import get_blend_and_blend_per_split

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.megatron.dataset import is_ours
from nca_plugin.megatron.fused_kernels import has_spec_of_megatron, installed
from nca_plugin.megatron.order import check_loader, check_targets
from nca_plugin.megatron.text_datasets import check_trains, split_shares
from nca_plugin.sources import is_source
from nca_plugin.typed_numbers import is_number


def check_loading(args: Any, has_source: bool) -> None:
    """Raise `NCAPluginError` if the data of Megatron's arguments cannot be loaded as they say.

    Args:
        has_source: whether a source or a generated dataset is among the data.
    """
    if args.dataloader_type == "external":
        raise NCAPluginError(
            "--dataloader-type external expects a data loader of your own, and this launcher has none: use single"
        )
    if has_source:
        check_order(args)
    if args.sft:
        _check_sft(args, has_source)
    _check_code_of_layers(args)
    _check_batch_sizes(args)
    _check_validation(args)


def _check_code_of_layers(args: Any) -> None:
    """Refuse layers without code, which Megatron would notice only when it builds them."""
    pattern = args.hybrid_layer_pattern
    if args.spec and args.spec[0] != "local":
        try:
            import_module(args.spec[0])
        except ImportError as error:
            # Megatron would use its own layers instead.
            raise NCAPluginError(f"--spec {' '.join(args.spec)} cannot be imported: {one_line(error)}") from error
    if has_spec_of_megatron(args):
        if "M" in (pattern or "") and find_spec("mamba_ssm") is None:
            raise NCAPluginError(
                f"--hybrid-layer-pattern {pattern}: M layers need mamba-ssm, which is not installed: pip install "
                "mamba-ssm, on a machine with CUDA"
            )
        if pattern is not None and not installed().has_transformer_engine:
            raise NCAPluginError(
                f"--hybrid-layer-pattern {pattern}: Megatron makes layers of a hybrid with Transformer Engine only, "
                "which is not installed: run where it is, or name layers of your own with --spec"
            )
        if pattern is None and args.spec is not None and ".hybrid." in args.spec[0]:
            raise NCAPluginError(
                f"--spec {' '.join(args.spec)} is that of a hybrid, whose layers --hybrid-layer-pattern names: add it, "
                "or leave --spec out"
            )
    has_torch_norms = args.transformer_impl == "local" and (args.normalization == "RMSNorm" or not find_spec("apex"))
    if getattr(args, "layernorm_zero_centered_gamma", False) and has_torch_norms:
        raise NCAPluginError(
            "--apply-layernorm-1p needs a norm of Transformer Engine or of NVIDIA's Apex, and this run has PyTorch's "
            f"{args.normalization}: leave it out, or run where they are"
        )


def check_order(args: Any) -> None:
    """Raise `NCAPluginError` if samples of a source, or their weights, would depend on the layout or be repeated.

    Call this only if a source or a generated dataset is among the data.
    """
    check_loader(args.dataloader_type, "--dataloader-type cyclic")
    if args.phase_transition_iterations:
        raise NCAPluginError(
            "--phase-transition-iterations begins the data anew in each phase, and a source would repeat its samples: "
            "start a run for each phase, with another seed in its data path"
        )
    _check_context_parallel(args, "the start of a source's sample")


def _check_context_parallel(args: Any, what: str) -> None:
    option, way_out = "--context-parallel-size", "--calculate-per-token-loss"
    check_targets(args.context_parallel_size, args.calculate_per_token_loss, option, way_out, what)


def _check_sft(args: Any, has_source: bool) -> None:
    """Refuse arguments that do not fit examples of a task."""
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    if has_source or (blend is None and blend_per_split is None):
        raise NCAPluginError(
            "--sft trains on examples: name JSONL files of them with --train-data-path and --valid-data-path"
        )
    if args.create_attention_mask_in_dataloader:
        raise NCAPluginError("--sft needs --no-create-attention-mask-in-dataloader")
    for name in ("reset_position_ids", "reset_attention_mask", "eod_mask_loss"):
        if getattr(args, name):
            raise NCAPluginError(f"--{name.replace('_', '-')} is for documents, and --sft has none: leave it out")
    _check_context_parallel(args, "a prompt")


def check_paths(paths: Sequence[str]) -> None:
    """Raise `NCAPluginError` for a string that cannot be a data path, for which Megatron would look for files."""
    for path in paths:
        if not path:
            raise NCAPluginError("a data path is empty: name a source, such as nca://web, or an indexed dataset")
        if is_number(path) and not Path(f"{path}.idx").exists():
            raise NCAPluginError(f"{path} stands where a data path is expected: a blend is weight path weight path ...")
        if re.match(r"\w+:/(?!/)", path):
            raise NCAPluginError(f"data path {path}: a source has two slashes, such as nca://web")


def _check_batch_sizes(args: Any) -> None:
    if args.rampup_batch_size is not None:
        raise NCAPluginError(
            "Megatron ignores --rampup-batch-size: in its place and that of --global-batch-size give "
            f"--step-batch-size-schedule '{_schedule(args)}' (tokens:batch size)"
        )
    if args.step_batch_size_schedule is None:
        return
    if args.train_samples is None:
        raise NCAPluginError(
            "--step-batch-size-schedule with --train-iters runs out of samples, which Megatron counts by the smallest "
            "batch: use --train-samples"
        )
    consumed = _samples_of_whole_batches(args)
    if consumed != args.train_samples:
        raise NCAPluginError(
            f"--train-samples {args.train_samples} ends within a batch of --step-batch-size-schedule, which Megatron "
            f"cannot fill: use --train-samples {consumed}"
        )


def _schedule(args: Any) -> str:
    """Return the batch sizes of `--rampup-batch-size` as a `--step-batch-size-schedule`."""
    start, increment, samples = map(int, args.rampup_batch_size)
    increments = max(1, (args.global_batch_size - start) // max(1, increment))
    each = samples // increments
    steps = [f"{i * each * args.seq_length}:{start + i * increment}" for i in range(increments)]
    return " ".join([*steps, f"{samples * args.seq_length}:{args.global_batch_size}"])


def _samples_of_whole_batches(args: Any) -> int:
    try:
        sizes = StepBatchsizeNumMicroBatchesCalculator(
            micro_batch_size=args.micro_batch_size,
            data_parallel_size=args.data_parallel_size,
            decrease_batch_size_if_needed=False,
            rank=-1,
            schedule=args.step_batch_size_schedule,
            seq_length=args.seq_length,
        )
        for threshold, _ in sizes.schedule:
            sizes.update(threshold, consistency_check=True)
    except (AssertionError, ValueError) as error:
        raise NCAPluginError(f"--step-batch-size-schedule '{args.step_batch_size_schedule}': {error}") from error
    consumed = 0
    for (_, size), (end, _) in pairwise([*sizes.schedule, (args.train_samples, 0)]):
        remaining = min(end, args.train_samples) - consumed
        consumed += max(0, -(-remaining // size)) * size
    return consumed


def _check_validation(args: Any) -> None:
    """Refuse arguments with which Megatron's validation ends in a traceback or reads samples more than once."""
    if args.full_validation != args.multiple_validation_sets:
        present, missing = "--full-validation", "--multiple-validation-sets"
        if args.multiple_validation_sets:
            present, missing = missing, present
        raise NCAPluginError(f"Megatron's {present} works only with {missing}: add it, for one validation set too")
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    if blend is not None and not args.skip_train and args.split:
        check_trains(args.split, "--split")
    if args.full_validation:
        _check_full_validation(args, _paths(blend_per_split[1] if blend_per_split else blend))
        has_test = blend_per_split[2] is not None if blend_per_split else _shares(args)[2] > 0
        if has_test:
            raise NCAPluginError(
                "--full-validation leaves Megatron unable to test: leave out --test-data-path, or end --split with 0"
            )
    elif args.eval_iters and not _has_validation(args, blend, blend_per_split):
        raise NCAPluginError(
            "--eval-iters above 0 without validation data ends the run when it validates: add --eval-iters 0, or give "
            "--split a second part or the run --valid-data-path"
        )
    elif blend_per_split and not args.eval_iters and not all(map(is_ours, _paths(blend_per_split[1]))):
        raise NCAPluginError(
            "--eval-iters 0 reads nothing of --valid-data-path, which Megatron refuses: leave one of the two out"
        )
    elif len(_paths(blend)) > 1 and not args.eval_iters and any(_shares(args)[1:]):
        raise NCAPluginError(
            "--eval-iters 0 leaves a blend without validation samples, which Megatron refuses: add --split 100,0,0"
        )


def _has_validation(args: Any, blend: Any, blend_per_split: Any) -> bool:
    if blend_per_split:
        return blend_per_split[1] is not None
    return blend is None or _shares(args)[1] > 0


def _check_full_validation(args: Any, paths: Sequence[str]) -> None:
    for path in filter(is_source, paths):
        raise NCAPluginError(
            f"--full-validation needs an end, and source {path} has none: validate on a dataset that nca-plugin "
            "generate wrote from it, or leave out --full-validation"
        )
    if args.virtual_pipeline_model_parallel_size is not None:
        raise NCAPluginError("--full-validation does not run on virtual pipeline stages: leave one of the two out")
    ranks = args.data_parallel_size
    if (args.eval_micro_batch_size, args.eval_global_batch_size) != (1, ranks):
        raise NCAPluginError(
            "--full-validation reads one sample a rank and step, so that larger batches read samples again: add "
            f"--eval-micro-batch-size 1 --eval-global-batch-size {ranks}"
        )


def _paths(blend: tuple[Sequence[str], Any] | None) -> Sequence[str]:
    return () if blend is None else blend[0]


def _shares(args: Any) -> list[float]:
    """Return the shares of training, validation and test in `--split`."""
    return split_shares(args.split, "--split") if args.split else [0.0, 0.0, 0.0]
