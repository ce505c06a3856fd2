"""Layers of a HybridModel without Transformer Engine, for `--spec local_hybrid SPEC`: Megatron ships them only with it.

Mamba layers can be built, saved and loaded; running them takes kernels that need a GPU.

Parameters get the names in a checkpoint that Transformer Engine's fused layers would give them, as Megatron's own local
GPT layers do.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.models.hybrid import hybrid_block
from megatron.core.models.hybrid.hybrid_block import HybridStack, HybridStackSubmodules
from megatron.core.parallel_state import get_tensor_model_parallel_group
from megatron.core.ssm import mamba_context_parallel, mamba_mixer
from megatron.core.ssm.mamba_layer import MambaLayer, MambaLayerSubmodules
from megatron.core.ssm.mlp_layer import MLPLayer
from megatron.core.transformer.attention import SelfAttention, SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_layer import (
    MoETransformerLayer,
    TransformerLayer,
    TransformerLayerSubmodules,
)
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint

_local = LocalSpecProvider()
_norm = _local.layer_norm(rms_norm=True, for_qk=False, has_residual=True)
# The stack's last norm is not in the spec.
hybrid_block.TENorm = _norm


class _MambaNorm(torch.nn.Module):
    """The parameters of the norm that the kernels bring."""

    #: Set by the mixer, but for megatron-core 0.18's.
    tp_group: Any = None

    def __init__(self, size: int, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
    ) -> dict[str, Any]:
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.tp_group or get_tensor_model_parallel_group(),
            dp_cp_group=metadata["dp_cp_group"],
        )


# What only the kernels need, and building a layer asks for.
mamba_mixer.HAVE_MAMBA_SSM = mamba_mixer.HAVE_EINOPS = mamba_context_parallel.HAVE_EINOPS = True
mamba_mixer.ExtendedRMSNorm = _MambaNorm

_mamba = MambaLayerSubmodules(
    norm=_norm,
    mixer=ModuleSpec(
        module=mamba_mixer.MambaMixer,
        submodules=mamba_mixer.MambaMixerSubmodules(
            in_proj=_local.column_parallel_linear(), out_proj=_local.row_parallel_linear()
        ),
    ),
    mamba_bda=get_bias_dropout_add,
    sharded_state_dict_keys_map={"norm.": "mixer.in_proj.layer_norm_"},
)

_attention = TransformerLayerSubmodules(
    input_layernorm=_norm,
    self_attention=ModuleSpec(
        module=SelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=_local.column_parallel_linear(),
            core_attention=_local.core_attention(),
            linear_proj=_local.row_parallel_linear(),
        ),
    ),
    self_attn_bda=get_bias_dropout_add,
    sharded_state_dict_keys_map={"input_layernorm.": "self_attention.linear_qkv.layer_norm_"},
)

_mlp = TransformerLayerSubmodules(
    pre_mlp_layernorm=_norm,
    mlp=partial(
        MLP.as_mlp_submodule,
        submodules=MLPSubmodules(linear_fc1=_local.column_parallel_linear(), linear_fc2=_local.row_parallel_linear()),
    ),
    mlp_bda=get_bias_dropout_add,
    sharded_state_dict_keys_map={"pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_"},
)

_moe = TransformerLayerSubmodules(
    pre_mlp_layernorm=_norm,
    mlp=get_moe_module_spec(use_te=False, num_experts=4, moe_grouped_gemm=False),
    mlp_bda=get_bias_dropout_add,
)

SPEC = ModuleSpec(
    module=HybridStack,
    submodules=HybridStackSubmodules(
        mamba_layer=ModuleSpec(module=MambaLayer, submodules=_mamba),
        attention_layer=ModuleSpec(module=TransformerLayer, submodules=_attention),
        mlp_layer=ModuleSpec(module=MLPLayer, submodules=_mlp),
        moe_layer=ModuleSpec(module=MoETransformerLayer, submodules=_moe),
    ),
)
