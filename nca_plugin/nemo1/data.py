"""`model.tokenizer` and `model.data` of a NeMo 1 configuration.

With `data.source` or `data.path`, the launcher puts those in place of the data paths given here.
"""

from collections.abc import Mapping
from typing import Any, Final

from nca_plugin.nemo1.rows import (
    Arguments,
    CannotBeHad,
    Config,
    Refused,
    Row,
    Translated,
    boolean,
    ignored,
    integer,
    name,
    off_switch,
    switch,
    text,
    within,
)

_TOKENIZER: Final = "model.tokenizer"
_LIBRARY: Final = f"{_TOKENIZER}.library"
_FILES: Final = {"vocab-file": "vocab_file", "merge-file": "merge_file"}
_DATA: Final = "model.data"


def _tokenizer(library: Any, config: Config) -> Arguments:
    kind, model = (config.get(f"{_TOKENIZER}.{key}", name) for key in ("type", "model"))
    given = {argument: config.get(f"{_TOKENIZER}.{key}", name) for argument, key in _FILES.items()}
    files = {argument: path for argument, path in given.items() if path is not None}
    match library, kind:
        case "megatron", "GPT2BPETokenizer" if not files:
            # What NeMo downloads is the vocabulary of GPT-2.
            return {"tokenizer-type": "HuggingFaceTokenizer", "tokenizer-model": "gpt2"}
        case "megatron", "GPT2BPETokenizer":
            for argument, key in _FILES.items():
                _named(given[argument], key)
            return {"tokenizer-type": kind} | files
        case ("sentencepiece", _) | ("megatron", "GPTSentencePieceTokenizer"):
            return {
                "tokenizer-type": "SentencePieceTokenizer",
                "tokenizer-model": _named(model, "model"),
            } | ({"tokenizer-sentencepiece-legacy": True} if _is_legacy(config) else {})
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


def _is_legacy(config: Config) -> bool:
    """NeMo's default depends on the library (`_build_tokenizer`)."""
    given = config.get(f"{_TOKENIZER}.sentencepiece_legacy", boolean)
    return config[_LIBRARY] == "sentencepiece" if given is None else given


def _data_path(value: Any, config: Config) -> Arguments:
    if config[f"{_DATA}.data_impl"] == "mock":
        return {}
    if isinstance(value, Mapping):
        if set(value) != {"train", "validation", "test"} or None in value.values():
            raise CannotBeHad("must have train, validation and test")
        names = {"train": "train-data-path", "validation": "valid-data-path", "test": "test-data-path"}
        return {names[split]: _blend(value[split]) for split in names}
    return {"data-path": _blend(value)}


def _blend(value: Any) -> list[str]:
    return [name(part) for part in value] if isinstance(value, list) and value else [name(value)]


def _data_impl(value: Any, config: Config) -> Arguments:
    if value not in ("mmap", "mock"):
        raise CannotBeHad("Megatron-LM has mmap and mock")
    return {"mock-data": True} if value == "mock" else {}


def _split(value: Any, config: Config) -> Arguments:
    """Paths of each split leave nothing to divide."""
    split = ",".join(map(name, value)) if isinstance(value, list) else name(value)
    return {} if isinstance(config[f"{_DATA}.data_prefix"], Mapping) else {"split": split}


def _dataloader(value: Any, config: Config) -> Arguments:
    if value not in ("single", "cyclic"):
        raise CannotBeHad("must be single or cyclic")
    return {"dataloader-type": value}


ROWS: Final[tuple[Row, ...]] = (
    Translated(
        _LIBRARY,
        _tokenizer,
        (
            *("tokenizer-type", "tokenizer-model", "vocab-file", "merge-file"),
            *("tokenizer-sentencepiece-legacy", "trust-remote-code"),
        ),
    ),
    *(
        within(f"{_TOKENIZER}.{key}", _LIBRARY)
        for key in ("type", "model", "vocab_file", "merge_file", "sentencepiece_legacy", "trust_remote_code")
    ),
    *ignored("NeMo's wrapper, same tokens", (f"{_TOKENIZER}.{key}" for key in ("use_fast", "delimiter"))),
    *(
        Refused(f"{_TOKENIZER}.{key}", "they would change the vocabulary", unless=())
        for key in ("special_tokens", "special_tokens.*", "additional_special_tokens")
    ),
    *ignored("only for inference", (f"{_TOKENIZER}.chat_template", f"{_TOKENIZER}.chat_template.*")),
    Translated(
        f"{_DATA}.data_prefix", _data_path, ("data-path", "train-data-path", "valid-data-path", "test-data-path")
    ),
    Translated(f"{_DATA}.data_impl", _data_impl, ("mock-data",)),
    Translated(f"{_DATA}.splits_string", _split, ("split",)),
    within(f"{_DATA}.seq_length", "model.encoder_seq_length"),
    text(f"{_DATA}.index_mapping_dir", "data-cache-path"),
    integer(f"{_DATA}.num_workers", "num-workers"),
    integer(f"{_DATA}.num_dataset_builder_threads", "num-dataset-builder-threads"),
    off_switch(f"{_DATA}.mmap_bin_files", "no-mmap-bin-files"),
    Translated(f"{_DATA}.dataloader_type", _dataloader, ("dataloader-type",)),
    switch(f"{_DATA}.reset_position_ids", "reset-position-ids"),
    switch(f"{_DATA}.reset_attention_mask", "reset-attention-mask"),
    switch(f"{_DATA}.eod_mask_loss", "eod-mask-loss"),
    Refused(f"{_DATA}.no_seqlen_plus_one_input_tokens", "Megatron-LM reads one token more for the last label"),
    Refused(f"{_DATA}.shuffle_documents", "Megatron-LM shuffles documents", unless=(True,)),
    Refused(f"{_DATA}.data_cache_generation_only", "Megatron-LM trains after it built the cache"),
    Refused(f"{_DATA}.add_fim", "fill-in-the-middle data has arguments of its own: --fim-data"),
    Refused(f"{_DATA}.mock_dataset", "set model.data.data_impl=mock"),
    *ignored(
        "only with model.data.add_fim",
        (
            *(f"{_DATA}.fim.{key}" for key in ("rate", "spm_rate", "fragment_rate", "split_sample", "no_prefix")),
            *(f"{_DATA}.fim.extra_tokens.{key}" for key in ("prefix", "middle", "suffix", "pad", "eod")),
        ),
    ),
    *ignored(
        "Megatron-LM validates on whole batches of whole samples",
        (f"{_DATA}.{key}" for key in ("validation_drop_last", "pad_samples_to_global_batch_size", "sample_weight")),
    ),
    *ignored(
        "how NeMo opens the files, same samples",
        (
            f"{_DATA}.{key}"
            for key in ("skip_warmup", "delay_data_mmap", "delay_data_init", "exchange_indices_distributed")
        ),
    ),
    *ignored("Megatron-LM has the newer of NeMo's two orders of samples", (f"{_DATA}.legacy_dataset",)),
)
