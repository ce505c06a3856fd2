"""Checkpoint folders as Megatron-LM, Megatron-Bridge and NeMo 2 write them."""

from argparse import Namespace
from pathlib import Path
from typing import Any, Final

import yaml

from nca_plugin.checkpoint.contents import Checkpoint
from nca_plugin.checkpoint.legacy import is_legacy, read_legacy
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.stored import Item
from nca_plugin.checkpoint.torch_dist import common_state, is_torch_dist, read_small, read_torch_dist
from nca_plugin.checkpoint.tracker import TRACKER, folder_named, read_tracker
from nca_plugin.errors import NCAPluginError

RUN_CONFIG: Final = "run_config.yaml"
TRAIN_STATE: Final = "train_state.pt"
NEMO_WEIGHTS: Final = "weights"
NEMO_CONTEXT: Final = "context"
#: In an iteration's folder, the files of the run's tokenizer: of Megatron-Bridge, and of Megatron-LM from 0.20 on.
TOKENIZER: Final = "tokenizer"
NEMO_MODEL: Final = "model.yaml"

#: Of a file that describes a run or its model; they have some tens of kilobytes.
MOST_DESCRIPTION_BYTES: Final = 1 << 22

_EMBEDDING: Final = "embedding.word_embeddings.weight"


def find_checkpoint(path: Path) -> Path:
    """Return the folder that holds the data of the checkpoint `path`: itself, or the latest one under it.

    Raises:
        NCAPluginError: nothing there, or no checkpoint in it.
    """
    if not path.is_dir():
        raise NCAPluginError(f"checkpoint {path} does not exist" if not path.exists() else f"{path} is no folder")
    if (path / NEMO_WEIGHTS).is_dir():
        return path / NEMO_WEIGHTS
    if not (path / TRACKER).is_file():
        return path
    try:
        latest = read_tracker(path)
    except OSError as error:
        raise NCAPluginError(f"checkpoint {path} cannot be read: {error}") from error
    if latest is None:
        return path
    named = folder_named(latest)
    if named is None:
        held = f"holds {latest!r}, neither an iteration nor 'release'" if latest else "is empty"
        raise NCAPluginError(f"checkpoint {path}: {TRACKER} {held}")
    if not (path / named).is_dir():
        raise NCAPluginError(f"checkpoint {path}: {TRACKER} names {named}, which is missing")
    return path / named


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


def check_embedding_rows(
    path: Path, rows: int, vocab_size: int, tensor_parallel_size: int, option: str = "--padded-vocab-size {rows}"
) -> bool:
    """Refuse a checkpoint with other embedding rows than the run: Megatron loads it without a word, the rows that are
    missing as zeros and those too many cut off.

    Args:
        rows: of the run's word embedding, padding included.
        vocab_size: ids of the run, without padding.
        option: gives the run's embedding `{rows}` rows, which are `{rows_of_rank}` on a tensor-parallel rank.

    Returns:
        Whether there is a checkpoint whose rows could be compared.

    Raises:
        NCAPluginError: they differ.
    """
    stored = embedding_rows(path)
    if stored is None or stored == rows:
        return stored is not None
    way_out = ""
    rows_of_rank, rest = divmod(stored, tensor_parallel_size)
    if stored >= vocab_size and not rest:
        same = option.format(rows=stored, rows_of_rank=rows_of_rank)
        way_out = f"set {same} if only the padding of the vocabulary differs, which loses nothing; else "
    raise NCAPluginError(
        f"checkpoint {path} has {stored} embedding rows, the run has {rows}: {way_out}make it fit with nca-plugin "
        f"transfer --from {path} --to ... --vocab-size {vocab_size} --tensor-model-parallel-size {tensor_parallel_size}"
    )


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
    file = root / NEMO_CONTEXT / NEMO_MODEL
    if not file.is_file():
        raise NCAPluginError(f"checkpoint {root}: {NEMO_CONTEXT}/{NEMO_MODEL} is missing, which describes the model")
    values = read_mapping(file)
    model = values.get("config", values)
    # A vocabulary that NeMo's configuration says is not padded.
    return {**model, "should_pad_vocab": model.get("vocab_size") is None} if isinstance(model, dict) else model


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML without merged mappings, of which a few lines make any number."""

    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it merges mappings (<<)")


def read_mapping(file: Path) -> dict[str, Any]:
    """Return a YAML file that holds a mapping. Raises `NCAPluginError` if it does not."""
    try:
        values = yaml.load(read_small(file, MOST_DESCRIPTION_BYTES).decode(), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise NCAPluginError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise NCAPluginError(f"{file} cannot be read: it holds no mapping")
    return values
