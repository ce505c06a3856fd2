"""Settings of Megatron-Bridge and NeMo 2 that CPU mode changes, and settings that it refuses."""

from collections.abc import Mapping
from typing import Any, Final

from nca_plugin.errors import NCAPluginError

#: The values that a run without a GPU needs, by section and field.
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


#: Fields that need a GPU and change the numbers that a run computes, which are therefore refused.
_NEEDS_GPU: Final = (
    *("fp8", "fp4", "fp8_param", "fp4_param", "qk_clip", "cpu_offloading", "use_kitchen", "optimizer_cpu_offload"),
    *("use_megatron_fsdp", "use_torch_fsdp2", "use_nsys_profiler", "record_memory_history"),
)


def check_sections(sections: Mapping[str, Any]) -> None:
    """Raise `NCAPluginError` with all settings that need a GPU.

    Args:
        sections: the sections of a configuration by the user's names for them, or None for a section without settings.
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


def apply_settings(owner: Any, section: str, name: str | None = None) -> list[str]:
    """Set the values of a section of `SETTINGS` that `owner` has, and return the changes as `key=value`.

    Args:
        name: how the user names the section; None if by `section`.
    """
    changes = []
    for field, value in SETTINGS[section].items():
        if getattr(owner, field, value) != value:
            setattr(owner, field, value)
            changes.append(f"{name or section}.{field}={value}")
    return changes
