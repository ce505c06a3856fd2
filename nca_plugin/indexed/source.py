"""A generated dataset as a source: its samples by index."""

from pathlib import Path

import numpy as np

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.manifest import MANIFEST_START
from nca_plugin.indexed.storage import load_manifest, read_errors
from nca_plugin.sources import Sample


class IndexedSource:
    """The documents of a generated dataset as samples, with the tokens, targets and loss mask of the source's.

    Attributes:
        prefix: prefix of the dataset's files.
        uri: URI of the source that it was written from.
        num_documents: samples are 0 .. num_documents - 1; in a shard they are counted from its first document.

    Raises:
        NCAPluginError: a file is missing or has a wrong size, or the manifest is missing or damaged.
    """

    def __init__(self, prefix: str) -> None:
        manifest = load_manifest(prefix)
        spec = manifest.shard.spec
        self.prefix = prefix
        self._seq_length = spec.seq_length
        self._loss_mask = spec.loss_mask
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        with read_errors(prefix):
            self._tokens, self._following = (np.memmap(prefix + suffix, dtype, "r") for suffix in (".bin", ".next"))
        self.uri = spec.uri
        self.vocab_size = spec.vocab_size
        self.num_documents = manifest.shard.num_documents

    def __reduce__(self) -> tuple[type["IndexedSource"], tuple[str]]:
        # Pickling the memory maps would copy the files' content.
        return IndexedSource, (self.prefix,)

    def check_seq_length(self, seq_length: int) -> None:
        """Raise `NCAPluginError` unless the dataset's documents have this length."""
        if seq_length != self._seq_length:
            raise NCAPluginError(
                f"dataset {self.prefix} has documents of {self._seq_length} tokens, not {seq_length}: use "
                f"--seq-length {self._seq_length}, or generate a dataset of that length"
            )

    def sample(self, index: int, seq_length: int) -> Sample:
        """Return sample `index`. Raises `NCAPluginError` if there is none, or if the documents have another length."""
        self.check_seq_length(seq_length)
        if not 0 <= index < self.num_documents:
            raise NCAPluginError(f"sample {index}: dataset {self.prefix} has {self.num_documents} documents")
        tokens = np.empty(seq_length + 1, np.int32)
        tokens[:-1] = self._tokens[index * seq_length : (index + 1) * seq_length]
        tokens[-1] = self._following[index]
        return Sample(tokens, self._loss_mask.copy())


def is_generated(prefix: str) -> bool:
    """Whether `nca-plugin generate` wrote the files under the local `prefix`, even if some of them are missing now."""
    try:
        # A dataset that lost its manifest must not pass for text, which has another loss mask.
        if Path(prefix + ".next").exists():
            return True
        with Path(prefix + ".json").open("rb") as file:
            return file.read(len(MANIFEST_START)) == MANIFEST_START
    except OSError:
        return False
