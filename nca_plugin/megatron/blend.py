"""Reads a blend as users write it, with each path after its weight, and checks that a model can train on the paths."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron.core.datasets.object_storage_utils import is_object_storage_path
from megatron.core.datasets.utils import get_blend_from_list

from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.megatron.dataset import check_vocabulary, is_ours, open_path
from nca_plugin.typed_numbers import is_number

#: The paths and their weights; None without weights.
Blend = tuple[list[str], list[float] | None]


def read_blend(data_path: str | Sequence[Any] | None, key: str) -> Blend:
    """Return the blend of Megatron-LM's `--data-path`: one or several paths, each after its weight or all without.

    Args:
        data_path: a list, or a string with its items separated by spaces.
        key: how the user names the data path.

    Raises:
        NCAPluginError: if there is no path, or the list is not a blend.
    """
    parts = data_path.split() if isinstance(data_path, str) else [str(part) for part in data_path or []]
    if not parts:
        raise NCAPluginError(f"{key} is missing: name a source, such as nca://web")
    # If the items are not pairs of a weight and a path, Megatron takes all of them for paths.
    is_weighted = len(parts) % 2 == 0 and all(map(is_number, parts[::2]))
    numbers = [
        part for part in parts[is_weighted :: 1 + is_weighted] if is_number(part) and not Path(f"{part}.idx").exists()
    ]
    if len(parts) > 1 and numbers:
        order = [part for pair in zip(parts[1::2], parts[::2], strict=False) for part in pair]
        is_swapped = len(parts) % 2 == 0 and not is_weighted and all(map(is_number, parts[1::2]))
        way_out = (
            f"the weight comes before its path: '{' '.join(order)}'"
            if is_swapped
            else "write each path after its weight, or paths alone"
        )
        raise NCAPluginError(f"{key}: '{' '.join(parts)}' is malformed: {numbers[-1]} is no path; {way_out}")
    try:
        paths, weights = get_blend_from_list(parts)
    except (AssertionError, ValueError) as error:
        raise NCAPluginError(f"{key}={parts} is no list of weights and paths: {error}") from None
    with in_context(key):
        check_weights(paths, weights)
    return list(paths), weights


def check_weights(paths: Sequence[str], weights: Sequence[float] | None) -> None:
    """Raise `NCAPluginError` for an invalid weight, for which Megatron has no message, or by which it divides."""
    for path, weight in zip(paths, weights or (), strict=False):
        if not (math.isfinite(weight) and weight > 0):
            raise NCAPluginError(f"data path {path} has the weight {weight:g}: it must be a finite number above 0")


def is_meant_as_ours(path: str) -> bool:
    """Return whether a data path names a source or a generated dataset, or looks like the URI of an unknown source.

    Opening the path of an unknown source raises an error that suggests similar names.
    """
    return is_ours(path) or ("://" in path and not is_object_storage_path(path))


def check_blend(paths: Sequence[str], seq_length: int, vocab_size: int, *, length_key: str, way_out: str) -> None:
    """Raise `NCAPluginError` if a model cannot train on one of the sources or generated datasets in `paths`.

    Args:
        seq_length: number of input tokens of a sample.
        vocab_size: number of ids for which the model has rows.
        length_key: how the user names the sequence length.
        way_out: see `check_vocabulary`.
    """
    for path in filter(is_meant_as_ours, paths):
        source = open_path(path)
        with in_context(f"{length_key}={seq_length}"):
            source.check_seq_length(seq_length)
        check_vocabulary(source, vocab_size, way_out)
