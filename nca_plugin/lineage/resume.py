"""Checks that a resumed run has the data of its checkpoint, and makes the lineage that the run stores."""

from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.read import read_trained
from nca_plugin.lineage.training_data import Lineage, TrainingData


def continued(
    data: TrainingData, origin: Checkpoint | None, *, is_resumed: bool, allow: str, is_allowed: bool
) -> Lineage:
    """Return the lineage of a run on `data`.

    Args:
        origin: the checkpoint that the run loads; None if it loads none.
        is_resumed: whether the run continues at the checkpoint's iteration. Otherwise it begins at 0 with the weights,
            as it does from a start checkpoint.
        allow: the option that allows the user to resume with other data.
        is_allowed: whether the user set that option.

    Raises:
        NCAPluginError: if the checkpoint is damaged, or its data differ from `data` and a source is among either.
    """
    try:
        trained = None if origin is None else read_trained(origin)
    except NCAPluginError as error:
        if not is_resumed or is_allowed or not data.has_source:
            return Lineage(data)
        if origin is None or origin.format is not None:
            raise
        raise NCAPluginError(f"{error}; to resume it without comparing the data, add {allow}") from error
    if origin is None or trained is None or trained.lineage is None:
        return Lineage(data)
    before = trained.lineage.now
    if before is None or not is_resumed:
        return Lineage(data, trained.ended.earlier)
    difference = before.difference(data) if before.has_source or data.has_source else None
    if difference is None:
        return Lineage(data, trained.lineage.earlier)
    if not is_allowed:
        raise NCAPluginError(
            f"checkpoint {trained.folder} would be resumed with other data, {difference}: use the data that it was "
            f"trained on, begin another stage with nca-plugin transfer --from {origin.root}, or add {allow}"
        )
    return Lineage(data, trained.ended.earlier)
