"""Reads a Llama from the `config.json` of a Hugging Face folder, and checks that Megatron computes the same model."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from nca_plugin.errors import NCAPluginError, in_context, one_line
from nca_plugin.huggingface.llama import LLAMA3_SCALING, MEGATRON_LM_FACTOR, NO_OTHER_FACTOR, Llama
from nca_plugin.json_files import read_object, shown, shown_names

_SIZES: Final = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings"),
)
_SWITCHES: Final = ("tie_word_embeddings", "attention_bias", "mlp_bias")
#: Fields that are numbers, each with its least value and the first value that is too large.
_NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "rms_norm_eps": (1e-30, 1.0),
    "initializer_range": (1e-30, 1e3),
    "attention_dropout": (0.0, 1.0),
    "rope_theta": (1e-3, 1e30),
}
_ROPE: Final = ("rope_parameters", "rope_scaling", "rope_theta", "partial_rotary_factor")
#: All fields that are read. `original_max_position_embeddings` also belongs to the rotary embeddings.
_READ: Final = (*_SIZES, *_SWITCHES, *_NUMBERS, *_ROPE, "original_max_position_embeddings", "hidden_act")
_QUANTIZATION: Final = ("quantization_config", "compression_config")
#: Entries with which some program computes another model than a Llama, each with the values that have no effect.
_CHANGES: Final[Mapping[str, tuple[object, ...]]] = {
    **dict.fromkeys(("sliding_window", "attention_chunk_size", "no_rope_layers"), (0, [])),
    # `auto_map` names the model's own code.
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv", "auto_map"), ()),
    **dict.fromkeys(("use_qk_norm", "qk_norm", "qk_layernorm", "use_bidirectional_attention"), ()),
    **dict.fromkeys(("embedding_multiplier", "residual_multiplier", "logits_scaling", "logit_scale"), (1,)),
    **dict.fromkeys(("scale_emb", "attention_multiplier", "scale_depth"), (1,)),
    **dict.fromkeys(("num_local_experts", "num_experts", "kv_lora_rank"), (0, 1)),
}


def read_llama(folder: Path) -> tuple[Llama, list[str]]:
    """Return the Llama that a folder's `config.json` describes, and notes on entries without effect.

    Raises:
        NCAPluginError: if the file is missing or cannot be read, the model is not a LlamaForCausalLM, a value is
            invalid for a Llama, or Megatron has no options for the model.
    """
    file = folder / "config.json"
    if not file.exists():
        raise NCAPluginError(f"{folder} is no Hugging Face model: config.json is missing")
    values = read_object(file)
    kind, architectures = values.get("model_type"), values.get("architectures") or ["LlamaForCausalLM"]
    if kind != "llama" or architectures != ["LlamaForCausalLM"]:
        raise NCAPluginError(f"{folder} holds a model of type {shown(kind)} ({shown(architectures)}), not a Llama")
    if (folder / "adapter_config.json").exists():
        raise NCAPluginError(f"{folder} holds an adapter beside the model: merge it into the weights first")
    with in_context(f"{file} does not describe a Llama"):
        _check_plain(values)
        config = _parsed(values)
        _check(config)
        rope = rope_of(config)
    reason = next(_other(values, config, rope), None)
    if reason is not None:
        raise NCAPluginError(f"{file} has {reason}")
    llama = Llama(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        ffn_hidden_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_groups=config.num_key_value_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        tied=config.tie_word_embeddings,
        attention_bias=config.attention_bias,
        linear_bias=config.mlp_bias,
        norm_epsilon=config.rms_norm_eps,
        rope_theta=float(rope["rope_theta"]),
        rope_scaling={"factor": MEGATRON_LM_FACTOR, **LLAMA3_SCALING} if rope["rope_type"] == "llama3" else None,
        max_positions=config.max_position_embeddings,
        init_std=config.initializer_range,
        attention_dropout=float(config.attention_dropout),
    )
    unknown = sorted(set(values) - set(_READ) - _of_any_model())
    has_no_effect = [name for name in unknown if values[name] not in (None, False)]
    notes = []
    if has_no_effect:
        notes.append(f"entries of config.json that a Llama does not have are left out: {shown_names(has_no_effect)}")
    return llama, notes


def rope_of(config: Any) -> Mapping[str, Any]:
    """Return the parameters of the rotary embeddings under their names in transformers 5."""
    if hasattr(config, "rope_parameters"):
        found: Mapping[str, Any] = config.rope_parameters
    else:
        found = {**(config.rope_scaling or {}), "rope_theta": config.rope_theta}
    return {"rope_type": found.get("type", "default"), **found}


def _check_plain(values: Mapping[str, Any]) -> None:
    """Raise `NCAPluginError` for mistakes that transformers accepts: values of a wrong type, and contradictions."""
    said: dict[str, Any] = {}
    rope = {name: values.get(name) for name in _ROPE}
    for name in ("rope_parameters", "rope_scaling"):
        of_rope = rope.pop(name)
        if of_rope is not None and not isinstance(of_rope, dict):
            raise NCAPluginError(f"its {name} is {shown(of_rope)}, no object")
        for key, value in (of_rope or {}).items():
            key = "rope_type" if key == "type" else key
            if isinstance(value, dict | list):
                raise NCAPluginError(f"its {name} has {shown(value)} as {shown(key)}: a Llama's layers are all alike")
            if key in said and said[key] != value:
                raise NCAPluginError(f"it says {shown(key)} twice: {shown(said[key])} and {shown(value)}")
            said[key] = value
    for name, value in rope.items():
        if value is not None and said.get(name, value) != value:
            raise NCAPluginError(f"it says {name} twice: {shown(said[name])} and {shown(value)}")
    for name in _SWITCHES:
        if not isinstance(values.get(name, False), bool):
            raise NCAPluginError(f"its {name} is {shown(values[name])}, neither true nor false")
    for name in _SIZES:
        # For these two, transformers computes a missing value from others.
        if name in values and (values[name] is not None or name not in ("num_key_value_heads", "head_dim")):
            _check_size(name, values[name])
    for name in _NUMBERS:
        # `rope_theta` may be null if it is among the other parameters of the rotary embeddings.
        if name in values and (name != "rope_theta" or values[name] is not None):
            _check_number(name, values[name])
    if values.get("hidden_act", "") is None:
        raise NCAPluginError("its hidden_act is null")


def _parsed(values: Mapping[str, Any]) -> Any:
    from transformers import LlamaConfig

    try:
        # Only fields that are read are passed: a number of labels, for example, would become a list of that length.
        return LlamaConfig.from_dict({name: values[name] for name in _READ if values.get(name) is not None})
    # transformers raises errors of any type.
    except Exception as error:
        raise NCAPluginError(one_line(error.__cause__ or error)) from error


def _check(config: Any) -> None:
    """Raise `NCAPluginError` for values that no model has. transformers before 5 does not check them."""
    for name in _SIZES:
        _check_size(name, getattr(config, name))
    for name in _NUMBERS:
        _check_number(name, rope_of(config).get(name) if name == "rope_theta" else getattr(config, name))
    if config.num_attention_heads % config.num_key_value_heads:
        raise NCAPluginError(
            f"its num_attention_heads, {config.num_attention_heads}, must be a multiple of its num_key_value_heads, "
            f"{config.num_key_value_heads}"
        )
    if config.head_dim % 2:
        raise NCAPluginError(f"its head_dim is {config.head_dim}, but rotary embeddings need an even number")


def _check_size(name: str, size: Any) -> None:
    if type(size) is not int or not 1 <= size < 1 << 40:
        raise NCAPluginError(f"its {name} is {shown(size)}, no whole number of 1 or more")


def _check_number(name: str, number: Any) -> None:
    least, end = _NUMBERS[name]
    if type(number) not in (int, float) or not least <= number < end:
        raise NCAPluginError(f"its {name} is {shown(number)}, no number of {least:g} or more, below {end:g}")


def _other(values: Mapping[str, Any], config: Any, rope: Mapping[str, Any]) -> Iterator[str]:
    """Yield each reason why Megatron computes another model."""
    if config.hidden_act not in ("silu", "swish"):
        yield f"hidden_act {shown(config.hidden_act)}, where Megatron's --swiglu has SiLU"
    for name in _QUANTIZATION:
        if values.get(name):
            yield f"a {name}: its weights are not of a plain type"
    if config.mlp_bias and not config.attention_bias:
        yield "mlp_bias without attention_bias, which Megatron has no option for"
    if rope["rope_type"] not in ("default", "llama3"):
        yield f"rotary embeddings of type {shown(rope['rope_type'])}, which Megatron does not scale in the same way"
    for of_rope in (values, rope):
        if of_rope.get("partial_rotary_factor") not in (None, 1):
            yield f"a partial_rotary_factor of {shown(of_rope['partial_rotary_factor'])}: a Llama rotates whole heads"
    scaling = ("factor", *LLAMA3_SCALING) if rope["rope_type"] == "llama3" else ("original_max_position_embeddings",)
    others = sorted(set(rope) - {"rope_type", "type", "rope_theta", "partial_rotary_factor", *scaling})
    if others:
        yield f"parameters of rotary embeddings that Megatron does not have: {shown_names(others)}"
    if rope["rope_type"] == "llama3":
        found = {name: rope.get(name) for name in LLAMA3_SCALING}
        if found != LLAMA3_SCALING:
            yield f"a scaling of rotary embeddings with {shown(found)}, where Megatron's has {LLAMA3_SCALING}"
        if rope.get("factor") != MEGATRON_LM_FACTOR:
            yield f"a scaling of rotary embeddings by {shown(rope.get('factor'))}, {NO_OTHER_FACTOR}"
    for name, neutral in _CHANGES.items():
        value = values.get(name)
        is_off = name == "sliding_window" and values.get("use_sliding_window") is False
        if value is not None and value is not False and value not in neutral and not is_off:
            yield f"{name} {shown(value)}, which a Llama does not have"
    kinds = values.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        yield f"layer_types {shown(kinds)}: a Llama's layers are all alike"


def _of_any_model() -> set[str]:
    """Return the entries of a `config.json` that do not affect what the model computes, or are checked elsewhere."""
    from transformers import PretrainedConfig

    own = ("architectures", "model_type", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache")
    ids = ("bos_token_id", "eos_token_id", "pad_token_id", "pretraining_tp")
    checked = ("layer_types", "use_sliding_window", *_QUANTIZATION)
    return {*PretrainedConfig().to_dict(), *own, *ids, *checked, *_CHANGES}
