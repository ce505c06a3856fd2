"""Names sources on NeMo-Run's command line: `nemo llm pretrain --factory llama32_1b data=nca data.preset=code`.

NeMo-Run imports this file through the entry-point group `nemo_run.cli`. `data.<option>` then sets an argument of
`SourceDataModule`, or an option of the source.
"""

import lightning.pytorch as pl
import nemo_run as run

from nca_plugin.nemo2.data import SourceDataModule
from nca_plugin.sources import schemes


def _factory(scheme: str) -> None:
    def data() -> run.Config[pl.LightningDataModule]:
        # `data=nca` does not set a source, so that the user may set `data.source` or `data.path`.
        return run.Config(SourceDataModule) if scheme == "nca" else run.Config(SourceDataModule, source=scheme)

    run.cli.factory(data, name=scheme)


for _scheme in schemes():
    _factory(_scheme)
