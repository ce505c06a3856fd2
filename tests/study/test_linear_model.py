"""The comparison of arms, against published tables and simulated studies with known effects."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from nca_plugin.study.linear_model import (
    Variance,
    critical_value,
    differences,
    document_noise,
    noise,
    power,
    seeds_needed,
    smallest_effect,
    unequal_spread,
)

Losses = NDArray[np.float64]
DOCUMENTS = 40


def simulated(
    draw: np.random.Generator, effects: list[float], num_seeds: int, deviation: float, of_documents: float
) -> tuple[Losses, Losses, Losses]:
    """Return the loss of each arm and seed, the summed loss of each document too, and the documents' tokens.

    Seeds differ by 0.1 nats, documents by 0.3. An arm differs from document to document by `of_documents`.
    """
    arms = len(effects)
    tokens = draw.integers(500, 4000, DOCUMENTS).astype(np.float64)
    per_token = 2 + np.array(effects)[:, None, None] + draw.normal(0, 0.1, (1, num_seeds, 1))
    per_token = per_token + draw.normal(0, deviation, (arms, num_seeds, 1))
    per_token = per_token + draw.normal(0, 0.3, DOCUMENTS) + draw.normal(0, of_documents, (arms, 1, DOCUMENTS))
    sums = per_token * tokens
    return sums.sum(axis=-1) / tokens.sum(), sums, tokens


@pytest.mark.parametrize(
    ("num_arms", "num_seeds", "deviation", "of_documents"),
    [(2, 3, 0.02, 0.0), (6, 3, 0.03, 0.02), (6, 5, 0.01, 0.03), (4, 4, 0.002, 0.05), (10, 3, 0.02, 0.01)],
)
def test_intervals_hold_together_as_often_as_they_say(
    num_arms: int, num_seeds: int, deviation: float, of_documents: float
) -> None:
    """In 2,000 simulated studies the standard error of the share is 0.5 %. Without an effect, what is outside its
    interval is a false verdict, so that these are as rare for all arms of a study together."""
    draw = np.random.default_rng(7)
    effects = [0.0, *draw.normal(0, 0.02, num_arms - 1)]
    pairs = [(arm, 0) for arm in range(1, num_arms)]
    covered = 0
    for _ in range(2000):
        losses, sums, tokens = simulated(draw, effects, num_seeds, deviation, of_documents)
        found = differences(losses, pairs, [document_noise(sums[arm], sums[0], tokens) for arm, _ in pairs])
        covered += all(
            one.low is not None and one.high is not None and one.low <= effect <= one.high
            for one, effect in zip(found, effects[1:], strict=True)
        )
    assert 0.93 <= covered / 2000 <= 0.97


def test_without_the_variation_of_documents_intervals_would_be_too_short() -> None:
    draw = np.random.default_rng(3)
    shown = 0
    for _ in range(500):
        losses, _, _ = simulated(draw, [0.0, 0.0], 5, 0.002, 0.05)
        shown += differences(losses, [(1, 0)])[0].is_shown
    assert shown / 500 > 0.3


@pytest.mark.parametrize(("effect", "num_arms", "num_seeds"), [(1.5, 2, 4), (3.0, 6, 3), (2.0, 4, 5), (1.0, 3, 10)])
def test_power_is_how_often_simulated_studies_show_the_effect(effect: float, num_arms: int, num_seeds: int) -> None:
    draw = np.random.default_rng(11)
    pairs = [(arm, 0) for arm in range(1, num_arms)]
    shown = 0
    for losses in draw.normal(0, 1, (2000, num_arms, num_seeds)):
        losses[1] += effect
        shown += differences(losses, pairs)[0].is_shown
    assert power(effect, 1.0, num_seeds, num_arms) == pytest.approx(shown / 2000, abs=0.035)


def test_critical_values_of_published_tables() -> None:
    """Dunnett (1964), table II: two-sided, 95 %, equal numbers in all groups."""
    published = {(1, 5): 2.57, (2, 5): 3.03, (5, 10): 2.99, (5, 20): 2.73, (9, 60): 2.77}
    for (comparisons, freedom), value in published.items():
        assert critical_value(comparisons, freedom, 0.5) == pytest.approx(value, abs=0.01)
    # The studentized maximum modulus: Stoline and Ury (1979).
    assert critical_value(5, 10, 0.0) == pytest.approx(3.10, abs=0.01)


def test_two_arms_are_a_paired_t_test() -> None:
    """t(2) = 4.303. What seeds share does not count."""
    base = np.array([1.0, 2.0, 9.0])
    values = np.array([0.1, 0.2, 0.3])
    (found,) = differences(np.array([base, base + values]), [(1, 0)])
    assert found.mean == pytest.approx(0.2) and found.high is not None
    assert found.high - found.mean == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)


def test_noise_is_what_arms_and_seeds_leave() -> None:
    draw = np.random.default_rng(5)
    losses = draw.normal(0, 0.03, (40, 50)) + draw.normal(0, 1, (40, 1)) + draw.normal(0, 1, (1, 50))
    found = noise(losses)
    assert found.deviation == pytest.approx(0.03, rel=0.05) and found.freedom == 39 * 49


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_fewer_than_three_seeds_show_nothing(num_seeds: int) -> None:
    (found,) = differences(np.stack([np.zeros(num_seeds), np.ones(num_seeds)]), [(1, 0)])
    assert found.mean == 1.0 and not found.is_shown
    assert (found.low is None) == (num_seeds == 1)
    assert power(100.0, 1.0, num_seeds, 2) == 0.0


def test_equal_spreads_are_rarely_called_unequal() -> None:
    draw = np.random.default_rng(9)
    equal = [unequal_spread(losses) < 0.01 for losses in draw.normal(0, 1, (500, 5, 4))]
    assert np.mean(equal) < 0.04
    wide = draw.normal(0, 1, (200, 5, 10))
    wide[:, 2] *= 8
    assert np.mean([unequal_spread(losses) < 0.01 for losses in wide]) > 0.6


def test_power_of_published_tables() -> None:
    """Cohen (1988), 80 %, two-sided: a paired effect of one standard deviation needs 10 pairs, 0.8 15, 0.5 34."""
    of_a_run = 1 / math.sqrt(2)
    assert [seeds_needed(effect, of_a_run, 2) for effect in (1.0, -0.8, 0.5)] == [10, 15, 34]


@pytest.mark.parametrize(("num_seeds", "variance"), [(3, 0.0), (10, 0.0), (5, 1e-4)])
def test_the_smallest_effect_is_that_whose_power_is_80_percent(num_seeds: int, variance: float) -> None:
    held_out = Variance(variance, 30)
    effect = smallest_effect(0.03, num_seeds, 4, held_out)
    assert power(effect, 0.03, num_seeds, 4, held_out) == pytest.approx(0.8, abs=1e-6)
    assert seeds_needed(-1.001 * effect, 0.03, 4, held_out) == num_seeds


def test_too_little_held_out_text_cannot_be_made_up_for_by_seeds() -> None:
    assert seeds_needed(0.01, 0.03, 4) is not None
    assert seeds_needed(0.01, 0.03, 4, Variance(1e-4, 30)) is None
