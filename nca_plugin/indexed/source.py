"""A corpus as what it was written from: samples by index."""

from pathlib import Path

import numpy as np

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.manifest import MANIFEST_START
from nca_plugin.indexed.storage import load_manifest, read_errors
from nca_plugin.sources import Sample


class IndexedSource:
    """The documents of a corpus as samples: the same tokens, targets and loss masks as the source's.

    Attributes:
        prefix: of the files.
        uri: of the source.
        num_documents: samples are 0 .. num_documents - 1; of a part, counted from its first document.

    Raises:
        NCAPluginError: files that are missing, of a wrong size, or without an undamaged manifest.
    """

    def __init__(self, prefix: str) -> None:
        manifest = load_manifest(prefix)
        spec = manifest.part.spec
        self.prefix = prefix
        self._seq_length = spec.seq_length
        self._loss_mask = spec.loss_mask
        dtype = np.dtype(spec.dtype).newbyteorder("<")
        with read_errors(prefix):
            self._tokens, self._following = (np.memmap(prefix + suffix, dtype, "r") for suffix in (".bin", ".next"))
        self.uri = spec.uri
        self.vocab_size = spec.vocab_size
        self.num_documents = manifest.part.num_documents

    def __reduce__(self) -> tuple[type["IndexedSource"], tuple[str]]:
        # A memory map would be sent to another process as a copy of the file.
        return IndexedSource, (self.prefix,)

    def check_seq_length(self, seq_length: int) -> None:
        """Raise `NCAPluginError` unless samples of this length are what the corpus holds."""
        if seq_length != self._seq_length:
            raise NCAPluginError(
                f"corpus {self.prefix} has documents of {self._seq_length} tokens, not {seq_length}: use "
                f"--seq-length {self._seq_length}, or generate a corpus of that length"
            )

    def sample(self, index: int, seq_length: int) -> Sample:
        """Return sample `index`. Raises `NCAPluginError` if the corpus has none, or another length."""
        self.check_seq_length(seq_length)
        if not 0 <= index < self.num_documents:
            raise NCAPluginError(f"sample {index}: corpus {self.prefix} has {self.num_documents} documents")
        tokens = np.empty(seq_length + 1, np.int32)
        tokens[:-1] = self._tokens[index * seq_length : (index + 1) * seq_length]
        tokens[-1] = self._following[index]
        return Sample(tokens, self._loss_mask.copy())


def is_corpus(prefix: str) -> bool:
    """Whether a corpus of this package lies under the local `prefix`, whole or not, rather than another's files."""
    try:
        # Without this a corpus that lost its manifest would be trained on with another loss mask.
        if Path(prefix + ".next").exists():
            return True
        with Path(prefix + ".json").open("rb") as file:
            return file.read(len(MANIFEST_START)) == MANIFEST_START
    except OSError:
        return False
