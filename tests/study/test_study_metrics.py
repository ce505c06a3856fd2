"""What a study computes from curves, against hand-made ones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nca_plugin.study.curves import gain_percent, speed_up, tokens_to_reach


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
    # It never reaches 4, but ends at 4.5, where the baseline is half-way from 300 to 400 tokens.
    assert speed_up(scratch, curve((100, 8), (200, 5.5), (400, 4.5))) == pytest.approx(350 / 400)
    assert speed_up(scratch, curve((100, 3), (200, 2))) == 4


def test_the_first_crossing_counts() -> None:
    assert tokens_to_reach(curve((10, 5), (20, 3), (30, 6), (40, 2)), math.log(4)) == pytest.approx(15)


@given(st.floats(1.01, 20), st.floats(0.5, 3))
def test_a_run_that_is_k_times_faster_has_a_speed_up_of_k(factor: float, drop: float) -> None:
    points = [(100.0 * i, 4 + 10 * math.exp(-drop * i / 10)) for i in range(1, 41)]
    fast = [(tokens / factor, perplexity) for tokens, perplexity in points]
    assert speed_up(curve(*points), curve(*fast)) == pytest.approx(factor)
