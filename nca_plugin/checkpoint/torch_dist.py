"""Megatron's `torch_dist` format, read without a process group.

A folder holds `.metadata` (a pickle: which tensors and objects there are, in which blocks, and where the bytes of each
lie), `*.distcp` files of such blocks, each a `torch.save` of its own, and `metadata.json`, which names the format. The
state that all ranks share is an object among the others, or a file `common.pt` (megatron-core 0.18 and before).
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.contents import Block, Region, Tensor, check_blocks
from nca_plugin.checkpoint.dtypes import DType
from nca_plugin.checkpoint.pickling import (
    Call,
    Foreign,
    Globals,
    Reference,
    Size,
    StandIn,
    dump_pickle,
    load_pickle,
    stand_in,
)
from nca_plugin.checkpoint.stored import Item
from nca_plugin.errors import NCAPluginError, one_line

#: What `metadata.json` says. Versions before megatron-core 0.19 need the last two, later ones do not mind them.
FORMAT: Final = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
COMMON_STATE: Final = "common_state/shard_0_1"
COMMON_FILE: Final = "common.pt"
#: Of a name.
_MOST_LETTERS: Final = 1000
_MOST_FORMAT_BYTES: Final = 1 << 20
#: Some millions of blocks.
_MOST_METADATA_BYTES: Final = 1 << 30

_MODULE: Final = "torch.distributed.checkpoint.metadata"
Metadata = stand_in(_MODULE, "Metadata")
TensorStorageMetadata = stand_in(_MODULE, "TensorStorageMetadata")
BytesStorageMetadata = stand_in(_MODULE, "BytesStorageMetadata")
ChunkStorageMetadata = stand_in(_MODULE, "ChunkStorageMetadata")
TensorProperties = stand_in(_MODULE, "TensorProperties")
MetadataIndex = stand_in(_MODULE, "MetadataIndex")
StorageInfo = stand_in("torch.distributed.checkpoint.filesystem", "_StorageInfo")
_GET_LAYOUT: Final = ("torch.serialization", "_get_layout")
_MEMORY_FORMAT: Final = (_MODULE, "_MEM_FORMAT_ENCODING")

_METADATA_TYPES: Final[Globals] = {
    **{
        (kind.reference.module, kind.reference.name): kind
        for kind in (
            *(Metadata, TensorStorageMetadata, BytesStorageMetadata, ChunkStorageMetadata),
            *(TensorProperties, MetadataIndex, StorageInfo),
        )
    },
    # megatron-core 0.15 and before.
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"): Metadata,
    **dict.fromkeys((_GET_LAYOUT, _MEMORY_FORMAT, (_MODULE, "StorageMeta")), Foreign),
    # How the save was planned, which nobody needs to read it.
    **{
        ("torch.distributed.checkpoint.planner", name): Foreign
        for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")
    },
}


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder says of itself that it is a `torch_dist` checkpoint."""
    try:
        backend = json.loads(read_small(folder / "metadata.json", _MOST_FORMAT_BYTES)).get("sharded_backend")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return bool(backend == FORMAT["sharded_backend"])


def read_torch_dist(folder: Path) -> tuple[dict[str, Tensor], dict[str, Item]]:
    """Return the tensors and objects of a folder, with the sizes of its files checked.

    Raises:
        NCAPluginError: damaged, incomplete, or anything but a table of contents in `.metadata`.
    """
    try:
        data = read_small(folder / ".metadata", _MOST_METADATA_BYTES)
    except FileNotFoundError:
        raise NCAPluginError(
            f"checkpoint {folder} is incomplete: .metadata is missing, which is written last; take another iteration"
        ) from None
    except ValueError as error:
        raise NCAPluginError(f"checkpoint {folder}: .metadata cannot be read: {error}") from error
    contents = load_pickle(data, f"checkpoint {folder}: .metadata", _METADATA_TYPES)
    try:
        return _entries(folder, contents)
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise NCAPluginError(f"checkpoint {folder}: .metadata cannot be read: {one_line(error)}") from error


def common_state(folder: Path, objects: dict[str, Item]) -> dict[str, Any] | None:
    """Return what is stored once for all ranks: the run's arguments, its iteration and the like; None if nothing is."""
    if COMMON_STATE in objects:
        saved = objects[COMMON_STATE].load()
        state = saved[0] if isinstance(saved, list) and saved else saved
    elif (folder / COMMON_FILE).is_file():
        state = Item(folder / COMMON_FILE, 0, (folder / COMMON_FILE).stat().st_size).load()
    else:
        return None
    if not isinstance(state, dict):
        raise NCAPluginError(f"checkpoint {folder} is damaged: its common state is no mapping")
    return state


def dump_metadata(
    tensors: Iterable[tuple[str, DType, tuple[int, ...], Iterable[Region]]],
    objects: Iterable[str],
    places: Mapping[tuple[str, tuple[int, ...] | None], Item],
) -> bytes:
    """Return a `.metadata`.

    Args:
        tensors: name, type, shape and blocks of each.
        objects: names of the other entries.
        places: by name, and first indices of a block, where its bytes lie.
    """
    layout = Call(Reference(*_GET_LAYOUT), ("torch.strided",))
    contiguous = Call(Reference(*_MEMORY_FORMAT), (0,))
    contents: dict[str, StandIn] = {}
    for name, dtype, shape, regions in tensors:
        chunks = [
            ChunkStorageMetadata(
                offsets=Size(start for start, _ in region), sizes=Size(stop - start for start, stop in region)
            )
            for region in regions
        ]
        # Later versions of PyTorch add strides, which earlier ones cannot read.
        properties = TensorProperties(state=(dtype, layout, False, contiguous, False))
        contents[name] = TensorStorageMetadata(properties=properties, size=Size(shape), chunks=chunks)
    contents.update((name, BytesStorageMetadata()) for name in objects)
    storage = {
        MetadataIndex(fqn=name, offset=None if start is None else Size(start), index=None): StorageInfo(
            relative_path=item.file.name, offset=item.offset, length=item.length
        )
        for (name, start), item in places.items()
    }
    absent = dict.fromkeys(("planner_data", "storage_meta", "version"))
    return dump_pickle(Metadata(state_dict_metadata=contents, storage_data=storage, **absent))


def read_small(file: Path, most: int) -> bytes:
    """Return what a file holds. Raises `ValueError` for one that is larger, or no file, which might never end."""
    if not file.is_file() and file.exists():
        raise ValueError(f"{file.name} is no file")
    with file.open("rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data


def _entries(folder: Path, contents: Any) -> tuple[dict[str, Tensor], dict[str, Item]]:
    if not isinstance(contents, Metadata):
        raise TypeError(f"it holds {type(contents).__name__}")
    sizes: dict[str, int] = {}
    items: dict[str, dict[tuple[int, ...] | None, Item]] = {}
    for index, info in contents.storage_data.items():
        item = _item(folder, info, sizes)
        offset = getattr(index, "offset", None)
        items.setdefault(_name(index.fqn), {})[None if offset is None else _indices(offset)] = item
    tensors: dict[str, Tensor] = {}
    objects: dict[str, Item] = {}
    for name, entry in contents.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            tensors[_name(name)] = _tensor(folder, name, entry, items.get(name, {}))
        elif name in items:
            objects[name] = next(iter(items[name].values()))
        else:
            raise NCAPluginError(
                f"checkpoint {folder} is incomplete: the object '{_name(name)}' is in none of its files"
            )
    return tensors, objects


def _tensor(folder: Path, name: str, entry: Any, items: Mapping[tuple[int, ...] | None, Item]) -> Tensor:
    dtype = entry.properties.state[0]
    if not isinstance(dtype, DType):
        raise TypeError(f"'{name}' has no type")
    blocks = []
    for chunk in entry.chunks:
        offsets, shape = _indices(chunk.offsets), _indices(chunk.sizes)
        if offsets not in items:
            raise NCAPluginError(f"checkpoint {folder} is incomplete: a block of '{name}' is in none of its files")
        if math.prod(shape) * dtype.itemsize > items[offsets].length:
            raise NCAPluginError(f"checkpoint {folder} is damaged: a block of '{name}' is larger than its bytes")
        blocks.append(Block(offsets, shape, items[offsets]))
    tensor = Tensor(name, dtype, _indices(entry.size), tuple(blocks))
    check_blocks(folder, tensor)
    return tensor


def _name(name: Any) -> str:
    if not (isinstance(name, str) and name.isprintable() and len(name) <= _MOST_LETTERS):
        raise TypeError("an entry without a name")
    return name


def _indices(values: Any) -> tuple[int, ...]:
    """Return a shape, or the place of a block."""
    if not isinstance(values, Size):
        raise TypeError(f"a {type(values).__name__} for a shape")
    return tuple(values)


def _item(folder: Path, info: Any, sizes: dict[str, int]) -> Item:
    name = info.relative_path
    if not isinstance(name, str) or {type(info.offset), type(info.length)} != {int}:
        raise TypeError("bytes without a place")
    if getattr(info, "transform_descriptors", None):
        raise NCAPluginError(f"checkpoint {folder}: {_name(name)} is compressed or encrypted, which is not supported")
    file = folder / name
    if name not in sizes:
        if Path(_name(name)).name != name or not file.is_file():
            raise NCAPluginError(f"checkpoint {folder} is incomplete: {name} is missing")
        sizes[name] = file.stat().st_size
    if info.offset < 0 or info.length < 0 or info.offset + info.length > sizes[name]:
        raise NCAPluginError(
            f"checkpoint {folder} is truncated: {name} has {sizes[name]} of {info.offset + info.length} bytes or more"
        )
    return Item(file, info.offset, info.length)
