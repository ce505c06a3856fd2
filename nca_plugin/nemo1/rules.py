"""The rules that keys.yaml names: what several keys together, or one key among others, are to Megatron-LM.

A rule is called with its key's value, never null, and the whole configuration.
"""

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from nca_plugin.nemo1 import optimizer
from nca_plugin.nemo1.values import (
    Arguments,
    CannotBeHad,
    Config,
    boolean,
    check,
    name,
    number,
    precision,
    processes,
    whole,
)

_CHECKPOINTS: Final = "exp_manager.checkpoint_callback_params"
_WANDB: Final = "exp_manager.wandb_logger_kwargs"
_TOKENIZER: Final = "model.tokenizer"


def world_size(config: Config) -> int | None:
    """Return the number of processes that the configuration is for, None if it leaves it open."""
    devices, nodes = (config.get(f"trainer.{key}", processes) for key in ("devices", "num_nodes"))
    return None if devices is None or nodes is None else devices * nodes


def half_precision(value: Any, config: Config) -> Arguments:
    """NeMo's fp16 keeps float32 parameters, and with them float32 gradients."""
    accumulate = {"accumulate-allreduce-grads-in-fp32": True} if (kind := precision(value)) == "fp16" else {}
    return ({kind: True} if kind else {}) | accumulate


def same_precision(value: Any, config: Config) -> Arguments:
    is_same = precision(value) == config.read("trainer.precision", precision)
    check(is_same, f"trainer.precision is {config['trainer.precision']}")
    return {}


def _log_folder(config: Config) -> PurePosixPath:
    """Return NeMo's folder (nemo/utils/exp_manager.py, `get_log_dir`)."""
    if (given := config.get("exp_manager.explicit_log_dir", name)) is not None:
        return PurePosixPath(given)
    folder = PurePosixPath(config.read("exp_manager.exp_dir", name)) / config.read("exp_manager.name", name)
    if (version := config.get("exp_manager.version", name)) is not None:
        return folder / version
    check(
        bool(config.get("exp_manager.resume_if_exists", boolean)),
        "without exp_manager.resume_if_exists NeMo makes a folder named after the date: set "
        "exp_manager.explicit_log_dir or exp_manager.version",
    )
    return folder


def _checkpoint_folder(config: Config) -> str:
    given = config.get(f"{_CHECKPOINTS}.dirpath", name)
    return str(_log_folder(config) / "checkpoints") if given is None else given


def _is_managed(config: Config) -> bool:
    """Whether there is a section `exp_manager`: without it NeMo neither saves nor logs to files."""
    return any(key.startswith("exp_manager.") for key in config.values)


def save(value: Any, config: Config) -> Arguments:
    if not boolean(value) or not _is_managed(config):
        return {}
    steps = config.read(f"{_CHECKPOINTS}.every_n_train_steps", whole)
    return {"save": _checkpoint_folder(config), "save-interval": steps}


def load(value: Any, config: Config) -> Arguments:
    if not boolean(value):
        return {}
    may_be_missing = config.get("exp_manager.resume_ignore_no_checkpoint", boolean)
    missing = {} if may_be_missing else {"exit-on-missing-checkpoint": True}
    # Lightning restores the scheduler with the checkpoint: a longer run keeps the schedule that it began with.
    return {"load": _checkpoint_folder(config), "use-checkpoint-opt-param-scheduler": True} | missing


def tensorboard(value: Any, config: Config) -> Arguments:
    return {"tensorboard-dir": str(_log_folder(config))} if boolean(value) and _is_managed(config) else {}


def wandb(value: Any, config: Config) -> Arguments:
    if not boolean(value):
        return {}
    keys = ("project", "name", "entity", "save_dir")
    project, run, entity, folder = (config.get(f"{_WANDB}.{key}", name) for key in keys)
    check(project is not None and run is not None, f"needs {_WANDB}.project and {_WANDB}.name")
    return {
        "wandb-project": project,
        "wandb-exp-name": run,
        "wandb-save-dir": str(_log_folder(config)) if folder is None else folder,
    } | ({} if entity is None else {"wandb-entity": entity})


def seq_length(value: Any, config: Config) -> Arguments:
    """Samples have `data.seq_length`; the model has positions for `encoder_seq_length`."""
    length, given = whole(value), config.get("model.data.seq_length", whole)
    of_data = length if given is None else given
    if of_data > length:
        raise CannotBeHad(f"model.data.seq_length={of_data} is more than the model has positions for")
    return {"seq-length": of_data}


def positions(value: Any, config: Config) -> Arguments:
    """NeMo builds megatron-core's model for `encoder_seq_length` positions, only its own for this many."""
    is_core = config.read("model.mcore_gpt", boolean)
    return {"max-position-embeddings": _encoder_seq_length(config) if is_core else whole(value)}


def _encoder_seq_length(config: Config) -> int:
    return config.read("model.encoder_seq_length", whole)


def query_groups(value: Any, config: Config) -> Arguments:
    if whole(value) == config.read("model.num_attention_heads", whole):
        return {}
    return {"group-query-attention": True, "num-query-groups": whole(value)}


def activation(value: Any, config: Config) -> Arguments:
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


def ffn_dropout(value: Any, config: Config) -> Arguments:
    """NeMo's own model has it, its megatron-core model leaves it out."""
    is_left_out = not number(value) or config.read("model.mcore_gpt", boolean)
    check(is_left_out, "Megatron-LM has no dropout between the two layers")
    return {}


def recompute(value: Any, config: Config) -> Arguments:
    match value:
        case "selective":
            # With a method and a number of layers, NeMo chooses among the layers: less memory or more, same numbers.
            return {"recompute-granularity": "selective"}
        case "full":
            method = config.get("model.activations_checkpoint_method", name)
            layers = config.get("model.activations_checkpoint_num_layers", whole)
            return {
                "recompute-granularity": "full",
                "recompute-method": "uniform" if method is None else method,
                "recompute-num-layers": 1 if layers is None else layers,
            }
    raise CannotBeHad("must be selective or full")


def fp8(value: Any, config: Config) -> Arguments:
    if not boolean(value):
        return {}
    keys = ("fp8_e4m3", "fp8_hybrid", "fp8_wgrad", "fp8_params", "reduce_amax")
    is_e4m3, is_hybrid, has_wgrad, has_params, reduces = (config.get(f"model.{key}", boolean) for key in keys)
    check(bool(is_e4m3 or is_hybrid), "needs model.fp8_e4m3 or model.fp8_hybrid")
    check(bool(reduces), "with model.reduce_amax=false: Megatron-LM always reduces them")
    whole_numbers = ("fp8_margin", "fp8_interval", "fp8_amax_history_len")
    return (
        {"fp8-format": "e4m3" if is_e4m3 else "hybrid"}
        | {key.replace("_", "-"): config.read(f"model.{key}", whole) for key in whole_numbers}
        | {"fp8-amax-compute-algo": config.read("model.fp8_amax_compute_algo", name)}
        | ({} if has_wgrad else {"no-fp8-wgrad": True})
        | ({"fp8-param-gather": True} if has_params else {})
    )


def garbage_collection(value: Any, config: Config) -> Arguments:
    return {"manual-gc": True, "manual-gc-interval": whole(value)} if whole(value) else {}


def tokenizer(library: Any, config: Config) -> Arguments:
    keys = ("type", "model", "vocab_file", "merge_file")
    kind, model, vocab, merges = (config.get(f"{_TOKENIZER}.{key}", name) for key in keys)
    files = {key: path for key, path in (("vocab-file", vocab), ("merge-file", merges)) if path is not None}
    match library, kind:
        case "megatron", "GPT2BPETokenizer" if not files:
            # What NeMo downloads is the vocabulary of GPT-2.
            return {"tokenizer-type": "HuggingFaceTokenizer", "tokenizer-model": "gpt2"}
        case "megatron", "GPT2BPETokenizer":
            named = {"vocab-file": _named(vocab, "vocab_file"), "merge-file": _named(merges, "merge_file")}
            return {"tokenizer-type": kind} | named
        case ("sentencepiece", _) | ("megatron", "GPTSentencePieceTokenizer"):
            made = {"tokenizer-type": "SentencePieceTokenizer", "tokenizer-model": _named(model, "model")}
            legacy = config.get(f"{_TOKENIZER}.sentencepiece_legacy", boolean)
            # NeMo's default depends on the library (`_build_tokenizer`).
            is_legacy = library == "sentencepiece" if legacy is None else legacy
            return made | ({"tokenizer-sentencepiece-legacy": True} if is_legacy else {})
        case "huggingface", _:
            trust = {"trust-remote-code": True} if config.get(f"{_TOKENIZER}.trust_remote_code", boolean) else {}
            return {"tokenizer-type": "HuggingFaceTokenizer", "tokenizer-model": _named(kind, "type")} | files | trust
    raise CannotBeHad(
        f"with {_TOKENIZER}.type={kind}: Megatron-LM has megatron with GPT2BPETokenizer, sentencepiece and huggingface"
    )


def _named(value: str | None, key: str) -> str:
    if value is None:
        raise CannotBeHad(f"name {_TOKENIZER}.{key}, or set {_TOKENIZER}=null for the vocabulary of data.source alone")
    return value


def data_path(value: Any, config: Config) -> Arguments:
    """With `data.source` or `data.path`, the launcher puts those in place of these paths."""
    if config["model.data.data_impl"] == "mock":
        return {}
    if isinstance(value, Mapping):
        is_complete = set(value) == {"train", "validation", "test"} and None not in value.values()
        check(is_complete, "must have train, validation and test")
        names = {"train": "train-data-path", "validation": "valid-data-path", "test": "test-data-path"}
        return {names[split]: _blend(value[split]) for split in names}
    return {"data-path": _blend(value)}


def _blend(value: Any) -> list[str]:
    return [name(part) for part in value] if isinstance(value, list) and value else [name(value)]


def split(value: Any, config: Config) -> Arguments:
    """Paths of each split leave nothing to divide."""
    shares = ",".join(map(name, value)) if isinstance(value, list) else name(value)
    return {} if isinstance(config["model.data.data_prefix"], Mapping) else {"split": shares}


def _has_tensor_parallelism(config: Config) -> bool:
    return (config.get("model.tensor_model_parallel_size", whole) or 1) > 1


#: By the names that keys.yaml has for them, as the other tables.
RULES: Final[Mapping[str, Callable[[Any, Config], Arguments]]] = {
    rule.__name__: rule
    for rule in (
        *(half_precision, same_precision, save, load, tensorboard, wandb, seq_length, positions, query_groups),
        *(activation, ffn_dropout, recompute, fp8, garbage_collection, tokenizer, data_path, split),
        *(optimizer.betas, optimizer.overlap_param_gather, optimizer.schedule, optimizer.state_dtype),
    )
}

#: What must be so for a key to have an effect, besides its own value.
CONDITIONS: Final[Mapping[str, Callable[[Config], bool]]] = {
    "tensor_parallelism": _has_tensor_parallelism,
    "sequence_parallelism": lambda config: (
        bool(config.get("model.sequence_parallel", boolean)) and _has_tensor_parallelism(config)
    ),
    "fp16": lambda config: config.read("trainer.precision", precision) == "fp16",
    "distributed_optimizer": optimizer.is_distributed,
}

#: NeMo's defaults that depend on other keys.
DEFAULTS: Final[Mapping[str, Callable[[Config], Any]]] = {
    "encoder_seq_length": _encoder_seq_length,
    "4_hidden_size": lambda config: 4 * config.read("model.hidden_size", whole),
    "without_mcore_gpt": lambda config: not config.read("model.mcore_gpt", boolean),
    "max_steps": lambda config: config["trainer.max_steps"],
    "val_check_interval": lambda config: config["trainer.val_check_interval"],
    "weight_decay": optimizer.weight_decay,
}
