"""What a checkpoint holds, whatever its format: tensors as blocks that lie somewhere in files, and objects."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from nca_plugin.checkpoint.dtypes import DType, Values
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.checkpoint.stored import Item, StoredTensor
from nca_plugin.errors import NCAPluginError

#: No parallelism of Megatron's cuts a tensor along more.
_MOST_CUT_AXES: Final = 6
#: Start and stop along each axis.
Region = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a tensor: where it begins, its shape, and where its values lie."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    source: Item | StoredTensor

    @property
    def region(self) -> Region:
        return tuple((offset, offset + size) for offset, size in zip(self.offsets, self.shape, strict=True))


@dataclass(frozen=True)
class Tensor:
    """A tensor of a checkpoint; its blocks cover it, each value once."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    blocks: tuple[Block, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def stored(self, block: Block) -> StoredTensor:
        """Return where the values of a block lie. Raises `NCAPluginError` if they are not of its shape and type."""
        stored = block.source.tensor() if isinstance(block.source, Item) else block.source
        if (stored.dtype, stored.shape) != (self.dtype, block.shape):
            raise NCAPluginError(
                f"{stored.record.file} is damaged: a block of '{self.name}' is {_described(stored.dtype, stored.shape)}"
                f", the table of contents says {_described(self.dtype, block.shape)}"
            )
        return stored

    def opened(self) -> "Tensor":
        """Return the same tensor with the places of its values looked up: for many reads."""
        return replace(self, blocks=tuple(replace(block, source=self.stored(block)) for block in self.blocks))

    def read(self, *region: tuple[int, int]) -> Values:
        """Return the values from start to stop along the first axes, all along the others."""
        whole: Region = (*region, *((0, size) for size in self.shape[len(region) :]))
        values = np.empty([stop - start for start, stop in whole], self.dtype.array)
        for block in self.blocks:
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


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder, read.

    `stack` is who wrote the folder, `folder` holds the data files, `root` what belongs to the checkpoint beside them
    (the same, but for NeMo 2). `objects` are entries that are no tensors, None for the state of a module that has none.
    `common_state` is what is stored once for all ranks; None if nothing is.
    """

    root: Path
    folder: Path
    stack: str
    format: str
    tensors: dict[str, Tensor]
    objects: dict[str, Item | None]
    common_state: dict[str, Any] | None
    model: ModelConfig

    @property
    def names(self) -> list[str]:
        return [*self.tensors, *self.objects]

    def tensor(self, name: str) -> Values:
        """Return a whole tensor."""
        return self.tensors[name].read()


def check_blocks(folder: Path, tensor: Tensor) -> None:
    """Raise `NCAPluginError` if the blocks of a tensor do not cover it, each value once."""
    for block in tensor.blocks:
        inside = len(block.shape) == len(tensor.shape) == len(block.offsets) and all(
            0 <= start <= stop <= size for (start, stop), size in zip(block.region, tensor.shape, strict=True)
        )
        if not inside:
            raise NCAPluginError(f"checkpoint {folder}: a block of '{tensor.name}' lies outside it")
    if not _covers(tensor.shape, [block.region for block in tensor.blocks]):
        raise NCAPluginError(f"checkpoint {folder} is incomplete: the blocks of '{tensor.name}' do not cover it")


def _covers(shape: tuple[int, ...], regions: Sequence[Region]) -> bool:
    """Whether regions within a tensor hold each of its values once.

    How often a value is held, as a function of its place, is told by its differences along all axes: each region has
    +1 or -1 at its corners, and the sum of them must be that of the whole tensor.
    """
    if 0 in shape:
        return True
    # Along most axes no block is a part.
    axes = [axis for axis, size in enumerate(shape) if any(region[axis] != (0, size) for region in regions)]
    if not axes:
        return len(regions) == 1
    if len(axes) > _MOST_CUT_AXES:
        return False
    differences: Counter[tuple[int, ...]] = Counter()
    whole = tuple((0, size) for size in shape)
    for sign, region in [(-1, whole), *((1, region) for region in regions)]:
        for corner in itertools.product(*(((region[axis][0], 1), (region[axis][1], -1)) for axis in axes)):
            differences[tuple(place for place, _ in corner)] += sign * math.prod(side for _, side in corner)
    return not any(differences.values())


def _described(dtype: DType, shape: Iterable[int]) -> str:
    return f"{dtype.name} {list(shape)}"


def contiguous_regions(shape: tuple[int, ...], most_values: int) -> list[Region]:
    """Return regions that cover a tensor in order, each a contiguous run of at most `most_values` of its values."""
    count = math.prod(shape[1:])
    if math.prod(shape) <= most_values or not shape:
        return [tuple((0, size) for size in shape)]
    if count > most_values:
        inner = contiguous_regions(shape[1:], most_values)
        return [((i, i + 1), *region) for i, region in itertools.product(range(shape[0]), inner)]
    step = most_values // count
    rest = tuple((0, size) for size in shape[1:])
    return [((start, min(start + step, shape[0])), *rest) for start in range(0, shape[0], step)]
