"""Reads what the weights of a checkpoint were trained on, whichever stack wrote it."""

import math
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.folders import RUN_CONFIG, TRAIN_STATE, read_mapping
from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.checkpoint.stored import Item, StoredTensor
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.lineage.training_data import KEY, Lineage

_SAMPLES: Final = "consumed_train_samples"


@dataclass(frozen=True, slots=True)
class Trained:
    """How far the run that wrote a checkpoint had come, and with which data.

    Attributes:
        folder: the folder of the data files.
        iteration: the iteration of the run, 0 in a start checkpoint; None if unknown.
        samples: the number of consumed training samples; None if unknown.
        lineage: what the weights were trained on; None if the checkpoint was written without nca-plugin.
    """

    folder: Path
    iteration: int | None
    samples: int | None
    lineage: Lineage | None

    @property
    def ended(self) -> Lineage:
        """The lineage of another run that starts from these weights."""
        return Lineage(None) if self.lineage is None else self.lineage.ended(self.samples)


def read_trained(checkpoint: Checkpoint) -> Trained:
    """Return what a checkpoint says about its training. In a checkpoint of an unknown format, everything is unknown.

    Raises:
        NCAPluginError: if the checkpoint is damaged.
    """
    folder, state = checkpoint.folder, checkpoint.common_state or {}
    args = state.get("args")
    values: Mapping[str, Any] = vars(args) if isinstance(args, Namespace) else {}
    iteration, samples = _number(state.get("iteration")), _number(values.get(_SAMPLES))
    stored = values.get(KEY, _of_nemo(state))
    if checkpoint.stack == "bridge":
        dataset = read_mapping(folder / RUN_CONFIG).get("dataset")
        stored = dataset.get(KEY) if isinstance(dataset, dict) else None
    progress = _bridge_progress(folder / TRAIN_STATE)
    if progress is not None:
        iteration, samples = _number(progress.get("step")), _number(progress.get(_SAMPLES))
    with in_context(f"checkpoint {folder}"):
        return Trained(folder, iteration, samples, None if stored is None else Lineage.from_stored(stored))


def _bridge_progress(file: Path) -> Mapping[str, Any] | None:
    """Return the train state of a Megatron-Bridge run; None if there is no such file."""
    try:
        if not file.is_file():
            return None
        progress = Item(file, 0, file.stat().st_size).load()
    except OSError as error:
        raise NCAPluginError(f"{file} cannot be read: {error.strerror or error}") from error
    if not isinstance(progress, dict):
        raise NCAPluginError(f"{file} is damaged: it holds no mapping")
    return progress


def _of_nemo(state: Mapping[str, Any]) -> Any:
    """Return what NeMo's data module or a transition stored about the data; None if neither did."""
    if KEY in state:
        return state[KEY]
    modules = (value[KEY] for value in state.values() if isinstance(value, dict) and KEY in value)
    return next(modules, None)


def _number(value: Any) -> int | None:
    if isinstance(value, StoredTensor) and math.prod(value.shape) == 1:
        value = value.read().item()
    return value if type(value) is int else None
