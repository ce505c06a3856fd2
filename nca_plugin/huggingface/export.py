"""`nca-plugin export --to hf`: writes a checkpoint of a Llama as a Hugging Face folder.

The model is not built. Values stream from file to file, with at most `PIECE_BYTES` in memory.
"""

import functools
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from nca_plugin.checkpoint.contents import Region, Tensor
from nca_plugin.checkpoint.dtypes import DType, Values
from nca_plugin.checkpoint.names import Parameter, parameter
from nca_plugin.checkpoint.opened import Checkpoint, read_checkpoint
from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import check_absent, check_folder, check_outside, check_space, complete_folder
from nca_plugin.huggingface.llama import EMBEDDING, SAME_AS, Llama, Mapped, llama_of_megatron
from nca_plugin.huggingface.safetensors_files import WEIGHT_DTYPES, PiecewiseTensor, write_folder
from nca_plugin.text.tokenizers import load_auto_tokenizer, num_ids
from nca_plugin.transition.vocabulary import ROW_TENSORS

#: Largest size of a safetensors file in bytes, as the model hub advises.
SHARD_BYTES: Final = 5 * 10**9
#: Bytes that are read and written at once.
PIECE_BYTES: Final = 1 << 23
#: The files of a tokenizer, which are copied. Its folder may hold others, such as a model's weights.
_TOKENIZER_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
)


@dataclass(frozen=True)
class Exported:
    """What was written, in values, bytes and `.safetensors` files, and notes for the user."""

    num_values: int
    num_bytes: int
    num_files: int
    llama: Llama
    notes: tuple[str, ...]


def export_hf(
    origin: Path,
    target: Path,
    *,
    tokenizer: Path | None = None,
    vocab_size: int | None = None,
    max_shard_bytes: int = SHARD_BYTES,
    start_stage: StartStage = silent_stage,
) -> Exported:
    """Write the Llama at `origin` as a folder for transformers' `from_pretrained`. Values are copied bit for bit.

    Args:
        origin: a checkpoint, see `read_checkpoint`.
        target: a folder that does not exist yet.
        tokenizer: a folder that `AutoTokenizer` loads. Its files are copied, and its special ids enter the config.
        vocab_size: number of rows to write, one for each id. None takes the checkpoint's number of ids, else the
            tokenizer's, else all rows. Further rows are padding and are left out.

    Raises:
        NCAPluginError: for the reasons of `read_checkpoint` and `llama_of_megatron`, if a parameter is missing or does
            not belong to a Llama, the tokenizer does not fit, or the target exists or cannot be written.
    """
    check_absent(target)
    check_outside(target, origin, *([] if tokenizer is None else [tokenizer]))
    check_folder(target.parent)
    checkpoint = read_checkpoint(origin)
    check_outside(target, checkpoint.root)
    found, notes = _found(checkpoint)
    embedding = next((rows for (name, _), rows in found.items() if name == EMBEDDING), None)
    if embedding is None:
        raise NCAPluginError(f"checkpoint {checkpoint.root} holds no word embedding: it is not of a language model")
    special = {} if tokenizer is None else _special_ids(tokenizer)
    ids = _vocab_size(checkpoint, embedding.num_rows, vocab_size, special)
    if checkpoint.model.vocab_size is None and vocab_size is None and tokenizer is None:
        notes.append(f"the checkpoint does not say how many ids its tokenizer has: all {ids:,} rows are written")
    saved = checkpoint.tokenizer
    if saved is not None and tokenizer is None:
        # A saved tokenizer may have files that transformers would take for its own but cannot read.
        notes.append(f"the tokenizer that the run saved, {saved}, is not copied: name the model's with --tokenizer")
    llama = llama_of_megatron(checkpoint.root, checkpoint.model, {name for name, _ in found}, ids)
    tensors = _hf_tensors(checkpoint, llama, found)
    dtypes = {tensor.dtype.name for tensor in tensors}
    # transformers loads a model in one type. Float32 holds all values if the types differ.
    config = _hf_config(llama, special, dtypes.pop() if len(dtypes) == 1 else "float32")
    if llama.zero_biases:
        notes.append("the biases of o_proj, which Megatron's model does not have, are written as zeros")
    num_bytes = sum(tensor.num_bytes for tensor in tensors)
    check_space(target.parent, num_bytes, "the model", "choose another output")
    try:
        with complete_folder(target) as partial:
            num_files = write_folder(partial, tensors, max_shard_bytes, start_stage("writing", num_bytes))
            (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            if tokenizer is not None:
                for file in filter(Path.is_file, (tokenizer / name for name in _TOKENIZER_FILES)):
                    shutil.copyfile(file, partial / file.name)
    except OSError as error:
        raise NCAPluginError(f"output {target} cannot be written: {error.strerror or error}") from error
    num_values = sum(math.prod(tensor.shape) for tensor in tensors)
    return Exported(num_values, num_bytes, num_files, llama, tuple(notes))


def check_llama(origin: Path) -> None:
    """Raise `NCAPluginError` unless `export_hf` can write the model at `origin`."""
    checkpoint = read_checkpoint(origin)
    found, _ = _found(checkpoint)
    llama_of_megatron(checkpoint.root, checkpoint.model, {name for name, _ in found}, 1)


@dataclass(frozen=True)
class _Rows:
    """A parameter of one layer: consecutive rows of tensors, each within a region of the tensor's first axes."""

    tensors: tuple[tuple[Tensor, Region], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape within the layer."""
        shapes = [tensor.shape[len(region) :] for tensor, region in self.tensors]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    @property
    def num_rows(self) -> int:
        return self.shape[0]

    @property
    def dtype(self) -> DType:
        return self.tensors[0][0].dtype

    def opened(self) -> "_Rows":
        """Return the same rows with the places of their values looked up and without other blocks, for many reads."""
        return _Rows(tuple((tensor.within(region).opened(), region) for tensor, region in self.tensors))

    def read(self, start: int, stop: int) -> Iterator[Values]:
        """Yield rows `start` .. `stop - 1` in pieces of at most `PIECE_BYTES`, or of one row if that is larger."""
        step = max(1, PIECE_BYTES // (math.prod(self.shape[1:]) * self.dtype.itemsize))
        first = 0
        for tensor, region in self.tensors:
            last = first + tensor.shape[len(region)]
            for at in range(max(start, first), min(stop, last), step):
                piece = (at - first, min(at + step, stop, last) - first)
                values = tensor.read(*region, piece)
                yield values.reshape(values.shape[len(region) :])
            first = last


def _found(checkpoint: Checkpoint) -> tuple[dict[tuple[str, int | None], _Rows], list[str]]:
    """Return the model's parameters by canonical name and layer, and notes on what is left out."""
    halves: dict[tuple[str, int | None], dict[int, tuple[Tensor, Region]]] = {}
    notes = []
    for name, tensor in checkpoint.tensors.items():
        parsed = parameter(name)
        if parsed.role in ("run", "module"):
            continue
        if parsed.role == "mtp":
            notes = ["the layers of multi-token prediction are left out: LlamaForCausalLM predicts one token"]
            continue
        canonical = SAME_AS.get(parsed.canonical, parsed.canonical)
        for layer, region in _layers(parsed, tensor):
            halves.setdefault((canonical, layer), {})[parsed.half or 0] = (tensor, region)
    return {key: _Rows(tuple(of_key[half] for half in sorted(of_key))) for key, of_key in halves.items()}, notes


def _layers(parsed: Parameter, tensor: Tensor) -> Iterator[tuple[int | None, Region]]:
    if parsed.is_stacked:
        yield from ((layer, ((layer, layer + 1),)) for layer in range(tensor.shape[0]))
    else:
        yield parsed.layer, ()


def _vocab_size(checkpoint: Checkpoint, rows: int, asked: int | None, special: Mapping[str, Any]) -> int:
    """Return how many rows of the vocabulary are written."""
    if asked is not None and not 0 < asked <= rows:
        raise NCAPluginError(f"--vocab-size {asked}: the checkpoint has {rows} rows; give 1 to {rows}")
    ids = asked or min(checkpoint.model.vocab_size or special.get("num_ids", rows), rows)
    if special.get("num_ids", 0) > ids:
        raise NCAPluginError(f"the tokenizer has {special['num_ids']} ids, the model {ids}: it is not the model's own")
    return ids


def _hf_tensors(
    checkpoint: Checkpoint, llama: Llama, found: Mapping[tuple[str, int | None], _Rows]
) -> list[PiecewiseTensor]:
    """Return all tensors to write, in the order of the forward pass.

    Raises:
        NCAPluginError: if the checkpoint does not have exactly the tensors of a Llama.
    """
    left = set(found)
    tensors: list[PiecewiseTensor] = []
    for mapped in llama.parameters():
        key = (mapped.canonical, mapped.layer)
        where = mapped.canonical if mapped.layer is None else f"{mapped.canonical} of layer {mapped.layer}"
        if key not in found:
            raise NCAPluginError(f"checkpoint {checkpoint.root} does not hold a Llama: it has no {where}")
        left.remove(key)
        rows, shape = found[key], mapped.shape
        if mapped.canonical in ROW_TENSORS:
            shape = (max(mapped.rows, rows.num_rows), *mapped.columns)
        if rows.shape != shape:
            raise NCAPluginError(
                f"checkpoint {checkpoint.root} does not hold a Llama: {where} is {list(rows.shape)}, its configuration "
                f"says {list(shape)}"
            )
        if rows.dtype not in WEIGHT_DTYPES.values():
            raise NCAPluginError(f"checkpoint {checkpoint.root}: {where} is stored as {rows.dtype.name}")
        tensors.extend(_split(mapped, rows))
    if left:
        name, layer = min(left, key=lambda key: (key[0], key[1] or 0))
        raise NCAPluginError(
            f"checkpoint {checkpoint.root} does not hold a Llama: it has {name}"
            + (f" in layer {layer}" if layer else "")
        )
    dtype = tensors[0].dtype
    return [*tensors, *(_zeros(name, llama.hidden_size, dtype) for name in llama.zero_biases)]


def _split(mapped: Mapped, rows: _Rows) -> Iterator[PiecewiseTensor]:
    """Yield the Hugging Face tensors that one of Megatron's parameters is made of."""
    places: dict[str, list[tuple[int, int]]] = {}
    at = 0
    for part in mapped.parts:
        # The parts of one tensor are in the order of its rows.
        places.setdefault(part.name, []).append((at, at + part.rows))
        at += part.rows

    def pieces(spans: list[tuple[int, int]]) -> Iterator[Values]:
        opened = rows.opened()
        for start, stop in spans:
            yield from opened.read(start, stop)

    for name, spans in places.items():
        shape = (sum(stop - start for start, stop in spans), *mapped.columns)
        yield PiecewiseTensor(name, rows.dtype, shape, functools.partial(pieces, spans))


def _zeros(name: str, size: int, dtype: DType) -> PiecewiseTensor:
    return PiecewiseTensor(name, dtype, (size,), lambda: iter([np.zeros(size, dtype.array)]))


def _special_ids(folder: Path) -> dict[str, Any]:
    """Return the tokenizer's number of ids under "num_ids", and the special ids under their names in the config."""
    if not folder.is_dir() or not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise NCAPluginError(f"--tokenizer {folder}: no folder of a tokenizer, which save_pretrained writes")
    with in_context("--tokenizer"):
        loaded = load_auto_tokenizer(str(folder))
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {"num_ids": num_ids(loaded), **{name: getattr(loaded, name) for name in names}}


def _hf_config(llama: Llama, special: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    from transformers import LlamaConfig

    scaling = {} if llama.rope_scaling is None else {"rope_type": "llama3", **llama.rope_scaling}
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=llama.vocab_size,
        hidden_size=llama.hidden_size,
        intermediate_size=llama.ffn_hidden_size,
        num_hidden_layers=llama.num_layers,
        num_attention_heads=llama.num_heads,
        num_key_value_heads=llama.num_groups,
        head_dim=llama.head_dim,
        max_position_embeddings=llama.max_positions,
        initializer_range=llama.init_std,
        rms_norm_eps=llama.norm_epsilon,
        tie_word_embeddings=llama.tied,
        rope_parameters={"rope_type": "default", "rope_theta": llama.rope_theta, **scaling},
        attention_bias=llama.attention_bias,
        mlp_bias=llama.linear_bias,
        attention_dropout=llama.attention_dropout,
        dtype=dtype,
        # The defaults of LlamaConfig are the ids of another tokenizer.
        **{name: special.get(name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")},
    )
    # transformers before 5 and other programs that read such folders know the frequencies by these names.
    return {**config.to_diff_dict(), "rope_theta": llama.rope_theta, "rope_scaling": scaling or None}
