"""Stands in for the file of this name in Megatron-LM core_v0.18.2, which the wheel of megatron-core lacks."""

from collections.abc import Callable
from typing import Any

from megatron.training import get_args


def model_provider(
    model_builder: Callable[..., Any], pre_process: bool = True, post_process: bool = True, **stage: Any
) -> Any:
    """Return the part of the model that this pipeline stage holds."""
    return model_builder(get_args(), pre_process, post_process, **stage)
