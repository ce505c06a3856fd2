"""The copy language ww: words that are repeated."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import rng
from nca_plugin.compiled import compiled
from nca_plugin.errors import Check
from nca_plugin.sources.formal import FormalConfig, FormalSource


@dataclass(frozen=True, kw_only=True, slots=True)
class CopyConfig(FormalConfig):
    """The options of `copy://`."""

    kind = "copy"

    vocab_size: int = 64
    """Number of different symbols, 1 .. 2^20 (Hu et al.: 64)."""

    min_length: int = 10
    """Shortest length of w, at least 1 (Hu et al.: 10)."""

    max_length: int = 510
    """Longest length of w, `min_length` .. 2^20 (Hu et al.: 510)."""

    def _checks(self) -> tuple[Check, ...]:
        return (
            (1 <= self.vocab_size <= 1 << 20, "vocab_size", "must lie in 1 .. 2^20"),
            (self.min_length >= 1, "min_length", "must be at least 1"),
            (self.min_length <= self.max_length <= 1 << 20, "max_length", "must lie in min_length .. 2^20"),
        )


class CopySource(FormalSource):
    """`copy://?vocab_size=64&min_length=10&max_length=510`: a random word w, w again, then the next pair.

    This is the language ww of Hu et al. 2025 (arXiv 2502.19249) as their released code draws it: lengths and symbols
    are uniform, pairs follow each other without a delimiter, and the last pair is cut off. Every target counts, also
    those of the first copy, which cannot be predicted. A model has to infer where the second copy begins.
    """

    config: CopyConfig
    scheme = "copy"
    config_class = CopyConfig
    purpose = rng.COPIES

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def _tokens(self, index: int, length: int) -> NDArray[np.int32]:
        config = self.config
        symbols = (self._uniforms(index, length) * config.vocab_size).astype(np.int32)
        u = self._uniforms(index, length // (2 * config.min_length) + 1, stream=1)
        lengths = config.min_length + (u * (config.max_length - config.min_length + 1)).astype(np.int64)
        _repeat(symbols, lengths)
        return symbols


@compiled
def _repeat(symbols: np.ndarray, lengths: np.ndarray) -> None:
    """Overwrite the second half of each pair of `symbols` with its first half. Word i has lengths[i] symbols."""
    start = 0
    for length in lengths:
        for i in range(start + length, min(start + 2 * length, symbols.size)):
            symbols[i] = symbols[i - length]
        start += 2 * length
