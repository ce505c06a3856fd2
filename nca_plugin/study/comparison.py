"""What a study computes from the losses of its runs: pure functions of numbers.

A curve is a list of (tokens, loss): language tokens trained on so far, and the mean loss on the held-out text in nats a
token. Definitions are those of arXiv 2603.10055 where it has one.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

Curve = Sequence[tuple[float, float]]

LEVEL: Final = 0.95
POWER: Final = 0.8
_MOST_SEEDS: Final = 10_000
_QUANTILES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its confidence interval.

    Attributes:
        mean: of the values.
        low, high: Student's t interval of the mean; None for one value.
        values: one for each seed.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def is_shown(self) -> bool:
        """Whether 0 lies outside the interval: a difference is shown at its level."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one value for each seed with its interval (Student's t, two-sided).

    For values that are differences of runs with the same seed, it is the paired comparison.
    """
    # Only here, because scipy takes half a second to import.
    from scipy import stats

    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, None, None, tuple(values))
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, array.size - 1) * stats.sem(array))
    return Estimate(mean, mean - half_width, mean + half_width, tuple(values))


def gain_percent(baseline_loss: float, loss: float) -> float:
    """Return by how many per cent the perplexity is below the baseline's: from 14.66 to 13.82, 5.7 (the paper's)."""
    return 100 * (1 - math.exp(loss - baseline_loss))


def tokens_to_reach(curve: Curve, loss: float) -> float | None:
    """Return after how many tokens a curve first reaches a loss, None if it never does.

    Between two evaluations the perplexity is taken to be linear in tokens (the paper's way). A curve that begins below
    the loss reached it at its first evaluation at the latest: that one is returned.
    """
    target = math.exp(loss)
    points = [(tokens, math.exp(value)) for tokens, value in curve]
    if points[0][1] <= target:
        return points[0][0]
    for (tokens, perplexity), (next_tokens, next_perplexity) in pairwise(points):
        if next_perplexity <= target:
            share = (perplexity - target) / (perplexity - next_perplexity)
            return tokens + share * (next_tokens - tokens)
    return None


def speed_up(baseline: Curve, curve: Curve) -> float | None:
    """Return tokens at the end of the baseline / tokens at which `curve` first reaches its final perplexity.

    None if it never does; 1.62 for the paper's CodeParrot.
    """
    tokens, loss = baseline[-1]
    reached = tokens_to_reach(curve, loss)
    return None if reached is None else tokens / reached


def power(effect: float, deviation: float, num_seeds: int) -> float:
    """Return how likely a paired comparison over `num_seeds` >= 2 shows a true difference of `effect`.

    Two-sided t test of normal differences with this standard deviation: the non-central t distribution, as the mean
    over quantiles of the deviation that the seeds would show (scipy's own ends in NaN for few seeds).
    """
    from scipy import stats

    freedom = num_seeds - 1
    critical = stats.t.ppf((1 + LEVEL) / 2, freedom)
    shift = effect / deviation * math.sqrt(num_seeds)
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    shown = np.sqrt(stats.chi2.ppf(shares, freedom) / freedom)
    return float(np.mean(stats.norm.sf(critical * shown - shift) + stats.norm.cdf(-critical * shown - shift)))


def seeds_needed(effect: float, deviation: float) -> int | None:
    """Return the fewest seeds that show a true difference of `effect` with a probability of 80 %; None above 10,000.

    Args:
        effect: other than 0, in the unit of `deviation`.
        deviation: standard deviation of the paired differences over seeds, above 0.
    """
    counts = range(2, _MOST_SEEDS + 1)
    place = bisect_left(counts, POWER, key=lambda count: power(abs(effect), deviation, count))
    return counts[place] if place < len(counts) else None


def smallest_effect(deviation: float, num_seeds: int) -> float:
    """Return the smallest true difference that `num_seeds` >= 2 show with a probability of 80 %."""
    from scipy import optimize

    def missing(ratio: float) -> float:
        return power(ratio, 1.0, num_seeds) - POWER

    # For two seeds, the fewest, it is 12 standard deviations.
    return deviation * float(optimize.brentq(missing, 1e-6, 100.0))
