"""Checkpoint folders as Megatron-LM, Megatron-Bridge and NeMo 2 write them."""

from pathlib import Path
from typing import Any, Final

import yaml

from nca_plugin.checkpoint.torch_dist import read_small
from nca_plugin.checkpoint.tracker import TRACKER, folder_named, read_tracker
from nca_plugin.errors import NCAPluginError

RUN_CONFIG: Final = "run_config.yaml"
TRAIN_STATE: Final = "train_state.pt"
NEMO_WEIGHTS: Final = "weights"
NEMO_CONTEXT: Final = "context"
#: The folder in an iteration's folder in which Megatron-Bridge, and Megatron-LM from 0.20 on, save the tokenizer.
TOKENIZER: Final = "tokenizer"
NEMO_MODEL: Final = "model.yaml"

#: Limit on a file that describes a run or its model, which is usually some tens of kilobytes.
MOST_DESCRIPTION_BYTES: Final = 1 << 22


def find_checkpoint(path: Path) -> Path:
    """Return the folder with the data files of the checkpoint `path`: itself, or that of its latest iteration.

    Raises:
        NCAPluginError: if there is no folder, or its tracker file names no checkpoint.
    """
    try:
        return _find(path)
    except OSError as error:
        raise NCAPluginError(f"checkpoint {path} cannot be read: {error}") from error


def _find(path: Path) -> Path:
    if not path.is_dir():
        raise NCAPluginError(f"checkpoint {path} does not exist" if not path.exists() else f"{path} is no folder")
    if (path / NEMO_WEIGHTS).is_dir():
        return path / NEMO_WEIGHTS
    if not (path / TRACKER).is_file():
        return path
    latest = read_tracker(path)
    if latest is None:
        return path
    named = folder_named(latest)
    if named is None:
        held = f"holds {latest!r}, neither an iteration nor 'release'" if latest else "is empty"
        raise NCAPluginError(f"checkpoint {path}: {TRACKER} {held}")
    if not (path / named).is_dir():
        raise NCAPluginError(f"checkpoint {path}: {TRACKER} names {named}, which is missing")
    return path / named


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Loads YAML, but refuses merged mappings, because a few lines of them can make any number of values."""

    def flatten_mapping(self, node: Any) -> None:
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError("it merges mappings (<<)")


def read_mapping(file: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises `NCAPluginError` if it holds none."""
    try:
        values = yaml.load(read_small(file, MOST_DESCRIPTION_BYTES).decode(), _Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise NCAPluginError(f"{file} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise NCAPluginError(f"{file} cannot be read: it holds no mapping")
    return values
