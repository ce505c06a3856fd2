"""Measures what a checkpoint of a Megatron-LM run has learnt to do in context, and writes the numbers to a file:

    torchrun ... -m nca_plugin.launch.evaluate <the arguments of the run> --load CHECKPOINT \\
        --evaluation-out FILE.json [--evaluation-source nca://web] [--evaluation-data text_document ...] \\
        [--retrieval-samples 64]

The arguments are those of `nca_plugin.launch.megatron`. Training arguments have no effect, and only the file is
written. Any number of ranks and any parallelism are possible, as in a resumed run. The file holds:

    {"iteration": 1000,
     "in_context": {"uri", "samples", "accuracy", "loss", "oracle_loss",
                    "frames", "patch", "cell", "grid", "copy", "best_copy", "lookup", "limit",
                    "hard_share", "hard": {"patch", "best_copy", "lookup", "limit", "learned"}, "learned"},
     "perplexity": [{"path", "tokens", "loss", "perplexity", "documents"}],
     "retrieval": {"path", "samples", "segment", "skipped", "distances", "loss_repeated", "loss_control",
                   "accuracy_repeated", "accuracy_control", "gain"},
     "induction": {"period", "samples", "chance", "layers", "scores"}}

`in_context` is null without a source. The samples are from the source's test split, a stream that neither training nor
validation reads. `accuracy` and `loss` are over all supervised targets, and `oracle_loss` is the mean loss on the same
targets of a predictor that knows the law of the source, see nca_plugin.sources.details; it is null for a source without
one. Losses are in nats per token. All that follows is null for a source without frames. `patch`, `cell`, `grid` and
`copy` are accuracies by frame, see nca_plugin.probes.accuracy. `best_copy`, `lookup` and `limit` are the shares of
patches that are predicted by copying, by looking up the neighbourhoods seen so far, and by one who knows the rule.
`hard` has the same for the hard samples alone, whose share is `hard_share`. `learned` is how far the model comes from
the best copy, 0, to the look-up, 1, on the hard samples: by frame, and over all frames from the third on. See
nca_plugin.probes.ceilings.

`perplexity` has an entry for each indexed dataset or generated dataset in `--evaluation-data`. Every token of a file
but the first is predicted once, in sequences of the run's length that join the documents. In a generated dataset of
`nca-plugin generate`, only supervised targets count. `loss` is Megatron's, in nats per token, and `tokens` is the
number of counted tokens. `documents` has the number of counted tokens and the sum of their losses for each document.

`retrieval` compares a segment of text, of the first dataset in `--evaluation-data`, that has occurred before with one
that has not, at growing distances: the mean loss and accuracy of its tokens and, as `gain`, by how much the loss is
lower if it has. See nca_plugin.probes.retrieval. It is null with --retrieval-samples 0.

`induction` has the prefix-matching score of every head of every layer with attention, and as `chance` that of a head
which attends to all positions equally, see nca_plugin.probes.induction. It is null with --induction-samples 0. The
sequences are two equal blocks of `period` random ids of the run's vocabulary. Attention within a window, with sinks or
with compressed keys is refused.
"""

import json
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.embedding_rows import check_embedding_rows
from nca_plugin.checkpoint.opened import Checkpoint, open_checkpoint
from nca_plugin.checkpoint.tracker import TRACKER
from nca_plugin.errors import NCAPluginError, in_context, one_line_errors
from nca_plugin.files import check_target, complete_files, path_option
from nca_plugin.indexed.source import is_generated
from nca_plugin.launch.megatron import DEFAULTS, complete_parser, option_names, pass_to_megatron
from nca_plugin.launch.process import Parser, die_with_torchrun
from nca_plugin.launch.ranks import take_rank
from nca_plugin.sources import Source, parse
from nca_plugin.this_rank import must_check, print_rank_0

#: Arguments of Megatron-LM that an evaluation overrides. Not all releases have all of them.
_OVERRIDES: Final[dict[str, Any]] = {
    # These would write files.
    **dict.fromkeys(("save", "tensorboard_dir", "wandb_project", "logits_save_dir", "ckpt_convert_format")),
    **dict.fromkeys(("non_persistent_ckpt_type", "flight_recorder_dump_path", "moe_routing_trace_path")),
    **dict.fromkeys(("enable_one_logger", "log_progress", "async_save", "use_persistent_ckpt_worker"), False),
    "config_logger_dir": "",
    # Only weights are loaded, and only from --load. With --finetune Megatron would not report the iteration.
    **dict.fromkeys(("no_load_optim", "no_load_rng"), True),
    **dict.fromkeys(("finetune", "moe_use_upcycling"), False),
    "pretrained_checkpoint": None,
    # These are for training, and may not fit the ranks of an evaluation.
    "skip_train": True,
    **dict.fromkeys(("global_batch_size", "rampup_batch_size", "step_batch_size_schedule")),
    **dict.fromkeys(("eval_global_batch_size", "eval_micro_batch_size")),
    **dict.fromkeys(("adlr_autoresume", "inprocess_restart", "exit_signal_handler"), False),
    # The hooks that read attention need whole parameters of a layer and whole sequences on each rank.
    **dict.fromkeys(("use_torch_fsdp2", "use_megatron_fsdp", "tp_comm_overlap"), False),
    "context_parallel_size": 1,
    # A captured graph would bypass these hooks.
    **dict.fromkeys(("enable_cuda_graph", "external_cuda_graph"), False),
    "cuda_graph_impl": "none",
    "cuda_graph_modules": [],
    "cuda_graph_scope_deprecated": None,
}


def main() -> None:
    """Evaluate the checkpoint that the arguments of this process name."""
    die_with_torchrun()
    with one_line_errors(of_every_rank=False):
        take_rank()
        evaluate(sys.argv[1:])


def evaluate(arguments: list[str]) -> None:
    """Write the evaluation of a checkpoint.

    Args:
        arguments: Megatron-LM's arguments, `--data-source` and the like, and those of the evaluation.

    Raises:
        NCAPluginError: if arguments are wrong, the checkpoint is missing or does not fit them, or the file cannot be
            written.
    """
    options, arguments = _parser().parse_known_args(arguments)
    for name in ("evaluation_samples", "retrieval_samples", "induction_samples"):
        least = 1 if name == "evaluation_samples" else 0
        if getattr(options, name) < least:
            raise NCAPluginError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least {least}")
    if options.retrieval_samples and not options.evaluation_data:
        raise NCAPluginError("--retrieval-samples needs a text: name it with --evaluation-data")
    if options.retrieval_samples and is_generated(options.evaluation_data[0]):
        raise NCAPluginError(
            f"--retrieval-samples needs a text, but {options.evaluation_data[0]} is a generated dataset: name the text "
            "first in --evaluation-data"
        )
    check_target(options.evaluation_out)
    source = None if options.evaluation_source is None else parse(options.evaluation_source).for_split("test")
    pass_to_megatron(arguments, is_announced=True)
    from nca_plugin.megatron.assertions import argument_errors

    with argument_errors(partial(option_names, str)):
        args = _parsed_by_megatron()
    if source is not None:
        from nca_plugin.megatron.dataset import check_fit

        with in_context("--evaluation-source"):
            check_fit(source, args.seq_length, args.padded_vocab_size)
    with one_line_errors(of_every_rank=True):
        _evaluate(args, options, source)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m nca_plugin.launch.evaluate",
        description="Evaluate a checkpoint of a Megatron-LM run; every other argument is the run's.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--evaluation-out", type=path_option, required=True, metavar="FILE", help="the JSON file to write"
    )
    parser.add_argument("--evaluation-source", metavar="URI", help="source of samples to predict, such as nca://web")
    parser.add_argument(
        "--evaluation-data", nargs="+", default=[], metavar="PREFIX", help="indexed datasets to measure perplexity on"
    )
    parser.add_argument(
        "--evaluation-samples", type=int, default=128, metavar="N", help="samples of the source (default: 128)"
    )
    parser.add_argument(
        "--retrieval-samples", type=int, default=0, metavar="N", help="segments to find again in text (default: 0)"
    )
    parser.add_argument(
        "--induction-samples", type=int, default=16, metavar="N", help="repeated sequences; 0 for none (default: 16)"
    )
    return parser


def _parsed_by_megatron() -> Namespace:
    """Return Megatron's arguments for this process with `_OVERRIDES`, and make them Megatron's global arguments.

    Raises:
        NCAPluginError: if there is no checkpoint, or it does not fit.
    """
    from megatron.training import get_tokenizer
    from megatron.training.arguments import parse_args, validate_args
    from megatron.training.checkpointing import load_args_from_checkpoint
    from megatron.training.global_vars import set_global_variables

    args = parse_args(lambda parser: complete_parser(parser, str))
    if args.yaml_cfg is not None:
        raise NCAPluginError("--yaml-cfg is not supported here: write the arguments of the run on the command line")
    for name, value in _OVERRIDES.items():
        if hasattr(args, name):
            setattr(args, name, value)
    checkpoint = _checkpoint(args)
    if args.use_checkpoint_args:
        load_args_from_checkpoint(args)
    validate_args(args, DEFAULTS)
    set_global_variables(args)
    if checkpoint is not None and must_check():
        vocab_size = get_tokenizer().vocab_size
        check_embedding_rows(checkpoint, args.padded_vocab_size, vocab_size, args.tensor_model_parallel_size)
    return args


def _checkpoint(args: Namespace) -> Checkpoint | None:
    """Return the checkpoint that Megatron will load; None in object storage, which only Megatron can read."""
    from megatron.training.checkpointing import checkpoint_exists

    if args.load is None:
        raise NCAPluginError("--load is missing: name the checkpoint to evaluate")
    checkpoint = None
    if "://" not in args.load:
        checkpoint = open_checkpoint(Path(args.load))
        if args.ckpt_step:
            checkpoint = open_checkpoint(Path(args.load) / f"iter_{args.ckpt_step:07d}")
    # Without a checkpoint, Megatron would continue with initial weights.
    if not checkpoint_exists(args.load) and not (args.ckpt_step and checkpoint):
        raise NCAPluginError(
            f"checkpoint {args.load} has no {TRACKER}: name the folder that a run saved to, with --ckpt-step for one "
            "of its iterations"
        )
    return checkpoint


def _evaluate(args: Namespace, options: Namespace, source: Source | None) -> None:
    import torch

    from nca_plugin.probes import measurements
    from nca_plugin.probes.forward import build_model, load_weights

    model = build_model(args)
    iteration = load_weights(model, args)
    retrieval = None
    if options.retrieval_samples:
        # First, because it may refuse the text.
        retrieval = measurements.retrieval(model, args, options.evaluation_data[0], options.retrieval_samples)
    result = {
        "iteration": iteration,
        "in_context": (
            None if source is None else measurements.in_context(model, args, source, options.evaluation_samples)
        ),
        "perplexity": [measurements.perplexity(model, args, path) for path in options.evaluation_data],
        "retrieval": retrieval,
        "induction": (
            measurements.induction(model, args, options.induction_samples) if options.induction_samples else None
        ),
    }
    # Every rank has the result.
    if torch.distributed.get_rank() == 0:
        with complete_files(options.evaluation_out) as (partial,):
            partial.write_text(json.dumps(result, indent=1) + "\n")
    print_rank_0(f"nca-plugin: evaluation of iteration {iteration} of {args.load}: {options.evaluation_out}")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
