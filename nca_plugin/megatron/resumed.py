"""Which checkpoint a run of Megatron-LM loads, and whether it goes on from it."""

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
        option: the argument that names it: load or pretrained_checkpoint.
        is_resumed: whether the run goes on at its iteration, rather than at 0 with its weights.
    """

    option: str
    is_resumed: bool
    checkpoint: Checkpoint


def loaded_checkpoint(args: Namespace) -> LoadedCheckpoint | None:
    """Return the checkpoint that Megatron will load, which is opened and not read; None where there is none, and for
    one in object storage, where only Megatron looks.

    Args:
        args: Megatron-LM's, parsed.

    Raises:
        NCAPluginError: a save folder whose tracker file names no checkpoint, or an iteration that is missing.
    """
    option = next((name for name in ("load", "pretrained_checkpoint") if checkpoint_exists(getattr(args, name))), None)
    if option is None or not (path := Path(getattr(args, option))).is_dir():
        return None
    folder = find_checkpoint(path / f"iter_{args.ckpt_step:07d}" if args.ckpt_step else path)
    return LoadedCheckpoint(option, option == "load" and not args.finetune, Checkpoint(folder))
