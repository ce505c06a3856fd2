"""A line for every batch of a run, in a file of each rank: a hash of it, and the largest id of each of its samples."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch


def record(batch: Mapping[str, torch.Tensor | None]) -> None:
    """Add a batch to the file of this rank, in the folder that RECORD_BATCHES_TO names."""
    tensors = [batch[key] for key in sorted(batch) if batch[key] is not None]
    digest = hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)).hexdigest()
    tokens = batch["tokens"]
    with (Path(os.environ["RECORD_BATCHES_TO"]) / f"batches-{os.environ['RANK']}.txt").open("a") as file:
        print(digest, *(() if tokens is None else tokens.amax(1).tolist()), file=file)
