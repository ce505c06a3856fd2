"""The tokens of an indexed dataset: any of them, and all as sequences in which each token is predicted once."""

from dataclasses import dataclass

import numpy as np
from megatron.core.datasets.indexed_dataset import IndexedDataset
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.source import IndexedSource, is_generated


class IndexedText:
    """The tokens of an indexed dataset, whose documents follow each other as in training.

    Attributes:
        num_tokens: number of tokens.
        document_starts: int64 [documents + 1], number of the first token of each document, and `num_tokens`.

    Raises:
        NCAPluginError: files that cannot be read.
    """

    def __init__(self, prefix: str) -> None:
        try:
            self._dataset = IndexedDataset(prefix)
        except (OSError, ValueError, AssertionError) as error:
            raise NCAPluginError(f"indexed dataset {prefix} cannot be read: {error or 'no .bin and .idx'}") from error
        lengths = np.asarray(self._dataset.sequence_lengths, np.int64)
        self._starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        self.num_tokens = int(self._starts[-1])
        self.document_starts = self._starts[self._dataset.document_indices]

    def read(self, first: int, count: int) -> NDArray[np.int32]:
        """Return tokens `first` .. `first + count - 1`, int32 [count]."""
        # Sequences may lie in the .bin in any order and with gaps, so each is read at its own place.
        pieces = [np.zeros(0, np.int32)]
        place = int(np.searchsorted(self._starts, first, side="right")) - 1
        while count > 0:
            offset = first - int(self._starts[place])
            length = min(count, int(self._starts[place + 1]) - first)
            if length:
                pieces.append(self._dataset.get(place, offset, length).astype(np.int32))
            first, count, place = first + length, count - length, place + 1
        return np.concatenate(pieces)


@dataclass(frozen=True, eq=False, slots=True)
class Windows:
    """Sequences and their supervised targets.

    Attributes:
        tokens: int32 [sequences, S + 1].
        counts: bool [sequences, S]; whether target i counts.
        documents: int64 [sequences, S], the number of the document that target i lies in.
    """

    tokens: NDArray[np.int32]
    counts: NDArray[np.bool_]
    documents: NDArray[np.int64]


class IndexedWindows:
    """An indexed dataset as sequences.

    The documents follow each other as in training, and a sequence ends where it is full. Its last token is the first of
    the next sequence. In a dataset of `nca-plugin generate`, each document is a sequence with the loss mask of its
    source.

    Attributes:
        num_sequences: number of sequences.
        num_documents: number of documents.

    Raises:
        NCAPluginError: files that cannot be read, documents of another length, or fewer than two tokens.
    """

    def __init__(self, prefix: str, seq_length: int) -> None:
        self._seq_length = seq_length
        self._generated: IndexedSource | None = None
        if is_generated(prefix):
            self._generated = IndexedSource(prefix)
            self._generated.check_seq_length(seq_length)
            self.num_sequences = self.num_documents = self._generated.num_documents
            return
        self._text = IndexedText(prefix)
        self.num_documents = self._text.document_starts.size - 1
        if self._text.num_tokens < 2 or self.num_documents < 1:
            raise NCAPluginError(f"indexed dataset {prefix} holds no token to predict")
        self.num_sequences = -(-(self._text.num_tokens - 1) // seq_length)

    def read(self, start: int, stop: int) -> Windows:
        """Return sequences `start` .. `stop - 1`. Zeros that do not count fill the last sequence of the dataset."""
        shape = (stop - start, self._seq_length)
        if self._generated is not None:
            samples = [self._generated.sample(index, self._seq_length) for index in range(start, stop)]
            tokens = np.stack([sample.tokens for sample in samples])
            documents = np.broadcast_to(np.arange(start, stop)[:, None], shape)
            return Windows(tokens, np.stack([sample.loss_mask for sample in samples]), documents)
        first = start * self._seq_length
        length = (stop - start) * self._seq_length + 1
        stream = np.zeros(length, np.int32)
        count = min(length, self._text.num_tokens - first)
        stream[:count] = self._text.read(first, count)
        tokens = np.lib.stride_tricks.sliding_window_view(stream, self._seq_length + 1)[:: self._seq_length]
        targets = np.arange(1, length).reshape(shape)
        # The last document that begins at or before a token. Any document is given for what fills the last sequence.
        starts = self._text.document_starts[:-1]
        return Windows(tokens.copy(), targets < count, np.searchsorted(starts, first + targets, side="right") - 1)
