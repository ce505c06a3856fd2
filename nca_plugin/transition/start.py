"""What the start of a run has beside its weights: the common state, and the files that a stack keeps with its data.

Every file is new: nothing is written through a link of the checkpoint that a start is made from.
"""

import json
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import yaml

from nca_plugin.checkpoint.dtypes import DTYPES
from nca_plugin.checkpoint.folders import (
    MOST_DESCRIPTION_BYTES,
    NEMO_CONTEXT,
    NEMO_MODEL,
    NEMO_WEIGHTS,
    RUN_CONFIG,
    TRAIN_STATE,
    read_mapping,
)
from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.checkpoint.pickling import Foreign
from nca_plugin.checkpoint.stored import NewTensor, StoredTensor, save
from nca_plugin.checkpoint.torch_dist import read_small
from nca_plugin.checkpoint.tracker import RELEASE, TRACKER
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.training_data import KEY, Lineage

_NEMO_GRAPH: Final = "io.json"
#: More than any configuration is made of.
_MOST_ENTRIES: Final = 10_000

#: Arguments that Megatron counts a run's progress in.
_PROGRESS: Final = ("iteration", "consumed_train_samples", "consumed_valid_samples", "skipped_train_samples")

#: Megatron-Bridge's `TrainState` of a run that has not begun.
_TRAIN_STATE: Final = {
    **dict.fromkeys(
        ("step", "consumed_train_samples", "skipped_train_samples", "consumed_valid_samples"),
        NewTensor(np.array(0), DTYPES["int64"]),
    ),
    "floating_point_operations_so_far": NewTensor(np.array(0.0), DTYPES["float64"]),
    **dict.fromkeys(("do_train", "do_valid", "do_test"), NewTensor(np.array(False), DTYPES["bool"])),
}


def data_folder(target: Path, checkpoint: Checkpoint) -> Path:
    """Return the folder of the data files in a new checkpoint at `target`, of the same stack.

    Megatron-LM and Megatron-Bridge start a checkpoint named `release` at iteration 0, and look for neither optimizer
    nor random state in it.
    """
    return target / (NEMO_WEIGHTS if checkpoint.stack == "nemo" else RELEASE)


def new_common_state(checkpoint: Checkpoint, arguments: dict[str, Any], lineage: Lineage) -> dict[str, Any]:
    """Return the common state of a run that has not begun: no optimizer, no schedule, no consumed samples.

    Values of Megatron's own types are left out, which every run sets for itself.

    Args:
        arguments: that the next stage changes.
        lineage: what the weights were trained on.
    """
    state = checkpoint.common_state or {}
    plain = _Plain()
    kept: dict[str, Any] = {
        key: plain.of(state[key]) for key in ("checkpoint_version", "content_metadata") if key in state
    }
    if "args" in state:
        args = plain.of(state["args"])
        vars(args).update(dict.fromkeys(_PROGRESS, 0), **arguments, **{KEY: lineage.stored()})
        kept["args"] = args
    elif checkpoint.stack == "nemo":
        kept[KEY] = lineage.stored()
    return {**kept, "iteration": 0, "num_floating_point_operations_so_far": 0}


def context_files(checkpoint: Checkpoint) -> dict[Path, Path]:
    """Return the files of a NeMo 2 checkpoint's context, where they lie, by their names below it; links are followed.

    Raises:
        NCAPluginError: a link that leads nowhere or in a circle, what is no file, or more than any context has.
    """
    if checkpoint.stack != "nemo":
        return {}
    context = checkpoint.root / NEMO_CONTEXT
    try:
        files = dict(_files_below(context))
    except OSError as error:
        raise NCAPluginError(f"{context} cannot be read: {error.strerror or error}") from error
    return {name: path for name, path in files.items() if str(name) not in (NEMO_MODEL, _NEMO_GRAPH)}


def write_context(
    target: Path, checkpoint: Checkpoint, files: dict[Path, Path], arguments: dict[str, Any], lineage: Lineage
) -> None:
    """Write what a checkpoint of this stack has beside its data, with the `arguments` that the next stage changes, and
    what the weights were trained on.

    Args:
        files: that are copied as they are; see `context_files`.
    """
    if checkpoint.stack == "nemo":
        context = target / NEMO_CONTEXT
        context.mkdir()
        for name, path in files.items():
            (context / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, context / name)
        _write_nemo_model(checkpoint.root / NEMO_CONTEXT, context, arguments["vocab_size"])
        return
    (target / TRACKER).write_text(RELEASE)
    if checkpoint.stack == "bridge":
        folder = data_folder(target, checkpoint)
        config = read_mapping(checkpoint.folder / RUN_CONFIG)
        names = ("vocab_size", "make_vocab_size_divisible_by") if checkpoint.model.pads_vocabulary else ("vocab_size",)
        config["model"].update({name: arguments[name] for name in names})
        if isinstance(config.get("dataset"), dict) and KEY in config["dataset"]:
            config["dataset"][KEY] = lineage.stored()
        (folder / RUN_CONFIG).write_text(yaml.safe_dump(config))
        with (folder / TRAIN_STATE).open("xb") as file:
            save(_TRAIN_STATE, file)


def _files_below(context: Path) -> Iterator[tuple[Path, Path]]:
    """Yield the files below a folder by their names there, and where they lie."""
    count = 0
    place = context.resolve()
    # Of folders, their names, where they lie, and where the folders on the way to them do.
    left = [(Path(), place, frozenset({place}))]
    while left:
        folder, place, places = left.pop()
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            # Folders too: links can make any number of paths of a few.
            count += 1
            if count > _MOST_ENTRIES:
                raise NCAPluginError(
                    f"{context} holds more than {_MOST_ENTRIES:,} files and folders, which are not copied: remove some"
                )
            name, path = folder / entry.name, context / folder / entry.name
            its_place = Path(entry.path).resolve() if entry.is_symlink() else place / entry.name
            if entry.is_dir():
                if its_place in places:
                    raise NCAPluginError(f"{path} is a symbolic link to a folder that it lies in: remove it")
                left.append((name, its_place, places | {its_place}))
            elif entry.is_file():
                yield name, its_place
            elif entry.is_symlink():
                raise NCAPluginError(f"{path} is a symbolic link to {Path(entry.path).readlink()}, which is not there")
            else:
                raise NCAPluginError(f"{path} is no file, and cannot be copied: remove it")


def _write_nemo_model(source: Path, target: Path, vocab_size: int) -> None:
    """Write the model's descriptions with a vocabulary where they say one; else NeMo takes the tokenizer's."""
    config = read_mapping(source / NEMO_MODEL)
    model = config.get("config", config)
    if model.get("vocab_size") is not None:
        model["vocab_size"] = vocab_size
    (target / NEMO_MODEL).write_text(yaml.safe_dump(config))
    if (source / _NEMO_GRAPH).is_file():
        try:
            described = json.loads(read_small(source / _NEMO_GRAPH, MOST_DESCRIPTION_BYTES))
        except (ValueError, RecursionError) as error:
            raise NCAPluginError(f"{source / _NEMO_GRAPH} cannot be read: {error}") from error
        for entry in _leaves(described):
            if _names_vocabulary(entry.get("paths")) and entry.get("value") is not None:
                entry["value"] = vocab_size
        (target / _NEMO_GRAPH).write_text(json.dumps(described))


def _names_vocabulary(paths: Any) -> bool:
    return isinstance(paths, list) and "<root>.model.config.vocab_size" in paths


def _leaves(described: Any) -> Iterator[dict[str, Any]]:
    """Yield the leaves of NeMo's description of its objects (Fiddle's serialization)."""
    left = [described]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if value.get("type") == "leaf":
                yield value
            left += value.values()
        elif isinstance(value, list):
            left += value


class _Plain:
    """Values without the parts that are `Foreign`, or tensors. What several parts share, they share afterwards too:
    a few bytes would become any number of values. Equal strings are one object afterwards, so that the same state is
    always the same bytes: whether they are one when they are read depends on what the process has loaded."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}

    def of(self, value: Any) -> Any:
        if type(value) is str:
            return sys.intern(value)
        if not isinstance(value, dict | list | tuple | set | frozenset | Namespace | SimpleNamespace):
            return value
        if id(value) not in self._made:
            self._made[id(value)] = self._without_foreign(value)
        return self._made[id(value)]

    def _without_foreign(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                self.of(key): self.of(item)
                for key, item in value.items()
                if not isinstance(item, Foreign | StoredTensor) and not isinstance(key, Foreign)
            }
        if isinstance(value, list | tuple):
            return type(value)(self.of(item) for item in value if not isinstance(item, Foreign | StoredTensor))
        if isinstance(value, set | frozenset):
            return type(value)(item for item in value if not isinstance(item, Foreign))
        return type(value)(**self.of(vars(value)))
