"""Prefix matching: whether attention heads look up what followed the current token the last time.

This is the prefix matching score of Olsson et al. 2022, "In-context Learning and Induction Heads". It is measured on
random tokens that repeat, where only the repetition helps, as the mean attention from a token to the one after its
previous occurrence. An induction head scores near 1.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError


def repeated_sequences(
    generator: np.random.Generator, num_sequences: int, period: int, num_repetitions: int, vocab_size: int
) -> NDArray[np.int32]:
    """Return sequences that repeat a random block of tokens.

    No id occurs twice in a block, so that each token has one previous occurrence. If the vocabulary is smaller than a
    block, ids are drawn with replacement.

    Args:
        period: tokens per block, at least 2.
        num_repetitions: blocks per sequence, at least 2.
        vocab_size: ids are 0 .. vocab_size - 1.

    Returns:
        int32 [num_sequences, num_repetitions * period].

    Raises:
        NCAPluginError: one of these numbers is below 2.
    """
    if period < 2 or num_repetitions < 2 or vocab_size < 2:
        raise NCAPluginError(
            f"{num_repetitions} repetitions of {period} tokens of {vocab_size} ids: an induction score needs 2 of each"
        )
    is_repeating = vocab_size < period
    blocks = [generator.choice(vocab_size, period, replace=is_repeating) for _ in range(num_sequences)]
    return np.tile(np.array(blocks, np.int32), (1, num_repetitions))


def prefix_matching_scores(probabilities: torch.Tensor, period: int) -> torch.Tensor:
    """Return how much each head attends to the token that followed the previous occurrence of the current token.

    For position t that is position t - P + 1, from the second block on (P <= t < S). The score of a head is the mean
    over positions.
    Args:
        probabilities: [batch, heads, S, S], rows sum to 1; the sequences repeat a block of P tokens.
        period: P, at least 2 and below S.

    Returns:
        [batch, heads], each in 0 .. 1.
    """
    # Entries (t, t - P + 1). The first one, t = P - 1, is left out because it is still in the first block.
    return probabilities.diagonal(1 - period, -2, -1)[..., 1:].mean(-1)


def chance_score(seq_length: int, period: int) -> float:
    """Return the score of a head that attends to all positions so far equally: the mean of 1 / (t + 1), P <= t < S."""
    return float(np.mean(1 / np.arange(period + 1, seq_length + 1)))
