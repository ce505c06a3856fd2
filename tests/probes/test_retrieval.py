"""The sequences that a model is asked to find text again in, and predictors whose retrieval is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nca_plugin.errors import NCAPluginError
from nca_plugin.probes.retrieval import RetrievalLayout, retrieval_sequences


def sequences_of(
    num_tokens: int, seq_length: int, count: int, seed: int = 0
) -> tuple[RetrievalLayout, list[np.ndarray]]:
    """Return sequences of a text whose tokens are their own positions."""
    layout = RetrievalLayout.of(seq_length, num_tokens)
    text = np.arange(num_tokens, dtype=np.int32)

    def read(first: int, length: int) -> np.ndarray:
        assert 0 <= first <= first + length <= num_tokens
        return text[first : first + length]

    return layout, retrieval_sequences(read, num_tokens, layout, count, np.random.default_rng(seed))


@pytest.mark.parametrize(
    ("seq_length", "num_tokens", "expected"),
    [
        (32, 1000, (8, 1, (0,))),
        (64, 1000, (16, 2, (0, 32))),
        (256, 100_000, (64, 8, (0, 32, 128))),
        (1024, 100_000, (64, 8, (0, 32, 128, 512))),
        (8192, 100_000, (64, 8, (0, 32, 128, 512, 2048))),
        # The text ends before the longest filler does.
        (1024, 64 + 511, (64, 8, (0, 32, 128))),
        (1024, 64, (64, 8, (0,))),
    ],
)
def test_lengths(seq_length: int, num_tokens: int, expected: tuple[int, int, tuple[int, ...]]) -> None:
    assert RetrievalLayout.of(seq_length, num_tokens) == RetrievalLayout(*expected)


@pytest.mark.parametrize(("seq_length", "num_tokens", "message"), [(31, 1000, "at least 32"), (256, 63, "at least 64")])
def test_what_is_too_short_is_refused(seq_length: int, num_tokens: int, message: str) -> None:
    with pytest.raises(NCAPluginError, match=message):
        RetrievalLayout.of(seq_length, num_tokens)


@given(num_tokens=st.integers(64, 1500), seq_length=st.integers(32, 1024), seed=st.integers(0, 99))
def test_a_segment_a_filler_and_the_segment_again(num_tokens: int, seq_length: int, seed: int) -> None:
    layout, sequences = sequences_of(num_tokens, seq_length, 3, seed)
    n, longest = layout.segment, sequences[-1]
    for distance, tokens in zip(layout.distances, sequences, strict=True):
        assert tokens.shape == (3, 2 * n + distance + 1) and tokens.dtype == np.int32
        assert tokens.shape[1] - 1 <= seq_length and (tokens.shape[1] - 1) % 8 == 0
        np.testing.assert_array_equal(tokens[:, :n], tokens[:, n + distance : 2 * n + distance])
        np.testing.assert_array_equal(tokens[:, : n + distance], longest[:, : n + distance])
        # The text goes on in a segment, and around its end in a filler. Both have no token in common.
        assert (np.diff(tokens[:, :n]) == 1).all()
        assert (np.diff(tokens[:, n : n + distance]) % num_tokens == 1 % num_tokens).all()
        assert all(len(set(row[: n + distance].tolist())) == n + distance for row in tokens)


def test_segments_follow_the_seed_and_reach_the_whole_text() -> None:
    _, sequences = sequences_of(500, 256, 400)
    for again, tokens in zip(sequences_of(500, 256, 400)[1], sequences, strict=True):
        np.testing.assert_array_equal(again, tokens)
    assert not np.array_equal(sequences_of(500, 256, 400, seed=1)[1][0], sequences[0])
    assert len(np.unique(sequences[0])) > 490 and len(np.unique(sequences[-1][:, 64:192])) > 490


def test_a_copier_retrieves_everything_at_any_distance() -> None:
    """It predicts what followed the last occurrence of a token, and knows nothing of tokens that are new."""
    layout, sequences = sequences_of(5000, 1024, 10)
    for distance, tokens in zip(layout.distances, sequences, strict=True):
        hits, losses = np.zeros((2, len(tokens), tokens.shape[1] - 1), np.float32)
        for row, right, loss in zip(tokens, hits, losses, strict=True):
            followed: dict[int, int] = {}
            for i, (token, after) in enumerate(zip(row[:-1].tolist(), row[1:].tolist(), strict=True)):
                right[i] = followed.get(token) == after
                loss[i] = 0 if right[i] else math.log(5000)
                followed[token] = after
        # The first token of the second occurrence is new to it; it is among those that do not count.
        assert layout.occurrences(hits, distance) == (0, 1)
        assert layout.occurrences(losses, distance) == pytest.approx((math.log(5000), 0))
        assert not hits[:, layout.segment + distance - 1].any()


def test_tokens_at_the_beginning_of_a_segment_do_not_count() -> None:
    layout = RetrievalLayout(16, 2, (0, 32))
    values = np.zeros((1, 64), np.float32)
    # Target i is token i + 1: tokens 2 .. 15 and 50 .. 63 count.
    values[0, 1:15], values[0, 49:63] = 1, 2
    assert layout.occurrences(values, 32) == (1, 2)
    values[:] = 5
    values[0, 1:15], values[0, 49:63] = 1, 2
    assert layout.occurrences(values, 32) == (1, 2)
