"""What a study computes from the losses of its runs, as pure functions of numbers.

A curve is a list of (tokens, loss): the number of language tokens trained on so far, and the mean loss on the held-out
text in nats per token. Definitions follow arXiv 2603.10055 where the paper has one.
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
        mean: mean of the values.
        low, high: Student's t interval of the mean; None if there is only one value.
        values: one value for each seed.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def is_shown(self) -> bool:
        """Whether the interval excludes 0, so that a difference is shown at its level."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one value per seed, with its interval (Student's t, two-sided).

    If the values are differences between runs with the same seed, this is the paired comparison.
    """
    # Imported here, because scipy takes half a second to import.
    from scipy import stats

    array = np.asarray(values, np.float64)
    mean = float(array.mean())
    if array.size < 2:
        return Estimate(mean, None, None, tuple(values))
    half_width = float(stats.t.ppf((1 + LEVEL) / 2, array.size - 1) * stats.sem(array))
    return Estimate(mean, mean - half_width, mean + half_width, tuple(values))


def gain_percent(baseline_loss: float, loss: float) -> float:
    """Return the gain in perplexity over the baseline in per cent: 5.7 from 14.66 to 13.82 (the paper's numbers)."""
    return 100 * (1 - math.exp(loss - baseline_loss))


def tokens_to_reach(curve: Curve, loss: float) -> float | None:
    """Return the number of tokens at which a curve first reaches a loss, None if it never does.

    Between two evaluations the perplexity is taken to be linear in tokens, as in the paper. If a curve begins below the
    loss, the tokens of its first evaluation are returned.
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
    """Return the baseline's tokens / the tokens at which `curve` first reaches the baseline's final perplexity.

    None if it never does. The paper's value for CodeParrot is 1.62.
    """
    tokens, loss = baseline[-1]
    reached = tokens_to_reach(curve, loss)
    return None if reached is None else tokens / reached


def power(effect: float, deviation: float, num_seeds: int) -> float:
    """Return the probability that a paired comparison over `num_seeds` >= 2 shows a true difference of `effect`.

    This is a two-sided t test of normal differences with this standard deviation. The non-central t distribution is
    computed as a mean over quantiles of the sample deviation, because scipy's own gives NaN for few seeds.
    """
    from scipy import stats

    freedom = num_seeds - 1
    critical = stats.t.ppf((1 + LEVEL) / 2, freedom)
    shift = effect / deviation * math.sqrt(num_seeds)
    shares = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    shown = np.sqrt(stats.chi2.ppf(shares, freedom) / freedom)
    return float(np.mean(stats.norm.sf(critical * shown - shift) + stats.norm.cdf(-critical * shown - shift)))


def seeds_needed(effect: float, deviation: float) -> int | None:
    """Return the smallest number of seeds that show a true difference of `effect` with a probability of 80 %.

    None stands for more than 10,000.

    Args:
        effect: not 0, in the unit of `deviation`.
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

    # For two seeds, the fewest, the ratio is 12.
    return deviation * float(optimize.brentq(missing, 1e-6, 100.0))
