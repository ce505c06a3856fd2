"""How many seeds a study needs for effects of several sizes."""

import json
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.table import Table

from nca_plugin.errors import NCAPluginError
from nca_plugin.study.comparison import LEVEL, POWER, seeds_needed, smallest_effect

#: Gains in perplexity, in per cent; the paper's largest is 5.7.
GAINS: Final = (0.5, 1.0, 2.0, 5.7)
_SEEDS: Final = (2, 3, 4, 5, 6, 8, 10, 15, 20)


def power_tables(folder: Path) -> list[Table]:
    """Return the tables of `--power`, from the spread over seeds in a study's results if there are any.

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
        return [_of_arms(values), _in_deviations()]
    except (ValueError, KeyError, TypeError) as error:
        raise NCAPluginError(f"{path} cannot be read ({error!r}): run the study again") from error


def _of_arms(values: dict[str, Any]) -> Table:
    seeds = len(values["seeds"])
    table = Table(title=f"Seeds for a gain in perplexity, from the spread over {seeds} seeds (power {POWER:.0%})")
    for heading in ("domain", "arm", "spread of the difference (nats)", *(f"{gain:g} %" for gain in GAINS)):
        table.add_column(heading, justify="left" if heading in ("domain", "arm") else "right")
    table.add_column(f"smallest gain that {seeds} seeds show", justify="right")
    for domain, arms in values["summary"].items():
        for arm, summary in arms.items():
            if summary["difference"] is None:
                continue
            deviation = float(np.std(summary["difference"]["values"], ddof=1))
            counts = [seeds_needed(-math.log(1 - gain / 100), deviation) if deviation else 2 for gain in GAINS]
            smallest = 100 * (1 - math.exp(-smallest_effect(deviation, seeds)))
            shown = ["over 10,000" if count is None else f"{count:,}" for count in counts]
            table.add_row(domain, arm, f"{deviation:.4f}", *shown, f"{smallest:.2f} %")
    table.caption = (
        "A standard deviation from few seeds is uncertain itself: from three, the true one may be half as large or six "
        "times as large."
    )
    return table


def _in_deviations() -> Table:
    table = Table(title=f"The smallest effect that paired seeds show (power {POWER:.0%}, interval {LEVEL:.0%})")
    table.add_column("seeds", justify="right")
    table.add_column("effect / standard deviation over seeds of the paired difference", justify="right")
    for seeds in _SEEDS:
        table.add_row(str(seeds), f"{smallest_effect(1.0, seeds):.2f}")
    return table
