"""`nca_plugin.launch.bridge`, with a line for every batch as `tests/recording_launcher.py` writes it."""

import hashlib
import os
from pathlib import Path

from nca_plugin.launch import bridge as launcher

FIELDS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def _record_batches() -> None:
    from megatron.bridge.training import gpt_step

    get_batch = gpt_step.get_batch
    path = Path(os.environ["RECORD_BATCHES_TO"]) / f"batches-{os.environ['RANK']}.txt"

    def recorded(*args, **kwargs):
        result = get_batch(*args, **kwargs)
        batch = dict(zip(FIELDS, result, strict=False))
        tensors = [batch[key] for key in sorted(batch) if batch[key] is not None]
        digest = hashlib.sha256(b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)).hexdigest()
        with path.open("a") as file:
            tokens = batch["tokens"]
            print(digest, *(() if tokens is None else tokens.amax(1).tolist()), file=file)
        return result

    gpt_step.get_batch = recorded


if __name__ == "__main__":
    pretrain = launcher._pretrain

    def pretrain_recorded(config) -> None:
        _record_batches()
        pretrain(config)

    launcher._pretrain = pretrain_recorded
    launcher.main()
