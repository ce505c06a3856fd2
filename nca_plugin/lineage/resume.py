"""Whether a resumed run has the data of its checkpoint, and the lineage that the run stores itself."""

from pathlib import Path

from nca_plugin.checkpoint.folders import find_checkpoint
from nca_plugin.checkpoint.legacy import is_legacy
from nca_plugin.checkpoint.torch_dist import is_torch_dist
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.read import read_trained
from nca_plugin.lineage.training_data import Lineage, TrainingData


def continued(data: TrainingData, *, resumed: Path | None, start: Path | None, allow: str, is_allowed: bool) -> Lineage:
    """Return the lineage of a run on `data`.

    Args:
        resumed: the checkpoint that the run goes on from, if any; one of a run that has not begun is a start.
        start: the one that it takes its weights from, at iteration 0.
        allow: what the user adds to resume with other data.
        is_allowed: whether the user has.

    Raises:
        NCAPluginError: a damaged checkpoint, or other data than the resumed one's, where a source is among either.
    """
    origin = resumed or start
    try:
        trained = None if origin is None else read_trained(origin)
    except NCAPluginError as error:
        if resumed is None or is_allowed or not data.has_source:
            return Lineage(data)
        if not _is_of_unknown_format(resumed):
            raise
        raise NCAPluginError(f"{error}; to resume it without comparing the data, add {allow}") from error
    if trained is None or trained.lineage is None:
        return Lineage(data)
    before = trained.lineage.now
    if before is None or resumed is None:
        return Lineage(data, trained.ended.earlier)
    difference = before.difference(data) if before.has_source or data.has_source else None
    if difference is None:
        return Lineage(data, trained.lineage.earlier)
    if not is_allowed:
        raise NCAPluginError(
            f"checkpoint {trained.folder} would be resumed with other data, {difference}: use the data that it was "
            f"trained on, begin another stage with nca-plugin transfer --from {resumed}, or add {allow}"
        )
    return Lineage(data, trained.ended.earlier)


def _is_of_unknown_format(path: Path) -> bool:
    """Whether Megatron may read a checkpoint that this package cannot: one that is damaged neither can."""
    try:
        folder = find_checkpoint(path)
    except NCAPluginError:
        return False
    return not (is_torch_dist(folder) or is_legacy(folder))
