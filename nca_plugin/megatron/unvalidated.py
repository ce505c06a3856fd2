"""Checks Megatron-LM's arguments before Megatron validates them.

Megatron itself would report these mistakes only after it has built the model, or not at all, or without naming the
arguments.
"""

import importlib.util
import math
from argparse import Namespace
from contextlib import suppress
from typing import Final

from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron import cpu_mode
from nca_plugin.megatron.cpu_limits import check_cpu_mode
from nca_plugin.megatron.option_names import OptionNames
from nca_plugin.megatron.paths import check_files
from nca_plugin.text.hub import is_reachable
from nca_plugin.text.inputs import exists
from nca_plugin.this_rank import must_check

#: Intervals of data that are saved besides checkpoints, in the same folder.
_INTERVALS_OF_SAVED: Final = (
    *("save_params_interval", "save_activations_interval", "save_tokens_per_expert_interval"),
    *("save_wgrads_interval", "save_dgrads_interval"),
)
#: The least values of arguments that are numbers. A missing value is not checked.
_LEAST: Final = {
    **dict.fromkeys(("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size"), 1),
    **dict.fromkeys(
        ("expert_model_parallel_size", "expert_tensor_parallel_size", "num_distributed_optimizer_instances"), 1
    ),
    **dict.fromkeys(("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size"), 1),
    **dict.fromkeys(("kv_channels", "seq_length", "max_position_embeddings", "make_vocab_size_divisible_by"), 1),
    **dict.fromkeys(("micro_batch_size", "global_batch_size", "eval_micro_batch_size", "eval_global_batch_size"), 1),
    **dict.fromkeys(("train_iters", "train_samples", "eval_interval", "log_interval", "tensorboard_log_interval"), 1),
    **dict.fromkeys(("save_interval", "exit_interval", "vocab_size", "padded_vocab_size", "moe_router_topk"), 1),
    **dict.fromkeys(("num_dataset_builder_threads", "moe_ffn_hidden_size", "lr_decay_iters", "lr_decay_samples"), 1),
    **dict.fromkeys(("num_virtual_stages_per_pipeline_rank", "num_layers_per_virtual_pipeline_stage"), 1),
    **dict.fromkeys(("eval_iters", "num_workers", "num_experts", "lr_warmup_iters", "lr_warmup_samples", "seed"), 0),
    **dict.fromkeys(("lr_wsd_decay_iters", "lr_wsd_decay_samples", "recompute_num_layers", "moe_layer_freq"), 1),
    **dict.fromkeys(("distributed_timeout_minutes", "rotary_base", "rotary_seq_len_interpolation_factor"), 1),
    **dict.fromkeys(("manual_gc_interval", "mid_level_dataset_surplus", "start_eval_at_iter"), 0),
    **dict.fromkeys(("decoupled_lr", "decoupled_min_lr", "rotary_percent"), 0),
    **dict.fromkeys(("lr", "min_lr", "lr_warmup_init", "lr_warmup_fraction", "weight_decay"), 0),
    **dict.fromkeys(("attention_dropout", "hidden_dropout"), 0),
    **dict.fromkeys(_INTERVALS_OF_SAVED, 1),
    **dict.fromkeys(("init_method_std", "layernorm_epsilon", "adam_eps", "mtp_num_layers"), 0),
    # Megatron does not clip if the value is 0 or less.
    "clip_grad": -math.inf,
}
_MOST: Final = {
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "rotary_percent"), 1),
    # No run is longer, and the number of samples, with the batch size, stays within 64 bits.
    **dict.fromkeys(("train_iters", "train_samples", "eval_iters"), 1 << 40),
    # These limit the number of processes on each rank, and the seed to what NumPy accepts.
    **{"num_workers": 1024, "seed": (1 << 31) - 1},
}
_DATA_OF_SPLITS: Final = ("train_data_path", "valid_data_path", "test_data_path")
_DATA: Final = ("data_path", "data_args_path", *_DATA_OF_SPLITS, "per_split_data_args_path", "mock_data")
#: Arguments that need their own dataset or forward step, or with which megatron-core 0.19.2 ends in a traceback.
_UNSUPPORTED: Final = (
    *("perform_rl_step", "rl_profile", "config_logger_dir", "init_method_xavier_uniform", "lazy_mpu_init"),
    *("fim_data", "logits_load_dir"),
    *("dataloader_inter_document_masking", "hybrid_context_parallel", "overlap_moe_expert_parallel_comm"),
)
_TOKENIZERS_OF_IMAGES: Final = ("MultimodalTokenizer", "NullMultimodalTokenizer")
#: The package that an argument needs. Megatron looks for it late, on one rank, or goes on without it.
_PACKAGES: Final = {
    "wandb_project": "wandb",
    "tensorboard_dir": "tensorboard",
    "enable_ft_package": "nvidia_resiliency_ext",
    "inprocess_restart": "nvidia_resiliency_ext",
    "fault_injector_ranks": "nvidia_resiliency_ext",
    "fault_injector_num_ranks": "nvidia_resiliency_ext",
    "log_energy": "pynvml",
    "log_device_memory_used": "pynvml",
    "adlr_autoresume": "userlib",
    "enable_msc": "multistorageclient",
}


def check_unvalidated(args: Namespace, options: OptionNames, *, is_run: bool, world_size: int) -> None:
    """Raise `NCAPluginError` if a run is impossible with its arguments.

    Args:
        args: Megatron-LM's arguments, parsed but not validated.
        is_run: see `check_files`.
        world_size: number of ranks.
    """
    if args.yaml_cfg is not None:
        # This file has all arguments.
        check_files(args, options.name, is_run=is_run)
        return
    _check_supported(args, options)
    _check_numbers(args, options)
    _check_length(args, options)
    _check_kinds_of_data(args, options)
    if not args.skip_train:
        _check_learning_rate(args, options)
    _check_sizes_of_layers(args, options)
    if not args.use_checkpoint_args:
        if args.tokenizer_type == "NullTokenizer" and args.vocab_size is None:
            raise NCAPluginError(
                f"{options.name('tokenizer_type')} NullTokenizer needs {options.name('vocab_size')}: say how many ids "
                "the data have"
            )
        _check_ranks(args, options, world_size)
    if not args.pad_vocab_size and args.padded_vocab_size is None:
        raise NCAPluginError(
            f"{options.name('pad_vocab_size')} needs {options.name('padded_vocab_size')}: say how many rows the "
            "embedding has"
        )
    if cpu_mode.prepare():
        check_cpu_mode(args, options)
    if is_run:
        _check_packages(args, options)
        if must_check():
            _check_hub(args, options)
    check_files(args, options.name, is_run=is_run)


def _check_supported(args: Namespace, options: OptionNames) -> None:
    given = [options.name(name) for name in _UNSUPPORTED if getattr(args, name, None)]
    if args.tokenizer_type in _TOKENIZERS_OF_IMAGES:
        given.append(options.shown("tokenizer_type", args.tokenizer_type))
    if given:
        raise NCAPluginError(
            f"{', '.join(given)} {'is' if len(given) == 1 else 'are'} not supported here: leave out what is named, or "
            "use Megatron-LM's pretrain_gpt.py"
        )


def _check_numbers(args: Namespace, options: OptionNames) -> None:
    for argument, action in options.actions.items():
        value = getattr(args, argument, None)
        numbers = [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, float)]
        if not all(map(math.isfinite, numbers)) and value != action.default:
            raise NCAPluginError(f"{options.shown(argument, value)}: must be a finite number")
    for argument, least in _LEAST.items():
        value = getattr(args, argument, None)
        if argument not in options.actions or not isinstance(value, int | float):
            continue
        if value == 0 and _is_unused(args, argument):
            continue
        if value < least:
            meaning = ", 0 for no validation" if argument == "eval_iters" else ""
            raise NCAPluginError(f"{options.name(argument)} {value}: must be {least} or more{meaning}")
        if value > _MOST.get(argument, math.inf):
            raise NCAPluginError(f"{options.name(argument)} {value}: must be {_MOST[argument]} or less")


def _check_kinds_of_data(args: Namespace, options: OptionNames) -> None:
    given = [name for name in _DATA if getattr(args, name)]
    # The data paths of the splits may be given together.
    of_splits = [name for name in given if name in _DATA_OF_SPLITS]
    kinds = [name for name in given if name not in of_splits[1:]]
    if len(kinds) > 1:
        raise NCAPluginError(
            f"{', '.join(map(options.name, kinds))} are given together, and a run reads only one of them: leave the "
            "others out"
        )


def _is_unused(args: Namespace, argument: str) -> bool:
    """Return whether an argument may be 0, because the run does not use it."""
    return (argument == "train_iters" and args.skip_train) or (argument == "save_interval" and args.save is None)


def _check_sizes_of_layers(args: Namespace, options: OptionNames) -> None:
    """Refuse sizes that Megatron would notice only in the first forward pass."""
    heads, groups = args.num_attention_heads, args.num_query_groups
    if args.group_query_attention and heads and groups and heads % groups:
        raise NCAPluginError(
            f"{options.name('num_attention_heads')} {heads}: must be a multiple of "
            f"{options.name('num_query_groups')} {groups}"
        )
    if args.swiglu and args.ffn_hidden_size and args.ffn_hidden_size % (2 * args.tensor_model_parallel_size):
        raise NCAPluginError(
            f"{options.name('ffn_hidden_size')} {args.ffn_hidden_size}: must be a multiple of 2 on each of "
            f"{args.tensor_model_parallel_size} tensor-parallel ranks with {options.name('swiglu')}"
        )
    if args.window_size is not None and len(args.window_size) != 2:
        raise NCAPluginError(
            f"{options.shown('window_size', args.window_size)}: must be two numbers, the positions before and after, "
            "such as 127,0"
        )
    if args.attention_backend.name == "local" and args.spec is None:
        raise NCAPluginError(f"{options.name('attention_backend')} local needs {options.name('spec')} local")
    if args.num_experts and args.moe_router_topk > args.num_experts:
        raise NCAPluginError(
            f"{options.name('moe_router_topk')} {args.moe_router_topk} is more than {options.name('num_experts')} "
            f"{args.num_experts}"
        )
    if args.position_embedding_type != "rope" and not getattr(args, "use_rotary_position_embeddings", False):
        return
    if args.multi_latent_attention:
        width, shown = args.qk_pos_emb_head_dim, options.name("qk_pos_emb_head_dim")
    elif args.kv_channels is not None:
        width, shown = args.kv_channels, options.name("kv_channels")
    else:
        # Megatron itself refuses a hidden size that the heads do not divide.
        width = args.hidden_size // heads if args.hidden_size and heads and not args.hidden_size % heads else 0
        shown = f"{options.name('hidden_size')} / {options.name('num_attention_heads')} ="
    # Pairs of values are rotated. A part of the width may be odd, because it takes a value of the rest.
    if width % 2 and int(width * args.rotary_percent) == width:
        raise NCAPluginError(f"{shown} {width}: must be even for {options.name('position_embedding_type')} rope")


def _check_learning_rate(args: Namespace, options: OptionNames) -> None:
    """Refuse schedules that Megatron would refuse without a message, after it has built the model."""
    for name in ("min_lr", "lr_warmup_init"):
        if (getattr(args, name) or 0) > args.lr:
            raise NCAPluginError(
                f"{options.name(name)} {getattr(args, name)} is above {options.name('lr')} {args.lr}, the highest "
                "learning rate"
            )
    unit = "samples" if args.train_iters is None else "iters"
    length = f"train_{unit}" if getattr(args, f"lr_decay_{unit}") is None else f"lr_decay_{unit}"
    warmup, decay = getattr(args, f"lr_warmup_{unit}"), getattr(args, length)
    if args.lr_warmup_fraction is not None:
        if args.lr_warmup_fraction >= 1:
            raise NCAPluginError(f"{options.name('lr_warmup_fraction')} {args.lr_warmup_fraction}: must be below 1")
    elif warmup >= decay:
        raise NCAPluginError(
            f"{options.name(f'lr_warmup_{unit}')} {warmup}: must be less than {options.name(length)} {decay}"
        )
    if args.lr_decay_style == "WSD" and getattr(args, f"lr_wsd_decay_{unit}") is None:
        raise NCAPluginError(
            f"{options.name('lr_decay_style')} WSD needs {options.name(f'lr_wsd_decay_{unit}')}: say how long the "
            "decay at the end is"
        )
    first, last = args.start_weight_decay, args.end_weight_decay
    if first is not None and last is not None and not 0 <= first <= last:
        raise NCAPluginError(
            f"{options.name('start_weight_decay')} {first}: must be between 0 and {options.name('end_weight_decay')} "
            f"{last}"
        )


def _check_length(args: Namespace, options: OptionNames) -> None:
    """Refuse a run without a length, or without the intervals that Megatron divides by."""
    if args.train_iters is None and args.train_samples is None:
        raise NCAPluginError(
            f"{options.name('train_iters')} is missing: say how long to train, with it or with "
            f"{options.name('train_samples')}"
        )
    if args.train_iters is not None and args.train_samples is not None:
        raise NCAPluginError(
            f"{options.name('train_iters')} {args.train_iters} and {options.name('train_samples')} "
            f"{args.train_samples} are both there: leave one of them out"
        )
    if args.skip_train:
        return
    if args.optimizer == "sgd" and args.use_distributed_optimizer:
        raise NCAPluginError(
            f"{options.name('optimizer')} sgd has no distributed optimizer: leave "
            f"{options.name('use_distributed_optimizer')} out"
        )
    if args.eval_interval is None and not args.full_validation:
        raise NCAPluginError(
            f"{options.name('eval_interval')} is missing, which Megatron divides by also with "
            f"{options.name('eval_iters')} 0: add {options.name('eval_interval')} 1000"
        )
    if args.lr is None:
        raise NCAPluginError(f"{options.name('lr')} is missing: give the highest learning rate")
    for name in _INTERVALS_OF_SAVED:
        if getattr(args, name, None) and args.save is None:
            raise NCAPluginError(f"{options.name(name)} needs {options.name('save')}, the folder to save to")
    if args.save is not None and args.save_interval is None:
        raise NCAPluginError(f"{options.name('save')} needs {options.name('save_interval')}, in iterations")


def _check_ranks(args: Namespace, options: OptionNames, world_size: int) -> None:
    of_experts = args.expert_tensor_parallel_size or args.tensor_model_parallel_size
    for sizes in (
        {
            name: getattr(args, name)
            for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
        },
        {
            "pipeline_model_parallel_size": args.pipeline_model_parallel_size,
            "expert_model_parallel_size": args.expert_model_parallel_size,
            "expert_tensor_parallel_size": of_experts,
        },
    ):
        needed = math.prod(sizes.values())
        if world_size % needed:
            shown = " x ".join(f"{options.name(name)} {size}" for name, size in sizes.items() if size > 1)
            raise NCAPluginError(
                f"{shown} needs a multiple of {needed} ranks, and {world_size} {'is' if world_size == 1 else 'are'} "
                "there: start more with torchrun, or change the sizes"
            )
    replicas = world_size // (args.tensor_model_parallel_size * args.pipeline_model_parallel_size)
    if replicas % args.num_distributed_optimizer_instances:
        raise NCAPluginError(
            f"{options.name('num_distributed_optimizer_instances')} {args.num_distributed_optimizer_instances}: must "
            f"divide {replicas}, the number of ranks that hold the same weights"
        )


def _check_hub(args: Namespace, options: OptionNames) -> None:
    """Refuse a tokenizer of the Hugging Face hub that cannot be reached. Megatron would try for a minute."""
    name = args.tokenizer_model if args.tokenizer_type == "HuggingFaceTokenizer" else None
    shown = f"{options.name('tokenizer_model')} {name}"
    if args.tokenizer_type == "GPT2BPETokenizer" and args.vocab_file is None:
        name, shown = "gpt2", f"{options.name('tokenizer_type')} GPT2BPETokenizer"
    if name is None or exists(name) or is_reachable(name, "model", options.name("tokenizer_model")):
        return
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str):
        raise NCAPluginError(
            f"{shown}: the Hugging Face hub, which may have '{name}', cannot be reached: name a folder with "
            f"{options.name('tokenizer_type')} HuggingFaceTokenizer {options.name('tokenizer_model')}"
        )


def _check_packages(args: Namespace, options: OptionNames) -> None:
    for argument, package in _PACKAGES.items():
        if getattr(args, argument, None) and not _is_there(package):
            raise NCAPluginError(
                f"{options.name(argument)} needs the Python package {package}, which is not installed: install it, or "
                "leave the option out"
            )
    if args.wandb_project and not args.wandb_exp_name:
        raise NCAPluginError(f"{options.name('wandb_project')} needs {options.name('wandb_exp_name')}")
    if args.wandb_project and not args.wandb_save_dir and args.save is None:
        raise NCAPluginError(
            f"{options.name('wandb_project')} needs {options.name('wandb_save_dir')} in a run without "
            f"{options.name('save')}"
        )


def _is_there(package: str) -> bool:
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(package) is not None
    return False
