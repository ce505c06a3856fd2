"""Finds the checkpoint that a run of Megatron-LM loads, and whether the run resumes it."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from megatron.training.checkpointing import checkpoint_exists

from nca_plugin.checkpoint.folders import find_checkpoint
from nca_plugin.checkpoint.opened import Checkpoint


@dataclass(frozen=True)
class LoadedCheckpoint:
    """The checkpoint that a run loads.

    Attributes:
        option: the argument that names the checkpoint: load or pretrained_checkpoint.
        is_resumed: whether the run continues at the checkpoint's iteration. Otherwise it begins at 0 with the weights.
    """

    option: str
    is_resumed: bool
    checkpoint: Checkpoint


def loaded_checkpoint(args: Namespace) -> LoadedCheckpoint | None:
    """Return the checkpoint that Megatron will load, without reading it; None if there is none, or in object storage.

    Args:
        args: Megatron-LM's parsed arguments.

    Raises:
        NCAPluginError: if the tracker file of a save folder names no checkpoint, or an iteration is missing.
    """
    option = next((name for name in ("load", "pretrained_checkpoint") if checkpoint_exists(getattr(args, name))), None)
    if option is None or not (path := Path(getattr(args, option))).is_dir():
        return None
    folder = find_checkpoint(path / f"iter_{args.ckpt_step:07d}" if args.ckpt_step else path)
    return LoadedCheckpoint(option, option == "load" and not args.finetune, Checkpoint(folder))
