"""The contents of a checkpoint of any format: tensors, which consist of blocks in files, and objects."""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray

from nca_plugin.checkpoint.dtypes import DType, Values
from nca_plugin.checkpoint.stored import Item, StoredTensor
from nca_plugin.errors import NCAPluginError

#: No parallelism of Megatron cuts a tensor along more axes.
_MOST_CUT_AXES: Final = 6
Ints = NDArray[np.int64]
#: Up to this number of blocks, reading looks at all of them, which is faster than sorting them.
_FEW_BLOCKS: Final = 32
#: A part of a tensor: start and stop along each axis.
Region = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a tensor: its first indices, its shape, and where its values are stored."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    source: Item | StoredTensor

    @property
    def region(self) -> Region:
        return tuple([(offset, offset + size) for offset, size in zip(self.offsets, self.shape, strict=True)])


@dataclass(frozen=True, slots=True)
class Places:
    """Parts of files as columns: the index of each part's file in `files`, its offset and its length in bytes."""

    files: Sequence[Path]
    numbers: Ints
    offsets: Ints
    lengths: Ints

    def of(self, rows: Ints) -> "Places":
        """Return the parts in `rows`."""
        return Places(self.files, self.numbers[rows], self.offsets[rows], self.lengths[rows])

    def __iter__(self) -> Iterator[Item]:
        files = map(self.files.__getitem__, self.numbers.tolist())
        return map(Item, files, self.offsets.tolist(), self.lengths.tolist())


class BlockTable(Sequence[Block]):
    """Blocks as columns. There may be hundreds of thousands, so a `Block` is made only when it is needed.

    Args:
        offsets, shapes: [blocks, axes].
        places: where the values of the blocks are stored.
    """

    def __init__(self, offsets: Ints, shapes: Ints, places: Places) -> None:
        self.offsets = offsets
        self.shapes = shapes
        self.places = places

    def of(self, rows: Ints) -> "BlockTable":
        """Return the blocks in `rows`."""
        return BlockTable(self.offsets[rows], self.shapes[rows], self.places.of(rows))

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Block]:
        return map(Block, map(tuple, self.offsets.tolist()), map(tuple, self.shapes.tolist()), self.places)

    @overload
    def __getitem__(self, index: int) -> Block: ...
    @overload
    def __getitem__(self, index: slice) -> "BlockTable": ...
    def __getitem__(self, index: int | slice) -> "Block | BlockTable":
        if isinstance(index, slice):
            return self.of(np.arange(len(self))[index])
        return next(iter(self.of(np.array([range(len(self))[index]]))))


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint. Its blocks cover each of its values once."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    blocks: Sequence[Block]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def stored(self, block: Block) -> StoredTensor:
        """Return where a block is stored. Raises `NCAPluginError` if its shape or type differs from the contents."""
        stored = block.source.tensor() if isinstance(block.source, Item) else block.source
        if (stored.dtype, stored.shape) != (self.dtype, block.shape):
            raise NCAPluginError(
                f"{stored.record.file} is damaged: a block of '{self.name}' is {_described(stored.dtype, stored.shape)}"
                f", the table of contents says {_described(self.dtype, block.shape)}"
            )
        return stored

    def opened(self) -> "Tensor":
        """Return the same tensor with the places of all blocks looked up once, which makes many reads faster."""
        return replace(self, blocks=tuple(replace(block, source=self.stored(block)) for block in self.blocks))

    def within(self, region: Region) -> "Tensor":
        """Return the same tensor without the blocks outside a region of its first axes. A short list is kept whole."""
        if len(self.blocks) <= _FEW_BLOCKS:
            return self
        (starts, stops), axis, order, first, last = self._sorted
        rows = order
        if len(region) > axis:
            low, high = region[axis]
            rows = order[np.searchsorted(last, low, "right") : np.searchsorted(first, high)]
        lows, highs = np.array(region, np.int64).reshape(-1, 2).T
        axes = slice(len(region))
        rows = np.sort(rows[((starts[rows, axes] < highs) & (stops[rows, axes] > lows)).all(axis=1)])
        if isinstance(self.blocks, BlockTable):
            return replace(self, blocks=self.blocks.of(rows))
        return replace(self, blocks=tuple(self.blocks[row] for row in rows.tolist()))

    @functools.cached_property
    def _sorted(self) -> tuple[tuple[Ints, Ints], int, Ints, Ints, Ints]:
        """The blocks, sorted along the axis on which they have the most different starts.

        Returns:
            Starts and stops of all blocks, each [blocks, axes]; the axis; the order of the blocks along it; in that
            order, each block's start and the largest stop of it and the blocks before it.
        """
        corners = _corners(self.blocks, len(self.shape))
        assert corners is not None
        starts, stops = corners[0], corners[0] + corners[1]
        axis = max(range(len(self.shape)), key=lambda axis: len(np.unique(starts[:, axis])))
        order = np.argsort(starts[:, axis], kind="stable")
        return (starts, stops), axis, order, starts[order, axis], np.maximum.accumulate(stops[order, axis])

    def read(self, *region: tuple[int, int]) -> Values:
        """Return the values from start to stop along the first axes, and all values along the others."""
        whole: Region = (*region, *((0, size) for size in self.shape[len(region) :]))
        values = np.empty([stop - start for start, stop in whole], self.dtype.array)
        for block in self.within(whole).blocks:
            common = [
                (max(a, c), min(b, d)) for (a, b), (c, d) in zip(whole, block.region, strict=True)
            ]  # fmt: skip
            if any(start >= stop for start, stop in common):
                continue
            part = self.stored(block)
            for axis, (start, stop) in enumerate(common):
                part = part.narrow(axis, start - block.offsets[axis], stop - start)
            target = tuple(
                slice(start - first, stop - first) for (start, stop), (first, _) in zip(common, whole, strict=True)
            )
            values[target] = part.read()
        return values


def check_blocks(folder: Path, tensor: Tensor) -> None:
    """Raise `NCAPluginError` unless the blocks of a tensor cover each of its values once."""
    corners = _corners(tensor.blocks, len(tensor.shape))
    whole = np.array(tensor.shape, np.int64)
    if corners is None or not ((corners[0] >= 0) & (corners[1] >= 0) & (corners[0] <= whole - corners[1])).all():
        raise NCAPluginError(f"checkpoint {folder}: a block of '{tensor.name}' lies outside it")
    starts, sizes = corners
    if not _covers(tensor.shape, starts, starts + sizes):
        raise NCAPluginError(f"checkpoint {folder} is incomplete: the blocks of '{tensor.name}' do not cover it")


def _corners(blocks: Sequence[Block], axes: int) -> tuple[Ints, Ints] | None:
    """Return the starts and shapes of blocks, each [blocks, axes]; None if a block has another number of axes."""
    if isinstance(blocks, BlockTable):
        return (blocks.offsets, blocks.shapes) if blocks.offsets.shape[1] == blocks.shapes.shape[1] == axes else None
    if any((len(block.offsets), len(block.shape)) != (axes, axes) for block in blocks):
        return None
    rows = ([block.offsets for block in blocks], [block.shape for block in blocks])
    starts, sizes = (np.array(row, np.int64).reshape(len(blocks), axes) for row in rows)
    return starts, sizes


def _covers(shape: tuple[int, ...], starts: Ints, stops: Ints) -> bool:
    """Return whether regions within a tensor cover each of its values once.

    The number of regions that cover a value is a function of its place. Its differences along all axes are +1 or -1 at
    the corners of each region, and 0 elsewhere. The regions cover each value once if the sum over all regions is the
    same as for the whole tensor: if the whole is subtracted, there are as many +1 as -1 at each place.
    """
    if 0 in shape:
        return True
    # Along most axes no tensor is cut.
    cut = np.flatnonzero(((starts != 0) | (stops != np.array(shape, np.int64))).any(axis=0)).tolist()
    if not cut:
        return len(starts) == 1
    # A place is encoded as one number of 62 bits, which is enough for any tensor.
    if len(cut) > _MOST_CUT_AXES or math.prod(shape[axis] + 1 for axis in cut) >= 1 << 62:
        return False
    signs: tuple[list[Ints], list[Ints]] = ([], [])
    for corner in itertools.product((0, 1), repeat=len(cut)):
        places, of_whole = np.zeros(len(starts), np.int64), 0
        for axis, is_stop in zip(cut, corner, strict=True):
            places = places * (shape[axis] + 1) + (stops if is_stop else starts)[:, axis]
            of_whole = of_whole * (shape[axis] + 1) + is_stop * shape[axis]
        sign = sum(corner) % 2
        signs[sign].append(places)
        signs[1 - sign].append(np.array([of_whole]))
    more, less = (np.sort(np.concatenate(places)) for places in signs)
    return np.array_equal(more, less)


def _described(dtype: DType, shape: Iterable[int]) -> str:
    return f"{dtype.name} {list(shape)}"


def contiguous_regions(shape: tuple[int, ...], most_values: int) -> list[Region]:
    """Return regions that cover a tensor in order, each a contiguous run of at most `most_values` values."""
    count = math.prod(shape[1:])
    if math.prod(shape) <= most_values or not shape:
        return [tuple((0, size) for size in shape)]
    if count > most_values:
        inner = contiguous_regions(shape[1:], most_values)
        return [((i, i + 1), *region) for i, region in itertools.product(range(shape[0]), inner)]
    step = most_values // count
    rest = tuple((0, size) for size in shape[1:])
    return [((start, min(start + step, shape[0])), *rest) for start in range(0, shape[0], step)]
