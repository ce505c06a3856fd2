"""Independent tokens, which have nothing to learn but their frequencies."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import rng
from nca_plugin.compiled import compiled
from nca_plugin.errors import Check
from nca_plugin.sources.formal import FormalConfig, FormalSource


@dataclass(frozen=True, kw_only=True, slots=True)
class IIDConfig(FormalConfig):
    """The options of `iid://`."""

    kind = "iid"

    vocab_size: int = 10_002
    """Number of ids, 1 .. 2^20 (default: that of an NCA of 10 colours)."""

    exponent: float = 0.0
    """Id r has a probability proportional to (r + 1)^-exponent, 0 .. 2.5. 0 is uniform, 1 is Zipf's law."""

    def _checks(self) -> tuple[Check, ...]:
        return (
            (1 <= self.vocab_size <= 1 << 20, "vocab_size", "must lie in 1 .. 2^20"),
            (0 <= self.exponent <= 2.5, "exponent", "must lie in 0 .. 2.5"),
        )


class IIDSource(FormalSource):
    """`iid://?vocab_size=10002&exponent=0`: independent draws from a fixed distribution.

    This control has no structure: whatever a warm-up on it changes comes from the optimizer steps alone. It is not
    from a paper.
    """

    config: IIDConfig
    scheme = "iid"
    config_class = IIDConfig
    purpose = rng.INDEPENDENT

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    def _tokens(self, index: int, length: int) -> NDArray[np.int32]:
        cumulative = _cumulative(self.config.vocab_size, self.config.exponent)
        ids = np.searchsorted(cumulative, self._uniforms(index, length) * cumulative[-1], side="right")
        return np.minimum(ids, self.config.vocab_size - 1).astype(np.int32)

    def oracle_losses(self, index: int, seq_length: int) -> NDArray[np.float64]:
        """The losses of one who knows the frequencies."""
        cumulative = _cumulative(self.config.vocab_size, self.config.exponent)
        losses: NDArray[np.float64] = np.log(cumulative[-1]) - np.log(np.diff(cumulative, prepend=0.0))
        return losses[self.sample(index, seq_length).tokens[1:]]


# Cached, because this is megabytes for large vocabularies.
@functools.lru_cache(maxsize=8)
def _cumulative(vocab_size: int, exponent: float) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = _powers(vocab_size, exponent)
    return np.cumsum(weights)


@compiled
def _powers(count: int, exponent: float) -> np.ndarray:
    """Return r^-exponent for r = 1 .. count, with the same bits on every machine."""
    powers = np.empty(count, np.float64)
    for i in range(count):
        powers[i] = rng.exp(-exponent * rng.log(i + 1.0))
    return powers
