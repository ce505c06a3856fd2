"""A data module in a trainer that has a model's configuration and no model yet."""

from types import SimpleNamespace
from typing import Any

from nca_plugin.nemo2.data import SourceDataModule


def set_up(
    data: SourceDataModule,
    *,
    seq_length: int = 128,
    vocab_size: int | None = None,
    tensor_parallel_size: int = 1,
    **trainer: Any,
) -> None:
    """Do what Lightning does before there is a model, with settings of the trainer."""
    settings = {
        **{"max_steps": 10, "val_check_interval": 5, "limit_val_batches": 1, "limit_test_batches": 0},
        **{"ckpt_path": None, "is_global_zero": True, "global_step": 0, **trainer},
    }
    config = SimpleNamespace(seq_length=seq_length, vocab_size=vocab_size, make_vocab_size_divisible_by=128)
    config.tensor_model_parallel_size = tensor_parallel_size
    model = SimpleNamespace(config=config)
    data.trainer = SimpleNamespace(lightning_module=model, strategy=SimpleNamespace(restore_config=None), **settings)
    data.setup("fit")
