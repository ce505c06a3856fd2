"""Stores what a run of Megatron-LM trains on in its arguments, which Megatron saves with every checkpoint."""

from typing import Any, Final

from megatron.training.utils import get_blend_and_blend_per_split

from nca_plugin.lineage.same_data import continued
from nca_plugin.lineage.training_data import KEY, Lineage, TrainingData
from nca_plugin.megatron.broadcast import told_by_rank_0
from nca_plugin.megatron.resumed import LoadedCheckpoint, loaded_checkpoint

ALLOW_OTHER_DATA: Final = "--allow-other-data"


def store_lineage(args: Any, loaded: LoadedCheckpoint | None) -> None:
    """Add the lineage of a run to its arguments. Without data paths, nothing is added.

    Only the first rank needs to call this. The others get the lineage from `store_told_lineage`.

    Raises:
        NCAPluginError: if the run would resume a checkpoint with other data, and its arguments do not allow that.
    """
    stored = _stored(args, loaded)
    if stored is not None:
        setattr(args, KEY, stored)


def store_told_lineage(args: Any) -> TrainingData | None:
    """Return what a run trains on, None without data paths, and add the first rank's lineage to every rank's arguments.

    Every rank has to call this.

    Raises:
        NCAPluginError: for the reasons of `store_lineage`.
    """
    stored = told_by_rank_0(
        lambda: getattr(args, KEY) if hasattr(args, KEY) else _stored(args, loaded_checkpoint(args))
    )
    if stored is None:
        return None
    setattr(args, KEY, stored)
    return Lineage.from_stored(stored).now


def _stored(args: Any, loaded: LoadedCheckpoint | None) -> dict[str, Any] | None:
    blend, blend_per_split = get_blend_and_blend_per_split(args)
    if blend_per_split is not None:
        blend = blend_per_split[0]
    if blend is None:
        return None
    # A training script of the user's own has the option only if it uses `add_arguments`.
    allows = getattr(args, ALLOW_OTHER_DATA.removeprefix("--").replace("-", "_"), None)
    option = ALLOW_OTHER_DATA
    if allows is None:
        option += " (with extra_args_provider=nca_plugin.megatron.arguments.add_arguments)"
    lineage = continued(
        TrainingData.of(blend[0], blend[1], args.seq_length),
        None if loaded is None else loaded.checkpoint,
        is_resumed=loaded is not None and loaded.is_resumed,
        allow=option,
        is_allowed=bool(allows),
    )
    return lineage.stored()
