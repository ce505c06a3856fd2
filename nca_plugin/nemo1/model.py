"""`model` of a NeMo 1 configuration: the architecture."""

from typing import Any, Final

from nca_plugin.nemo1.rows import (
    Arguments,
    CannotBeHad,
    Config,
    Refused,
    Row,
    Translated,
    boolean,
    checked_number,
    ignored,
    integer,
    off_switch,
    real,
    switch,
    text,
    whole,
    within,
)
from nca_plugin.nemo1.run import precision

_BUILDER: Final = "MegatronGPTModel.model_provider_func"


def _seq_length(value: Any, config: Config) -> Arguments:
    """Samples have `data.seq_length`; the model has positions for `encoder_seq_length`."""
    length, given = whole(value), config.get("model.data.seq_length", whole)
    of_data = length if given is None else given
    if of_data > length:
        raise CannotBeHad(f"model.data.seq_length={of_data} is more than the model has positions for")
    return {"seq-length": of_data}


def _positions(value: Any, config: Config) -> Arguments:
    """NeMo builds megatron-core's model for `encoder_seq_length` positions, only its own for this many."""
    return {"max-position-embeddings": _length(config) if config.read("model.mcore_gpt", boolean) else whole(value)}


def _length(config: Config) -> int:
    return config.read("model.encoder_seq_length", whole)


def _query_groups(value: Any, config: Config) -> Arguments:
    if whole(value) == config.read("model.num_attention_heads", whole):
        return {}
    return {"group-query-attention": True, "num-query-groups": whole(value)}


def _activation(value: Any, config: Config) -> Arguments:
    is_fused, is_tanh = (config.get(f"model.{key}", boolean) for key in ("bias_activation_fusion", "openai_gelu"))
    match value:
        case "gelu" if is_tanh and not config.read("model.bias", boolean):
            raise CannotBeHad("with model.openai_gelu: Megatron-LM has the tanh form only with model.bias=true")
        case "gelu":
            # Fused with the bias it is the tanh form, which is openai_gelu; else the exact one.
            return {} if is_fused or is_tanh else {"no-bias-gelu-fusion": True}
        case "swiglu" | "fast-swiglu" if not is_tanh:
            return {"swiglu": True} | ({} if is_fused else {"no-bias-swiglu-fusion": True})
        case "squared-relu" if not is_tanh:
            return {"squared-relu": True, "no-bias-gelu-fusion": True}
    raise CannotBeHad("Megatron-LM has gelu, swiglu and squared-relu, and of these openai_gelu for gelu alone")


def _normalization(value: Any, config: Config) -> Arguments:
    match str(value).lower():
        case "layernorm":
            return {"normalization": "LayerNorm"}
        case "layernorm1p":
            return {"normalization": "LayerNorm", "apply-layernorm-1p": True}
        case "rmsnorm":
            return {"normalization": "RMSNorm"}
    raise CannotBeHad("Megatron-LM has layernorm, layernorm1p and rmsnorm")


def _query_key_scaling(value: Any, config: Config) -> Arguments:
    """NeMo's megatron-core model has it with fp16 alone; it changes the range of the scores, not the attention."""
    is_on = boolean(value) and config.read("trainer.precision", precision) == "fp16"
    return {"apply-query-key-layer-scaling": True} if is_on else {}


def _positions_type(value: Any, config: Config) -> Arguments:
    if value not in ("learned_absolute", "rope", "none"):
        raise CannotBeHad("Megatron-LM has learned_absolute and rope")
    return {"position-embedding-type": value}


def _window(value: Any, config: Config) -> Arguments:
    if not isinstance(value, list) or len(value) != 2:
        raise CannotBeHad("must be a list of two whole numbers")
    return {"window-size": ",".join(str(whole(part)) for part in value)}


def _legacy_only(reason: str) -> Any:
    """Return a rule for what NeMo's own model has and its megatron-core model leaves out."""

    def rule(value: Any, config: Config) -> Arguments:
        if checked_number(value) and not config.read("model.mcore_gpt", boolean):
            raise CannotBeHad(reason)
        return {}

    return rule


ROWS: Final[tuple[Row, ...]] = (
    Translated("model.encoder_seq_length", _seq_length, ("seq-length",), is_required=True),
    Translated(
        "model.max_position_embeddings",
        _positions,
        ("max-position-embeddings",),
        default=_length,
        source=f"`encoder_seq_length`: {_BUILDER}",
    ),
    within("model.mcore_gpt", "model.max_position_embeddings", default=False),
    integer("model.num_layers", "num-layers", is_required=True),
    integer("model.hidden_size", "hidden-size", is_required=True),
    Translated(
        "model.ffn_hidden_size",
        lambda value, _: {"ffn-hidden-size": whole(value)},
        ("ffn-hidden-size",),
        default=lambda config: 4 * config.read("model.hidden_size", whole),
        source="4 `hidden_size`, for gated units too: TransformerConfig",
    ),
    integer("model.num_attention_heads", "num-attention-heads", is_required=True),
    Translated("model.num_query_groups", _query_groups, ("group-query-attention", "num-query-groups")),
    integer("model.kv_channels", "kv-channels"),
    real("model.init_method_std", "init-method-std"),
    Refused("model.use_scaled_init_method", "Megatron-LM scales the output layers' initial values", unless=(True,)),
    real("model.hidden_dropout", "hidden-dropout"),
    real("model.attention_dropout", "attention-dropout"),
    Translated(
        "model.ffn_dropout",
        _legacy_only("Megatron-LM has no dropout between the two layers"),
        (),
        note="must be 0 unless `mcore_gpt`, which leaves it out",
    ),
    Translated("model.normalization", _normalization, ("normalization", "apply-layernorm-1p")),
    switch("model.layernorm_zero_centered_gamma", "apply-layernorm-1p"),
    real("model.layernorm_epsilon", "norm-epsilon"),
    Refused("model.do_layer_norm_weight_decay", "Megatron-LM does not decay norms and biases"),
    integer("model.make_vocab_size_divisible_by", "make-vocab-size-divisible-by"),
    integer("model.override_vocab_size", "padded-vocab-size"),
    off_switch("model.bias", "disable-bias-linear", default=True),
    switch("model.qkv_bias", "add-qkv-bias"),
    Translated(
        "model.activation",
        _activation,
        ("swiglu", "squared-relu", "no-bias-gelu-fusion", "no-bias-swiglu-fusion"),
        default="gelu",
    ),
    within("model.bias_activation_fusion", "model.activation", default=True),
    within("model.openai_gelu", "model.activation"),
    Refused("model.headscale", "Megatron-LM has no scales of heads"),
    Refused("model.transformer_block_type", "Megatron-LM's blocks are pre_ln", unless=("pre_ln",)),
    Refused("model.normalize_attention_scores", "Megatron-LM always scales the scores", unless=(True,)),
    Refused("model.attention_type", "Megatron-LM's GPT has multihead attention", unless=("multihead",)),
    Refused("model.apply_embedding_scaling", "Megatron-LM does not scale embeddings"),
    Refused(
        "model.name",
        "Megatron-LM builds GPT's own layers, not those of Falcon, Gemma 2 or Hyena",
        unless=("", "te_gpt", "megatron_gpt_full_te_layer_autocast"),
    ),
    Refused("model.hyena", "Megatron-LM's GPT has no Hyena layers", unless=()),
    Refused("model.drop_layers", "Megatron-LM runs every layer", unless=([],)),
    *ignored(
        "only the layers of model.name=megatron_falcon_gpt read it, in NeMo too",
        (f"model.mcore_customization_config.{key}" for key in ("parallel_attention", "new_decoder_architecture")),
    ),
    Refused("model.mcore_customization_config.*", "no argument of Megatron-LM is known to set it", unless=()),
    Translated("model.position_embedding_type", _positions_type, ("position-embedding-type",)),
    real("model.rotary_percentage", "rotary-percent"),
    integer("model.rotary_base", "rotary-base"),
    switch("model.rotary_interleaved", "rotary-interleaved"),
    integer("model.seq_len_interpolation_factor", "rotary-seq-len-interpolation-factor"),
    switch("model.scale_positional_embedding", "use-rope-scaling"),
    real("model.scale_factor", "rope-scaling-factor"),
    *(
        Refused(f"model.{key}", f"Megatron-LM scales rotary embeddings with {value}", unless=(value,))
        for key, value in (("low_freq_factor", 1), ("high_freq_factor", 4), ("old_context_len", 8192))
    ),
    Translated("model.window_size", _window, ("window-size",)),
    off_switch("model.share_embeddings_and_output_weights", "untie-embeddings-and-output-weights"),
    Translated(
        "model.apply_query_key_layer_scaling",
        _query_key_scaling,
        ("apply-query-key-layer-scaling",),
        default=lambda config: not config.read("model.mcore_gpt", boolean),
        source=f"{_BUILDER}: true without `mcore_gpt`",
    ),
    integer("model.num_moe_experts", "num-experts"),
    integer("model.moe_router_topk", "moe-router-topk"),
    text("model.moe_router_load_balancing_type", "moe-router-load-balancing-type"),
    real("model.moe_aux_loss_coeff", "moe-aux-loss-coeff"),
    real("model.moe_z_loss_coeff", "moe-z-loss-coeff"),
    real("model.moe_input_jitter_eps", "moe-input-jitter-eps"),
    switch("model.moe_grouped_gemm", "moe-grouped-gemm"),
    text("model.moe_token_dispatcher_type", "moe-token-dispatcher-type"),
    real("model.moe_expert_capacity_factor", "moe-expert-capacity-factor"),
    switch("model.moe_pad_expert_input_to_capacity", "moe-pad-expert-input-to-capacity"),
    text("model.moe_token_drop_policy", "moe-token-drop-policy"),
    switch("model.moe_per_layer_logging", "moe-per-layer-logging"),
    switch("model.moe_layer_recompute", "moe-layer-recompute"),
    Refused("model.moe_token_dropping", "megatron-core never had it: use model.moe_expert_capacity_factor"),
    Refused("model.use_loss_mask", "Megatron-LM's attention is causal"),
    Refused("model.use_emha", "NeMo 1 has it for later"),
)
