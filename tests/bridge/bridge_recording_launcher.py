"""`nca_plugin.launch.bridge`, which records its batches."""

import sys
from pathlib import Path

from nca_plugin.launch import bridge as launcher

FIELDS = ("tokens", "labels", "loss_mask", "attention_mask", "position_ids")


def _record_batches() -> None:
    sys.path.append(str(Path(__file__).parents[1]))
    import quick_saves
    from batch_records import record
    from megatron.bridge.training import gpt_step

    quick_saves.install()
    get_batch = gpt_step.get_batch

    def recorded(*args, **kwargs):
        result = get_batch(*args, **kwargs)
        record(dict(zip(FIELDS, result, strict=False)))
        return result

    gpt_step.get_batch = recorded


if __name__ == "__main__":
    pretrain = launcher._pretrain

    def pretrain_recorded(config) -> None:
        _record_batches()
        pretrain(config)

    launcher._pretrain = pretrain_recorded
    launcher.main()
