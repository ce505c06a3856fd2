"""Adapts Megatron-Bridge to CPU mode, beyond `nca_plugin.megatron.cuda_on_cpu`.

Megatron-Bridge imports Transformer Engine and NVIDIA's resiliency extension even if a run does not use them, and
neither can be installed without a GPU. Stand-ins make the imports work, but using one is an error. Its recipes are
written for GPUs. Layers and settings that need one are replaced, and the log names them.
"""

import sys
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.megatron.cpu_settings import SETTINGS, apply_settings, check_sections

_STAND_INS: Final = {
    "transformer_engine": ("transformer_engine", "transformer_engine.pytorch"),
    "nvidia_resiliency_ext": ("nvidia_resiliency_ext", "nvidia_resiliency_ext.inprocess"),
}


def add_stand_ins() -> list[str]:
    """Make packages that are not installed importable, and return their names.

    Call this once, before Megatron-Bridge is imported.
    """
    missing = [package for package in _STAND_INS if find_spec(package) is None]
    # Importing Megatron now keeps it from finding the stand-in for Transformer Engine.
    import megatron.core.extensions.transformer_engine
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.models.gpt.gpt_model
    import megatron.core.optimizer
    import megatron.core.transformer.transformer_block  # noqa: F401

    for name in (name for package in missing for name in _STAND_INS[package]):
        module = _StandIn(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__path__ = []
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    return missing


class _Nested(type):
    """The type of placeholders, whose attributes are placeholders too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(name)


class _StandIn(ModuleType):
    """A module whose attributes are placeholders: classes that can be subclassed, but not used."""

    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        placeholder = _placeholder(name)
        # All imports of a name get the same class.
        setattr(self, name, placeholder)
        return placeholder


def _placeholder(name: str) -> type:
    import torch

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise NCAPluginError(f"{name} needs a GPU, and this run is in CPU mode: leave out the option that asks for it")

    return _Nested(name, (torch.nn.Module,), {"__init__": refuse})


def adapt(config: Any) -> list[str]:
    """Set the values in a configuration that a run without a GPU needs, and return the changes as `key=value`.

    Raises:
        NCAPluginError: if the model has layers only for GPUs, or settings need one.
    """
    from megatron.bridge.training.mixed_precision import get_mixed_precision_config

    try:
        precision = get_mixed_precision_config(config.mixed_precision) if config.mixed_precision is not None else None
    except ValueError as error:
        raise NCAPluginError(f"mixed_precision={config.mixed_precision}: {one_line(error)}") from error
    names = ("model", "optimizer", "ddp", "dist", "profiling")
    check_sections({name: getattr(config, name, None) for name in names} | {"mixed_precision": precision})
    changes = [_use_local_layers(config.model)]
    for section in SETTINGS:
        changes += apply_settings(getattr(config, section), section)
    if config.comm_overlap is not None:
        config.comm_overlap = None
        changes.append("comm_overlap=None")
    if config.model.num_moe_experts is not None and config.model.moe_token_dispatcher_type == "flex":
        config.model.moe_token_dispatcher_type = "alltoall"
        changes.append("model.moe_token_dispatcher_type=alltoall")
    return changes


def _use_local_layers(model: Any) -> str:
    from megatron.bridge.models.gpt_provider import (
        GPTModelProvider,
        default_layer_spec,
        local_layer_spec,
        transformer_engine_layer_spec,
    )
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    spec = getattr(model, "transformer_layer_spec", None)
    if isinstance(model, GPTModelProvider) and spec in (default_layer_spec, transformer_engine_layer_spec):
        model.transformer_layer_spec = local_layer_spec
    elif isinstance(spec, partial) and spec.func is get_gpt_decoder_block_spec:
        model.transformer_layer_spec = partial(spec, use_transformer_engine=False)
    elif spec is not local_layer_spec:
        described = getattr(spec, "__name__", type(model).__name__)
        raise NCAPluginError(f"CPU mode has no layers for this recipe's model ({described}): run it on a GPU")
    return "model.transformer_layer_spec=local"
