"""`nca-plugin transfer`: read, plan, write, report."""

import functools
import importlib.metadata
import itertools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from nca_plugin.checkpoint.changes import Change, Transition, changes_of, check_freeze
from nca_plugin.checkpoint.contents import Checkpoint, Tensor, contiguous_regions
from nca_plugin.checkpoint.dtypes import DType, Values
from nca_plugin.checkpoint.folders import (
    TOKENIZER,
    copy_context,
    data_folder,
    find_checkpoint,
    new_common_state,
    read_checkpoint,
    saved_tokenizer,
)
from nca_plugin.checkpoint.initial import draw
from nca_plugin.checkpoint.lineage import read_trained
from nca_plugin.checkpoint.partial import check_absent, complete_folder
from nca_plugin.checkpoint.stored import Item, Record
from nca_plugin.checkpoint.vocabulary import read_rows
from nca_plugin.checkpoint.write import BLOCK_BYTES, Entry, KeptBlock, NewBlock, Writer, check_records, why_no_link
from nca_plugin.errors import NCAPluginError
from nca_plugin.files import check_folder
from nca_plugin.progress import StartStage, silent_stage
from nca_plugin.trained_on import Lineage

REPORT: Final = "transfer_report.json"
FREEZE_LIST: Final = "freeze.txt"


@dataclass
class _Record:
    """What was written for a change, by the first indices of each block."""

    checksums: dict[tuple[int, ...], int] = field(default_factory=dict)
    sums: dict[tuple[int, ...], tuple[int, float, float]] = field(default_factory=dict)

    def add_drawn(self, start: tuple[int, ...], dtype: DType, values: Values) -> None:
        flat = dtype.to_float32(values).reshape(-1)
        # In pieces, whose float32 sums lose nothing that six digits show.
        pieces = np.array_split(flat, flat.size // (1 << 16) + 1)
        total = math.fsum(float(piece.sum()) for piece in pieces)
        squares = math.fsum(float(np.dot(piece, piece)) for piece in pieces)
        self.sums[start] = (flat.size, total, squares)

    def add_kept(self, start: tuple[int, ...], values: Values) -> None:
        self.checksums[start] = zlib.crc32(np.ascontiguousarray(values))

    def described(self) -> dict[str, Any]:
        """Return what a report says of it: CRC-32 of the values kept, moments of those drawn."""
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


def transfer(
    origin: Path,
    target: Path,
    transition: Transition | None = None,
    *,
    dry_run: bool = False,
    command: Sequence[str] = (),
    num_workers: int = 1,
    start_stage: StartStage = silent_stage,
) -> dict[str, Any]:
    """Write the checkpoint at `origin` to `target` as the start of another stage, and return the report.

    Args:
        origin: a save folder of Megatron-LM or Megatron-Bridge, one iteration's folder, or a NeMo 2 checkpoint.
        target: a folder that does not exist; give it to the next run as --pretrained-checkpoint.
        dry_run: plan and report, write nothing.
        command: that asked for it, for the report.
        num_workers: threads that draw and write, each with `BLOCK_BYTES` in memory.

    Raises:
        NCAPluginError: see `read_checkpoint` and `changes_of`; a target that exists or cannot be written; a source that
            is damaged, or is being written to.
    """
    transition = transition or Transition()
    check_absent(target)
    if not dry_run:
        check_folder(target.parent)
    if num_workers < 1:
        raise NCAPluginError(f"--workers {num_workers}: must be at least 1")
    source = find_checkpoint(origin)
    before = _signature(source)
    checkpoint = read_checkpoint(source)
    lineage = read_trained(source).ended
    changes, vocabulary = changes_of(checkpoint, transition)
    check_freeze(checkpoint, transition.freeze)
    if target.resolve().is_relative_to(checkpoint.root.resolve()):
        raise NCAPluginError(f"output {target} lies within the checkpoint {checkpoint.root}: choose another place")
    tokenizer = saved_tokenizer(checkpoint)
    report: dict[str, Any] = {
        "from": str(checkpoint.root),
        "stack": checkpoint.stack,
        "format": checkpoint.format,
        "nca_plugin": importlib.metadata.version("nca-plugin"),
        "command": list(command),
        "trained_on": lineage.stored()["earlier"],
        # The next stage has another one.
        "tokenizer_left_behind": None if tokenizer is None else str(tokenizer),
        **transition.described(),
        "vocab_size": vocabulary.new_ids,
        "padded_vocab_size": vocabulary.rows,
        "tensors": [change.described(checkpoint) for change in changes],
        "layout": transition.layout if checkpoint.format == "torch_dist" else "copy",
    }
    if dry_run:
        return report
    arguments = {
        "vocab_size": vocabulary.new_ids if checkpoint.model.pads_vocabulary else vocabulary.rows,
        "padded_vocab_size": vocabulary.rows,
        "make_vocab_size_divisible_by": vocabulary.divisible_by,
    }
    try:
        with complete_folder(target) as partial:
            folder = data_folder(partial, checkpoint)
            folder.mkdir()
            records = [_Record() for _ in changes]
            entries = _entries(checkpoint, changes, records, transition.seed)
            report["layout"], report["why_copied"] = _layout(checkpoint, folder, transition)
            # Copies of whole blocks are checked as they are made; parts of what was saved at once, before.
            doubted = _rewritten(checkpoint, changes)
            if transition.verify and report["layout"] == "link":
                doubted += [b.record for entry in entries for b in entry.blocks if isinstance(b, KeptBlock)]
            advance = start_stage("verifying", sum(record.size for record in doubted))
            check_records(doubted, num_workers, advance)
            objects = {
                change.step.name: checkpoint.objects[change.step.name]
                for change in changes
                if change.shape is None and change.step.action == "keep"
            }
            report["linked_files"] = _write(
                folder,
                checkpoint,
                entries,
                objects,
                arguments,
                lineage,
                report["layout"] == "link",
                num_workers,
                start_stage,
            )
            for record, row in zip(records, report["tensors"], strict=True):
                row |= record.described()
            copy_context(partial, checkpoint, arguments, lineage)
            if transition.freeze:
                (partial / FREEZE_LIST).write_text("".join(f"{selector}\n" for selector in transition.freeze))
            (partial / REPORT).write_text(json.dumps(report, indent=1))
            if _signature(source) != before:
                raise NCAPluginError(f"checkpoint {source} changed while it was read: is a run writing to it?")
    except OSError as error:
        raise NCAPluginError(f"output {target} cannot be written: {error}") from error
    except RecursionError:
        raise NCAPluginError(f"checkpoint {checkpoint.root}: its common state nests without end") from None
    return report


def keeps_values_of(report: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    """Whether what a report says was kept has the checksums that it has in a checkpoint; no values are read.

    Only what was taken over as it had been saved is compared, not rows of a vocabulary or parts of a block.
    """
    for row in report["tensors"]:
        tensor = checkpoint.tensors.get(row["name"])
        if tensor is None or row["action"] != "keep":
            continue
        first, last = row.get("layers", (0, tensor.shape[0]))
        for block in tensor.blocks:
            is_whole = first <= block.region[0][0] and block.region[0][1] <= last
            if is_whole and isinstance(block.source, Item):
                crc32 = f"{tensor.stored(block).record.crc32:08x}"
                if row.get("crc32", {}).get(",".join(map(str, block.offsets))) != crc32:
                    return False
    return True


def _entries(checkpoint: Checkpoint, changes: Sequence[Change], records: Sequence[_Record], seed: int) -> list[Entry]:
    """Return the tensors of the next stage; writing them fills the records."""
    entries = []
    pairs = [pair for pair in zip(changes, records, strict=True) if pair[0].shape is not None]
    for name, group in itertools.groupby(pairs, key=lambda pair: pair[0].step.name):
        tensor = checkpoint.tensors[name]
        shape = tensor.shape
        blocks: list[KeptBlock | NewBlock] = []
        for change, record in group:
            assert change.shape is not None
            shape = change.shape
            blocks += _kept(tensor, change, record) if change.drawn is None else _drawn(tensor, change, record, seed)
        entries.append(Entry(name, tensor.dtype, shape, blocks))
    return entries


def _kept(tensor: Tensor, change: Change, record: _Record) -> Iterator[KeptBlock | NewBlock]:
    for block in tensor.blocks:
        region = block.region
        if change.step.layers is not None:
            first = (max(region[0][0], change.step.layers[0]), min(region[0][1], change.step.layers[1]))
            if first[0] >= first[1]:
                continue
            region = (first, *region[1:])
        start = tuple(start for start, _ in region)
        stored = tensor.stored(block)
        if isinstance(block.source, Item) and region == block.region:
            record.checksums[start] = stored.record.crc32
            yield KeptBlock(region, block.source, stored.record)
            continue
        # A part of what was saved at once is written anew, with the values as they are.
        for part in contiguous_regions(tuple(b - a for a, b in region), BLOCK_BYTES // tensor.dtype.itemsize):
            values, place = stored, []
            for axis, ((first_index, _), (low, high), offset) in enumerate(
                zip(region, part, block.offsets, strict=True)
            ):
                values = values.narrow(axis, first_index - offset + low, high - low)
                place.append((first_index + low, first_index + high))
            start = tuple(start for start, _ in place)
            yield NewBlock(tuple(place), _recorded(values.read, functools.partial(record.add_kept, start)))


def _drawn(tensor: Tensor, change: Change, record: _Record, seed: int) -> Iterator[NewBlock]:
    assert change.shape is not None and change.drawn is not None
    most_values = BLOCK_BYTES // tensor.dtype.itemsize
    if change.step.layers is None:
        regions = contiguous_regions(change.shape, most_values)
    else:
        regions = [
            ((layer, layer + 1), *region)
            for layer in range(*change.step.layers)
            for region in contiguous_regions(change.shape[1:], most_values)
        ]
    opened = None if change.rows is None else tensor.opened()
    for region in regions:
        start = tuple(start for start, _ in region)
        new = functools.partial(draw, change.drawn, change.step.parameter, change.shape, region, tensor.dtype, seed)
        if opened is None:
            yield NewBlock(region, _recorded(new, functools.partial(record.add_drawn, start, tensor.dtype)))
        else:
            yield NewBlock(region, functools.partial(_resized, new, opened, change, region[0], record))


def _resized(new: Callable[[], Values], old: Tensor, change: Change, span: tuple[int, int], record: _Record) -> Values:
    """Return rows of a vocabulary: those that are taken over, and new ones between them."""
    assert change.rows is not None
    values = new()
    places, ids = change.rows.between(*span)
    is_new = np.ones(len(values), bool)
    is_new[places - span[0]] = False
    if is_new.any():
        record.add_drawn((span[0],), old.dtype, values[is_new])
    if len(ids):
        kept = read_rows(old, ids)
        values[places - span[0]] = kept
        record.add_kept((span[0],), kept)
    return values


def _recorded(make: Callable[[], Values], record: Callable[[Values], None]) -> Callable[[], Values]:
    def made() -> Values:
        values = make()
        record(values)
        return values

    return made


def _layout(checkpoint: Checkpoint, folder: Path, transition: Transition) -> tuple[str, str | None]:
    """Return the layout that can be written, and why it is another than was asked for."""
    if transition.layout == "copy":
        return "copy", None
    if checkpoint.format != "torch_dist":
        return "copy", "the old format is rewritten"
    reason = why_no_link(checkpoint.folder / ".metadata", folder)
    return ("link", None) if reason is None else ("copy", f"no hard links from {checkpoint.folder}: {reason}")


def _rewritten(checkpoint: Checkpoint, changes: Sequence[Change]) -> list[Record]:
    """Return the records of which values are read to be written elsewhere."""
    records: dict[Record, None] = {}
    for change in changes:
        if change.shape is None or (change.drawn is not None and change.rows is None):
            continue
        tensor = checkpoint.tensors[change.step.name]
        for block in tensor.blocks:
            is_part = change.step.layers is not None and block.shape[0] > 1
            if change.rows is not None or is_part or not isinstance(block.source, Item):
                records[tensor.stored(block).record] = None
    return list(records)


def _write(
    folder: Path,
    checkpoint: Checkpoint,
    entries: Sequence[Entry],
    objects: dict[str, Item | None],
    arguments: dict[str, Any],
    lineage: Lineage,
    links: bool,
    num_workers: int,
    start_stage: StartStage,
) -> list[str]:
    """Write the data files and return the names of those that are linked."""
    writer = Writer(folder, links=links, num_workers=num_workers)
    for entry in entries:
        writer.add(entry)
    for name, item in objects.items():
        writer.add_object(name, item)
    linked = writer.write(new_common_state(checkpoint, arguments, lineage), start_stage("writing", writer.num_bytes))
    return [path.name for path in linked]


def _signature(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Return what changes when a file of a checkpoint is written to.

    Without those of the tokenizer: Megatron writes them last, when the tracker file has named the iteration already.
    """
    files = (path for path in folder.rglob("*") if path.is_file() and folder / TOKENIZER not in path.parents)
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]}
