"""Checkpoint folders as Megatron-LM, Megatron-Bridge and NeMo 2 write them."""

import json
import re
import shutil
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import yaml

from nca_plugin.checkpoint.contents import Checkpoint
from nca_plugin.checkpoint.dtypes import DTYPES
from nca_plugin.checkpoint.legacy import is_legacy, read_legacy
from nca_plugin.checkpoint.model import ModelConfig
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.pickling import Foreign
from nca_plugin.checkpoint.stored import Item, NewTensor, StoredTensor, save
from nca_plugin.checkpoint.torch_dist import common_state, is_torch_dist, read_torch_dist
from nca_plugin.errors import NCAPluginError
from nca_plugin.trained_on import KEY, Lineage

TRACKER: Final = "latest_checkpointed_iteration.txt"
RUN_CONFIG: Final = "run_config.yaml"
TRAIN_STATE: Final = "train_state.pt"
NEMO_WEIGHTS: Final = "weights"
NEMO_CONTEXT: Final = "context"
#: In an iteration's folder, the files of the run's tokenizer: of Megatron-Bridge, and of Megatron-LM from 0.20 on.
TOKENIZER: Final = "tokenizer"
_NEMO_MODEL: Final = "model.yaml"
_NEMO_GRAPH: Final = "io.json"

_EMBEDDING: Final = "embedding.word_embeddings.weight"

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


def find_checkpoint(path: Path) -> Path:
    """Return the folder that holds the data of the checkpoint `path`: itself, or the latest one under it.

    Raises:
        NCAPluginError: nothing there, or no checkpoint in it.
    """
    if not path.is_dir():
        raise NCAPluginError(f"checkpoint {path} does not exist" if not path.exists() else f"{path} is no folder")
    if (path / NEMO_WEIGHTS).is_dir():
        return path / NEMO_WEIGHTS
    tracker = path / TRACKER
    if not tracker.is_file():
        return path
    latest = tracker.read_text(errors="replace").strip()[:100]
    if not (re.fullmatch(r"\d{1,12}", latest) or latest == "release"):
        raise NCAPluginError(f"checkpoint {path}: {TRACKER} holds '{latest}', neither an iteration nor 'release'")
    folder = path / (latest if latest == "release" else f"iter_{int(latest):07d}")
    if not folder.is_dir():
        raise NCAPluginError(f"checkpoint {path}: {TRACKER} names {folder.name}, which is missing")
    return folder


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`: a save folder, whose latest iteration is taken, or an iteration's folder.

    Raises:
        NCAPluginError: no complete checkpoint of a known format.
    """
    try:
        return _read(find_checkpoint(path))
    except OSError as error:
        raise NCAPluginError(f"checkpoint {path} cannot be read: {error}") from error


def _read(folder: Path) -> Checkpoint:
    state: dict[str, Any] | None
    objects: dict[str, Item | None]
    if is_torch_dist(folder):
        tensors, items = read_torch_dist(folder)
        state, kind = common_state(folder, items), "torch_dist"
        objects = dict(items)
    elif is_legacy(folder):
        tensors, modules, state = read_legacy(folder)
        objects, kind = dict(modules), "torch"
    else:
        raise NCAPluginError(_unknown(folder))
    root, stack = folder, "megatron"
    args = (state or {}).get("args", Namespace())
    values: Any = vars(args) if isinstance(args, Namespace) else None
    if (folder / RUN_CONFIG).is_file():
        stack, values = "bridge", read_mapping(folder / RUN_CONFIG).get("model")
    elif folder.name == NEMO_WEIGHTS and (folder.parent / NEMO_CONTEXT).is_dir():
        root, stack, values = folder.parent, "nemo", _nemo_model(folder.parent)
    if not isinstance(values, dict):
        raise NCAPluginError(f"checkpoint {root}: its configuration describes no model")
    for name, tensor in tensors.items():
        if 0 in tensor.shape and parameter(name).role != "run":
            raise NCAPluginError(f"checkpoint {folder} is damaged: '{name}' has no values")
    return Checkpoint(root, folder, stack, kind, tensors, objects, state, ModelConfig(values))


def saved_tokenizer(checkpoint: Checkpoint) -> Path | None:
    """Return the folder of the tokenizer that a run saved with its checkpoint, None if it saved none.

    Raises:
        NCAPluginError: the folder cannot be read.
    """
    folder = checkpoint.folder / TOKENIZER
    try:
        # One that has no files, as the NullTokenizer of a source, leaves the folder empty.
        return folder if folder.is_dir() and any(folder.iterdir()) else None
    except OSError as error:
        raise NCAPluginError(f"checkpoint {checkpoint.root} cannot be read: {error}") from error


def embedding_rows(path: Path) -> int | None:
    """Return the rows of the word embedding in the checkpoint at `path`; None where there is no `torch_dist` one.

    `path` is a save folder, or an iteration's, which Megatron-Bridge loads too.
    """
    if not path.is_dir() or not is_torch_dist(folder := find_checkpoint(path)):
        return None
    tensors, _ = read_torch_dist(folder)
    # NeMo 2 puts a module around the model.
    found = (tensors[name] for name in (_EMBEDDING, f"module.{_EMBEDDING}") if name in tensors)
    return next((tensor.shape[0] for tensor in found), None)


def check_embedding_rows(path: Path, rows: int, vocab_size: int, tensor_parallel_size: int, way_out: str = "") -> bool:
    """Refuse a checkpoint with other embedding rows than the run: Megatron loads it without a word, the rows that are
    missing as zeros and those too many cut off.

    Args:
        rows: of the run's word embedding, padding included.
        vocab_size: ids of the run, without padding.
        way_out: what the user may do beside `nca-plugin transfer`, with `{}` for the rows of the checkpoint.

    Returns:
        Whether there is a checkpoint whose rows could be compared.

    Raises:
        NCAPluginError: they differ.
    """
    stored = embedding_rows(path)
    if stored is not None and stored != rows:
        raise NCAPluginError(
            f"checkpoint {path} has {stored} embedding rows, the run has {rows}: {way_out.format(stored)}make it fit "
            f"with nca-plugin transfer --from {path} --to ... --vocab-size {vocab_size} "
            f"--tensor-model-parallel-size {tensor_parallel_size}"
        )
    return stored is not None


def _unknown(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir())
    if not found:
        return f"checkpoint {folder} is empty"
    if "metadata.json" in found:
        return f"checkpoint {folder} is of an unknown format, see metadata.json: save it with --ckpt-format torch_dist"
    if ".metadata" in found or any(name.endswith(".distcp") for name in found):
        return f"checkpoint {folder} is incomplete: metadata.json is missing, or it is no --ckpt-format torch_dist"
    iterations = [name for name in found if name.startswith("iter_")]
    if iterations:
        return f"checkpoint {folder} has no {TRACKER}: name one of its iterations, such as {folder / iterations[-1]}"
    return f"{folder} is no checkpoint: it holds {', '.join(found[:5])}"


def _nemo_model(root: Path) -> Any:
    file = root / NEMO_CONTEXT / _NEMO_MODEL
    if not file.is_file():
        raise NCAPluginError(f"checkpoint {root}: {NEMO_CONTEXT}/{_NEMO_MODEL} is missing, which describes the model")
    values = read_mapping(file)
    model = values.get("config", values)
    # A vocabulary that NeMo's configuration says is not padded.
    return {**model, "should_pad_vocab": model.get("vocab_size") is None} if isinstance(model, dict) else model


def read_mapping(file: Path) -> dict[str, Any]:
    """Return a YAML file that holds a mapping. Raises `NCAPluginError` if it does not."""
    try:
        values = yaml.safe_load(file.read_text())
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise NCAPluginError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise NCAPluginError(f"{file} cannot be read: it holds no mapping")
    return values


def data_folder(target: Path, checkpoint: Checkpoint) -> Path:
    """Return the folder of the data files in a new checkpoint at `target`, of the same stack.

    Megatron-LM and Megatron-Bridge start a checkpoint named `release` at iteration 0, and look for neither optimizer
    nor random state in it.
    """
    return target / (NEMO_WEIGHTS if checkpoint.stack == "nemo" else "release")


def new_common_state(checkpoint: Checkpoint, arguments: dict[str, Any], lineage: Lineage) -> dict[str, Any]:
    """Return the common state of a run that has not begun: no optimizer, no schedule, no consumed samples.

    Values of Megatron's own types are left out, which every run sets for itself.

    Args:
        arguments: that the next stage changes.
        lineage: what the weights were trained on.
    """
    state = checkpoint.common_state or {}
    kept: dict[str, Any] = {
        key: _plain(state[key]) for key in ("checkpoint_version", "content_metadata") if key in state
    }
    if "args" in state:
        args = _plain(state["args"])
        vars(args).update(dict.fromkeys(_PROGRESS, 0), **arguments, **{KEY: lineage.stored()})
        kept["args"] = args
    elif checkpoint.stack == "nemo":
        kept[KEY] = lineage.stored()
    return {**kept, "iteration": 0, "num_floating_point_operations_so_far": 0}


def copy_context(target: Path, checkpoint: Checkpoint, arguments: dict[str, Any], lineage: Lineage) -> None:
    """Write what a checkpoint of this stack has beside its data, with the `arguments` that the next stage changes, and
    what the weights were trained on."""
    if checkpoint.stack == "nemo":
        shutil.copytree(checkpoint.root / NEMO_CONTEXT, target / NEMO_CONTEXT, symlinks=True)
        _set_nemo_vocabulary(target / NEMO_CONTEXT, arguments["vocab_size"])
        return
    (target / TRACKER).write_text("release")
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


def _set_nemo_vocabulary(context: Path, vocab_size: int) -> None:
    """Set the vocabulary where the configuration says one; where it does not, NeMo takes the tokenizer's."""
    config = read_mapping(context / _NEMO_MODEL)
    model = config.get("config", config)
    if model.get("vocab_size") is not None:
        model["vocab_size"] = vocab_size
        (context / _NEMO_MODEL).write_text(yaml.safe_dump(config))
    graph = context / _NEMO_GRAPH
    if graph.is_file():
        try:
            described = json.loads(graph.read_text())
        except (ValueError, RecursionError) as error:
            raise NCAPluginError(f"{NEMO_CONTEXT}/{_NEMO_GRAPH} cannot be read: {error}") from error
        for entry in _leaves(described):
            if "<root>.model.config.vocab_size" in entry.get("paths", ()) and entry.get("value") is not None:
                entry["value"] = vocab_size
        graph.write_text(json.dumps(described))


def _leaves(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the leaves of NeMo's description of its objects (Fiddle's serialization)."""
    if isinstance(value, dict):
        if value.get("type") == "leaf":
            yield value
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item)


def _plain(value: Any) -> Any:
    """Return a value without the parts that are `Foreign`, or tensors."""
    if isinstance(value, dict):
        return {
            key: _plain(item)
            for key, item in value.items()
            if not isinstance(item, Foreign | StoredTensor) and not isinstance(key, Foreign)
        }
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value if not isinstance(item, Foreign | StoredTensor))
    if isinstance(value, set | frozenset):
        return type(value)(item for item in value if not isinstance(item, Foreign))
    if isinstance(value, Namespace | SimpleNamespace):
        return type(value)(**_plain(vars(value)))
    return value
