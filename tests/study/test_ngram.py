"""The losses of n-gram models, against counting in plain Python."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_plugin.study.ngram import ngram_losses

IDS = 5


def counted(train: list[int], held_out: list[int], order: int) -> float:
    counts: list[dict[tuple[int, ...], Counter[int]]] = [defaultdict(Counter) for _ in range(order)]
    for length, table in enumerate(counts):
        for place in range(length, len(train)):
            table[tuple(train[place - length : place])][train[place]] += 1
    total = 0.0
    for place in range(1, len(held_out)):
        probability = 1 / IDS
        for length, table in enumerate(counts[: place + 1]):
            seen = table.get(tuple(held_out[place - length : place]))
            if seen:
                probability = (seen[held_out[place]] + len(seen) * probability) / (seen.total() + len(seen))
        total -= math.log(probability)
    return total / (len(held_out) - 1)


texts = st.lists(st.integers(0, IDS - 1), min_size=2, max_size=60)


@settings(deadline=None)
@given(texts, texts)
def test_n_grams_are_counted_and_interpolated(train: list[int], held_out: list[int]) -> None:
    losses = ngram_losses(np.array(train), np.array(held_out), IDS, (1, 2, 4))
    assert losses == pytest.approx({order: counted(train, held_out, order) for order in (1, 2, 4)})


def test_a_text_that_repeats_is_predicted() -> None:
    train = np.tile(np.arange(50, dtype=np.uint16), 100)
    losses = ngram_losses(train, train[:500], 50, (1, 3))
    assert losses[1] == pytest.approx(math.log(50), abs=0.01) and losses[3] < 0.02
