"""Megatron's older format, with one file for each model-parallel rank, read as if it were one checkpoint.

A folder holds `mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt` for tensor-, pipeline- and expert-parallel ranks. Each file
has the rank's part of the model under `model`, or under `model0`, `model1`, ... for the chunks of virtual pipeline
parallelism. How the parts belong together is not stored. It follows from the names, since Megatron cuts by name.
"""

import itertools
import re
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.contents import Block, Tensor, check_blocks
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.checkpoint.stored import Item, StoredTensor
from nca_plugin.errors import NCAPluginError, one_line

_FOLDER: Final = re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?(?:_(\d{3}))?")
_FILE: Final = "model_optim_rng.pt"
_CHUNK: Final = re.compile(r"model(\d{0,4})")
_LAYER: Final = re.compile(r"decoder\.layers\.(\d{1,5})\.(.+)")
_MTP: Final = re.compile(r"(mtp\.layers\.\d{1,5}\.)(?:mtp_model_layer|transformer_layer)\.(.+)")
#: SequentialMLP's and TEGroupedMLP's names of the parameters of one expert.
_EXPERT: Final = (
    re.compile(
        r"mlp\.experts\.local_experts\.(?P<expert>\d{1,5})\.(?P<parameter>linear_fc[12]\.(weight|bias|_extra_state))"
    ),
    re.compile(r"mlp\.experts\.(?P<parameter>linear_fc[12]\.(weight|bias))(?P<expert>\d{1,5})"),
)

#: The axis along which tensor parallelism cuts a parameter (ColumnParallelLinear, RowParallelLinear and
#: VocabParallelEmbedding in megatron.core.tensor_parallel.layers).
_CUT: Final = (
    (0, re.compile(r"(embedding\.word_embeddings|output_layer)\.(weight|bias)")),
    (0, re.compile(r".*\.(linear_(qkv|q|kv|fc1|q_proj|q_up_proj|kv_up_proj)|eh_proj)\.(weight|bias)\d*")),
    (0, re.compile(r".*\.softmax_offset")),
    (1, re.compile(r".*\.linear_(proj|fc2)\.weight\d*")),
)
#: Parameters that every tensor-parallel rank has whole.
_WHOLE: Final = re.compile(
    r".*norm[._](weight|bias)|.*\.linear_(proj|fc2)\.bias\d*|.*\.router\..*|.*\.gate_weight|.*_latent_proj\.(weight|bias)"
    r"|embedding\.(position|tokentype)_embeddings\.weight|.*\.linear_(q|kv)_down_proj\.weight"
)
#: The local layer spec cuts these on axis 0, with Transformer Engine every rank has them whole (MLASelfAttention).
_DOWN_PROJECTION: Final = re.compile(r".*\.linear_(q|kv)_down_proj\.weight")
_MODULE_STATE: Final = "._extra_state"
#: Parameters whose parts cannot be put together, because it is unknown how Megatron cuts them.
_UNSUPPORTED: Final = re.compile(r".*\.mixer\..*|.*mlp\.experts\.weight[12]|mtp\..*\.experts\..*|language_model\..*")
#: Names of the local layer spec, and the names under which `torch_dist` stores them
#: (megatron.core.models.gpt.gpt_layer_specs).
_LOCAL_NAMES: Final = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


@dataclass(frozen=True, slots=True)
class _Key:
    """A parameter of one layer and one expert; None if it belongs to no layer or expert."""

    name: str
    layer: int | None = None
    expert: int | None = None


@dataclass
class _Whole:
    """A parameter that is put together from parts, each with its offsets in it. The state of a module has no parts."""

    parts: list[tuple[tuple[int, ...], StoredTensor]] = field(default_factory=list)

    @property
    def shape(self) -> tuple[int, ...]:
        ends = [[o + s for o, s in zip(offsets, part.shape, strict=True)] for offsets, part in self.parts]
        return tuple(map(max, zip(*ends, strict=True)))


def is_legacy(folder: Path) -> bool:
    """Return whether a folder holds a folder for each model-parallel rank."""
    return any(_FOLDER.fullmatch(path.name) for path in folder.iterdir())


def read_legacy(folder: Path, first: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, None]]:
    """Return the tensors and the states of modules in a folder, under the names and shapes of `torch_dist`.

    All states are None, as if they were empty, because FP8 state is not read.

    Args:
        first: what the first rank saved; see `read_legacy_state`.

    Raises:
        NCAPluginError: if the checkpoint is damaged, a rank's file is missing, or parts cannot be put together.
    """
    if not isinstance(first.get("args"), Namespace):
        raise NCAPluginError(f"checkpoint {folder}: {_FILE} holds no arguments, so the ranks cannot be told apart")
    try:
        return _read(folder, first, ModelConfig(vars(first["args"])))
    except (AttributeError, TypeError, KeyError, IndexError, ValueError, OverflowError) as error:
        raise NCAPluginError(f"checkpoint {folder} is damaged: {one_line(error)}") from error


def _read(folder: Path, first: dict[str, Any], model: ModelConfig) -> tuple[dict[str, Tensor], dict[str, None]]:
    ranks = _Ranks.of(folder, model)
    states = {rank: _load(path) for rank, path in ranks.files.items()}
    chunks = sorted(
        (key for key in first if isinstance(key, str) and _CHUNK.fullmatch(key)),
        key=lambda key: int(key.removeprefix("model") or 0),
    )
    wholes: dict[_Key, _Whole] = {}
    num_layers = 0
    # Virtual pipeline parallelism deals the layers out to the pipeline's ranks chunk by chunk.
    for chunk, pipeline in itertools.product(chunks, range(ranks.pipeline)):
        stage: dict[_Key, _Whole] = {}
        for expert_rank, tensor_rank in itertools.product(range(ranks.expert), range(ranks.tensor)):
            state = states[tensor_rank, pipeline, expert_rank].get(chunk, {})
            for name, value in state.items():
                if name.endswith(_MODULE_STATE):
                    stage[_key(name, model, ranks, expert_rank)] = _Whole()
                elif isinstance(value, StoredTensor):
                    _place(stage, folder, name, value, model, ranks, tensor_rank, expert_rank)
                elif value is not None:
                    raise NCAPluginError(f"checkpoint {folder}: '{name}' is no plain tensor, and cannot be read")
        for key, whole in stage.items():
            layer = None if key.layer is None else key.layer + num_layers
            # The last stage has a copy of a tied embedding.
            wholes.setdefault(_Key(key.name, layer, key.expert), whole)
        num_layers += 1 + max((key.layer for key in stage if key.layer is not None), default=-1)
    if not model.get("untie_embeddings_and_output_weights"):
        wholes.pop(_Key("output_layer.weight"), None)
    if not model.is_hybrid:
        # In `torch_dist`, GPTModel does not store this state.
        wholes.pop(_Key(f"output_layer{_MODULE_STATE}"), None)
    return _joined(folder, wholes, num_layers, model)


def read_legacy_state(folder: Path) -> dict[str, Any]:
    """Return what the first rank of a folder saved. Raises `NCAPluginError` if it is damaged or missing."""
    return _load(next(path for path in sorted(folder.iterdir()) if _FOLDER.fullmatch(path.name)))


@dataclass(frozen=True)
class _Ranks:
    """The numbers of ranks, and their files by tensor-, pipeline- and expert-parallel rank."""

    tensor: int
    pipeline: int
    expert: int
    files: dict[tuple[int, int, int], Path]

    @classmethod
    def of(cls, folder: Path, model: ModelConfig) -> "_Ranks":
        tensor = model.tensor_parallel_size
        pipeline = model.integer("pipeline_model_parallel_size", 1)
        expert = model.integer("expert_model_parallel_size", 1)
        if model.get("num_experts") and model.integer("expert_tensor_parallel_size", tensor) != tensor:
            raise NCAPluginError(
                f"checkpoint {folder}: experts cut otherwise than the rest (--expert-tensor-parallel-size) are not "
                "supported in this old format: load and save it with --ckpt-convert-format torch_dist"
            )
        files = {}
        for t, p, e in itertools.product(range(tensor), range(pipeline), range(expert)):
            name = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pipeline > 1 else "") + (f"_{e:03d}" if expert > 1 else "")
            files[t, p, e] = folder / name
            if not (folder / name / _FILE).is_file():
                raise NCAPluginError(f"checkpoint {folder} is incomplete: {name}/{_FILE} is missing")
        return cls(tensor, pipeline, expert, files)


def _load(rank: Path) -> dict[str, Any]:
    file = rank / _FILE
    if not file.is_file():
        raise NCAPluginError(f"checkpoint {rank.parent} is incomplete: {rank.name}/{_FILE} is missing")
    state = Item(file, 0, file.stat().st_size).load()
    if not isinstance(state, dict):
        raise NCAPluginError(f"{file} is damaged: it holds no mapping")
    return state


def _place(
    stage: dict[_Key, _Whole],
    folder: Path,
    name: str,
    value: StoredTensor,
    model: ModelConfig,
    ranks: _Ranks,
    tensor_rank: int,
    expert_rank: int,
) -> None:
    """Add one rank's part of a parameter to the parameters of its pipeline stage."""
    axis = next((axis for axis, pattern in _CUT if pattern.fullmatch(name)), None)
    if _DOWN_PROJECTION.fullmatch(name) and model.get("transformer_impl") == "local":
        axis = 0
    is_known = axis is not None or ranks.tensor == 1 or _WHOLE.fullmatch(name)
    if _UNSUPPORTED.fullmatch(name) or not is_known:
        raise NCAPluginError(
            f"checkpoint {folder}: '{name}' cannot be put together from this old format: load and save it with "
            "--ckpt-convert-format torch_dist"
        )
    key = _key(name, model, ranks, expert_rank)
    if expert_rank and key.expert is None:
        return
    if axis is None:
        if tensor_rank == 0:
            stage[key] = _Whole([((0,) * len(value.shape), value)])
        return
    parts = stage.setdefault(key, _Whole()).parts
    size = value.shape[axis]
    halves = 2 if model.get("swiglu", "gated_linear_unit") and ".linear_fc1." in name else 1
    for half in range(halves):
        start = (half * ranks.tensor + tensor_rank) * (size // halves)
        offsets = tuple(start if a == axis else 0 for a in range(len(value.shape)))
        parts.append((offsets, value.narrow(axis, half * (size // halves), size // halves)))


def _key(name: str, model: ModelConfig, ranks: _Ranks, expert_rank: int) -> _Key:
    is_local = model.get("transformer_impl") == "local" and not model.get("multi_latent_attention")
    rename = _stored_name if is_local else str
    if mtp := _MTP.fullmatch(name):
        return _Key(f"{mtp[1]}transformer_layer.{rename(mtp[2])}")
    match = _LAYER.fullmatch(name)
    if match is None:
        return _Key(name)
    layer, rest = int(match[1]), match[2]
    for pattern in _EXPERT:
        if found := pattern.fullmatch(rest):
            per_rank = model.integer("num_experts") // ranks.expert
            expert = expert_rank * per_rank + int(found["expert"])
            return _Key(f"mlp.experts.experts.{found['parameter']}", layer, expert)
    return _Key(rename(rest), layer)


def _stored_name(name: str) -> str:
    """Return the name under which `torch_dist` stores a parameter of the local layer spec. Both are within a layer."""
    for local, stored in _LOCAL_NAMES.items():
        name = stored + name.removeprefix(local) if name.startswith(local) else name
    return name


def _joined(
    folder: Path, wholes: dict[_Key, _Whole], num_layers: int, model: ModelConfig
) -> tuple[dict[str, Tensor], dict[str, None]]:
    """Return the tensors and objects that `torch_dist` stores.

    Experts are stacked on an axis before a parameter's own, and so are layers if all have the same parameters.
    """
    experts = 1 + max((key.expert for key in wholes if key.expert is not None), default=0)
    # megatron.core.transformer.transformer_block, TransformerBlock.sharded_state_dict.
    by_layer = ("heterogeneous_block_specs", "heterogeneous_layers_config_path", "hetereogenous_dist_checkpoint")
    frequencies = (model.get(name, default=1) for name in ("moe_layer_freq", "linear_attention_freq"))
    has_kinds = model.is_hybrid or any(map(model.get, by_layer)) or any(frequency != 1 for frequency in frequencies)
    if len({key.layer for key in wholes if key.layer is not None}) != num_layers:
        raise NCAPluginError(f"checkpoint {folder} is incomplete: some of its {num_layers} layers are missing")
    is_stacked = not has_kinds and _alike(wholes)
    objects: dict[str, None] = {}
    blocks: dict[str, list[Block]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes = {}
    for key, whole in wholes.items():
        before, sizes = [], []
        name = key.name
        if key.layer is not None:
            name = f"decoder.layers.{name}" if is_stacked else f"decoder.layers.{key.layer}.{name}"
            if is_stacked:
                before, sizes = [key.layer], [num_layers]
        if key.expert is not None:
            before, sizes = [*before, key.expert], [*sizes, experts]
        if not whole.parts:
            place = (".".join(map(str, indices or [0])) for indices in (before, sizes or [1]))
            objects["{}/shard_{}_{}".format(name, *place)] = None
            continue
        shapes[name] = (*sizes, *whole.shape)
        dtypes[name] = whole.parts[0][1].dtype
        blocks.setdefault(name, []).extend(
            Block((*before, *offsets), (1,) * len(before) + part.shape, part.under(len(before)))
            for offsets, part in whole.parts
        )
    tensors = {name: Tensor(name, dtypes[name], shapes[name], tuple(blocks[name])) for name in blocks}
    for tensor in tensors.values():
        check_blocks(folder, tensor)
    return tensors, objects


def _alike(wholes: dict[_Key, _Whole]) -> bool:
    """Return whether every layer has the same parameters."""
    layers: dict[int, set[tuple[str, int | None, tuple[int, ...]]]] = {}
    for key, whole in wholes.items():
        if key.layer is not None and whole.parts:
            layers.setdefault(key.layer, set()).add((key.name, key.expert, whole.shape))
    return len(set(map(frozenset, layers.values()))) <= 1
