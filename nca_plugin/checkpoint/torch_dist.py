"""Reads Megatron's `torch_dist` format without a process group.

A folder holds `.metadata`, `*.distcp` files and `metadata.json`, which names the format. `.metadata` is a pickle that
lists the tensors and objects, their blocks, and the place of each block in the `*.distcp` files. Each block is a
`torch.save` of its own. The common state of all ranks is one of the objects, or the file `common.pt` (megatron-core up
to 0.18).
"""

import json
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.metadata import TableOfContents
from nca_plugin.checkpoint.stored import Item
from nca_plugin.errors import NCAPluginError

#: The contents of `metadata.json`. Versions before megatron-core 0.19 need the last two, later ones ignore them.
FORMAT: Final = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
COMMON_STATE: Final = "common_state/shard_0_1"
COMMON_FILE: Final = "common.pt"
_MOST_FORMAT_BYTES: Final = 1 << 20
#: Limit on `.metadata`, which is reached with some millions of blocks.
_MOST_METADATA_BYTES: Final = 1 << 30


def is_torch_dist(folder: Path) -> bool:
    """Return whether `metadata.json` in a folder says that the format is `torch_dist`."""
    try:
        backend = json.loads(read_small(folder / "metadata.json", _MOST_FORMAT_BYTES)).get("sharded_backend")
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    return bool(backend == FORMAT["sharded_backend"])


def read_table(folder: Path) -> TableOfContents:
    """Return the table of contents of a folder.

    Raises:
        NCAPluginError: if the checkpoint is damaged or incomplete, or `.metadata` is not a table of contents.
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
    """Return the common state from the file `common.pt`; None without the file."""
    file = folder / COMMON_FILE
    return _mapping(folder, Item(file, 0, file.stat().st_size).load()) if file.is_file() else None


def read_common_object(folder: Path, table: TableOfContents) -> dict[str, Any] | None:
    """Return the common state from the objects; None if there is none."""
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
    """Return the contents of a file of at most `most` bytes.

    Raises:
        ValueError: if the file is larger, or is not a regular file, which might never end.
    """
    if not file.is_file() and file.exists():
        raise ValueError(f"{file.name} is no file")
    with file.open("rb") as opened:
        data = opened.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return data
