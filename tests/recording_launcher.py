"""`nca_plugin.launch.megatron`, or with HYDRA=1 `nca_plugin.launch.hydra`, with a line for every batch in a file of a
rank: a hash of it, and the largest id of each of its samples."""

import hashlib
import os
from pathlib import Path

from nca_plugin.launch import hydra
from nca_plugin.launch import megatron as launcher


def _record_batches() -> None:
    from nca_plugin.megatron import step

    next_batch = step._next_batch
    path = Path(os.environ["RECORD_BATCHES_TO"]) / f"batches-{os.environ['RANK']}.txt"

    def recorded(data_iterator, model):
        batch = next_batch(data_iterator, model)
        tensors = [batch[key] for key in sorted(batch) if batch[key] is not None]
        digest = hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)).hexdigest()
        with path.open("a") as file:
            tokens = batch["tokens"]
            print(digest, *(() if tokens is None else tokens.amax(1).tolist()), file=file)
        return batch

    step._next_batch = recorded


if __name__ == "__main__":
    pretrain = launcher._pretrain

    def pretrain_recorded(*arguments) -> None:
        _record_batches()
        pretrain(*arguments)

    launcher._pretrain = pretrain_recorded
    (hydra if "HYDRA" in os.environ else launcher).main()
