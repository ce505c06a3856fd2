"""Freezes the parameters of a stage that selectors of `nca-plugin transfer` name."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from nca_plugin.checkpoint.names import parameter
from nca_plugin.errors import NCAPluginError
from nca_plugin.files import read_lines
from nca_plugin.transition.selectors import Selector, parse_selector

_LAYER: Final = re.compile(r"(.*decoder\.layers)\.(\d+)\.(.+)")


def read_freeze_list(path: Path) -> list[str]:
    """Return the selectors in a file, one for each line. Raises `NCAPluginError` if it cannot be read or has none."""
    selectors = [line.strip() for line in read_lines(path, "--freeze-list") if line.strip()]
    if not selectors:
        raise NCAPluginError(f"--freeze-list {path} names nothing")
    return selectors


def freeze(chunks: Sequence[torch.nn.Module], selectors: Sequence[str], num_layers: int) -> Sequence[torch.nn.Module]:
    """Switch off the gradients of parameters that selectors name, and return the chunks. This is a pre-wrap hook.

    Every rank has to call it for its own part of the model.

    Args:
        chunks: the parts of the model on this rank.
        num_layers: number of layers of the whole model.

    Raises:
        NCAPluginError: if a selector is unknown, or matches no parameter on any rank.
    """
    parsed = [parse_selector(text, num_layers) for text in selectors]
    counts = torch.zeros(len(parsed), dtype=torch.int64)
    for chunk in chunks:
        for name, values in chunk.named_parameters():
            matching = [_matches(selector, chunk, name) for selector in parsed]
            counts += torch.tensor(matching)
            if any(matching):
                values.requires_grad_(False)
    if torch.distributed.is_initialized():
        counts = counts.to(next(chunks[0].parameters()).device)
        torch.distributed.all_reduce(counts)
    for selector, count in zip(parsed, counts.tolist(), strict=True):
        if not count:
            raise NCAPluginError(f"--freeze-list: '{selector.text}' matches no parameter of this model")
    return chunks


def _matches(selector: Selector, chunk: torch.nn.Module, name: str) -> bool:
    """Return whether a selector names a parameter. In `name`, layers of a pipeline stage are counted from 0."""
    match = _LAYER.fullmatch(name)
    if match is None:
        return selector.matches(name, parameter(name), None)
    layer: Any = chunk.get_submodule(f"{match[1]}.{match[2]}")
    number = layer.layer_number - 1
    global_name = f"{match[1]}.{number}.{match[3]}"
    return selector.matches(global_name, parameter(global_name), number)
