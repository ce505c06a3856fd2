"""`nca_plugin.launch.megatron`, or with HYDRA=1 `nca_plugin.launch.hydra`, which records its batches."""

import os

from nca_plugin.launch import hydra
from nca_plugin.launch import megatron as launcher


def _record_batches() -> None:
    from batch_records import record

    from nca_plugin.megatron import step

    next_batch = step._next_batch

    def recorded(data_iterator, model):
        batch = next_batch(data_iterator, model)
        record(batch)
        return batch

    step._next_batch = recorded


if __name__ == "__main__":
    pretrain = launcher._pretrain

    def pretrain_recorded(*arguments) -> None:
        import quick_saves

        quick_saves.install()
        _record_batches()
        pretrain(*arguments)

    launcher._pretrain = pretrain_recorded
    (hydra if "HYDRA" in os.environ else launcher).main()
