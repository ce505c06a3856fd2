"""Reads `.metadata`, the table of contents of a `torch_dist` folder: its tensors, objects, blocks and their places.

It is read by columns, because there may be hundreds of thousands of blocks.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from nca_plugin.checkpoint.columns import MISSING, Columns, Ints, Lists
from nca_plugin.checkpoint.contents import BlockTable, Places, Tensor, check_blocks
from nca_plugin.checkpoint.dtypes import DType
from nca_plugin.checkpoint.pickling import Foreign, Globals, Reference, read_pickle, reading
from nca_plugin.checkpoint.stored import Item
from nca_plugin.errors import NCAPluginError

#: Limit on the length of a name.
_MOST_LETTERS: Final = 1000
#: The number of a text that is not there.
_NO_TEXT: Final = -2

_MODULE: Final = "torch.distributed.checkpoint.metadata"
#: The classes and functions in the pickle: the table, the entries of tensors and of objects, and what these hold.
METADATA: Final = Reference(_MODULE, "Metadata")
TENSOR: Final = Reference(_MODULE, "TensorStorageMetadata")
OBJECT: Final = Reference(_MODULE, "BytesStorageMetadata")
CHUNK: Final = Reference(_MODULE, "ChunkStorageMetadata")
PROPERTIES: Final = Reference(_MODULE, "TensorProperties")
INDEX: Final = Reference(_MODULE, "MetadataIndex")
STORAGE: Final = Reference("torch.distributed.checkpoint.filesystem", "_StorageInfo")
LAYOUT: Final = Reference("torch.serialization", "_get_layout")
MEMORY_FORMAT: Final = Reference(_MODULE, "_MEM_FORMAT_ENCODING")

_NAMES: Final[Globals] = {
    **{
        (named.module, named.name): named
        for named in (METADATA, TENSOR, OBJECT, CHUNK, PROPERTIES, INDEX, STORAGE, LAYOUT, MEMORY_FORMAT)
    },
    # megatron-core up to 0.15 writes this class.
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"): METADATA,
    (_MODULE, "StorageMeta"): Foreign,
    # The plan of the save is not needed for reading.
    **{
        ("torch.distributed.checkpoint.planner", name): Foreign
        for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")
    },
}


class TableOfContents:
    """The table of contents of a folder, which is opened once: one entry takes less time than all of them.

    Raises:
        NCAPluginError: the table is damaged or incomplete, or `data` is anything else; every method raises the same.
    """

    def __init__(self, data: bytes, folder: Path) -> None:
        self._folder = folder
        self._origin = f"checkpoint {folder}: .metadata"
        self._table = read_pickle(data, self._origin, _NAMES, Columns)
        with reading(self._origin):
            table = self._table
            if not table.are(table.root, METADATA).all():
                raise TypeError("it holds no table of contents")
            self._texts = table.texts
            self._contents, self._storage = (
                table.items(int(_attribute(table, table.root, name)[0]))
                for name in ("state_dict_metadata", "storage_data")
            )
            # Files that are missing or truncated are found however little of the table is read afterwards.
            self._places = _places(folder, table, self._texts, self._storage[1])

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor, None if there is no such tensor."""
        with reading(self._origin):
            keys, entries = self._contents
            entry = entries[self._table.text_numbers(keys) == self._number(name)]
            if len(entry) != 1 or not self._table.are(entry, TENSOR).all():
                return None
            return tuple(self._table.sizes(_attribute(self._table, entry, "size")).joined().tolist())

    def object(self, name: str) -> Item | None:
        """Return where an object lies, None if there is no such object."""
        with reading(self._origin):
            names = self._table.text_numbers(_attribute(self._table, self._storage[0], "fqn"))
            found = np.flatnonzero(names == self._number(name))[:1]
            return next(iter(self._places.of(found)), None)

    def entries(self) -> tuple[dict[str, Tensor], dict[str, Item]]:
        """Return all tensors and objects, with the sizes of the folder's files checked."""
        with reading(self._origin):
            return self._entries()

    def _number(self, name: str) -> int:
        return self._texts.index(name) if name in self._texts else _NO_TEXT

    def _entries(self) -> tuple[dict[str, Tensor], dict[str, Item]]:
        folder, table, texts = self._folder, self._table, self._texts
        stored = _Stored(table, texts, self._storage[0], self._places)
        keys, entries = table.text_numbers(self._contents[0]), self._contents[1]
        if len(np.unique(keys)) != len(keys):
            raise ValueError("an entry is there twice")
        are_tensors = table.are(entries, TENSOR)
        of_tensors = [_name(texts, key) for key in keys[are_tensors].tolist()]
        tensors = _tensors(folder, table, of_tensors, keys[are_tensors], entries[are_tensors], stored)
        objects: dict[str, Item] = {}
        for key in keys[~are_tensors].tolist():
            name = _name(texts, key)
            if key not in stored.first_of:
                raise NCAPluginError(f"checkpoint {folder} is incomplete: the object '{name}' is in none of its files")
            objects[name] = stored.item(stored.first_of[key])
        return tensors, objects


class _Stored:
    """The places of objects and blocks in files. There is a row for each entry of `storage_data`."""

    def __init__(self, table: Columns, texts: Sequence[str], indices: Ints, places: Places) -> None:
        names = table.text_numbers(_attribute(table, indices, "fqn"))
        firsts = dict(zip(*(found.tolist() for found in np.unique(names, return_index=True)), strict=True))
        for name in firsts:
            _name(texts, name)
        #: The first row of each name, by the name's number.
        self.first_of: dict[int, int] = firsts
        self.places = places
        offsets = table.attribute(indices, "offset")
        of_blocks = np.flatnonzero(~table.is_none(offsets))
        keys = _block_keys(names[of_blocks], table.sizes(offsets[of_blocks]))
        self._rows = dict(zip(keys, of_blocks.tolist(), strict=True))

    def rows(self, names: Ints, offsets: Lists) -> Ints:
        """Return the rows of blocks, given the numbers of their tensors' names and their offsets."""
        return np.array([self._rows.get(key, MISSING) for key in _block_keys(names, offsets)], np.int64)

    def item(self, row: int) -> Item:
        return next(iter(self.places.of(np.array([row]))))


def _block_keys(names: Ints, offsets: Lists) -> list[bytes]:
    ends = np.cumsum(offsets.counts + 1)
    starts = ends - offsets.counts - 1
    is_name = np.zeros(ends[-1] if len(ends) else 0, bool)
    is_name[starts] = True
    numbers = np.empty(len(is_name), np.int64)
    numbers[is_name], numbers[~is_name] = names, offsets.joined()
    data = numbers.tobytes()
    return [data[start:end] for start, end in zip((starts * 8).tolist(), (ends * 8).tolist(), strict=True)]


def _places(folder: Path, table: Columns, texts: Sequence[str], infos: Ints) -> Places:
    names, places = np.unique(table.text_numbers(_attribute(table, infos, "relative_path")), return_inverse=True)
    offsets, lengths = (table.integers(_attribute(table, infos, name)) for name in ("offset", "length"))
    transformed = table.attribute(infos, "transform_descriptors")
    transformed = np.flatnonzero(~table.is_none(transformed))
    if len(transformed):
        name = _name(texts, int(names[places[transformed[0]]]))
        raise NCAPluginError(f"checkpoint {folder}: {name} is compressed or encrypted, which is not supported")
    files, sizes = [], []
    for name in (_name(texts, number) for number in names.tolist()):
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise NCAPluginError(f"checkpoint {folder} is incomplete: {name} is missing")
        files.append(file)
        sizes.append(file.stat().st_size)
    has = np.array(sizes, np.int64)[places]
    # `Columns.integers` have up to 56 bits, so the sum does not overflow.
    beyond = np.flatnonzero((offsets < 0) | (lengths < 0) | (offsets + lengths > has))
    if len(beyond):
        row = beyond[0]
        raise NCAPluginError(
            f"checkpoint {folder} is truncated: {files[places[row]].name} has {has[row]} of "
            f"{offsets[row] + lengths[row]} bytes or more"
        )
    return Places(files, places, offsets, lengths)


def _tensors(
    folder: Path, table: Columns, names: Sequence[str], keys: Ints, entries: Ints, stored: _Stored
) -> dict[str, Tensor]:
    """Return the tensors `names` of the table of contents. `keys` are the numbers of their names."""
    properties, shapes, lists = (_attribute(table, entries, name) for name in ("properties", "size", "chunks"))
    states = table.tuples(table.state(properties))
    if not states.counts.all():
        raise ValueError("a tensor without a type")
    dtypes = table.named(states.values[states.starts])
    whole = table.sizes(shapes)
    chunks = table.elements(lists)
    of_chunks = chunks.joined()
    offsets, sizes = (table.sizes(_attribute(table, of_chunks, name)) for name in ("offsets", "sizes"))
    rows = stored.rows(np.repeat(keys, chunks.counts), offsets)
    # `first_chunks` has the first block of each tensor, `columns` the numbers of all blocks and where they begin.
    first_chunks = (np.cumsum(chunks.counts) - chunks.counts).tolist()
    columns = [(lists.joined(), lists.counts, np.cumsum(lists.counts) - lists.counts) for lists in (offsets, sizes)]
    tensors: dict[str, Tensor] = {}
    spans = zip(whole.starts.tolist(), whole.counts.tolist(), first_chunks, chunks.counts.tolist(), strict=True)
    for name, dtype, (start, axes, first, count) in zip(names, dtypes, spans, strict=True):
        if not isinstance(dtype, DType):
            raise TypeError(f"'{name}' has no type")
        of_tensor = rows[first : first + count]
        if (of_tensor < 0).any():
            raise NCAPluginError(f"checkpoint {folder} is incomplete: a block of '{name}' is in none of its files")
        corners = []
        for numbers, counts, starts in columns:
            if (counts[first : first + count] != axes).any():
                raise NCAPluginError(f"checkpoint {folder}: a block of '{name}' lies outside it")
            at = starts[first] if count else 0
            corners.append(numbers[at : at + count * axes].reshape(count, axes))
        blocks = BlockTable(corners[0], corners[1], stored.places.of(of_tensor))
        # The product may exceed 64 bits as an integer. A float64 is exact up to the size of any file.
        if (np.prod(blocks.shapes, axis=1, dtype=np.float64) * dtype.itemsize > blocks.places.lengths).any():
            raise NCAPluginError(f"checkpoint {folder} is damaged: a block of '{name}' is larger than its bytes")
        shape = tuple(whole.values[start : start + axes].tolist())
        tensors[name] = Tensor(name, dtype, shape, blocks)
        check_blocks(folder, tensors[name])
    return tensors


def _attribute(table: Columns, objects: Ints, name: str) -> Ints:
    values = table.attribute(objects, name)
    if (values < 0).any():
        raise AttributeError(f"an entry without {name}")
    return values


def _name(texts: Sequence[str], number: int) -> str:
    if number < 0 or not texts[number].isprintable() or len(texts[number]) > _MOST_LETTERS:
        raise TypeError("an entry without a name")
    return texts[number]
