"""Whether a run that is resumed has the schedule of its checkpoint, which Megatron compares after it has built a model.

It names neither the arguments that differ nor those that settle it.
"""

import os
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from megatron.training.checkpointing import checkpoint_exists

from nca_plugin.checkpoint.folders import find_checkpoint
from nca_plugin.checkpoint.legacy import is_legacy, read_legacy_state
from nca_plugin.checkpoint.torch_dist import common_state, is_torch_dist, read_torch_dist
from nca_plugin.errors import NCAPluginError

_STATE: Final = "opt_param_scheduler"


def check_schedule(args: Namespace) -> None:
    """Raise `NCAPluginError` if Megatron would refuse the learning rate's schedule, or the weight decay's.

    Does nothing on other ranks than the first, because it reads the checkpoint.
    """
    is_asked = not (args.override_opt_param_scheduler or args.use_checkpoint_opt_param_scheduler)
    is_loaded = args.load is not None and not (args.finetune or args.no_load_optim or args.skip_train)
    if os.environ.get("RANK", "0") != "0" or not (is_asked and is_loaded) or not Path(args.load).is_dir():
        return
    if not checkpoint_exists(args.load):
        return
    folder = find_checkpoint(Path(args.load))
    if args.ckpt_step:
        folder = Path(args.load) / f"iter_{args.ckpt_step:07d}"
    if folder.name == "release" or not folder.is_dir():
        return
    stored = _stored(folder)
    differences = [
        f"{what} {shown}, in the checkpoint {_shown(stored[key], args, key)}"
        for key, (what, value, shown) in _schedule(args).items()
        if key in stored and stored[key] != value
    ]
    if differences:
        raise NCAPluginError(
            f"checkpoint {folder} has another schedule than the run: {'; '.join(dict.fromkeys(differences))}. Add "
            "--override-opt_param-scheduler to go on with the run's, --use-checkpoint-opt_param-scheduler for the "
            "checkpoint's, or give the values of before"
        )


def _stored(folder: Path) -> Mapping[str, Any]:
    state: Mapping[str, Any] = {}
    if is_torch_dist(folder):
        state = common_state(folder, read_torch_dist(folder)[1]) or {}
    elif is_legacy(folder):
        state = read_legacy_state(folder)
    stored = state.get(_STATE)
    return stored if isinstance(stored, dict) else {}


def _schedule(args: Namespace) -> dict[str, tuple[str, Any, str]]:
    """Return the values that Megatron compares, by its names for them: the option, the value, and how it is shown.

    Megatron counts in samples, a user that gives iterations does not.
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
    values = {
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
    return {key: (option, value, _shown(value, args, key)) for key, (option, value) in values.items()}


def _shown(value: Any, args: Namespace, key: str) -> str:
    """Return a value, of steps in the unit of the run's length."""
    if key.endswith("_steps") and args.train_iters and isinstance(value, int | float):
        return f"{value / args.global_batch_size:g}"
    return str(value)
