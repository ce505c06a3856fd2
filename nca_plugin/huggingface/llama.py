"""A Llama in Megatron and in Hugging Face: its sizes, and where each stores the rows of a parameter.

Both store the same numbers. Megatron stores query, key and value of each group of heads in one matrix (`linear_qkv`),
and gate and up in another (`linear_fc1`). Hugging Face stores each in its own matrix. So a conversion only moves whole
rows.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.errors import NCAPluginError
from nca_plugin.json_files import shown

#: Canonical names of Megatron's parameters, see `names.Parameter`.
EMBEDDING: Final = "embedding.word_embeddings.weight"
OUTPUT: Final = "output_layer.weight"
_FINAL_NORM: Final = "decoder.final_layernorm.weight"
_LAYERS: Final = "decoder.layers"
_QKV: Final = f"{_LAYERS}.self_attention.linear_qkv"
_PROJ: Final = f"{_LAYERS}.self_attention.linear_proj"
_FC1: Final = f"{_LAYERS}.mlp.linear_fc1"
_FC2: Final = f"{_LAYERS}.mlp.linear_fc2"

#: Modules that have a state besides their parameters under Transformer Engine, and an empty one otherwise. Megatron
#: does not load a checkpoint without these entries.
MODULES_WITH_STATE: Final = (_QKV, _PROJ, _FC1, _FC2, f"{_LAYERS}.self_attention.core_attention")
FINAL_MODULE_WITH_STATE: Final = "decoder.final_layernorm"

#: Names of a norm that is a module of its own, and of the same norm fused into the projection after it.
SAME_AS: Final = {
    f"{_LAYERS}.input_layernorm.weight": f"{_QKV}.layer_norm_weight",
    f"{_LAYERS}.pre_mlp_layernorm.weight": f"{_FC1}.layer_norm_weight",
}

#: The parameters of Llama 3's scaling of rotary frequencies for which Megatron has no options.
LLAMA3_SCALING: Final = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
#: Megatron-LM's parser takes --rope-scaling-factor, but no model is made with it (megatron-core 0.19.2,
#: megatron.training.argument_utils.gpt_config_from_args).
MEGATRON_LM_FACTOR: Final = 8.0
NO_OTHER_FACTOR: Final = f"but Megatron-LM computes with {MEGATRON_LM_FACTOR}, whatever --rope-scaling-factor says"

_SILU: Final = ("torch.nn.functional.silu", "torch.nn.functional.swish")
#: Options of Megatron, each with the only value with which the model is a Llama. `_REQUIRED` must be in the checkpoint.
_REQUIRED: Final[Mapping[str, object]] = {"normalization": "RMSNorm", "position_embedding_type": "rope"}
_ALLOWED: Final[Mapping[str, object]] = {"rotary_percent": 1.0, "softmax_type": "vanilla"}
#: Options of Megatron-LM and of TransformerConfig that a Llama does not use.
_UNUSED: Final = (
    *("multi_latent_attention", "experimental_attention_variant", "linear_attention_freq", "attention_output_gate"),
    *("qk_layernorm", "qk_l2_norm", "apply_query_key_layer_scaling", "softmax_scale", "window_size"),
    *("apply_layernorm_1p", "layernorm_zero_centered_gamma", "apply_residual_connection_post_layernorm", "use_mup"),
    *("rotary_interleaved", "rotary_seq_len_interpolation_factor", "seq_len_interpolation_factor", "no_rope_freq"),
    *("squared_relu", "quick_geglu", "glu_linear_offset", "activation_func_clamp_value"),
    *("num_experts", "num_moe_experts", "spec", "heterogeneous_block_specs"),
    *("heterogeneous_layers_config_path", "heterogeneous_layers_config_encoded_json"),
)


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows `start` .. `start + rows - 1` of a Hugging Face tensor, which are also consecutive in Megatron's."""

    name: str
    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """A parameter in Megatron and the Hugging Face rows that it consists of, in order.

    Attributes:
        canonical: the name, without a layer's number.
        columns: the shape of a row: () or (columns,).
        layer: the layer; None if the parameter belongs to no layer.
    """

    canonical: str
    columns: tuple[int, ...]
    parts: tuple[RowRange, ...]
    layer: int | None = None

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape within a layer."""
        return (self.rows, *self.columns)


@dataclass(frozen=True, kw_only=True)
class Llama:
    """A model that both Megatron's GPTModel and Hugging Face's LlamaForCausalLM compute.

    Attributes:
        num_groups: number of heads of keys and values.
        vocab_size: number of ids of the tokenizer.
        attention_bias: whether query, key and value have biases.
        linear_bias: whether all other projections have biases.
        rope_scaling: Llama 3's four parameters, `factor` and `LLAMA3_SCALING`; None for plain rotary embeddings.
    """

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_heads: int
    num_groups: int
    head_dim: int
    vocab_size: int
    tied: bool
    attention_bias: bool
    linear_bias: bool
    norm_epsilon: float
    rope_theta: float
    rope_scaling: Mapping[str, float] | None
    max_positions: int
    init_std: float
    attention_dropout: float = 0.0

    def parameters(self) -> Iterator[Mapped]:
        """Yield the parameters in the order of the forward pass, layer by layer."""
        hidden = self.hidden_size
        yield Mapped(EMBEDDING, (hidden,), (RowRange("model.embed_tokens.weight", 0, self.vocab_size),))
        for layer in range(self.num_layers):
            yield from self._layer(layer)
        yield Mapped(_FINAL_NORM, (), (RowRange("model.norm.weight", 0, hidden),))
        if not self.tied:
            yield Mapped(OUTPUT, (hidden,), (RowRange("lm_head.weight", 0, self.vocab_size),))

    @property
    def zero_biases(self) -> list[str]:
        """Names of biases that Hugging Face has but this model in Megatron does not have.

        LlamaForCausalLM has biases in all projections of the attention or in none, Megatron also in query, key and
        value only.
        """
        is_needed = self.attention_bias and not self.linear_bias
        return [f"model.layers.{layer}.self_attn.o_proj.bias" for layer in range(self.num_layers) if is_needed]

    def _layer(self, layer: int) -> Iterator[Mapped]:
        stem, hidden, ffn = f"model.layers.{layer}", self.hidden_size, self.ffn_hidden_size
        query, size = self.num_heads // self.num_groups * self.head_dim, self.head_dim

        def qkv(kind: str) -> tuple[RowRange, ...]:
            return tuple(
                RowRange(f"{stem}.self_attn.{name}_proj.{kind}", group * rows, rows)
                for group in range(self.num_groups)
                for name, rows in (("q", query), ("k", size), ("v", size))
            )

        def fc1(kind: str) -> tuple[RowRange, ...]:
            return tuple(RowRange(f"{stem}.mlp.{name}_proj.{kind}", 0, ffn) for name in ("gate", "up"))

        def whole(name: str) -> tuple[RowRange, ...]:
            return (RowRange(f"{stem}.{name}", 0, hidden),)

        yield Mapped(f"{_QKV}.layer_norm_weight", (), whole("input_layernorm.weight"), layer)
        yield Mapped(f"{_QKV}.weight", (hidden,), qkv("weight"), layer)
        if self.attention_bias:
            yield Mapped(f"{_QKV}.bias", (), qkv("bias"), layer)
        yield Mapped(f"{_PROJ}.weight", (self.num_heads * size,), whole("self_attn.o_proj.weight"), layer)
        yield Mapped(f"{_FC1}.layer_norm_weight", (), whole("post_attention_layernorm.weight"), layer)
        yield Mapped(f"{_FC1}.weight", (hidden,), fc1("weight"), layer)
        yield Mapped(f"{_FC2}.weight", (ffn,), whole("mlp.down_proj.weight"), layer)
        if self.linear_bias:
            yield Mapped(f"{_PROJ}.bias", (), whole("self_attn.o_proj.bias"), layer)
            yield Mapped(f"{_FC1}.bias", (), fc1("bias"), layer)
            yield Mapped(f"{_FC2}.bias", (), whole("mlp.down_proj.bias"), layer)


def llama_of_megatron(checkpoint: Path, model: ModelConfig, canonical_names: set[str], vocab_size: int) -> Llama:
    """Return the Llama that a checkpoint's configuration describes.

    Args:
        checkpoint: the folder, for messages.
        canonical_names: the names of the parameters, which tell where biases are.
        vocab_size: number of ids of the tokenizer.

    Raises:
        NCAPluginError: if LlamaForCausalLM does not compute the model.
    """
    try:
        return _llama(model, canonical_names, vocab_size)
    except NCAPluginError as error:
        raise NCAPluginError(
            f"checkpoint {checkpoint} does not hold a Llama, and only Llamas are exported: {error}"
        ) from error


def _llama(model: ModelConfig, canonical_names: set[str], vocab_size: int) -> Llama:
    _check_is_llama(model)
    heads, hidden = (_whole(_need(model, name), name) for name in ("num_attention_heads", "hidden_size"))
    # Megatron-LM has a switch and a number, TransformerConfig only the number.
    grouped = model.get("group_query_attention", default=True)
    groups = _whole(model.get("num_query_groups", default=heads), "num_query_groups") if grouped else heads
    if hidden % heads or heads % groups:
        raise NCAPluginError(
            f"its hidden_size {hidden} must be a multiple of its {heads} heads, and these of its {groups} query groups"
        )
    tied = model.get("share_embeddings_and_output_weights")
    return Llama(
        num_layers=_whole(_need(model, "num_layers"), "num_layers"),
        hidden_size=hidden,
        ffn_hidden_size=_whole(_need(model, "ffn_hidden_size"), "ffn_hidden_size"),
        num_heads=heads,
        num_groups=groups,
        head_dim=_whole(model.get("kv_channels", default=hidden // heads), "kv_channels"),
        vocab_size=vocab_size,
        tied=not model.get("untie_embeddings_and_output_weights", default=False) if tied is None else bool(tied),
        attention_bias=f"{_QKV}.bias" in canonical_names,
        linear_bias=f"{_PROJ}.bias" in canonical_names,
        norm_epsilon=_positive(_need(model, "layernorm_epsilon", "norm_epsilon"), "layernorm_epsilon"),
        rope_theta=_positive(model.get("rotary_base", default=10000), "rotary_base"),
        rope_scaling=_scaling(model),
        max_positions=_whole(_need(model, "max_position_embeddings", "seq_length"), "max_position_embeddings"),
        init_std=_positive(model.get("init_method_std", default=0.02), "init_method_std"),
        attention_dropout=_share(model.get("attention_dropout", default=0.0), "attention_dropout"),
    )


def _check_is_llama(model: ModelConfig) -> None:
    if model.is_hybrid:
        raise NCAPluginError("it is a hybrid of several kinds of layers")
    for name in _REQUIRED:
        _need(model, name)
    for name, wanted in {**_REQUIRED, **_ALLOWED}.items():
        if model.get(name, default=wanted) != wanted:
            raise NCAPluginError(f"its {name} is {model.get(name)}, a Llama's is {wanted}")
    for name in _UNUSED:
        if model.get(name):
            raise NCAPluginError(f"its {name} is {model.get(name)}, which a Llama does not have")
    gated = bool(_need(model, "swiglu", "gated_linear_unit"))
    if gated and model.get("swiglu") is None:
        activation = model.get("activation_func")
        gated = isinstance(activation, dict) and activation.get("_target_") in _SILU
    if not gated:
        raise NCAPluginError("its MLP is not gated by SiLU (--swiglu)")


def _scaling(model: ModelConfig) -> Mapping[str, float] | None:
    factor = _positive(model.get("rope_scaling_factor", default=MEGATRON_LM_FACTOR), "rope_scaling_factor")
    if model.get("use_rope_scaling"):
        if factor != MEGATRON_LM_FACTOR:
            raise NCAPluginError(f"its rope_scaling_factor is {factor}, {NO_OTHER_FACTOR}")
        return {"factor": factor, **LLAMA3_SCALING}
    # Unlike Megatron-LM, Megatron-Bridge passes the factor to its models.
    if model.get("rope_scaling"):
        return {"factor": factor, **LLAMA3_SCALING}
    # NeMo's configuration of Llama 3.1 has these names.
    if model.get("old_context_len"):
        names = ("scale_factor", "low_freq_factor", "high_freq_factor")
        values = dict(zip(("factor", *names[1:]), (_positive(_need(model, name), name) for name in names), strict=True))
        return {
            **values,
            "original_max_position_embeddings": _whole(_need(model, "old_context_len"), "old_context_len"),
        }
    return None


def _positive(value: Any, name: str) -> float:
    # The upper limit also refuses integers that are too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= sys.float_info.max:
        raise NCAPluginError(f"its {name} is {shown(value)}, no number above 0")
    return float(value)


def _whole(value: Any, name: str) -> int:
    if type(value) is not int or value < 1:
        raise NCAPluginError(f"its {name} is {shown(value)}, no whole number of 1 or more")
    return value


def _share(value: Any, name: str) -> float:
    return _positive(value, name) if value else 0.0


def _need(model: ModelConfig, *names: str) -> Any:
    value = model.get(*names)
    if value is None:
        raise NCAPluginError(f"it does not say its {names[0]}")
    return value


def arguments_of_llama(llama: Llama, dtype: str) -> dict[str, Any]:
    """Return the arguments of a Megatron-LM run with this model, as its checkpoints would keep them."""
    return {
        "num_layers": llama.num_layers,
        "hidden_size": llama.hidden_size,
        "ffn_hidden_size": llama.ffn_hidden_size,
        "num_attention_heads": llama.num_heads,
        "group_query_attention": llama.num_groups != llama.num_heads,
        "num_query_groups": llama.num_groups,
        "kv_channels": llama.head_dim,
        "seq_length": llama.max_positions,
        "max_position_embeddings": llama.max_positions,
        "position_embedding_type": "rope",
        "add_position_embedding": True,
        "use_rotary_position_embeddings": False,
        "rotary_base": int(llama.rope_theta) if llama.rope_theta == int(llama.rope_theta) else llama.rope_theta,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rope_scaling": llama.rope_scaling is not None,
        "rope_scaling_factor": MEGATRON_LM_FACTOR,
        "normalization": "RMSNorm",
        "norm_epsilon": llama.norm_epsilon,
        "layernorm_epsilon": llama.norm_epsilon,
        "apply_layernorm_1p": False,
        "swiglu": True,
        "squared_relu": False,
        "add_bias_linear": llama.linear_bias,
        "add_qkv_bias": llama.attention_bias and not llama.linear_bias,
        "apply_query_key_layer_scaling": False,
        "untie_embeddings_and_output_weights": not llama.tied,
        "attention_dropout": llama.attention_dropout,
        "hidden_dropout": 0.0,
        "init_method_std": llama.init_std,
        "vocab_size": llama.vocab_size,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "ckpt_format": "torch_dist",
    }


def command_line(llama: Llama, dtype: str) -> tuple[str, ...]:
    """Return the arguments that are needed because --use-checkpoint-args does not read them from a checkpoint."""
    precision = {"bfloat16": ("--bf16",), "float16": ("--fp16",)}
    return (
        *("--use-checkpoint-args", "--norm-epsilon", str(llama.norm_epsilon)),
        *(() if llama.rope_scaling is None else ("--use-rope-scaling",)),
        *precision.get(dtype, ()),
    )
