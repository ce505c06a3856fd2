"""The tokens of an indexed dataset as sequences in which each token is predicted once."""

from dataclasses import dataclass

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.source import IndexedSource, is_generated


@dataclass(frozen=True, eq=False, slots=True)
class Windows:
    """Sequences and their supervised targets.

    Attributes:
        tokens: int32 [sequences, S + 1].
        counts: bool [sequences, S]; whether target i counts.
    """

    tokens: NDArray[np.int32]
    counts: NDArray[np.bool_]


class IndexedWindows:
    """An indexed dataset as sequences.

    The documents follow each other as in training, and a sequence ends where it is full. Its last token is the first of
    the next sequence. In a dataset of `nca-plugin generate`, each document is a sequence with the loss mask of its
    source.

    Raises:
        NCAPluginError: files that cannot be read, documents of another length, or fewer than two tokens.
    """

    def __init__(self, prefix: str, seq_length: int) -> None:
        self._seq_length = seq_length
        self._generated: IndexedSource | None = None
        if is_generated(prefix):
            self._generated = IndexedSource(prefix)
            self._generated.check_seq_length(seq_length)
            self.num_sequences = self._generated.num_documents
            return
        try:
            self._dataset = IndexedDataset(prefix)
        except (OSError, ValueError, AssertionError) as error:
            raise NCAPluginError(f"indexed dataset {prefix} cannot be read: {error or 'no .bin and .idx'}") from error
        self._num_tokens = int(self._dataset.sequence_lengths.sum(dtype=np.int64))
        if self._num_tokens < 2:
            raise NCAPluginError(f"indexed dataset {prefix} holds no token to predict")
        self.num_sequences = -(-(self._num_tokens - 1) // seq_length)

    def read(self, start: int, stop: int) -> Windows:
        """Return sequences `start` .. `stop - 1`. Zeros that do not count fill the last sequence of the dataset."""
        if self._generated is not None:
            samples = [self._generated.sample(index, self._seq_length) for index in range(start, stop)]
            tokens = np.stack([sample.tokens for sample in samples])
            return Windows(tokens, np.stack([sample.loss_mask for sample in samples]))
        first = start * self._seq_length
        length = (stop - start) * self._seq_length + 1
        stream = np.zeros(length, np.int32)
        count = min(length, self._num_tokens - first)
        index = self._dataset.index
        stream[:count] = self._dataset.bin_reader.read(index.dtype, count, first * np.dtype(index.dtype).itemsize)
        tokens = np.lib.stride_tricks.sliding_window_view(stream, self._seq_length + 1)[:: self._seq_length]
        counts = (np.arange(1, length) < count).reshape(-1, self._seq_length)
        return Windows(tokens.copy(), counts)
