"""Megatron's `torch_dist` format, read without a process group.

A folder holds `.metadata` (a pickle: which tensors and objects there are, in which blocks, and where the bytes of each
lie), `*.distcp` files of such blocks, each a `torch.save` of its own, and `metadata.json`, which names the format. The
state that all ranks share is an object among the others, or a file `common.pt` (megatron-core 0.18 and before).
"""

import json
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.metadata import TableOfContents
from nca_plugin.checkpoint.stored import Item
from nca_plugin.errors import NCAPluginError

#: What `metadata.json` says. Versions before megatron-core 0.19 need the last two, later ones do not mind them.
FORMAT: Final = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
COMMON_STATE: Final = "common_state/shard_0_1"
COMMON_FILE: Final = "common.pt"
_MOST_FORMAT_BYTES: Final = 1 << 20
#: Some millions of blocks.
_MOST_METADATA_BYTES: Final = 1 << 30


def is_torch_dist(folder: Path) -> bool:
    """Whether a folder says of itself that it is a `torch_dist` checkpoint."""
    try:
        backend = json.loads(read_small(folder / "metadata.json", _MOST_FORMAT_BYTES)).get("sharded_backend")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return bool(backend == FORMAT["sharded_backend"])


def read_table(folder: Path) -> TableOfContents:
    """Return the table of contents of a folder.

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
    return TableOfContents(data, folder)


def read_common_file(folder: Path) -> dict[str, Any] | None:
    """Return what is stored once for all ranks in a file of its own; None without the file."""
    file = folder / COMMON_FILE
    return _mapping(folder, Item(file, 0, file.stat().st_size).load()) if file.is_file() else None


def read_common_object(folder: Path, table: TableOfContents) -> dict[str, Any] | None:
    """Return what is stored once for all ranks among the objects; None if nothing is."""
    item = table.object(COMMON_STATE)
    if item is None:
        return None
    saved = item.load()
    return _mapping(folder, saved[0] if isinstance(saved, list) and saved else saved)


def _mapping(folder: Path, state: Any) -> dict[str, Any]:
    if not isinstance(state, dict):
        raise NCAPluginError(f"checkpoint {folder} is damaged: its common state is no mapping")
    return state


def read_small(file: Path, most: int) -> bytes:
    """Return what a file holds. Raises `ValueError` for one that is larger, or no file, which might never end."""
    if not file.is_file() and file.exists():
        raise ValueError(f"{file.name} is no file")
    with file.open("rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data
