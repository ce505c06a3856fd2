"""The sequences that a model is asked to find text again in, and predictors whose retrieval is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nca_plugin.errors import NCAPluginError
from nca_plugin.probes.retrieval import RetrievalLayout, RetrievalSequences, retrieval_sequences


def sequences_of(
    num_tokens: int, seq_length: int, count: int, seed: int = 0
) -> tuple[RetrievalLayout, list[RetrievalSequences]]:
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
        (1024, 128 + 511, (64, 8, (0, 32, 128))),
        (1024, 128, (64, 8, (0,))),
    ],
)
def test_lengths(seq_length: int, num_tokens: int, expected: tuple[int, int, tuple[int, ...]]) -> None:
    assert RetrievalLayout.of(seq_length, num_tokens) == RetrievalLayout(*expected)


@pytest.mark.parametrize(
    ("seq_length", "num_tokens", "message"), [(31, 1000, "at least 32"), (256, 127, "at least 128")]
)
def test_what_is_too_short_is_refused(seq_length: int, num_tokens: int, message: str) -> None:
    with pytest.raises(NCAPluginError, match=message):
        RetrievalLayout.of(seq_length, num_tokens)


@given(num_tokens=st.integers(128, 1500), seq_length=st.integers(32, 1024), seed=st.integers(0, 99))
def test_a_segment_a_filler_and_the_segment_again(num_tokens: int, seq_length: int, seed: int) -> None:
    layout, sequences = sequences_of(num_tokens, seq_length, 3, seed)
    n, longest = layout.segment, sequences[-1].repeated
    for distance, pair in zip(layout.distances, sequences, strict=True):
        tokens = pair.repeated
        assert tokens.shape == (3, 2 * n + distance + 1) and tokens.dtype == np.int32
        assert tokens.shape[1] - 1 <= seq_length and (tokens.shape[1] - 1) % 8 == 0
        np.testing.assert_array_equal(tokens[:, :n], tokens[:, n + distance : 2 * n + distance])
        np.testing.assert_array_equal(tokens[:, : n + distance], longest[:, : n + distance])
        # The text goes on in a segment, and around its end in a filler.
        assert (np.diff(tokens[:, :n]) == 1).all()
        assert (np.diff(tokens[:, n : n + distance]) % num_tokens == 1 % num_tokens).all()
        # The control differs in the first segment alone, and nothing that comes before the last one occurs again.
        np.testing.assert_array_equal(pair.control[:, n:], tokens[:, n:])
        np.testing.assert_array_equal(pair.control[:, :n], sequences[0].control[:, :n])
        assert all(len(set(row[:-1].tolist())) == 2 * n + distance for row in pair.control)


def test_segments_follow_the_seed_and_reach_the_whole_text() -> None:
    _, sequences = sequences_of(500, 256, 400)
    for again, pair in zip(sequences_of(500, 256, 400)[1], sequences, strict=True):
        np.testing.assert_array_equal(again.repeated, pair.repeated)
        np.testing.assert_array_equal(again.control, pair.control)
    assert not np.array_equal(sequences_of(500, 256, 400, seed=1)[1][0].repeated, sequences[0].repeated)
    reached = (sequences[0].repeated, sequences[0].control, sequences[-1].repeated[:, 64:192])
    assert all(len(np.unique(tokens)) > 490 for tokens in reached)


def test_a_copier_retrieves_everything_at_any_distance() -> None:
    """It predicts what followed the last occurrence of a token, and knows nothing of tokens that are new."""
    layout, sequences = sequences_of(5000, 1024, 10)
    for pair in sequences:
        for tokens, found in ((pair.repeated, (1, 0)), (pair.control, (0, math.log(5000)))):
            hits, losses = np.zeros((2, len(tokens), tokens.shape[1] - 1), np.float32)
            for row, right, loss in zip(tokens, hits, losses, strict=True):
                followed: dict[int, int] = {}
                for i, (token, after) in enumerate(zip(row[:-1].tolist(), row[1:].tolist(), strict=True)):
                    right[i] = followed.get(token) == after
                    loss[i] = 0 if right[i] else math.log(5000)
                    followed[token] = after
            assert (layout.last_segment(hits), layout.last_segment(losses)) == pytest.approx(found)


def test_tokens_at_the_beginning_of_a_segment_do_not_count() -> None:
    layout = RetrievalLayout(16, 2, (0, 32))
    values = np.full((1, 64), 5, np.float32)
    # Target i is token i + 1: tokens 50 .. 63 count.
    values[0, 49:63] = 2
    assert layout.last_segment(values) == 2
