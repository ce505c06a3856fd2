"""Checks that a run has the model, the optimizer and the schedule of the checkpoint that it loads.

Megatron compares them only after it has built the model, and names neither the arguments that differ nor a way out.
"""

import re
from argparse import Namespace
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.tracker import RELEASE
from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.resumed import LoadedCheckpoint

_STATE: Final = "opt_param_scheduler"
#: Arguments besides sizes that decide which tensors a model has.
_STRUCTURE: Final = (
    *("normalization", "untie_embeddings_and_output_weights", "add_qkv_bias", "qk_layernorm", "add_bias_linear"),
    *("swiglu", "multi_latent_attention", "num_experts", "hybrid_layer_pattern"),
)
#: Patterns of tensors that a model has only with an argument, or without RMSNorm.
_TENSORS: Final = {
    "normalization": r"norm[._]bias$",
    "untie_embeddings_and_output_weights": r"(^|\.)output_layer\.weight$",
    "add_qkv_bias": r"linear_qkv\.bias$",
    "qk_layernorm": r"\.q_layernorm\.",
    "add_bias_linear": r"linear_(proj|fc1|fc2)\.bias$",
}
#: Arguments that decide what is computed with the same tensors. A run with --finetune may change them.
_COMPUTATION: Final = (
    *("position_embedding_type", "rotary_base", "rotary_percent", "rotary_interleaved", "squared_relu", "bf16", "fp16"),
    *("layernorm_epsilon", "apply_layernorm_1p", "use_rope_scaling"),
)
#: Selectors of the parts that every transformer has, whatever its arguments are.
_TRANSFORMER: Final = ("embedding", "attention.qkv", "attention.proj", "mlp", "final_norm")
_BIASES: Final = "add_bias_linear"
_OPTIMIZER: Final = ("optimizer", "use_distributed_optimizer")
#: Options that are not spelled like their arguments, and arguments whose options negate them.
_SPELLING: Final = {"add_bias_linear": "--disable-bias-linear", "layernorm_epsilon": "--norm-epsilon"}
_NEGATED: Final = ("add_bias_linear",)


def check_loaded(args: Namespace, loaded: LoadedCheckpoint) -> None:
    """Raise `NCAPluginError` if Megatron would refuse a checkpoint for its model or, in a resumed run, its optimizer or
    the schedule of its learning rate or weight decay."""
    checkpoint = loaded.checkpoint
    folder, state = checkpoint.folder, checkpoint.common_state or {}
    # Only a start may lack tensors that a transition left out. Reading the tensors takes longer than reading the state.
    is_start = not loaded.is_resumed or folder.name == RELEASE
    names = checkpoint.tensors.keys() if checkpoint.format == "torch_dist" and is_start else ()
    is_optimizer_loaded = loaded.is_resumed and not (args.no_load_optim or args.skip_train or folder.name == RELEASE)
    differences = _model_differences(state, names, args, is_optimizer_loaded=is_optimizer_loaded)
    other = f"another --{loaded.option.replace('_', '-')}"
    if differences:
        raise NCAPluginError(
            f"checkpoint {folder} does not fit the run: {'; '.join(differences)}. Give the checkpoint's values, or "
            f"{other}"
        )
    missing = _missing(names, args)
    if missing:
        raise NCAPluginError(
            f"checkpoint {folder} does not fit the run: it holds no {', '.join(missing)}, which a transition may have "
            f"left out; give {other}"
        )
    if is_optimizer_loaded and getattr(state.get("args"), "no_save_optim", None):
        raise NCAPluginError(
            f"checkpoint {folder} holds no state of the optimizer: add --no-load-optim to go on with a new one, or "
            "--finetune to begin at iteration 0"
        )
    if is_optimizer_loaded and not (args.override_opt_param_scheduler or args.use_checkpoint_opt_param_scheduler):
        _check_schedule(folder, state, args)


def _model_differences(
    state: Mapping[str, Any], tensors: Collection[str], args: Namespace, *, is_optimizer_loaded: bool
) -> list[str]:
    before = state.get("args")
    if not isinstance(before, Namespace) or args.moe_use_upcycling:
        return []
    own, stored = _sizes(args), _sizes(before)
    differences = [
        f"{option} {own[option]}, in the checkpoint {stored[option]}"
        for option in own
        if option in stored and None not in (own[option], stored[option]) and own[option] != stored[option]
    ]
    names = [name for name in _STRUCTURE if not _is_left_out(name, vars(args), tensors)]
    if is_optimizer_loaded:
        names += _COMPUTATION
        if not getattr(before, "no_save_optim", None):
            names += _OPTIMIZER
    if getattr(args, _BIASES, None) != getattr(before, _BIASES, None):
        # A difference in add_qkv_bias follows from one in add_bias_linear.
        names = [name for name in names if name != "add_qkv_bias"]
    return [*differences, *filter(None, (_difference(name, vars(args), vars(before)) for name in names))]


def _is_left_out(name: str, own: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Return whether neither the run nor the checkpoint has the tensors that an argument stands for.

    A transition may have dropped them, although the arguments in the checkpoint are still those of the run before.
    """
    tensor = _TENSORS.get(name)
    if not tensors or tensor is None or own.get(name) not in (False, "RMSNorm"):
        return False
    return not any(re.search(tensor, stored) for stored in tensors)


def _missing(names: Collection[str], args: Namespace) -> list[str]:
    """Return selectors of the parts that a checkpoint lacks, because a transition may have left them out."""
    has_other_layers = args.hybrid_layer_pattern or args.heterogeneous_layers_config_path or args.spec
    is_loaded_as_it_is = args.dist_ckpt_strictness != "assume_ok_unexpected"
    if not names or has_other_layers or args.experimental_attention_variant or is_loaded_as_it_is:
        return []
    stored = {parameter(name).role for name in names}
    return [role for role in _TRANSFORMER if role not in stored]


def _difference(name: str, own: Mapping[str, Any], stored: Mapping[str, Any]) -> str | None:
    """Return how an argument differs; None if it does not, or if the checkpoint does not have it."""
    if name not in own or name not in stored or own[name] == stored[name]:
        return None
    if name == "hybrid_layer_pattern" and _layers(own[name]) == _layers(stored[name]):
        return None
    option = _SPELLING.get(name) or f"--{name.replace('_', '-')}"
    if own[name] in (None, False) or stored[name] in (None, False):
        is_own = (own[name] not in (None, False)) != (name in _NEGATED)
        return f"{option} is {'not in the checkpoint' if is_own else 'only in the checkpoint'}"
    return f"{option} {own[name]}, in the checkpoint {stored[name]}"


def _layers(pattern: str | None) -> str:
    """Return the layers of a hybrid pattern without the marks between pipeline stages."""
    return (pattern or "").replace("|", "")


def _sizes(args: Namespace) -> dict[str, Any]:
    """Return the sizes that decide the shapes of a model's tensors, by their options."""
    values = vars(args)
    names = ["num_layers", "hidden_size", "num_attention_heads"]
    # With experts, the size of their MLPs counts instead.
    names.append("moe_ffn_hidden_size" if values.get("num_experts") else "ffn_hidden_size")
    sizes = {f"--{name.replace('_', '-')}": values.get(name) for name in names}
    if not values.get("multi_latent_attention"):
        sizes["--kv-channels"] = values.get("kv_channels")
        if "group_query_attention" in values:
            name = "num_query_groups" if values["group_query_attention"] else "num_attention_heads"
            sizes["--num-query-groups"] = values.get(name)
    return sizes


def _check_schedule(folder: Path, state: Mapping[str, Any], args: Namespace) -> None:
    stored = state.get(_STATE)
    if not isinstance(stored, dict):
        return
    # Megatron counts in samples, so that the same iterations with another batch size are another schedule.
    batch = getattr(state.get("args"), "global_batch_size", None) or args.global_batch_size
    differences = [
        f"{what} {_shown(value, args, key, args.global_batch_size, batch)}, in the checkpoint "
        f"{_shown(stored[key], args, key, batch, args.global_batch_size)}"
        for key, (what, value) in _schedule(args).items()
        if key in stored and stored[key] != value
    ]
    if differences:
        raise NCAPluginError(
            f"checkpoint {folder} has another schedule than the run: {'; '.join(dict.fromkeys(differences))}. Add "
            "--override-opt_param-scheduler to go on with the run's, --use-checkpoint-opt_param-scheduler for the "
            "checkpoint's, or give the values that it was trained with"
        )


def _schedule(args: Namespace) -> dict[str, tuple[str, Any]]:
    """Return the option and the value of everything that Megatron compares, by Megatron's names.

    Steps are in samples, as Megatron counts them, even if the user gives iterations.
    """
    if args.train_iters:
        unit, length, batch = "iters", args.train_iters, args.global_batch_size
        decay, warmup = args.lr_decay_iters, args.lr_warmup_iters
    else:
        unit, length, batch = "samples", args.train_samples, 1
        decay, warmup = args.lr_decay_samples, args.lr_warmup_samples
    decay_steps = (length if decay is None else decay) * batch
    warmup_steps = warmup * batch if args.lr_warmup_fraction is None else args.lr_warmup_fraction * decay_steps
    decay_option = f"--train-{unit}" if decay is None else f"--lr-decay-{unit}"
    warmup_option = f"--lr-warmup-{unit}" if args.lr_warmup_fraction is None else "--lr-warmup-fraction"
    return {
        "max_lr": ("--lr", args.lr),
        "min_lr": ("--min-lr", args.min_lr),
        "lr_warmup_steps": (warmup_option, warmup_steps),
        "lr_decay_steps": (decay_option, decay_steps),
        "lr_decay_style": ("--lr-decay-style", args.lr_decay_style),
        "start_wd": ("--weight-decay", args.start_weight_decay),
        "end_wd": ("--weight-decay", args.end_weight_decay),
        "wd_incr_steps": (f"--train-{unit}", length * batch),
        "wd_incr_style": ("--weight-decay-incr-style", args.weight_decay_incr_style),
    }


def _shown(value: Any, args: Namespace, key: str, batch: int, other_batch: int) -> str:
    """Return a value for people to read. Steps are in the unit of the run's length, with the batch size if it differs.

    Args:
        batch: the global batch size on the side of the value, which may be the run or the checkpoint.
        other_batch: the global batch size on the other side.
    """
    if key.endswith("_steps") and args.train_iters and isinstance(value, int | float):
        return f"{value / batch:g}" + (f" with --global-batch-size {batch}" if batch != other_batch else "")
    return str(value)
