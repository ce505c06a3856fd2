"""A `GPTDataset` whose data path may be a source URI or a generated dataset that `nca-plugin generate` wrote.

Sources and files share one class, because Megatron blends only datasets of one class. Weights, splits, shuffling of
blends and resuming remain Megatron's. For a source no index is built: sample i is `source.sample(i)`, so that start-up
time and memory do not depend on the length of the run.
"""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron.core.datasets.utils import Split
from megatron.core.utils import log_single_rank

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.source import IndexedSource, is_generated
from nca_plugin.megatron.metrics import SampleMeter
from nca_plugin.sources import Sample, Source, is_source, parse, short_uri

_logger = logging.getLogger(__name__)

#: The length of a dataset without an end. No run reads as many samples, and indices stay far below the largest int64.
ENDLESS: Final = 1 << 62


@dataclass
class SourceGPTDatasetConfig(GPTDatasetConfig):
    """A `GPTDatasetConfig` for a model that may have more ids than its tokenizer."""

    vocab_size: int | None = None
    """Number of ids for which the model has rows; None takes the tokenizer's number."""

    meter: SampleMeter | None = None
    """Counts the training samples of sources and generated datasets."""


class SourceGPTDataset(GPTDataset):
    """Samples of a source, of a generated dataset, or of any other indexed dataset.

    Sample i of a generated dataset is its document i, which is the source's sample i. A split takes a range of the
    documents, and a run that needs more begins again with the first. A sample is a dict: tokens and labels int64 [S],
    loss_mask float32 [S], position_ids int64 [S], and, if the configuration has `create_attention_mask`, attention_mask
    bool [1, S, S], true where masked.
    """

    def __init__(
        self,
        indexed_dataset: Source | IndexedSource | IndexedDataset,
        dataset_path: str,
        indexed_indices: Any,
        num_samples: int | None,
        index_split: Split,
        config: GPTDatasetConfig,
    ) -> None:
        if isinstance(indexed_dataset, IndexedSource):
            indexed_dataset = _Documents(indexed_dataset, index_split, num_samples, config)
        elif not isinstance(indexed_dataset, IndexedDataset):
            if num_samples is None:
                raise NCAPluginError(
                    f"source {short_uri(indexed_dataset)} has no end, so it has no epoch: it cannot be used with "
                    "--full-validation or in a blend without weights"
                )
            indexed_dataset = indexed_dataset.for_split(index_split.name)
        super().__init__(indexed_dataset, dataset_path, indexed_indices, num_samples, index_split, config)

    @staticmethod
    def build_low_level_dataset(dataset_path: str, config: GPTDatasetConfig) -> Source | IndexedSource | IndexedDataset:
        if not is_ours(dataset_path):
            return GPTDataset.build_low_level_dataset(dataset_path, config)
        source = open_path(dataset_path)
        vocab_size = config.vocab_size if isinstance(config, SourceGPTDatasetConfig) else None
        check_fit(source, config.sequence_length, vocab_size or config.tokenizer.vocab_size)
        return source

    @staticmethod
    def numel_low_level_dataset(low_level_dataset: Source | IndexedSource | IndexedDataset) -> int:
        if isinstance(low_level_dataset, IndexedDataset):
            return GPTDataset.numel_low_level_dataset(low_level_dataset)
        # Megatron has no documents to divide into splits: the splits of a source are streams, and for those of a
        # generated dataset `_Documents` has a range.
        return 0

    def _build_document_sample_shuffle_indices(self) -> tuple[Any, Any, Any]:
        if isinstance(self.dataset, IndexedDataset):
            return super()._build_document_sample_shuffle_indices()
        return None, None, None

    def __len__(self) -> int:
        if isinstance(self.dataset, IndexedDataset):
            return super().__len__()
        if self.num_samples is None:
            return self._num_in_epoch()
        # Megatron's samplers stop at the length, but a resumed run may need more samples than Megatron asked for.
        return ENDLESS

    def _num_in_epoch(self) -> int:
        """Return the number of documents of an epoch, which is rounded up to full batches in full validation.

        Otherwise, ranks without a document in the last batch would read their first documents again.
        """
        ranks = (self.config.data_parallel_size or 1) if self._is_full_validation() else 1
        return -(-self.dataset.num_documents // ranks) * ranks

    def _is_full_validation(self) -> bool:
        return bool(self.config.full_validation) and self.index_split is Split.valid

    def __getitem__(self, idx: int | None) -> dict[str, torch.Tensor]:
        if isinstance(self.dataset, IndexedDataset):
            text: dict[str, torch.Tensor] = super().__getitem__(idx)
            if isinstance(self.config, SourceGPTDatasetConfig) and self.config.vocab_size is not None:
                check_ids(text, self.config.vocab_size, f"data path {self.dataset_path}")
            return text
        length = self.config.sequence_length
        if self.num_samples is None and idx is not None and idx >= self.dataset.num_documents:
            idx = None
        with self._metered():
            sample = self.dataset.sample(0 if idx is None else int(idx), length)
        tokens = torch.from_numpy(sample.tokens).long()
        # Index None asks for a sample that only fills a batch, so none of its targets count.
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

    def _metered(self) -> AbstractContextManager[None]:
        meter = self.config.meter if isinstance(self.config, SourceGPTDatasetConfig) else None
        return nullcontext() if meter is None or self.index_split is not Split.train else meter.sample()


class _Documents:
    """The documents of a generated dataset that one split of a run reads."""

    def __init__(
        self,
        dataset: IndexedSource,
        split: Split,
        num_samples: int | None,
        config: GPTDatasetConfig,
    ) -> None:
        # Without --split, each split has its own data paths.
        low, high = (0.0, 1.0) if config.split_matrix is None else config.split_matrix[split.value]
        self._dataset = dataset
        self._first = round(low * dataset.num_documents)
        self.num_documents = round(high * dataset.num_documents) - self._first
        if not self.num_documents and num_samples != 0:
            raise NCAPluginError(
                f"the {split.name} split of dataset {dataset.prefix} holds none of its {dataset.num_documents} "
                "documents: give it more in --split, or data of its own"
            )
        epochs = (num_samples or 0) / max(1, self.num_documents)
        # For a blend, Megatron asks for slightly more samples than it reads.
        if epochs > 1 + config.mid_level_dataset_surplus:
            message = f"the {split.name} split reads the documents of {dataset.prefix} {epochs:.2f} times"
            log_single_rank(_logger, logging.WARNING, message)

    def sample(self, index: int, seq_length: int) -> Sample:
        return self._dataset.sample(self._first + index % self.num_documents, seq_length)


def is_ours(path: str) -> bool:
    """Return whether a data path names a source or a generated dataset, not any other indexed dataset."""
    return is_source(path) or is_generated(path)


def open_path(path: str) -> Source | IndexedSource:
    """Return the generated dataset or source that a data path names. Raises `NCAPluginError` if it cannot be opened."""
    return IndexedSource(path) if is_generated(path) else parse(path)


def check_ids(batch: Mapping[str, torch.Tensor | None], rows: int, what: str) -> None:
    """Raise `NCAPluginError` for ids for which a model has no rows. The index of a text does not say its vocabulary."""
    tensors = map(batch.get, ("tokens", "labels"))
    highest = max((int(tensor.max()) for tensor in tensors if tensor is not None), default=0)
    if highest >= rows:
        raise NCAPluginError(
            f"{what} has the id {highest}, and the model only {rows} rows: give the vocabulary of the tokenizer that "
            "the text was prepared with"
        )


def check_fit(source: Source | IndexedSource, seq_length: int, vocab_size: int | None) -> None:
    """Raise `NCAPluginError` if a model of this sequence length and vocabulary cannot train on `source`."""
    source.check_seq_length(seq_length)
    if vocab_size is not None:
        way_out = "use --vocab-size {} or more (--padded-vocab-size with a tokenizer of its own)"
        check_vocabulary(source, vocab_size, way_out)


def check_vocabulary(source: Source | IndexedSource, vocab_size: int, way_out: str) -> None:
    """Raise `NCAPluginError` if `source` has more ids than a model has rows.

    Args:
        way_out: how the user gives the model a larger vocabulary, with `{}` for the number of ids that it needs.
    """
    if vocab_size < source.vocab_size:
        name = f"dataset {source.prefix}" if isinstance(source, IndexedSource) else f"source {short_uri(source)}"
        raise NCAPluginError(
            f"vocabulary of {vocab_size} is smaller than the {source.vocab_size} ids of {name}: "
            f"{way_out.format(source.vocab_size)}, or use a source of fewer ids"
        )
