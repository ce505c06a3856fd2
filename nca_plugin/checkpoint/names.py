"""The names under which Megatron's models store their parameters, and the roles by which users select them.

Both layer specs store most parameters under Transformer Engine's names. A norm is fused into the projection after it
(`linear_qkv.layer_norm_weight`) or is a module of its own (`input_layernorm.weight`). Layers are stacked on axis 0
under one name. In HybridModel and other models with several kinds of layers, each has its own name
(`decoder.layers.3.`). Under `singleton_local_shards`, so have experts and the halves of a gated projection.
"""

import re
from dataclasses import dataclass
from typing import Final

#: Names within a layer of a norm's weight and bias: as a module of its own, or fused into the projection after it.
_NORM: Final = (
    r"((input|pre_cross_attn|pre_mlp|post_self_attn|post_mlp)_layernorm|norm|mixer\.norm"
    r"|(self|cross)_attention\.((q|k|kv)_(layernorm|norm)|out_norm)"
    r"|(self_attention\.linear_proj|mlp\.linear_fc2)\.post_layernorm)\.(weight|bias)"
)
_FUSED_NORM: Final = (
    r"((self|cross)_attention\.linear_(qkv|q|kv|k|v|q_up_proj|kv_up_proj)|mlp\.(shared_experts\.)?linear_fc1"
    r"|mixer\.in_proj)\.layer_norm_(weight|bias)"
)
#: Roles, each with a pattern of names within a layer. The patterns are exact: a name that is only similar is damaged,
#: and no model would look for its values there.
_IN_LAYER: Final = (
    ("norm", _NORM),
    ("norm", _FUSED_NORM),
    ("attention.proj", r"(self|cross)_attention\.linear_proj\.(weight|bias)"),
    ("attention.qkv", r"(self|cross)_attention\.linear_(qkv|q|kv|k|v)(_proj|_down_proj|_up_proj)?\.(weight|bias)"),
    ("attention.other", r"(self|cross)_attention\.core_attention\.softmax_offset"),
    ("router", r"mlp\.router\.(weight|bias|expert_bias)|mlp\.shared_experts\.gate_weight"),
    ("mlp", r"mlp\.((shared_experts|experts(\.(local_)?experts)?(\.\d+)?)\.)?linear_fc[12]\.(weight|bias)(\d+|_[wv])?"),
    ("mlp", r"mlp\.fc[12]_latent_proj\.(weight|bias)"),
    ("mamba", r"mixer\.(in_proj|conv1d|out_proj)\.(weight|bias)(\.(z|x|B|C|dt))?|mixer\.(dt_bias|A_log|D)"),
)
_OUTSIDE: Final = (
    ("embedding", r"embedding\.word_embeddings\.weight"),
    ("position", r"embedding\.(position|tokentype)_embeddings\.weight"),
    ("output", r"output_layer\.(weight|bias)"),
    ("final_norm", r"decoder\.final_(layer)?norm\.(weight|bias)"),
)
#: Names in a multi-token-prediction layer: the parameters around its transformer layer, and that layer.
_IN_MTP: Final = re.compile(r"(enorm|hnorm|final_layernorm|eh_proj)\.(weight|bias)")
_MTP_LAYER: Final = re.compile(r"(transformer_layer|mtp_model_layer)\.(layers\.\d+\.)?(?P<rest>.+)")
#: The names that selectors may use. A selector also selects the roles that begin with its name and a dot.
SELECTORS: Final = (
    *("embedding", "position", "output", "attention", "attention.qkv", "attention.proj", "mlp", "norm", "final_norm"),
    *("router", "mamba", "mtp", "all"),
)

_LAYER: Final = re.compile(r"(?P<stem>(?:decoder|encoder)\.layers|mtp\.layers)\.(?:(?P<number>\d{1,5})\.)?(?P<rest>.+)")
_EXPERT: Final = re.compile(r"\.experts\.experts\.(\d{1,5})\.")

#: Entries that belong to the training run, not to the model.
_RUN_STATE: Final = re.compile(
    r"(chained_\d+\.)?(optimizer|rng_state|rerun_state_machine_state|common_state|opt_param_scheduler|iteration)\b.*"
)
#: State of Transformer Engine's modules, such as FP8 scales. It is empty under the local layer spec.
_MODULE_STATE: Final = re.compile(r"(?P<module>.+)\._extra_state\d*(/shard_[\d._]+)?")
#: Modules within a layer that have such state and no parameters.
_BARE_MODULE: Final = re.compile(r"(self|cross)_attention\.core_attention|mlp\.experts(\.experts)?")
#: Counters of training that are stored as buffers of the model.
_COUNTERS: Final = re.compile(r".*mlp\.router\.(local_tokens_per_expert|global_tokens_per_expert|ga_steps)")


@dataclass(frozen=True, slots=True)
class Parameter:
    """What the name of a checkpoint's entry says.

    Attributes:
        role: the part of the model, as selectors name it, such as `attention.qkv`; "run" for state of the training
            run, "module" for state of a module's code, or "unknown".
        canonical: the name without the numbers of layer and expert and without NeMo's prefix. It is the same for every
            stack, and however the checkpoint is cut.
        layer: the layer; None if the entry belongs to no layer, or to all (`is_stacked`).
        is_stacked: whether axis 0 counts layers.
        expert: the expert; None if the entry belongs to no expert, or to all.
        half: 0 or 1 for a half of a gated projection that has its own name; otherwise None.
    """

    role: str
    canonical: str
    layer: int | None = None
    is_stacked: bool = False
    expert: int | None = None
    half: int | None = None


def parameter(name: str) -> Parameter:
    """Return what the name of a checkpoint's entry says."""
    # NeMo 2 puts a module around the model.
    name = name.removeprefix("module.")
    if _RUN_STATE.fullmatch(name):
        return Parameter("run", name)
    state = _MODULE_STATE.fullmatch(name)
    if _COUNTERS.fullmatch(name) or (state is not None and _is_module(state["module"])):
        return Parameter("module", name)
    match = _LAYER.fullmatch(name)
    if match is None:
        return Parameter(_role(_OUTSIDE, name), name)
    expert = _EXPERT.search(name)
    rest = match["rest"] if expert is None else _EXPERT.sub(".experts.experts.", match["rest"])
    half = None if rest[-2:] not in ("_w", "_v") else ("_w", "_v").index(rest[-2:])
    return Parameter(
        role=_role_in_layer(match["stem"], match["rest"]),
        canonical=f"{match['stem']}.{rest if half is None else rest[:-2]}",
        layer=None if match["number"] is None else int(match["number"]),
        is_stacked=match["number"] is None,
        expert=None if expert is None else int(expert[1]),
        half=half,
    )


def _is_module(path: str) -> bool:
    """Return whether a model has a module at `path`. Nearly all modules have a parameter of a known name."""
    match = _LAYER.fullmatch(path)
    if match is not None and _BARE_MODULE.fullmatch(match["rest"]):
        return True
    return parameter(f"{path}.weight").role not in ("unknown", "module", "run")


def _role_in_layer(stem: str, rest: str) -> str:
    if not stem.startswith("mtp"):
        return _role(_IN_LAYER, rest)
    inner = _MTP_LAYER.fullmatch(rest)
    is_known = _IN_MTP.fullmatch(rest) if inner is None else _role(_IN_LAYER, inner["rest"]) != "unknown"
    return "mtp" if is_known else "unknown"


def _role(patterns: tuple[tuple[str, str], ...], name: str) -> str:
    return next((role for role, pattern in patterns if re.fullmatch(pattern, name)), "unknown")
