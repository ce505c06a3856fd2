"""Losses of n-gram models on held-out text: what counting alone reaches on the same budget of tokens.

The probabilities are interpolated by Witten and Bell's method (Chen and Goodman 1998, "An empirical study of smoothing
techniques for language modeling", section 2.5): a context that was seen c times with T different successors gives
p(w | context) = (count of w + T p(w | shorter context)) / (c + T). The shortest context is empty, and below it all ids
are equally likely.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def ngram_losses(
    train: NDArray[np.integer], held_out: NDArray[np.integer], vocab_size: int, orders: Sequence[int]
) -> dict[int, float]:
    """Return the mean loss of n-gram models by their n, in nats per token of `held_out` but the first.

    Args:
        train, held_out: token ids [length], 0 .. vocab_size - 1. The text is one sequence; contexts cross documents.
        orders: values of n; a model of order n sees n - 1 tokens.
    """
    train, held_out = (tokens.astype(np.uint64) for tokens in (train, held_out))
    probabilities = np.full(len(held_out) - 1, 1 / vocab_size)
    # The contexts of every target, as hashes; first the empty one.
    contexts, own = np.zeros(len(train), np.uint64), np.zeros(len(held_out), np.uint64)
    losses = {}
    for order in range(1, max(orders) + 1):
        seen = _Counts(contexts[order - 1 :], train[order - 1 :])
        probabilities = seen.interpolated(own[1:], held_out[1:], probabilities)
        if order in orders:
            losses[order] = float(-np.log(probabilities).mean())
        # The next context has one token more, in front of the present one.
        contexts, own = (_longer(hashes, tokens, order) for hashes, tokens in ((contexts, train), (own, held_out)))
    return losses


class _Counts:
    """How often each token followed each context, whose tokens are known by a hash of 64 bits."""

    def __init__(self, contexts: Keys, tokens: Keys) -> None:
        self._pairs, first, self._pair_counts = np.unique(
            _mixed(contexts, tokens), return_index=True, return_counts=True
        )
        self._contexts, self._context_counts = np.unique(contexts, return_counts=True)
        # Every different pair is one different successor of its context.
        self._successors = np.bincount(np.searchsorted(self._contexts, contexts[first]), minlength=len(self._contexts))

    def interpolated(self, contexts: Keys, tokens: Keys, shorter: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probabilities of tokens after contexts, given those after the contexts that are one shorter."""
        count = _looked_up(self._pairs, self._pair_counts, _mixed(contexts, tokens))
        total = _looked_up(self._contexts, self._context_counts, contexts)
        successors = _looked_up(self._contexts, self._successors, contexts)
        known = total > 0
        found = shorter.copy()
        found[known] = (count + successors * shorter)[known] / (total + successors)[known]
        return found


def _looked_up(keys: Keys, values: NDArray[np.int64], wanted: Keys) -> NDArray[np.int64]:
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def _longer(contexts: Keys, tokens: Keys, order: int) -> Keys:
    """Return the hash of the last `order` tokens before each position, given that of the last `order` - 1.

    Positions with fewer tokens before them get the hash of those that there are, which no longer context equals.
    """
    longer = contexts.copy()
    longer[order:] = _mixed(contexts[order:], tokens[: max(0, len(tokens) - order)])
    return longer


def _mixed(hashes: Keys, tokens: Keys) -> Keys:
    """Return hashes of pairs (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    mixed = (hashes ^ (tokens + np.uint64(1))) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
