"""The comparison of a domain's arms with the baseline, from the rows of `results.json`."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from nca_plugin.study.curves import gain_percent
from nca_plugin.study.linear_model import (
    LEAST_SEEDS,
    NO_DOCUMENTS,
    Estimate,
    Values,
    Variance,
    differences,
    document_noise,
    noise,
    smallest_effect,
    unequal_spread,
)

#: An arm, and the extra updates of a longer baseline.
Condition = tuple[str, int]


@dataclass(frozen=True)
class Comparison:
    """The language runs of a domain, and the differences between their conditions.

    Attributes:
        rows: the rows of the domain's language runs.
        arms: all arms, the baseline among them.
        longer: for each arm with a stage 1 the extra updates of the baseline of equal compute; empty without these.
    """

    rows: list[dict[str, Any]]
    arms: list[str]
    baseline: str
    longer: Mapping[str, int]

    @property
    def summary(self) -> dict[str, dict[str, Any]]:
        """The result of each arm, and how it compares with the baseline."""
        equal_tokens = self._compared({arm: (self.baseline, 0) for arm in self.arms if arm != self.baseline})
        equal_compute = self._compared({arm: (self.baseline, extra) for arm, extra in self.longer.items()})
        base_tokens = self._runs((self.baseline, 0))[0]["tokens"]
        found = {}
        for arm in self.arms:
            losses = self.losses[self._conditions.index((arm, 0))]
            found[arm] = {
                "loss": float(losses.mean()),
                "perplexity": math.exp(losses.mean()),
                "verdict": "baseline",
                **dict.fromkeys(("difference", "gain_percent", "speed_up", "equal_compute", "smallest_effect")),
            }
            if arm in equal_tokens:
                found[arm] |= {
                    **_described(equal_tokens[arm]),
                    "speed_up": self._speed_ups(arm),
                    "smallest_effect": self._smallest_effect(arm),
                }
            if arm in equal_compute:
                tokens = self._runs((self.baseline, self.longer[arm]))[0]["tokens"]
                found[arm]["equal_compute"] = {
                    "extra_tokens": tokens - base_tokens,
                    **_described(equal_compute[arm]),
                }
        return found

    def difference(self, condition: Condition, base: Condition) -> Estimate:
        """Return the difference in final loss between two conditions, as a comparison of its own."""
        return self._compared({condition[0]: base})[condition[0]]

    @property
    def noise(self) -> dict[str, Any]:
        """The noise of a run, how probable it is that the arms only seem to differ in it, and the largest variance that
        the choice of held-out documents gives to a difference from the baseline."""
        own = self.losses[: len(self.arms)]
        found = noise(own)
        held_out = [self._held_out((arm, 0), (self.baseline, 0)) for arm in self.arms if arm != self.baseline]
        largest = max(held_out, key=lambda variance: variance.value, default=NO_DOCUMENTS)
        return {
            "deviation": found.deviation if found.freedom else None,
            "freedom": found.freedom,
            "unequal_spread": unequal_spread(own),
            "held_out": dataclasses.asdict(largest) if largest.value else None,
        }

    @cached_property
    def losses(self) -> Values:
        """The final held-out losses in nats per token, [conditions, seeds]."""
        return np.array([[row["loss"] for row in self._runs(one)] for one in self._conditions], np.float64)

    @cached_property
    def _conditions(self) -> list[Condition]:
        extras = sorted({row["extra_updates"] for row in self.rows if row["extra_updates"]})
        return [*((arm, 0) for arm in self.arms), *((self.baseline, extra) for extra in extras)]

    def _runs(self, condition: Condition) -> list[dict[str, Any]]:
        return [row for row in self.rows if (row["arm"], row["extra_updates"]) == condition]

    def _compared(self, bases: Mapping[str, Condition]) -> dict[str, Estimate]:
        """Return the differences of arms from these conditions, as one family."""
        pairs = [(self._conditions.index((arm, 0)), self._conditions.index(base)) for arm, base in bases.items()]
        held_out = [self._held_out((arm, 0), base) for arm, base in bases.items()]
        return dict(zip(bases, differences(self.losses, pairs, held_out, len(self.arms)), strict=True))

    def _held_out(self, condition: Condition, base: Condition) -> Variance:
        """Return the noise from the choice of held-out documents; none if the rows do not have their losses."""
        runs, others = self._runs(condition), self._runs(base)
        if any(row.get("documents") is None for row in (*runs, *others)):
            return NO_DOCUMENTS
        of_runs, of_others = (np.array([row["documents"] for row in rows], np.float64) for rows in (runs, others))
        return document_noise(of_runs[..., 1], of_others[..., 1], of_runs[0, :, 0])

    def _smallest_effect(self, arm: str) -> float | None:
        found, seeds = noise(self.losses[: len(self.arms)]), self.losses.shape[1]
        if seeds < LEAST_SEEDS or not found.deviation:
            return None
        held_out = self._held_out((arm, 0), (self.baseline, 0))
        return smallest_effect(found.deviation, seeds, len(self.arms), held_out)

    def _speed_ups(self, arm: str) -> dict[str, Any]:
        """Return the speed-up of each seed, and the mean on the log scale."""
        values = [row["speed_up"] for row in self._runs((arm, 0))]
        return {"values": values, "mean": math.exp(float(np.log(values).mean()))}


def verdict(difference: Estimate) -> str:
    """Return what a difference in loss shows: better, worse, none, or that there are too few seeds."""
    if len(difference.values) < LEAST_SEEDS:
        return "few seeds"
    if not difference.is_shown:
        return "none"
    return "better" if difference.mean < 0 else "worse"


def as_gain(difference: Estimate) -> Estimate:
    """Return a difference in loss as a gain in perplexity, in per cent. The mean over seeds is that of logarithms."""
    low, high = (None if end is None else gain_percent(0.0, end) for end in (difference.high, difference.low))
    values = tuple(gain_percent(0.0, value) for value in difference.values)
    return Estimate(gain_percent(0.0, difference.mean), low, high, values)


def _described(difference: Estimate) -> dict[str, Any]:
    return {
        "difference": dataclasses.asdict(difference),
        "gain_percent": dataclasses.asdict(as_gain(difference)),
        "verdict": verdict(difference),
    }
