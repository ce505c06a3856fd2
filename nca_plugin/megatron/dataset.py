"""A `GPTDataset` whose data path may be a source URI.

One class for sources and files, because Megatron blends only datasets of one class: weights, splits, shuffling of
blends and resuming stay Megatron's own. For a source no index is built: sample i is `source.sample(i)`, so start-up
time and memory do not depend on the length of the run.
"""

from typing import Any

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import Source, is_source, parse


class SourceGPTDataset(GPTDataset):
    """Samples of a source, or of an indexed dataset where the path is one.

    A sample of a source is a dict: tokens and labels int64 [S], loss_mask float32 [S], position_ids int64 [S], and
    attention_mask bool [1, S, S], true where masked, if the configuration asks for one.
    """

    def __init__(
        self,
        indexed_dataset: Source | IndexedDataset,
        dataset_path: str,
        indexed_indices: Any,
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        if not isinstance(indexed_dataset, IndexedDataset):
            if num_samples is None:
                raise NCAPluginError(
                    f"source {indexed_dataset.uri} has no end, so it has no epoch: it cannot be used with "
                    "--full-validation or in a blend without weights"
                )
            indexed_dataset = indexed_dataset.for_split(index_split.name)
        super().__init__(indexed_dataset, dataset_path, indexed_indices, num_samples, index_split, config)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> Source | IndexedDataset:
        if not is_source(dataset_path):
            return GPTDataset.build_low_level_dataset(dataset_path, config)
        source = parse(dataset_path)
        check_fit(source, config.sequence_length, config.tokenizer.vocab_size)
        return source

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Source | IndexedDataset) -> int:
        if isinstance(low_level_dataset, IndexedDataset):
            return GPTDataset.numel_low_level_dataset(low_level_dataset)
        # A source's splits are streams, not ranges of one: there is nothing for Megatron to divide.
        return 0

    def _build_document_sample_shuffle_indices(self) -> tuple[Any, Any, Any]:
        if isinstance(self.dataset, IndexedDataset):
            return super()._build_document_sample_shuffle_indices()
        return None, None, None

    def __len__(self) -> int:
        if isinstance(self.dataset, IndexedDataset):
            return super().__len__()
        # Megatron's sampler refuses an empty dataset, which --eval-iters 0 would make.
        return max(1, self.num_samples)

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        if isinstance(self.dataset, IndexedDataset):
            return super().__getitem__(idx)
        length = self.config.sequence_length
        sample = self.dataset.sample(0 if idx is None else int(idx), length)
        tokens = torch.from_numpy(sample.tokens).long()
        # Index None asks for a sample that fills up a batch: it must not count.
        loss_mask = np.zeros_like(sample.loss_mask) if idx is None else sample.loss_mask
        result = {
            "tokens": tokens[:-1].contiguous(),
            "labels": tokens[1:].contiguous(),
            "loss_mask": torch.from_numpy(loss_mask).float(),
            "position_ids": torch.arange(length),
        }
        if self.config.create_attention_mask:
            result["attention_mask"] = torch.ones(1, length, length, dtype=torch.bool).triu_(1)
        return result


def check_fit(source: Source, seq_length: int, vocab_size: int | None) -> None:
    """Raise `NCAPluginError` if a model of this sequence length and vocabulary cannot train on `source`."""
    source.check_seq_length(seq_length)
    if vocab_size is not None and vocab_size < source.vocab_size:
        raise NCAPluginError(
            f"vocabulary of {vocab_size} is smaller than the {source.vocab_size} ids of source {source.uri}: use "
            f"--vocab-size {source.vocab_size} or more, or a source of fewer colours"
        )
