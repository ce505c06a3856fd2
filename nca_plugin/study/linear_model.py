"""Differences between conditions from one linear model of all runs, as pure functions of numbers.

The result of a condition with a seed is taken to be the condition's mean, plus the seed's, plus normal noise that has
the same variance everywhere. All conditions together estimate that variance, so that few seeds suffice. The intervals
of a family of comparisons hold together: with a probability of 95 %, all of them contain the true differences (Dunnett
1955, "A multiple comparison procedure for comparing several treatments with a control").
"""

import functools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.95
POWER: Final = 0.8
#: With fewer seeds, the seeds that happened to be drawn decide, and no verdict is given.
LEAST_SEEDS: Final = 3
#: Differences from the same condition have this correlation.
_SHARED: Final = 0.5
_MOST_SEEDS: Final = 10_000
#: Number of points at which integrals are evaluated.
_POINTS: Final = 96

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A difference between two conditions.

    Attributes:
        mean: the mean over seeds.
        low, high: the ends of its interval; None for one seed.
        values: the difference for each seed.
    """

    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...]

    @property
    def is_shown(self) -> bool:
        """Whether there are enough seeds and the interval excludes 0."""
        if self.low is None or self.high is None or len(self.values) < LEAST_SEEDS:
            return False
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a single run.

    Attributes:
        deviation: the standard deviation over seeds that is left after the means of conditions and seeds.
        freedom: its degrees of freedom; 0 for one seed, and the deviation is then NaN.
    """

    deviation: float
    freedom: int


@dataclass(frozen=True, slots=True)
class Variance:
    """An estimate of a part of the variance of a difference's mean over seeds.

    Attributes:
        value: the variance.
        freedom: the degrees of freedom of the estimate.
    """

    value: float
    freedom: float


#: What the noise of the choice of documents is if nothing is known about it.
NO_DOCUMENTS: Final = Variance(0.0, math.inf)


def noise(results: Values) -> Noise:
    """Return the noise of results, float64 [conditions, seeds], pooled over all conditions."""
    freedom = (results.shape[0] - 1) * (results.shape[1] - 1)
    residuals = _residuals(results)
    return Noise(math.sqrt(float(np.square(residuals).sum()) / freedom) if freedom else math.nan, freedom)


def differences(
    results: Values,
    pairs: Sequence[tuple[int, int]],
    held_out: Sequence[Variance] | None = None,
    num_independent: int | None = None,
) -> list[Estimate]:
    """Return differences between conditions, with intervals that hold together.

    Args:
        results: float64 [conditions, seeds].
        pairs: for each difference the condition and the one that is subtracted, as indices.
        held_out: for each difference the noise from the choice of held-out documents; None if it is not known.
        num_independent: how many of the conditions estimate the noise of a run, from the first one on; None for all.
            Conditions that share their beginning with another one would make it seem smaller than it is.
    """
    found = noise(results[:num_independent])
    correlation = _SHARED if len({base for _, base in pairs}) <= 1 else 0.0
    estimates = []
    for number, (condition, base) in enumerate(pairs):
        values = results[condition] - results[base]
        mean, low, high = float(values.mean()), None, None
        if found.freedom:
            over_seeds = Variance(2 * found.deviation**2 / results.shape[1], found.freedom)
            total, freedom = _sum(over_seeds, NO_DOCUMENTS if held_out is None else held_out[number])
            # Rounded, so that the cache of critical values is of use.
            half_width = critical_value(len(pairs), float(f"{freedom:.3g}"), correlation) * math.sqrt(total)
            low, high = mean - half_width, mean + half_width
        estimates.append(Estimate(mean, low, high, tuple(values.tolist())))
    return estimates


def document_noise(losses: Values, base: Values, tokens: Values) -> Variance:
    """Return the noise in a difference in mean loss per token that comes from the choice of held-out documents.

    This is the jackknife over documents. They count by their lengths, so that their effective number is lower (Kish
    1965, "Survey sampling").

    Args:
        losses, base: the summed loss of each document, float64 [seeds, documents], of both conditions.
        tokens: the number of tokens of each document, float64 [documents], at least 2.
    """
    total, count = tokens.sum(), len(tokens)
    gaps = (losses - base).mean(axis=0)
    # By how much the mean changes without each of the documents.
    changes = (gaps - gaps.sum() / total * tokens) / (total - tokens)
    variance = float(np.square(changes).sum() * (count - 1) / count)
    return Variance(variance, float(total**2 / np.square(tokens).sum() - 1))


def _sum(over_seeds: Variance, held_out: Variance) -> tuple[float, float]:
    """Return the sum of two variances, and its degrees of freedom by Satterthwaite's approximation."""
    total = over_seeds.value + held_out.value
    if not total:
        return 0.0, over_seeds.freedom
    return total, total**2 / (over_seeds.value**2 / over_seeds.freedom + held_out.value**2 / held_out.freedom)


def unequal_spread(results: Values) -> float:
    """Return the probability of residuals that differ as much in spread between conditions, if their spread is equal.

    This is the test of Brown and Forsythe (1974) on the residuals of float64 [conditions, seeds]. For fewer than three
    seeds or conditions it is 1.
    """
    from scipy import stats

    if min(results.shape) < LEAST_SEEDS:
        return 1.0
    found = float(stats.levene(*_residuals(results), center="median").pvalue)
    return 1.0 if math.isnan(found) else found


def _residuals(results: Values) -> Values:
    means = results.mean(axis=1, keepdims=True) + results.mean(axis=0, keepdims=True) - results.mean()
    return results - means


@functools.lru_cache(maxsize=4096)
def critical_value(num_comparisons: int, freedom: float, correlation: float) -> float:
    """Return the c for which all of `num_comparisons` t statistics lie in -c .. c with a probability of 95 %.

    The statistics share the estimate of the variance, and each two have this correlation. For one of them, c is the
    quantile of Student's t.
    """
    # Imported here, because scipy takes half a second to import.
    from scipy import optimize, stats

    if num_comparisons == 1:
        return float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    most = float(stats.t.ppf(1 - (1 - LEVEL) / 2 / num_comparisons, freedom))
    least = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
    deviations, weights = _deviations(freedom)
    shared, shared_weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    shared_weights = shared_weights / shared_weights.sum()
    scale, shift = math.sqrt(1 - correlation), math.sqrt(correlation) * shared

    def missing(limit: float) -> float:
        reach = limit * deviations[:, None]
        inside = stats.norm.cdf((reach - shift) / scale) - stats.norm.cdf((-reach - shift) / scale)
        return float(weights @ (inside**num_comparisons @ shared_weights)) - LEVEL

    # Bonferroni's inequality gives the upper end.
    return float(optimize.brentq(missing, least, most * 1.001))


def _deviations(freedom: float) -> tuple[Values, Values]:
    """Return points and weights of the distribution of a sample deviation / the true one."""
    from scipy import stats

    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    shares = (nodes + 1) / 2
    return np.sqrt(stats.chi2.ppf(shares, freedom) / freedom), weights / 2


def power(
    effect: float, deviation: float, num_seeds: int, num_conditions: int, held_out: Variance = NO_DOCUMENTS
) -> float:
    """Return the probability that a study shows a true difference from its baseline.

    Args:
        effect: the difference.
        deviation: that of `Noise`.
        num_seeds: at least 2.
        num_conditions: the baseline and what is compared with it, at least 2.
        held_out: the noise from the choice of held-out documents.
    """
    from scipy import stats

    if num_seeds < LEAST_SEEDS:
        return 0.0
    over_seeds = Variance(2 * deviation**2 / num_seeds, (num_conditions - 1) * (num_seeds - 1))
    total, freedom = _sum(over_seeds, held_out)
    limit = critical_value(num_conditions - 1, freedom, _SHARED)
    deviations, weights = _deviations(freedom)
    shift = abs(effect) / math.sqrt(total)
    # scipy's own non-central t distribution gives NaN for few seeds.
    shown = stats.norm.sf(limit * deviations - shift) + stats.norm.cdf(-limit * deviations - shift)
    return float(weights @ shown)


def seeds_needed(effect: float, deviation: float, num_conditions: int, held_out: Variance = NO_DOCUMENTS) -> int | None:
    """Return the smallest number of seeds that show a true difference with a probability of 80 %.

    None stands for more than 10,000: the held-out text is then too short, or the effect too small. The arguments are
    those of `power`.
    """
    counts = range(LEAST_SEEDS, _MOST_SEEDS + 1)
    place = bisect_left(counts, POWER, key=lambda count: power(effect, deviation, count, num_conditions, held_out))
    return counts[place] if place < len(counts) else None


def smallest_effect(deviation: float, num_seeds: int, num_conditions: int, held_out: Variance = NO_DOCUMENTS) -> float:
    """Return the smallest true difference that so many seeds, at least 3, show with a probability of 80 %.

    The arguments are those of `power`.
    """
    from scipy import optimize

    unit = math.sqrt(2 * deviation**2 / num_seeds + held_out.value)

    def missing(ratio: float) -> float:
        return power(ratio * unit, deviation, num_seeds, num_conditions, held_out) - POWER

    return unit * float(optimize.brentq(missing, 1e-6, 100.0))
