"""What a checkpoint's weights were trained on, read from whatever stack wrote it."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.contents import Checkpoint
from nca_plugin.checkpoint.folders import RUN_CONFIG, TRAIN_STATE, find_checkpoint, read_mapping
from nca_plugin.checkpoint.legacy import is_legacy, read_legacy_state
from nca_plugin.checkpoint.stored import Item, StoredTensor
from nca_plugin.checkpoint.torch_dist import common_state, is_torch_dist, read_torch_dist
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.trained_on import KEY, Lineage, TrainingData

_SAMPLES: Final = "consumed_train_samples"


@dataclass(frozen=True, slots=True)
class Trained:
    """How far a run had come that wrote a checkpoint, and on what.

    Attributes:
        folder: of the data.
        iteration: of the run; 0 for the start of one, None if nobody knows.
        samples: of training data that it had consumed; None if nobody knows.
        lineage: None in a checkpoint that was written without nca-plugin.
    """

    folder: Path
    iteration: int | None
    samples: int | None
    lineage: Lineage | None

    @property
    def ended(self) -> Lineage:
        """The lineage of the start of another run with these weights."""
        return Lineage(None) if self.lineage is None else self.lineage.ended(self.samples)


def read_trained(path: Path) -> Trained:
    """Return what the checkpoint at `path` says of its training; see `read_checkpoint`.

    Raises:
        NCAPluginError: no complete checkpoint of a known format.
    """
    folder = find_checkpoint(path)
    try:
        return _read(folder)
    except OSError as error:
        raise NCAPluginError(f"checkpoint {path} cannot be read: {error}") from error


def trained_of(checkpoint: Checkpoint) -> Trained:
    """Return what a checkpoint that was read says of its training. Raises `NCAPluginError` as `read_trained` does."""
    try:
        return _trained(checkpoint.folder, checkpoint.common_state or {})
    except OSError as error:
        raise NCAPluginError(f"checkpoint {checkpoint.root} cannot be read: {error}") from error


def _read(folder: Path) -> Trained:
    if is_torch_dist(folder):
        return _trained(folder, common_state(folder, read_torch_dist(folder)[1]) or {})
    return _trained(folder, read_legacy_state(folder) if is_legacy(folder) else {})


def _trained(folder: Path, state: Mapping[str, Any]) -> Trained:
    args = state.get("args")
    values: Mapping[str, Any] = vars(args) if isinstance(args, Namespace) else {}
    iteration, samples = _number(state.get("iteration")), _number(values.get(_SAMPLES))
    stored = values.get(KEY, _of_nemo(state))
    if (folder / RUN_CONFIG).is_file():
        dataset = read_mapping(folder / RUN_CONFIG).get("dataset")
        stored = dataset.get(KEY) if isinstance(dataset, dict) else None
    if (folder / TRAIN_STATE).is_file():
        progress = Item(folder / TRAIN_STATE, 0, (folder / TRAIN_STATE).stat().st_size).load()
        if not isinstance(progress, dict):
            raise NCAPluginError(f"{folder / TRAIN_STATE} is damaged: it holds no mapping")
        iteration, samples = _number(progress.get("step")), _number(progress.get(_SAMPLES))
    with in_context(f"checkpoint {folder}"):
        return Trained(folder, iteration, samples, None if stored is None else Lineage.from_stored(stored))


def _of_nemo(state: Mapping[str, Any]) -> Any:
    """Return what NeMo's data module, or a transition, stored of the data."""
    if KEY in state:
        return state[KEY]
    modules = (value[KEY] for value in state.values() if isinstance(value, dict) and KEY in value)
    return next(modules, None)


def _number(value: Any) -> int | None:
    if isinstance(value, StoredTensor) and math.prod(value.shape) == 1:
        value = value.read().item()
    return value if type(value) is int else None


def _is_of_unknown_format(path: Path) -> bool:
    """Whether Megatron may read a checkpoint that this package cannot: one that is damaged neither can."""
    try:
        folder = find_checkpoint(path)
    except NCAPluginError:
        return False
    return not (is_torch_dist(folder) or is_legacy(folder))


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
