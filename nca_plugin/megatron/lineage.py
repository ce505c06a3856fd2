"""What a run of Megatron-LM trains on, in its arguments, which Megatron stores with every checkpoint."""

from pathlib import Path
from typing import Any, Final

from megatron.training.checkpointing import checkpoint_exists
from megatron.training.utils import get_blend_and_blend_per_split

from nca_plugin.lineage.resume import continued
from nca_plugin.lineage.training_data import KEY, Lineage, TrainingData

ALLOW_OTHER_DATA: Final = "--allow-other-data"


def described_data(args: Any) -> TrainingData | None:
    """Return what a run trains on, None without data paths, after adding it and what came before to its arguments.

    Raises:
        NCAPluginError: the run would resume a checkpoint with other data, and its arguments do not allow that.
    """
    if hasattr(args, KEY):
        return Lineage.from_stored(getattr(args, KEY)).now
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    if blend_per_split is not None:
        blend = blend_per_split[0]
    if blend is None:
        return None
    resumed, start = _origins(args)
    # A script of a user's own has the option if it takes `add_arguments`.
    allows = getattr(args, ALLOW_OTHER_DATA.removeprefix("--").replace("-", "_"), None)
    option = ALLOW_OTHER_DATA
    if allows is None:
        option += " (with extra_args_provider=nca_plugin.megatron.arguments.add_arguments)"
    data = TrainingData.of(blend[0], blend[1], args.seq_length)
    lineage = continued(data, resumed=resumed, start=start, allow=option, is_allowed=bool(allows))
    setattr(args, KEY, lineage.stored())
    return data


def _origins(args: Any) -> tuple[Path | None, Path | None]:
    """Return the checkpoint that a run resumes, and the one that it takes the weights of: one of them, or none.

    One in object storage is none: it is not read.
    """
    if checkpoint_exists(args.load):
        load = _local(args.load)
        if args.finetune or load is None:
            return None, load
        return load / f"iter_{args.ckpt_step:07d}" if args.ckpt_step else load, None
    return None, _local(args.pretrained_checkpoint) if checkpoint_exists(args.pretrained_checkpoint) else None


def _local(path: str) -> Path | None:
    return Path(path) if Path(path).is_dir() else None
