"""`nca_plugin.launch.nemo2`, which records its batches."""

import os
import sys
from pathlib import Path

from nca_plugin.launch import nemo2


def _record_batches() -> None:
    sys.path.append(str(Path(__file__).parents[1]))
    from batch_records import record
    from nemo.collections.llm import GPTModel

    data_step = GPTModel.data_step

    def recorded(self, dataloader_iter):
        batch = data_step(self, dataloader_iter)
        if self.training:
            record(batch)
        return batch

    GPTModel.data_step = recorded


if __name__ == "__main__":
    start = nemo2._start

    def start_recorded() -> None:
        os.environ.setdefault("RANK", "0")
        _record_batches()
        start()

    nemo2._start = start_recorded
    nemo2.main()
