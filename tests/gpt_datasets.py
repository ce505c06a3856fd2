"""Megatron's datasets of a data path, built by its own builder."""

from pathlib import Path

from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset
from megatron.core.tokenizers import MegatronTokenizer

from nca_plugin.megatron.dataset import SourceGPTDataset, SourceGPTDatasetConfig


def datasets(
    path: Path | str,
    sizes: tuple[int | None, ...] = (40, 8, 4),
    *,
    dataset_class: type[GPTDataset] = SourceGPTDataset,
    split: str = "90,5,5",
    seq_length: int = 128,
    tokenizer_size: int = 10_003,
    vocab_size: int | None = None,
):
    """Return the training, validation and test data sets."""
    tokenizer = MegatronTokenizer.from_pretrained(metadata_path={"library": "null-text"}, vocab_size=tokenizer_size)
    config = SourceGPTDatasetConfig(
        random_seed=1,
        sequence_length=seq_length,
        blend=([str(path)], None),
        split=split,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    return BlendedMegatronDatasetBuilder(dataset_class, sizes, lambda: True, config).build()
