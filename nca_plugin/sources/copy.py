"""The copy language ww: words that are repeated."""

import math
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

    def oracle_losses(self, index: int, seq_length: int) -> NDArray[np.float64]:
        """The losses of one who knows the law, and infers from the tokens where words begin and end."""
        config = self.config
        tokens = self.sample(index, seq_length).tokens
        evidence = _log_evidence(tokens, config.vocab_size, config.min_length, config.max_length)
        losses: NDArray[np.float64] = math.log(config.vocab_size) - np.diff(evidence)
        return losses[1:]


@compiled
def _repeat(symbols: np.ndarray, lengths: np.ndarray) -> None:
    """Overwrite the second half of each pair of `symbols` with its first half. Word i has lengths[i] symbols."""
    start = 0
    for length in lengths:
        for i in range(start + length, min(start + 2 * length, symbols.size)):
            symbols[i] = symbols[i - length]
        start += 2 * length


@compiled
def _log_evidence(tokens: np.ndarray, vocab_size: int, min_length: int, max_length: int) -> np.ndarray:
    """Return ln P(first t tokens) + t ln(vocab_size) for t = 0 .. tokens.size, float64 [tokens.size + 1].

    P is a sum over where the pair under way at t began, and over the lengths of its word. Each symbol of a first copy
    has a probability of 1 / vocab_size, and each of a second copy 1 or 0.
    """
    evidence = np.full(tokens.size + 1, -np.inf)
    #: The part of it in which a pair begins at t.
    begins = np.full(tokens.size + 1, -np.inf)
    begins[0] = 0.0
    num_lengths = max_length - min_length + 1
    for start in range(tokens.size + 1):
        if begins[start] == -np.inf:
            continue
        # The first copy: all lengths above n are possible after n symbols.
        for n in range(min(max_length, tokens.size + 1 - start)):
            share = min(max_length - n, num_lengths) / num_lengths
            evidence[start + n] = np.logaddexp(evidence[start + n], begins[start] + np.log(share))
        for length in range(min_length, max_length + 1):
            t = start + length
            weight = begins[start] - np.log(float(num_lengths))
            while t < start + 2 * length and t <= tokens.size:
                evidence[t] = np.logaddexp(evidence[t], weight)
                if t == tokens.size or tokens[t] != tokens[t - length]:
                    break
                weight += np.log(float(vocab_size))
                t += 1
            if t == start + 2 * length and t <= tokens.size:
                begins[t] = np.logaddexp(begins[t], weight)
    return evidence
