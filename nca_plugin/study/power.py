"""How many seeds a study needs for effects of several sizes."""

import json
import math
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from nca_plugin.errors import NCAPluginError
from nca_plugin.study.linear_model import LEAST_SEEDS, NO_DOCUMENTS, POWER, Variance, seeds_needed, smallest_effect

#: Gains in perplexity, in per cent; the paper's largest is 5.7.
GAINS: Final = (0.5, 1.0, 2.0, 5.7)
_SEEDS: Final = (3, 4, 5, 6, 8, 10, 15, 20)
_ARMS: Final = (2, 3, 4, 6, 10)


def power_tables(folder: Path) -> list[Table]:
    """Return the tables of `--power`, from the pooled noise in a study's results if there are any.

    Raises:
        NCAPluginError: the results cannot be read.
    """
    path = folder / "results.json"
    if not path.is_file():
        return [_in_deviations()]
    try:
        values = json.loads(path.read_text())
        if len(values["seeds"]) < 2:
            return [_in_deviations()]
        return [_of_domains(values), _in_deviations()]
    except (ValueError, KeyError, TypeError) as error:
        raise NCAPluginError(f"{path} cannot be read ({error!r}): run the study again") from error


def _of_domains(values: dict[str, Any]) -> Table:
    seeds, arms = len(values["seeds"]), len(values["arms"])
    table = Table(title=f"Seeds for a gain in perplexity with {arms} arms (power {POWER:.0%})")
    table.add_column("domain")
    for heading in ("deviation of a run (nats)", *(f"{gain:g} %" for gain in GAINS), f"smallest gain, {seeds} seeds"):
        table.add_column(heading, justify="right")
    freedom = 0
    for domain, facts in values["domains"].items():
        deviation, freedom = facts["noise"]["deviation"], facts["noise"]["freedom"]
        documents = facts["noise"]["held_out"]
        held_out = NO_DOCUMENTS if documents is None else Variance(**documents)
        shown, smallest = ["3"] * len(GAINS), ""
        if deviation:
            counts = [seeds_needed(math.log(1 - gain / 100), deviation, arms, held_out) for gain in GAINS]
            shown = ["over 10,000" if count is None else f"{count:,}" for count in counts]
            if seeds >= LEAST_SEEDS:
                smallest = f"{_gain(smallest_effect(deviation, seeds, arms, held_out)):.2f} %"
        table.add_row(domain, f"{deviation:.4f}", *shown, smallest)
    table.caption = (
        "The deviation over seeds is pooled over all arms, after the means of arms and seeds "
        f"({freedom} degrees of freedom). The seeds are counted with the noise from the choice of held-out documents; "
        "where that alone hides a gain, more seeds do not help, but more held-out text does."
    )
    return table


def _gain(effect: float) -> float:
    return 100 * (1 - math.exp(-effect))


def _in_deviations() -> Table:
    table = Table(title=f"The smallest effect that is shown (power {POWER:.0%}), in deviations of a run over seeds")
    table.add_column("seeds", justify="right")
    for arms in _ARMS:
        table.add_column(f"{arms} arms", justify="right")
    for seeds in _SEEDS:
        table.add_row(str(seeds), *(f"{smallest_effect(1.0, seeds, arms):.2f}" for arms in _ARMS))
    return table
