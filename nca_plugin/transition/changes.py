"""The plan of a transition, completed by the shapes, rows and distributions that carrying it out needs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nca_plugin.checkpoint.contents import Tensor
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.errors import NCAPluginError
from nca_plugin.transition.model_initialisation import Distribution, distribution
from nca_plugin.transition.plan import PlannedEntry, plan_transfer
from nca_plugin.transition.presets import PRESETS, rescaled, row_distribution
from nca_plugin.transition.selectors import parse_selector
from nca_plugin.transition.vocabulary import (
    MOST_ROWS,
    ROW_TENSORS,
    RowMap,
    Vocabulary,
    check_rows,
    next_vocabulary,
    parse_keep_rows,
    read_row_map,
    same_rows,
)

#: No model has more layers. A checkpoint with more is damaged.
_MOST_LAYERS: Final = 10_000


@dataclass(frozen=True)
class Transition:
    """What the next stage takes over from a checkpoint.

    Attributes:
        preset: a name in `PRESETS`, which gives the plan that the selectors below change.
        keep, reinit, drop: selectors that change the preset's plan, see `parse_selector`.
        freeze: selectors of what the next stage shall not train. They are written to a list beside the checkpoint.
        vocab_size: number of ids of the next stage's tokenizer; None leaves the vocabulary as it is.
        make_vocab_size_divisible_by, tensor_model_parallel_size: the next stage's values, which decide how Megatron
            pads the vocabulary; None takes those of the checkpoint.
        keep_rows: rows of embedding and output to keep at their places, such as "0:256".
        row_map: a file that names the rows to keep, with "new old" on each line.
        seed: the seed of the new values, 0 to 2^64 - 1.
        layout: "link" makes hard links to the files of kept tensors, "copy" copies the tensors.
        verify: compare all kept values with the checksums that were saved with them ("copy" always does).
    """

    preset: str = "default"
    keep: Sequence[str] = ()
    reinit: Sequence[str] = ()
    drop: Sequence[str] = ()
    freeze: Sequence[str] = ()
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int | None = None
    tensor_model_parallel_size: int | None = None
    keep_rows: str | None = None
    row_map: Path | None = None
    seed: int = 1234
    layout: str = "link"
    verify: bool = False

    def __post_init__(self) -> None:
        for option in ("vocab_size", "make_vocab_size_divisible_by", "tensor_model_parallel_size"):
            value = getattr(self, option)
            if value is not None and not 1 <= value <= MOST_ROWS:
                raise NCAPluginError(f"--{option.replace('_', '-')} {value}: must lie in 1 .. {MOST_ROWS}")
        if not 0 <= self.seed < 1 << 64:
            raise NCAPluginError(f"--seed {self.seed}: must lie in 0 .. 2^64 - 1")
        if self.keep_rows and self.row_map:
            raise NCAPluginError("--keep-rows and --row-map both say which rows are kept: give one of them")
        if self.layout not in ("link", "copy"):
            raise NCAPluginError(f"--layout {self.layout}: choose link or copy")

    def described(self) -> dict[str, Any]:
        """Return the options as plain values, for the report."""
        options = dataclasses.asdict(self)
        lists = {name: list(options[name]) for name in ("keep", "reinit", "drop", "freeze")}
        return {**options, **lists, "row_map": None if self.row_map is None else str(self.row_map)}


@dataclass(frozen=True)
class Change:
    """A planned entry with everything that is needed to write it.

    Attributes:
        shape: the shape of the whole tensor in the next stage; None for an object, and for what is dropped.
        drawn: the distribution of the new values; None if there are none.
        rows: the rows that a resized tensor takes over; None for any other tensor.
    """

    entry: PlannedEntry
    shape: tuple[int, ...] | None
    drawn: Distribution | None = None
    rows: RowMap | None = None

    def described(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the change as a row of the report."""
        entry = self.entry
        row: dict[str, Any] = {"name": entry.name, "role": entry.parameter.role, "action": entry.action}
        if entry.layers is not None:
            row["layers"] = list(entry.layers)
        row["reason"] = entry.reason
        if entry.name in checkpoint.tensors:
            tensor = checkpoint.tensors[entry.name]
            row |= {"shape": list(tensor.shape), "dtype": tensor.dtype.name}
            if self.shape is not None and self.shape != tensor.shape:
                row["new_shape"] = list(self.shape)
        if self.drawn is not None:
            row["new_values"] = str(self.drawn)
        if self.rows is not None:
            row["rows_kept"] = len(self.rows)
        return row


def changes_of(checkpoint: Checkpoint, transition: Transition) -> tuple[list[Change], Vocabulary]:
    """Return the changes that a transition makes, one for each planned entry, and the vocabulary of the next stage.

    Raises:
        NCAPluginError: for the reasons of `plan_transfer`, if rows to keep do not exist, if the initialisation of a
            tensor to draw is unknown, or if the word embedding or all layers would be left out.
    """
    kept_rows, reason = _kept_rows(transition)
    entries = plan_transfer(
        {name: tensor.shape for name, tensor in checkpoint.tensors.items()},
        checkpoint.objects,
        num_layers(checkpoint),
        preset=transition.preset,
        keep=transition.keep,
        reinit=transition.reinit,
        drop=transition.drop,
        kept_rows=reason,
    )
    stored = [
        tensor.shape[0] for name, tensor in checkpoint.tensors.items() if parameter(name).canonical in ROW_TENSORS
    ]
    if not stored:
        raise NCAPluginError(f"checkpoint {checkpoint.root} holds no word embedding: it is not of a language model")
    vocabulary = next_vocabulary(
        checkpoint.model,
        stored[0],
        transition.vocab_size,
        transition.make_vocab_size_divisible_by,
        transition.tensor_model_parallel_size,
    )
    changes = []
    for entry in entries:
        tensor = checkpoint.tensors.get(entry.name)
        if tensor is None or entry.action == "drop":
            changes.append(Change(entry, None))
            continue
        shape, rows = tensor.shape, None
        if entry.parameter.canonical in ROW_TENSORS:
            shape = (vocabulary.rows, *shape[1:])
            if kept_rows is not None and entry.action == "keep":
                check_rows(kept_rows, tensor, vocabulary.old_ids, vocabulary.new_ids)
                rows, entry = kept_rows, dataclasses.replace(entry, action="resize")
            elif entry.action == "keep" and shape != tensor.shape:
                rows = _same_vocabulary(tensor, vocabulary)
                entry = dataclasses.replace(entry, action="resize", reason="another padding of the same vocabulary")
        drawn = None if entry.action == "keep" else _distribution(checkpoint, entry, tensor, transition, vocabulary)
        changes.append(Change(entry, shape, drawn, rows))
    embedding = next((change for change in changes if change.entry.parameter.role == "embedding"), None)
    if embedding is not None and embedding.shape is None:
        raise NCAPluginError(f"{embedding.entry.reason} leaves out the word embedding, which every language model has")
    of_layers = [change for change in changes if change.entry.name in checkpoint.tensors and _is_of_layer(change.entry)]
    if of_layers and all(change.shape is None for change in of_layers):
        raise NCAPluginError(f"{of_layers[0].entry.reason} leaves out every layer: nothing would be left of the model")
    if kept_rows is not None and all(change.rows is None for change in changes):
        raise NCAPluginError(f"{reason}: no rows are kept, since embedding and output are selected to be drawn anew")
    return changes, vocabulary


def _is_of_layer(entry: PlannedEntry) -> bool:
    return entry.parameter.role not in ("run", "module", "unknown") and ".layers." in entry.parameter.canonical


def check_freeze(checkpoint: Checkpoint, selectors: Sequence[str]) -> None:
    """Raise `NCAPluginError` for an invalid selector, or one that matches nothing in the checkpoint."""
    layers = num_layers(checkpoint)
    for text in selectors:
        selector = parse_selector(text, layers)
        found = ((name, parameter(name)) for name in checkpoint.tensors)
        if not any(
            selector.matches(name, part, layer)
            for name, part in found
            for layer in (range(layers) if part.is_stacked else [part.layer])
        ):
            raise NCAPluginError(f"--freeze {text} matches nothing in this checkpoint")


def num_layers(checkpoint: Checkpoint) -> int:
    """Return the number of the decoder's layers, counted in its tensors. Raises `NCAPluginError` above 10,000."""
    counts = [0]
    for name, tensor in checkpoint.tensors.items():
        found = parameter(name)
        if found.role not in ("run", "mtp") and (found.is_stacked or found.layer is not None):
            counts.append(tensor.shape[0] if found.is_stacked else (found.layer or 0) + 1)
    if max(counts) > _MOST_LAYERS:
        raise NCAPluginError(f"checkpoint {checkpoint.root} is damaged: it has {max(counts)} layers")
    return max(counts)


def _kept_rows(transition: Transition) -> tuple[RowMap | None, str]:
    """Return the rows to keep, and the option that names them: None and "" without such an option."""
    if transition.keep_rows is not None:
        return parse_keep_rows(transition.keep_rows), f"--keep-rows {transition.keep_rows}"
    if transition.row_map is not None:
        return read_row_map(transition.row_map), f"--row-map {transition.row_map}"
    return None, ""


def _same_vocabulary(tensor: Tensor, vocabulary: Vocabulary) -> RowMap:
    if vocabulary.new_ids != vocabulary.old_ids:
        raise NCAPluginError(
            f"'{tensor.name}' has rows for {vocabulary.old_ids} ids and is to be kept, but the next stage has "
            f"{vocabulary.new_ids} ids: say which rows mean the same tokens, with --keep-rows 0:"
            f"{min(vocabulary.old_ids, vocabulary.new_ids)} or --row-map"
        )
    return same_rows(0, vocabulary.old_ids)


def _distribution(
    checkpoint: Checkpoint, entry: PlannedEntry, tensor: Tensor, transition: Transition, vocabulary: Vocabulary
) -> Distribution:
    if not tensor.dtype.is_drawable:
        raise NCAPluginError(
            f"'{entry.name}' cannot be drawn anew, because it is stored as {tensor.dtype.name}: keep or drop it"
        )
    model = checkpoint.model
    if entry.parameter.canonical in ROW_TENSORS and not entry.name.endswith("bias"):
        return row_distribution(transition.preset, entry.parameter, tensor, vocabulary.old_ids, model)
    drawn = distribution(entry.name, entry.parameter, model)
    return rescaled(drawn, tensor) if PRESETS[transition.preset].is_rescaled else drawn
