"""The parts of a start checkpoint beside the weights: the common state, and the files that a stack keeps with them.

Every file is created anew, so that nothing is written through a link of the source checkpoint.
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
#: A context with more files and folders than this is refused.
_MOST_ENTRIES: Final = 10_000

#: Arguments in which Megatron counts the progress of a run.
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
    """Return the folder of the data files in a new checkpoint at `target` of the same stack.

    From a folder named `release`, Megatron-LM and Megatron-Bridge start at iteration 0, without looking for an
    optimizer or random state.
    """
    return target / (NEMO_WEIGHTS if checkpoint.stack == "nemo" else RELEASE)


def new_common_state(checkpoint: Checkpoint, arguments: dict[str, Any], lineage: Lineage) -> dict[str, Any]:
    """Return the common state of a run that has not begun: no optimizer, no schedule, no consumed samples.

    Values of Megatron's own types are left out, because every run sets them itself.

    Args:
        arguments: the arguments that change in the next stage.
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
    """Return the files in the context of a NeMo 2 checkpoint: their resolved paths, by their paths below the context.

    Raises:
        NCAPluginError: if a link leads nowhere or in a circle, an entry is neither a file nor a folder, or there are
            more than 10,000 entries.
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
    """Write the files that a checkpoint of this stack has beside its data.

    Args:
        files: the files that are copied unchanged, see `context_files`.
        arguments: the arguments that change in the next stage.
        lineage: what the weights were trained on.
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
    """Yield the path below `context` and the resolved path of every file in it. Links are followed."""
    count = 0
    place = context.resolve()
    # Each folder has its path below the context, its resolved path, and the resolved paths of itself and its parents.
    left = [(Path(), place, frozenset({place}))]
    while left:
        folder, place, places = left.pop()
        for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
            # Folders count too, since links can make any number of paths from a few folders.
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
    """Write the descriptions of the model, with `vocab_size` where they have one. Elsewhere NeMo asks the tokenizer."""
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
    """Copies values without their `Foreign` parts and tensors.

    Objects that are shared stay shared. Otherwise a few bytes could become any number of values. Equal strings become
    one object, so that the same state always gives the same bytes. Whether they are one object after unpickling depends
    on what the process has loaded.
    """

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
