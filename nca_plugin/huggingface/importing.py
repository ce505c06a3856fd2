"""`nca-plugin export --from hf`: writes a Hugging Face Llama as a checkpoint from which Megatron-LM starts.

The model is not built. Values stream from file to file, with at most `BLOCK_BYTES` in memory for each thread.
"""

import functools
import math
import re
from argparse import Namespace
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from nca_plugin.checkpoint.contents import Region
from nca_plugin.checkpoint.dtypes import DType, Values
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.stored import Item, save
from nca_plugin.checkpoint.tracker import TRACKER
from nca_plugin.checkpoint.write import BLOCK_BYTES, Entry, NewBlock, Writer, flush
from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.files import check_absent, check_folder, check_outside, complete_folder
from nca_plugin.huggingface.llama import (
    FINAL_MODULE_WITH_STATE,
    MODULES_WITH_STATE,
    Llama,
    Mapped,
    arguments_of_llama,
    command_line,
)
from nca_plugin.huggingface.llama_config import read_llama
from nca_plugin.huggingface.safetensors_files import WEIGHT_DTYPES, SavedTensor, read_folder
from nca_plugin.json_files import shown
from nca_plugin.transition.model_initialisation import distribution, draw
from nca_plugin.transition.vocabulary import ROW_TENSORS, padded_vocab_size

_EMBEDDING: Final = "model.embed_tokens.weight"
_OUTPUT: Final = "lm_head.weight"
#: Entries of old Hugging Face checkpoints that follow from the configuration.
_BUFFERS: Final = (".rotary_emb.inv_freq",)


@dataclass(frozen=True)
class Imported:
    """What was written, in values and bytes, and notes for the user.

    Attributes:
        rows: rows of the vocabulary, with padding.
        arguments: the arguments that a run from this checkpoint needs besides --pretrained-checkpoint.
    """

    num_values: int
    num_bytes: int
    rows: int
    llama: Llama
    arguments: tuple[str, ...]
    notes: tuple[str, ...]


def import_hf(
    origin: Path,
    target: Path,
    *,
    tensor_model_parallel_size: int = 1,
    make_vocab_size_divisible_by: int = 128,
    seed: int = 1234,
    num_workers: int = 1,
    start_stage: StartStage = silent_stage,
) -> Imported:
    """Write the Hugging Face Llama at `origin` as a checkpoint for Megatron-LM. Values are copied bit for bit.

    Args:
        origin: a folder with `config.json` and safetensors.
        target: a folder that does not exist yet. Megatron takes it as --pretrained-checkpoint with any parallelism.
        tensor_model_parallel_size, make_vocab_size_divisible_by: the next stage's values, which decide how Megatron
            pads the vocabulary.
        seed: the seed of the padding rows, which are drawn as the model's embeddings are.
        num_workers: number of threads, each with `BLOCK_BYTES` in memory.

    Raises:
        NCAPluginError: if the model is not a LlamaForCausalLM or Megatron has no options for it, a tensor is missing or
            has another shape or type, or the target exists or cannot be written.
    """
    check_absent(target)
    check_outside(target, origin)
    check_folder(target.parent)
    for option, value in (
        ("tensor-model-parallel-size", tensor_model_parallel_size),
        ("make-vocab-size-divisible-by", make_vocab_size_divisible_by),
    ):
        if value < 1:
            raise NCAPluginError(f"--{option} {value}: must be at least 1")
    if not 0 <= seed < 1 << 64:
        raise NCAPluginError(f"--seed {seed}: must lie in 0 .. 2^64 - 1")
    if not origin.is_dir():
        raise NCAPluginError(f"{origin} does not exist" if not origin.exists() else f"{origin} is no folder")
    tensors, llama, notes = _read_hf(origin)
    rows = padded_vocab_size(llama.vocab_size, make_vocab_size_divisible_by, tensor_model_parallel_size)
    dtypes = {WEIGHT_DTYPES[tensor.dtype].name for tensor in tensors.values()}
    # A run has one type for all weights. Float32 holds all values if the types differ.
    dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
    arguments = {
        **arguments_of_llama(llama, dtype),
        "padded_vocab_size": rows,
        "make_vocab_size_divisible_by": make_vocab_size_divisible_by,
        "tensor_model_parallel_size": tensor_model_parallel_size,
        "pipeline_model_parallel_size": 1,
        **dict.fromkeys(("iteration", "consumed_train_samples", "consumed_valid_samples", "skipped_train_samples"), 0),
    }
    entries = _entries(llama, tensors, rows, ModelConfig(arguments), seed)
    try:
        with complete_folder(target) as partial:
            (partial / "release").mkdir()
            writer = Writer(partial / "release", links=False, num_workers=num_workers)
            for entry in entries:
                writer.add(entry)
            # Objects are copied from a file. The states of all modules are empty, so they share one.
            empty = partial / "empty"
            with empty.open("xb") as file:
                save([None], file)
                flush(file)
            for name in _module_states(llama.num_layers):
                writer.add_object(name, Item(empty, 0, empty.stat().st_size))
            writer.check_space()
            num_bytes = writer.num_bytes
            state = {
                "args": Namespace(**arguments),
                "checkpoint_version": 3.0,
                "iteration": 0,
                "num_floating_point_operations_so_far": 0,
            }
            writer.write(state, start_stage("writing", num_bytes))
            empty.unlink()
            (partial / TRACKER).write_text("release")
    except OSError as error:
        raise NCAPluginError(f"output {target} cannot be written: {error.strerror or error}") from error
    num_values = sum(math.prod(entry.shape) for entry in entries)
    return Imported(num_values, num_bytes, rows, llama, command_line(llama, dtype), tuple(notes))


#: Matches the beginning of the name of a layer's tensor.
_LAYER: Final = re.compile(r"model\.layers\.(\d{1,9})\.")


def _read_hf(folder: Path) -> tuple[dict[str, SavedTensor], Llama, list[str]]:
    """Return the tensors of a Hugging Face folder, their Llama, and notes on what has no effect.

    Raises:
        NCAPluginError: if the folder does not hold exactly the tensors of a Llama.
    """
    llama, notes = read_llama(folder)
    tensors = {name: tensor for name, tensor in read_folder(folder).items() if not name.endswith(_BUFFERS)}
    needed: set[str] = set()
    # Checked first, since `parameters` goes through the heads: a wrong number of them could be huge.
    for name, heads in (("q", llama.num_heads), ("k", llama.num_groups)):
        weight = f"model.layers.0.self_attn.{name}_proj.weight"
        _check_tensor(folder, tensors, weight, (heads * llama.head_dim, llama.hidden_size))
    for mapped in llama.parameters():
        rows: dict[str, int] = {}
        for part in mapped.parts:
            rows[part.name] = rows.get(part.name, 0) + part.rows
        for name, count in rows.items():
            _check_tensor(folder, tensors, name, (count, *mapped.columns))
        needed.update(rows)
    for name in llama.zero_biases:
        _check_tensor(folder, tensors, name, (llama.hidden_size,))
        if WEIGHT_DTYPES[tensors[name].dtype].to_float32(tensors[name].read(0, llama.hidden_size)).any():
            raise NCAPluginError(
                f"{folder}: '{name}' is not zero; Megatron has biases in query, key and value only, or in all "
                "projections"
            )
    if llama.tied and _OUTPUT in tensors:
        _check_tensor(folder, tensors, _OUTPUT, (llama.vocab_size, llama.hidden_size))
        if not _is_same(tensors[_OUTPUT], tensors[_EMBEDDING]):
            raise NCAPluginError(
                f"{folder}: '{_OUTPUT}' differs from '{_EMBEDDING}', and config.json says that they are one "
                "(tie_word_embeddings): set it to false there to keep both, or leave the tensor out"
            )
        needed.add(_OUTPUT)
    left = set(tensors) - needed - set(llama.zero_biases)
    if left:
        raise NCAPluginError(f"{folder}: {_why_left(min(left), left, llama)}")
    return tensors, llama, notes


def _why_left(name: str, left: Collection[str], llama: Llama) -> str:
    """Return why tensor `name`, one of the surplus tensors `left`, does not fit the model of config.json."""
    layers = [int(match[1]) for each in left if (match := _LAYER.match(each))]
    if layers and max(layers) >= llama.num_layers:
        return (
            f"config.json says num_hidden_layers={llama.num_layers}, but there are tensors of layers up to "
            f"{max(layers)}, which makes {max(layers) + 1}: correct the number, or leave out the tensors"
        )
    for part, option in (("self_attn", "attention_bias"), ("mlp", "mlp_bias")):
        if _LAYER.match(name) and f".{part}." in name and name.endswith("_proj.bias"):
            return f"config.json says {option}=false, but there is {shown(name)}: set it to true, or drop the biases"
    return f"{shown(name)} is no tensor of LlamaForCausalLM"


def _check_tensor(folder: Path, tensors: Mapping[str, SavedTensor], name: str, shape: tuple[int, ...]) -> None:
    if name not in tensors:
        raise NCAPluginError(f"{folder} is incomplete: it has no '{name}', which its config.json asks for")
    tensor = tensors[name]
    if tensor.shape != shape:
        raise NCAPluginError(f"{folder}: '{name}' is {shown(list(tensor.shape))}, its config.json says {list(shape)}")
    if tensor.dtype not in WEIGHT_DTYPES:
        raise NCAPluginError(f"{folder}: '{name}' is stored as {tensor.dtype}, not as {', '.join(WEIGHT_DTYPES)}")


def _is_same(one: SavedTensor, other: SavedTensor) -> bool:
    """Return whether two tensors of the same shape hold the same bits."""
    if one.dtype != other.dtype:
        return False
    spans = _spans(0, one.shape[0], one.shape[1:], WEIGHT_DTYPES[one.dtype])
    return all(one.read(*span).tobytes() == other.read(*span).tobytes() for span in spans)


def _entries(
    llama: Llama, tensors: Mapping[str, SavedTensor], padded_rows: int, model: ModelConfig, seed: int
) -> list[Entry]:
    """Return Megatron's tensors, with the layers stacked on axis 0."""
    blocks: dict[str, list[NewBlock]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    for mapped in llama.parameters():
        name, rows = mapped.canonical, mapped.rows
        for part in mapped.parts:
            if dtypes.setdefault(name, tensors[part.name].dtype) != tensors[part.name].dtype:
                raise NCAPluginError(
                    f"'{part.name}' is stored as {tensors[part.name].dtype}, others of its kind as {dtypes[name]}: "
                    "Megatron stores them as one tensor"
                )
        dtype = WEIGHT_DTYPES[dtypes[name]]
        layers: Region = () if mapped.layer is None else ((mapped.layer, mapped.layer + 1),)
        shapes[name] = (*([llama.num_layers] if layers else []), *mapped.shape)
        rest: Region = tuple((0, columns) for columns in mapped.columns)
        spans = _spans(0, rows, mapped.columns, dtype)
        blocks.setdefault(name, []).extend(
            NewBlock((*layers, span, *rest), functools.partial(_joined, mapped, tensors, span, len(layers), dtype))
            for span in spans
        )
        if name in ROW_TENSORS:
            shapes[name] = shape = (padded_rows, *mapped.columns)
            parsed = parameter(name)
            drawn = distribution(name, parsed, model)
            blocks[name].extend(
                NewBlock((span, *rest), functools.partial(draw, drawn, parsed, shape, (span, *rest), dtype, seed))
                for span in _spans(rows, padded_rows, mapped.columns, dtype)
            )
    return [Entry(name, WEIGHT_DTYPES[dtypes[name]], shapes[name], blocks[name]) for name in blocks]


def _spans(start: int, stop: int, columns: tuple[int, ...], dtype: DType) -> list[tuple[int, int]]:
    """Return spans of rows of at most `BLOCK_BYTES`, or of one row if that is larger."""
    step = max(1, BLOCK_BYTES // (math.prod(columns) * dtype.itemsize))
    return [(at, min(at + step, stop)) for at in range(start, stop, step)]


def _joined(
    mapped: Mapped, tensors: Mapping[str, SavedTensor], span: tuple[int, int], num_axes: int, dtype: DType
) -> Values:
    """Return the rows `span` of one of Megatron's parameters, with `num_axes` axes of size 1 before them."""
    start, stop = span
    values = np.empty((stop - start, *mapped.columns), dtype.array)
    at = 0
    for part in mapped.parts:
        first, last = max(start, at), min(stop, at + part.rows)
        if first < last:
            rows = tensors[part.name].read(part.start + first - at, part.start + last - at)
            values[first - start : last - start] = rows
        at += part.rows
    return values.reshape((1,) * num_axes + values.shape)


def _module_states(num_layers: int) -> list[str]:
    """Return the names under which Megatron stores the state of modules."""
    of_layers = [
        f"{module}._extra_state/shard_{layer}_{num_layers}"
        for module in MODULES_WITH_STATE
        for layer in range(num_layers)
    ]
    return [*of_layers, f"{FINAL_MODULE_WITH_STATE}._extra_state/shard_0_1"]
