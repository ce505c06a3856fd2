"""Checkpoints to compare and to break."""

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from nca_plugin.checkpoint.stored import Item


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def edit_metadata(folder: Path, edit: Callable[[Metadata], None]) -> None:
    """Change the table of contents of an iteration's folder."""
    metadata = dcp.FileSystemReader(folder).read_metadata()
    edit(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def replace_item(folder: Path, item: Item, value: object) -> None:
    """Have the table of contents name another saved object in the place of one, with no fewer bytes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    # An archive is found from its end.
    saved = bytes(max(0, item.length - len(buffer.getvalue()))) + buffer.getvalue()
    with item.file.open("ab") as file:
        offset = file.tell()
        file.write(saved)

    def edit(metadata: Metadata) -> None:
        for info in metadata.storage_data.values():
            if (info.relative_path, info.offset) == (item.file.name, item.offset):
                info.offset, info.length = offset, len(saved)

    edit_metadata(folder, edit)


def remove_entry(folder: Path, name: str) -> None:
    """Have the table of contents forget an entry."""

    def edit(metadata: Metadata) -> None:
        del metadata.state_dict_metadata[name]
        metadata.storage_data = {index: info for index, info in metadata.storage_data.items() if index.fqn != name}

    edit_metadata(folder, edit)
