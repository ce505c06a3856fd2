"""`nca-plugin transfer`: reads a checkpoint, plans the transition, writes the start checkpoint and reports."""

import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.folders import TOKENIZER, find_checkpoint
from nca_plugin.checkpoint.opened import Checkpoint, read_checkpoint
from nca_plugin.checkpoint.stored import Item
from nca_plugin.checkpoint.write import Entry, KeptBlock, Writer, check_records, why_no_link
from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import check_absent, check_folder, check_outside, complete_folder
from nca_plugin.lineage.read import read_trained
from nca_plugin.lineage.training_data import Lineage
from nca_plugin.transition.blocks import WrittenBlocks, entries_of, rewritten
from nca_plugin.transition.changes import Transition, changes_of, check_freeze
from nca_plugin.transition.start import context_files, data_folder, new_common_state, write_context
from nca_plugin.transition.summary import FREEZE_LIST

REPORT: Final = "transfer_report.json"


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
        target: a folder that does not exist yet. The next run takes it as --pretrained-checkpoint.
        dry_run: plan and report, but write nothing.
        command: the command line, for the report.
        num_workers: number of threads that draw and write, each with `BLOCK_BYTES` in memory.

    Raises:
        NCAPluginError: for the reasons of `read_checkpoint` and `changes_of`, if the target exists or cannot be
            written, or if the source is damaged or a run is writing to it.
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
    lineage = read_trained(checkpoint).ended
    changes, vocabulary = changes_of(checkpoint, transition)
    check_freeze(checkpoint, transition.freeze)
    check_outside(target, origin, checkpoint.root)
    tokenizer = checkpoint.tokenizer
    report: dict[str, Any] = {
        "from": str(checkpoint.root),
        "stack": checkpoint.stack,
        "format": checkpoint.format,
        "nca_plugin": importlib.metadata.version("nca-plugin"),
        "command": list(command),
        "trained_on": lineage.stored()["earlier"],
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
            written = [WrittenBlocks() for _ in changes]
            entries = entries_of(checkpoint, changes, written, transition.seed)
            kept = [block for entry in entries for block in entry.blocks if isinstance(block, KeptBlock)]
            report["layout"], report["why_copied"] = _layout(checkpoint, kept, folder, transition)
            writer = Writer(folder, links=report["layout"] == "link", num_workers=num_workers)
            for entry in entries:
                writer.add(entry)
            for change in changes:
                if change.shape is None and change.entry.action == "keep":
                    writer.add_object(change.entry.name, checkpoint.objects[change.entry.name])
            files = context_files(checkpoint)
            writer.check_space(sum(path.stat().st_size for path in files.values()))
            # Copies of whole blocks are checked while they are written, blocks that are copied in parts already here.
            doubted = rewritten(checkpoint, changes)
            if transition.verify and report["layout"] == "link":
                doubted += [block.record for block in kept]
            check_records(doubted, num_workers, start_stage("verifying", sum(record.size for record in doubted)))
            state = new_common_state(checkpoint, arguments, lineage)
            linked = writer.write(state, start_stage("writing", writer.num_bytes))
            report["linked_files"] = [path.name for path in linked]
            report["held_bytes"] = writer.held_bytes
            for record, row in zip(written, report["tensors"], strict=True):
                row |= record.described()
            write_context(partial, checkpoint, files, arguments, lineage)
            if transition.freeze:
                (partial / FREEZE_LIST).write_text("".join(f"{selector}\n" for selector in transition.freeze))
            (partial / REPORT).write_text(json.dumps(report, indent=1))
            if _signature(source) != before:
                raise NCAPluginError(f"checkpoint {source} changed while it was read: is a run writing to it?")
            with in_context(f"output {target} would be no start of a run"):
                _check_written(partial, checkpoint, entries, {path.name for path in linked}, lineage)
    except OSError as error:
        raise NCAPluginError(f"output {target} cannot be written: {error}") from error
    except RecursionError:
        raise NCAPluginError(f"checkpoint {checkpoint.root}: its common state nests without end") from None
    return report


def keeps_values_of(report: Mapping[str, Any], checkpoint: Checkpoint) -> bool:
    """Return whether the blocks that a report lists as kept have the same CRC-32 in a checkpoint. No values are read.

    Only blocks that were kept whole are compared, not rows of a vocabulary or parts of a block.
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


def _layout(
    checkpoint: Checkpoint, kept: Iterable[KeptBlock], folder: Path, transition: Transition
) -> tuple[str, str | None]:
    """Return the layout that will be used, and why it differs from the requested one, None if it does not."""
    if transition.layout == "copy":
        return "copy", None
    if checkpoint.format != "torch_dist":
        return "copy", "the old format is rewritten"
    reason = why_no_link({block.item.file for block in kept}, folder)
    return ("link" if reason is None else "copy"), reason


def _check_written(
    target: Path, origin: Checkpoint, entries: Sequence[Entry], linked: set[str], lineage: Lineage
) -> None:
    """Read the new checkpoint as any other. Raises `NCAPluginError` if it is not what was planned."""
    found = read_checkpoint(target)
    expected = {entry.name: (entry.dtype, entry.shape) for entry in entries}
    if {name: (tensor.dtype, tensor.shape) for name, tensor in found.tensors.items()} != expected:
        raise NCAPluginError("it holds other tensors than were planned")
    if found.stack != origin.stack:
        raise NCAPluginError(f"it is taken for one of {found.stack}")
    for tensor in found.tensors.values():
        for block in tensor.blocks:
            # Linked files were read as part of the source.
            if isinstance(block.source, Item) and block.source.file.name not in linked:
                tensor.stored(block)
    stored = read_trained(found).lineage
    # Megatron-Bridge's configuration has no field for the lineage if its dataset is one of its own.
    if stored is not None and stored != lineage:
        raise NCAPluginError("it does not say what the weights were trained on")


def _signature(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Return inode, size and modification time of every file, which change when a checkpoint is written to.

    Files of the tokenizer are left out, because Megatron writes them after the tracker file has named the iteration.
    """
    folders = [folder, *(path for path in folder.iterdir() if path.is_dir() and path.name != TOKENIZER)]
    files = (path for each in folders for path in each.iterdir() if path.is_file())
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns) for path in files for stat in [path.stat()]}
