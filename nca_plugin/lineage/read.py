"""What a checkpoint's weights were trained on, read from whatever stack wrote it."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.folders import RUN_CONFIG, TRAIN_STATE, find_checkpoint, read_mapping
from nca_plugin.checkpoint.legacy import is_legacy, read_legacy_state
from nca_plugin.checkpoint.stored import Item, StoredTensor
from nca_plugin.checkpoint.torch_dist import common_state, is_torch_dist, read_torch_dist
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.lineage.training_data import KEY, Lineage

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


def _read(folder: Path) -> Trained:
    state: Mapping[str, Any] = {}
    if is_torch_dist(folder):
        state = common_state(folder, read_torch_dist(folder)[1]) or {}
    elif is_legacy(folder):
        state = read_legacy_state(folder)
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
