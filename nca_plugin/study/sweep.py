"""Sweeps: the combinations of arguments to try, and the best of them."""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from nca_plugin.study.design import StudyConfig, SweepConfig
from nca_plugin.study.run import Arguments

#: Arguments with this in their names set the initialisation, which stage 1 shares with the language stage.
INITIALISATION: Final = "init-method"


@dataclass(frozen=True)
class Chosen:
    """The arguments that the sweeps have chosen for a domain.

    Attributes:
        language: those of the language stage; empty without a sweep.
        stage1: those of stage 1, by arm; an arm without a sweep is not in it.
    """

    language: Arguments = field(default_factory=dict)
    stage1: Mapping[str, Arguments] = field(default_factory=dict)


def combinations(sweep: SweepConfig) -> list[Arguments]:
    """Return every combination of a sweep's values."""
    return [dict(zip(sweep.arguments, values, strict=True)) for values in itertools.product(*sweep.arguments.values())]


def concerns_stage1(sweep: SweepConfig) -> bool:
    """Whether the baseline's sweep chooses something that stage 1 has too."""
    return any(INITIALISATION in name for name in sweep.arguments)


def swept_arms(study: StudyConfig) -> list[str]:
    """Return the arms whose stage 1 is swept: those that do not name a swept argument themselves."""
    if not study.stage1_sweep.arguments:
        return []
    return [
        name
        for name, arm in study.arms.items()
        if not arm.is_scratch and study.stage1_sweep.arguments.keys().isdisjoint(arm.arguments | arm.stage1_arguments)
    ]


def any_choice(study: StudyConfig) -> dict[str, Chosen]:
    """Return some combinations for each domain, which stand for the best ones as long as these are not known."""
    stage1 = dict.fromkeys(swept_arms(study), combinations(study.stage1_sweep)[0])
    return dict.fromkeys(study.domains, Chosen(combinations(study.sweep)[0], stage1))


def best_number(losses: Mapping[int, float]) -> int:
    """Return the number of the combination with the lowest final held-out loss.

    Args:
        losses: final loss by number of the combination, which is not finite if the run diverged.
    """
    return min(losses, key=lambda number: losses[number] if math.isfinite(losses[number]) else math.inf)
