"""Sources as data of Megatron-Bridge, in its own recipes and YAML files.

In a YAML file for `nca_plugin.launch.bridge`:

    dataset:
      _target_: nca_plugin.bridge.SourceDatasetConfig
      data_path: nca://code?seed=7

In a Python script, before `megatron.bridge.training.pretrain.pretrain(config, forward_step)`:

    from nca_plugin.bridge import SourceDatasetConfig
    config.dataset = SourceDatasetConfig(data_path="nca://code?seed=7", seq_length=config.model.seq_length)
"""

from typing import Any


def __getattr__(name: str) -> Any:
    # Importing this package must not import Megatron, because CPU mode must be enabled first.
    if name == "SourceDatasetConfig":
        from nca_plugin.bridge.dataset import SourceDatasetConfig

        return SourceDatasetConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
