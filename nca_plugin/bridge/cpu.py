"""What Megatron-Bridge needs in CPU mode beyond `nca_plugin.megatron.cpu`, some of which NeMo 2 needs too.

It imports Transformer Engine and NVIDIA's resiliency extension whether a run uses them or not, and neither installs
without a GPU: stand-ins answer the imports, and any use of one is an error. Its recipes are written for GPUs: the
layers and the settings that need one are replaced, by name, and said so in the log.
"""

import sys
from collections.abc import Mapping
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

from nca_plugin.errors import NCAPluginError, one_line

_STAND_INS: Final = {
    "transformer_engine": ("transformer_engine", "transformer_engine.pytorch"),
    "nvidia_resiliency_ext": ("nvidia_resiliency_ext", "nvidia_resiliency_ext.inprocess"),
}

#: Values by section and field that a run without a GPU needs.
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "model": {
        "transformer_impl": "local",
        "use_cpu_initialization": True,
        "persist_layer_norm": False,
        "gradient_accumulation_fusion": False,
        "masked_softmax_fusion": False,
        "bias_activation_fusion": False,
        "bias_dropout_fusion": False,
        "apply_rope_fusion": False,
        "cross_entropy_loss_fusion": False,
        "use_transformer_engine_op_fuser": False,
        "use_te_rng_tracker": False,
        "tp_comm_overlap": False,
        "cuda_graph_impl": "none",
        "fine_grained_activation_offloading": False,
        "moe_grouped_gemm": False,
        "moe_permute_fusion": False,
        "moe_router_fusion": False,
        "moe_shared_expert_overlap": False,
        "moe_flex_dispatcher_backend": None,
    },
    "optimizer": {"overlap_param_gather": False, "use_precision_aware_optimizer": False},
    "ddp": {"overlap_grad_reduce": False, "overlap_param_gather": False, "average_in_collective": False},
    "dist": {"distributed_backend": "gloo"},
    "rng": {"te_rng_tracker": False},
    "dataset": {"pin_memory": False},
    "checkpoint": {"async_save": False},
}


#: Fields that ask for what no run without a GPU can do, and that change its numbers: they are refused.
_NEEDS_GPU: Final = (
    *("fp8", "fp4", "fp8_param", "fp4_param", "qk_clip", "cpu_offloading", "use_kitchen", "optimizer_cpu_offload"),
    *("use_megatron_fsdp", "use_torch_fsdp2", "use_nsys_profiler", "record_memory_history"),
)


def check_sections(sections: Mapping[str, Any]) -> None:
    """Raise `NCAPluginError`, with all of them, for settings that need a GPU.

    Args:
        sections: of a configuration, by the user's names for them; those that are None are passed over.
    """
    given = [
        f"{section}.{field}={value}"
        for section, owner in sections.items()
        for field in _NEEDS_GPU
        if (value := getattr(owner, field, None)) not in (None, False)
    ]
    if given:
        raise NCAPluginError(
            f"CPU mode cannot do {', '.join(given)}: set them to null or false, use a recipe in bf16, or run on a GPU"
        )


def add_stand_ins() -> list[str]:
    """Answer the imports of packages that are not installed. Returns their names.

    Call once, before Megatron-Bridge is imported.
    """
    missing = [package for package in _STAND_INS if find_spec(package) is None]
    # Megatron looks for Transformer Engine when it is imported, and must not find the stand-in.
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
    """Of a placeholder: its attributes are placeholders too."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _placeholder(name)


class _StandIn(ModuleType):
    """A module whose every attribute is a class that can be subclassed and not used."""

    __version__ = "0.0.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        placeholder = _placeholder(name)
        # One class for every import of a name.
        setattr(self, name, placeholder)
        return placeholder


def _placeholder(name: str) -> type:
    import torch

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise NCAPluginError(f"{name} needs a GPU, and this run is in CPU mode: leave out the option that asks for it")

    return _Nested(name, (torch.nn.Module,), {"__init__": refuse})


def adapt(config: Any) -> list[str]:
    """Set what a run without a GPU needs in a configuration. Returns what changed, as `key=value`.

    Raises:
        NCAPluginError: a model whose layers exist for GPUs only, or settings that need one.
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


def apply_settings(owner: Any, section: str, name: str | None = None) -> list[str]:
    """Set the values of a section of `SETTINGS` that `owner` has. Returns what changed, as `key=value`.

    Args:
        name: how the user names the section, if otherwise.
    """
    changes = []
    for field, value in SETTINGS[section].items():
        if getattr(owner, field, value) != value:
            setattr(owner, field, value)
            changes.append(f"{name or section}.{field}={value}")
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
