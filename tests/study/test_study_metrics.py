"""What a study computes, against hand-made curves, published tables and simulated seeds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nca_plugin.study.comparison import (
    estimate,
    gain_percent,
    power,
    seeds_needed,
    smallest_effect,
    speed_up,
    tokens_to_reach,
)


def curve(*points: tuple[float, float]) -> list[tuple[float, float]]:
    """Points of (tokens, perplexity) as (tokens, loss)."""
    return [(tokens, math.log(perplexity)) for tokens, perplexity in points]


def test_the_papers_gains() -> None:
    for before, after, gain in ((14.66, 13.82, 5.7), (8.11, 7.70, 5.1), (1.92, 1.84, 4.2)):
        assert gain_percent(math.log(before), math.log(after)) == pytest.approx(gain, abs=0.05)


def test_speed_up_of_a_known_curve() -> None:
    scratch = curve((100, 9), (200, 6), (300, 5), (400, 4))
    assert speed_up(scratch, scratch) == 1
    # Perplexity 4 lies a quarter of the way from 5 to 1, at 225 tokens.
    assert speed_up(scratch, curve((100, 8), (200, 5), (300, 1))) == pytest.approx(400 / 225)
    assert speed_up(scratch, curve((100, 8), (200, 5), (300, 4.01), (400, 4.001))) is None
    assert speed_up(scratch, curve((100, 3), (200, 2))) == 4


def test_the_first_crossing_counts() -> None:
    assert tokens_to_reach(curve((10, 5), (20, 3), (30, 6), (40, 2)), math.log(4)) == pytest.approx(15)


@given(st.floats(1.01, 20), st.floats(0.5, 3))
def test_a_run_that_is_k_times_faster_has_a_speed_up_of_k(factor: float, drop: float) -> None:
    points = [(100.0 * i, 4 + 10 * math.exp(-drop * i / 10)) for i in range(1, 41)]
    fast = [(tokens / factor, perplexity) for tokens, perplexity in points]
    assert speed_up(curve(*points), curve(*fast)) == pytest.approx(factor)


def test_intervals_of_published_quantiles() -> None:
    """t(1) = 12.706, t(2) = 4.303, t(9) = 2.262."""
    for values, quantile in (([0.05, 0.051], 12.706), ([1.0, 2.0, 3.0], 4.303), (list(range(10)), 2.262)):
        found = estimate(values)
        half_width = quantile * np.std(values, ddof=1) / math.sqrt(len(values))
        assert found.high is not None
        assert found.high - found.mean == pytest.approx(half_width, rel=1e-3)


def test_one_seed_shows_nothing() -> None:
    found = estimate([-0.5])
    assert (found.mean, found.low, found.high) == (-0.5, None, None)
    assert not found.is_shown


@pytest.mark.parametrize("num_seeds", [2, 3, 5])
def test_intervals_cover_as_often_as_they_say(num_seeds: int) -> None:
    """4,000 simulated studies with a true paired difference of -0.02: its standard error is 0.34 %."""
    generator = np.random.default_rng(7)
    covered = 0
    for differences in generator.normal(-0.02, 0.03, (4000, num_seeds)):
        found = estimate(differences.tolist())
        assert found.low is not None and found.high is not None
        covered += found.low <= -0.02 <= found.high
    assert covered / 4000 == pytest.approx(0.95, abs=0.012)


def test_pairing_removes_what_seeds_share() -> None:
    """Seeds differ by 0.1 nats, arms on the same seed by 0.02 +- 0.002: paired it is shown, by the means it is not."""
    generator = np.random.default_rng(3)
    scratch = 2 + 0.1 * generator.standard_normal(5)
    arm = scratch - 0.02 + 0.002 * generator.standard_normal(5)
    assert estimate((arm - scratch).tolist()).is_shown
    assert estimate(arm.tolist()).high > estimate(scratch.tolist()).low  # type: ignore[operator]


@pytest.mark.parametrize(("effect", "num_seeds"), [(0.5, 3), (1.0, 5), (3.0, 3), (2.0, 10)])
def test_power_is_how_often_simulated_studies_show_the_effect(effect: float, num_seeds: int) -> None:
    generator = np.random.default_rng(11)
    shown = sum(estimate(values.tolist()).is_shown for values in generator.normal(effect, 1.0, (3000, num_seeds)))
    assert power(effect, 1.0, num_seeds) == pytest.approx(shown / 3000, abs=0.03)


def test_power_of_published_tables() -> None:
    """Cohen (1988), 80 %, two-sided: a paired effect of one standard deviation needs 10 pairs, 0.8 15, 0.5 34."""
    assert [seeds_needed(effect, 1.0) for effect in (1.0, 0.8, 0.5)] == [10, 15, 34]
    assert seeds_needed(-0.5, 1.0) == 34
    # (1.960 + 0.842)^2 / effect^2.
    assert seeds_needed(0.03, 1.0) == pytest.approx(8721, abs=5)
    assert seeds_needed(0.001, 1.0) is None
    assert power(0.0, 1.0, 4) == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("num_seeds", [2, 3, 10, 40])
def test_the_smallest_effect_is_that_whose_power_is_80_percent(num_seeds: int) -> None:
    assert power(smallest_effect(0.03, num_seeds), 0.03, num_seeds) == pytest.approx(0.8, abs=1e-6)
