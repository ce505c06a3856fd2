"""The random linear recurrent network against plain numpy, and what its options do."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_plugin.sources import parse
from nca_plugin.sources.linear_rnn import LinearRNNSource

#: The number of a sample of the default source whose state grows.
UNSTABLE = 95


def source_of(options: str = "") -> LinearRNNSource:
    source = parse(f"linear_rnn://?{options}")
    assert isinstance(source, LinearRNNSource)
    return source


def next_token_probabilities(source: LinearRNNSource, index: int, tokens: np.ndarray) -> np.ndarray:
    """The law, by numpy's products and exponential: float64 [tokens, vocabulary] after each token."""
    inputs, recurrent, outputs = (matrix.T for matrix in source.system(index))
    state = np.zeros(source.config.hidden_size)
    rows = []
    for token in tokens:
        state = inputs[:, token] + recurrent @ state
        logits = outputs @ state / source.config.temperature
        odds = np.exp(logits - logits.max())
        rows.append(odds / odds.sum())
    return np.array(rows)


@settings(deadline=None, max_examples=30)
@given(
    vocab_size=st.integers(1, 40),
    hidden_size=st.integers(1, 20),
    radius=st.floats(0.1, 0.99),
    temperature=st.floats(0.05, 5),
    index=st.integers(0, 2**63 - 1),
)
def test_tokens_are_drawn_by_inversion_from_the_softmax(
    vocab_size: int, hidden_size: int, radius: float, temperature: float, index: int
) -> None:
    options = f"vocab_size={vocab_size}&hidden_size={hidden_size}&spectral_radius={radius}&temperature={temperature}"
    source = source_of(options)
    sample = source.sample(index, 60)
    assert sample.loss_mask.all()
    probabilities = next_token_probabilities(source, index, sample.tokens[:-1])
    u = source._uniforms(index, 61)
    assert sample.tokens[0] == int(u[0] * vocab_size)
    cumulative = np.cumsum(probabilities, axis=1)
    rows = np.arange(60)
    upper = cumulative[rows, sample.tokens[1:]]
    lower = upper - probabilities[rows, sample.tokens[1:]]
    assert (lower <= u[1:] + 1e-9).all() and (u[1:] <= upper + 1e-9).all()
    losses = source.oracle_losses(index, 60)
    np.testing.assert_allclose(losses, -np.log(probabilities[rows, sample.tokens[1:]]), rtol=1e-6, atol=1e-9)


def test_entries_have_the_published_spread_and_radius() -> None:
    source = source_of("vocab_size=500&hidden_size=200&spectral_radius=0.7")
    inputs, recurrent, outputs = source.system(3)
    assert (inputs.shape, recurrent.shape, outputs.shape) == ((500, 200), (200, 200), (200, 500))
    for matrix, variance in ((inputs, 1 / 500), (outputs, 1 / 200)):
        # Five standard errors of the variance of 100,000 normal numbers.
        assert matrix.var() == pytest.approx(variance, rel=5 * np.sqrt(2 / matrix.size))
        assert abs(matrix.mean()) < 5 * np.sqrt(variance / matrix.size)
        assert np.abs(matrix).max() > 4 * np.sqrt(variance)
    # The estimate is within some percent of the true radius where there are many units.
    assert np.abs(np.linalg.eigvals(recurrent)).max() == pytest.approx(0.7, rel=0.15)


@pytest.mark.parametrize("radius", [0.3, 0.9])
def test_the_radius_of_a_single_unit_is_exact(radius: float) -> None:
    for index in range(5):
        recurrent = source_of(f"hidden_size=1&spectral_radius={radius}").system(index)[1]
        assert abs(recurrent[0, 0]) == pytest.approx(radius, rel=1e-12)


def test_a_limited_set_of_systems_is_used_in_turn() -> None:
    source, fresh = source_of("num_systems=3"), source_of()
    first = [source.system(index)[0] for index in range(7)]
    for index, matrix in enumerate(first):
        np.testing.assert_array_equal(matrix, first[index % 3])
        np.testing.assert_array_equal(matrix, fresh.system(index % 3)[0])
    samples = {source.sample(index, 100).tokens.tobytes() for index in range(7)}
    assert len(samples) == 7
    assert not np.array_equal(source.for_split("test").system(0)[0], first[0])


def test_a_state_that_grows_makes_few_tokens_and_no_overflow() -> None:
    """The estimate of the spectral radius lets some systems grow without bound; float64 would overflow."""
    source = source_of("temperature=1e-6")
    radius = np.abs(np.linalg.eigvals(source.system(UNSTABLE)[1])).max()
    assert 60_000 * np.log(radius) > np.log(np.finfo(np.float64).max)
    sample = source.sample(UNSTABLE, 60_000)
    assert len(np.unique(sample.tokens[-1000:])) < 64
    assert np.isfinite(source.oracle_losses(UNSTABLE, 60_000)).all()


def test_most_samples_are_nearly_uniform_and_a_few_can_be_predicted() -> None:
    """What the documentation says of the default."""
    source = source_of()
    gains = np.log(64) - np.array([source.oracle_losses(index, 1024).mean() for index in range(200)])
    assert 0.02 < np.median(gains) < 0.04
    assert 0.02 < (gains > np.log(64) / 2).mean() < 0.08
