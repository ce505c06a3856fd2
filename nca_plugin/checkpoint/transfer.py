"""`nca-plugin transfer`: read, plan, rewrite, report."""

import dataclasses
import hashlib
import json
import os
import shutil
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from nca_plugin.checkpoint.initial import initial_values, padded_vocab_size
from nca_plugin.checkpoint.plan import Step, plan_transfer
from nca_plugin.checkpoint.torch_dist import Checkpoint, read_checkpoint, reset_progress, write_release
from nca_plugin.errors import NCAPluginError

#: Tensors with a row for every token id.
_VOCABULARY_ROWS = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")


def transfer(
    origin: Path,
    target: Path,
    *,
    vocab_size: int | None = None,
    keep: Iterable[str] = (),
    reinit: Iterable[str] = (),
    seed: int = 1234,
    make_vocab_size_divisible_by: int | None = None,
    tensor_parallel_size: int | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Write the checkpoint at `origin` to `target` as the start of another stage, and return the report.

    Args:
        origin: a Megatron `torch_dist` checkpoint: its --save folder, or one iteration's folder.
        target: a folder that does not exist; give it to the next run as --pretrained-checkpoint.
        vocab_size: ids of the next stage's tokenizer; None keeps the number of rows.
        keep: selectors of what is kept (all but embedding and output if empty), see `plan_transfer`.
        reinit: selectors of what else is drawn anew.
        seed: of the new values.
        make_vocab_size_divisible_by, tensor_parallel_size: of the next stage, for Megatron's padding of the vocabulary;
            None takes the checkpoint's.
        dry_run: plan and report, write nothing.

    Raises:
        NCAPluginError: see `read_checkpoint` and `plan_transfer`; a target that exists; a new vocabulary with rows that
            are to be kept.
    """
    if target.exists():
        raise NCAPluginError(f"output {target} exists already: choose another name, or remove it")
    checkpoint = read_checkpoint(origin)
    steps = plan_transfer(checkpoint.names, keep, reinit)
    common_state = checkpoint.common_state()
    args: Namespace = common_state["args"]
    divisible_by = make_vocab_size_divisible_by or args.make_vocab_size_divisible_by
    tensor_parallel_size = tensor_parallel_size or args.tensor_model_parallel_size
    if vocab_size is None:
        rows = args.padded_vocab_size
    else:
        if vocab_size < 1:
            raise NCAPluginError(f"vocabulary size {vocab_size}: must be at least 1")
        rows = padded_vocab_size(vocab_size, divisible_by, tensor_parallel_size)
    shapes = {step.name: _new_shape(checkpoint, step, rows) for step in steps if step.action != "drop"}
    report: dict[str, Any] = {
        "from": str(checkpoint.folder),
        "seed": seed,
        "vocab_size": vocab_size or args.vocab_size,
        "padded_vocab_size": rows,
        "tensors": [_described(step, checkpoint, shapes) for step in steps],
    }
    if dry_run:
        return report
    replaced: dict[str, torch.Tensor] = {}
    for step, row in zip(steps, report["tensors"], strict=True):
        if step.action == "reinit":
            dtype = _tensor_entry(checkpoint, step.name).properties.dtype
            shape = shapes[step.name]
            assert shape is not None
            values = initial_values(step, shape, dtype, args, seed)
            replaced[step.name] = values
            row |= {"mean": values.double().mean().item(), "std": values.double().std(correction=0).item()}
        elif step.action == "keep" and step.role:
            row["blake2b"] = _checksum(checkpoint.tensor(step.name))
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        write_release(
            partial,
            checkpoint,
            [step.name for step in steps if step.action == "keep"],
            replaced,
            reset_progress(
                common_state,
                vocab_size=report["vocab_size"],
                padded_vocab_size=rows,
                make_vocab_size_divisible_by=divisible_by,
            ),
        )
        (partial / "transfer_report.json").write_text(json.dumps(report, indent=1))
        partial.rename(target)
    except OSError as error:
        raise NCAPluginError(f"output {target} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return report


def _new_shape(checkpoint: Checkpoint, step: Step, rows: int) -> torch.Size | None:
    """Return a tensor's shape in the next stage, None for an object."""
    entry = checkpoint.entry(step.name)
    if not isinstance(entry, TensorStorageMetadata):
        return None
    if step.name not in _VOCABULARY_ROWS or entry.size[0] == rows:
        return entry.size
    if step.action == "keep":
        raise NCAPluginError(
            f"'{step.name}' has {entry.size[0]} rows and is to be kept, but the next stage has {rows}: rows of another "
            f"vocabulary mean other tokens; leave '{step.role}' out of --keep"
        )
    return torch.Size((rows, *entry.size[1:]))


def _described(step: Step, checkpoint: Checkpoint, shapes: dict[str, torch.Size | None]) -> dict[str, Any]:
    row: dict[str, Any] = dataclasses.asdict(step)
    entry = checkpoint.entry(step.name)
    if isinstance(entry, TensorStorageMetadata):
        row |= {"shape": list(entry.size), "dtype": str(entry.properties.dtype).removeprefix("torch.")}
        new_shape = shapes.get(step.name)
        if new_shape is not None and new_shape != entry.size:
            row["new_shape"] = list(new_shape)
    return row


def _tensor_entry(checkpoint: Checkpoint, name: str) -> TensorStorageMetadata:
    entry = checkpoint.entry(name)
    assert isinstance(entry, TensorStorageMetadata)
    return entry


def _checksum(tensor: torch.Tensor) -> str:
    data = tensor.contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()
