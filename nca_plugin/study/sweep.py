"""The baseline's sweep: the combinations of arguments to try, and the best of them."""

import itertools
import math
from collections.abc import Mapping

from nca_plugin.study.design import StudyConfig
from nca_plugin.study.run import Arguments


def combinations(study: StudyConfig) -> list[Arguments]:
    """Return every combination of the sweep's values."""
    names = list(study.sweep.arguments)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*study.sweep.arguments.values())]


def any_arguments(study: StudyConfig) -> dict[str, Arguments]:
    """Return some combination for each domain, which stands for the best one as long as that is not known."""
    return dict.fromkeys(study.domains, combinations(study)[0])


def best_arguments(study: StudyConfig, losses: Mapping[tuple[str, int], float]) -> dict[str, Arguments]:
    """Return the combination with the lowest final held-out loss for each domain; empty without a sweep.

    Args:
        losses: final loss by domain and number of the combination, which is not finite if the run diverged.
    """
    settings = combinations(study)
    ends = {key: loss if math.isfinite(loss) else math.inf for key, loss in losses.items()}
    best = {}
    for domain in study.domains:
        numbers = [number for of, number in ends if of == domain]
        best[domain] = settings[min(numbers, key=lambda number: ends[domain, number])] if numbers else {}
    return best
