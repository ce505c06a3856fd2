"""The tensors of the next stage, cut into the blocks that are written, and what the report records of each block."""

import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nca_plugin.checkpoint.contents import Tensor, contiguous_regions
from nca_plugin.checkpoint.dtypes import DType, Values
from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.checkpoint.stored import Item, Record
from nca_plugin.checkpoint.write import BLOCK_BYTES, Entry, KeptBlock, NewBlock
from nca_plugin.transition.changes import Change
from nca_plugin.transition.model_initialisation import draw
from nca_plugin.transition.vocabulary import read_embedding_rows


@dataclass
class WrittenBlocks:
    """What was written for a change. The keys are the first indices of each block.

    Attributes:
        checksums: CRC-32 of the values that were kept.
        sums: count, sum and sum of squares of the values that were drawn.
    """

    checksums: dict[tuple[int, ...], int] = field(default_factory=dict)
    sums: dict[tuple[int, ...], tuple[int, float, float]] = field(default_factory=dict)

    def add_drawn(self, start: tuple[int, ...], dtype: DType, values: Values) -> None:
        flat = dtype.to_float32(values).reshape(-1)
        # The report shows six digits. Float32 sums are exact enough for that over short pieces, not over a whole block.
        pieces = np.array_split(flat, flat.size // (1 << 16) + 1)
        total = math.fsum(float(piece.sum()) for piece in pieces)
        squares = math.fsum(float(np.dot(piece, piece)) for piece in pieces)
        self.sums[start] = (flat.size, total, squares)

    def add_kept(self, start: tuple[int, ...], values: Values) -> None:
        self.checksums[start] = zlib.crc32(np.ascontiguousarray(values))

    def described(self) -> dict[str, Any]:
        """Return the report's fields: CRC-32 of the kept values, mean and standard deviation of the drawn ones."""
        row: dict[str, Any] = {}
        if self.checksums:
            row["crc32"] = {",".join(map(str, start)): f"{crc:08x}" for start, crc in sorted(self.checksums.items())}
        if self.sums:
            ordered = [self.sums[start] for start in sorted(self.sums)]
            count, total, squares = (math.fsum(column) for column in zip(*ordered, strict=True))
            mean = total / count if count else 0.0
            std = math.sqrt(max(0.0, squares / count - mean**2)) if count else 0.0
            row |= {"drawn": int(count), "mean": float(f"{mean:.6g}"), "std": float(f"{std:.6g}")}
        return row


def entries_of(
    checkpoint: Checkpoint, changes: Sequence[Change], records: Sequence[WrittenBlocks], seed: int
) -> list[Entry]:
    """Return the tensors of the next stage. `records`, one for each change, are filled while these are written."""
    entries = []
    pairs = [pair for pair in zip(changes, records, strict=True) if pair[0].shape is not None]
    for name, group in itertools.groupby(pairs, key=lambda pair: pair[0].entry.name):
        tensor = checkpoint.tensors[name]
        shape = tensor.shape
        blocks: list[KeptBlock | NewBlock] = []
        for change, record in group:
            assert change.shape is not None
            shape = change.shape
            blocks += _kept(tensor, change, record) if change.drawn is None else _drawn(tensor, change, record, seed)
        entries.append(Entry(name, tensor.dtype, shape, blocks))
    return entries


def _kept(tensor: Tensor, change: Change, record: WrittenBlocks) -> Iterator[KeptBlock | NewBlock]:
    for block in tensor.blocks:
        whole = region = block.region
        if change.entry.layers is not None:
            first = (max(region[0][0], change.entry.layers[0]), min(region[0][1], change.entry.layers[1]))
            if first[0] >= first[1]:
                continue
            region = (first, *region[1:])
        stored = tensor.stored(block)
        if isinstance(block.source, Item) and region == whole:
            record.checksums[block.offsets] = stored.record.crc32
            yield KeptBlock(region, block.source, stored.record)
            continue
        # A part of a saved block has no checksum and cannot be linked, so its values are copied.
        for part in contiguous_regions(tuple(b - a for a, b in region), BLOCK_BYTES // tensor.dtype.itemsize):
            values, place = stored, []
            for axis, ((first_index, _), (low, high), offset) in enumerate(
                zip(region, part, block.offsets, strict=True)
            ):
                values = values.narrow(axis, first_index - offset + low, high - low)
                place.append((first_index + low, first_index + high))
            start = tuple(start for start, _ in place)
            yield NewBlock(tuple(place), _recorded(values.read, functools.partial(record.add_kept, start)))


def _drawn(tensor: Tensor, change: Change, record: WrittenBlocks, seed: int) -> Iterator[NewBlock]:
    assert change.shape is not None and change.drawn is not None
    most_values = BLOCK_BYTES // tensor.dtype.itemsize
    if change.entry.layers is None:
        regions = contiguous_regions(change.shape, most_values)
    else:
        regions = [
            ((layer, layer + 1), *region)
            for layer in range(*change.entry.layers)
            for region in contiguous_regions(change.shape[1:], most_values)
        ]
    opened = None if change.rows is None else tensor.opened()
    for region in regions:
        start = tuple(start for start, _ in region)
        new = functools.partial(draw, change.drawn, change.entry.parameter, change.shape, region, tensor.dtype, seed)
        if opened is None:
            yield NewBlock(region, _recorded(new, functools.partial(record.add_drawn, start, tensor.dtype)))
        else:
            yield NewBlock(region, functools.partial(_resized, new, opened, change, region[0], record))


def _resized(
    new: Callable[[], Values], old: Tensor, change: Change, span: tuple[int, int], record: WrittenBlocks
) -> Values:
    """Return rows `span` of a resized vocabulary, where kept rows replace new ones at their places."""
    assert change.rows is not None
    values = new()
    places, ids = change.rows.between(*span)
    is_new = np.ones(len(values), bool)
    is_new[places - span[0]] = False
    if is_new.any():
        record.add_drawn((span[0],), old.dtype, values[is_new])
    if len(ids):
        kept = read_embedding_rows(old, ids)
        values[places - span[0]] = kept
        record.add_kept((span[0],), kept)
    return values


def _recorded(make: Callable[[], Values], record: Callable[[Values], None]) -> Callable[[], Values]:
    def made() -> Values:
        values = make()
        record(values)
        return values

    return made


def rewritten(checkpoint: Checkpoint, changes: Sequence[Change]) -> list[Record]:
    """Return the records whose values are copied in parts, so that copying them does not check their CRC-32."""
    records: dict[Record, None] = {}
    for change in changes:
        if change.shape is None or (change.drawn is not None and change.rows is None):
            continue
        tensor = checkpoint.tensors[change.entry.name]
        for block in tensor.blocks:
            is_part = change.entry.layers is not None and block.shape[0] > 1
            if change.rows is not None or is_part or not isinstance(block.source, Item):
                records[tensor.stored(block).record] = None
    return list(records)
