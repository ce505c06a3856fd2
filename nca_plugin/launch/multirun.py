"""Runs the Hydra launcher several times, one run after the other, on the same ranks.

Megatron can be initialised only once in a process, so each rank starts a process for each run. All ranks go through the
runs in the same order, and each run begins by waiting for all its ranks.
"""

import itertools
import os
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, replace

from hydra.core.override_parser.types import Glob, IntervalSweep

from nca_plugin import launch
from nca_plugin.configuration.hydra_files import parse_overrides
from nca_plugin.errors import NCAPluginError
from nca_plugin.launch.configuration import ConfigFile, load_run
from nca_plugin.launch.rounds import Round, rank_environment, reserved_port

# Options that name folders to which a run writes.
_OUTPUTS = ("--save", "--tensorboard-dir")


@dataclass(frozen=True)
class Job:
    """One run of a multirun."""

    overrides: list[str]
    name: str
    """The run's values of the overrides that differ between runs."""


def run_jobs(file: ConfigFile) -> None:
    """Run a configuration with each combination of the values that overrides such as `a.b=1,2` list.

    Raises:
        NCAPluginError: if a run cannot be composed, two runs have the same output, or a run fails.
    """
    jobs = expand(file.overrides)
    check_outputs([load_run(replace(file, overrides=job.overrides)).arguments for job in jobs])
    ranks = Round()
    for number, job in enumerate(jobs, start=1):
        title = f"run {number} of {len(jobs)} ({job.name})"
        key = f"run-{number}"
        command = [*(sys.executable, "-m", launch.HYDRA), "--config-dir", str(file.folder)]
        command += ["--config-name", file.name, *job.overrides]
        with reserved_port() if ranks.rank == 0 else nullcontext() as reserved:
            if reserved is not None:
                print(f"nca-plugin: {title}", flush=True)
                ranks.tell(key, reserved)
            port = ranks.hear(key) if reserved is None else reserved
            done = subprocess.run(command, env={**os.environ, **rank_environment(port)})
        if done.returncode:
            raise NCAPluginError(f"{title} ended with exit code {done.returncode}: those after it were not started")


def expand(overrides: list[str]) -> list[Job]:
    """Return the runs that overrides stand for: `["a=1,2", "b=3"]` are `["a=1", "b=3"]` and `["a=2", "b=3"]`.

    Raises:
        NCAPluginError: if an override is invalid, or its values are not a finite list.
    """
    choices = []
    for override in parse_overrides(overrides):
        if not override.is_sweep_override():
            choices.append([str(override.input_line)])
        elif isinstance(override.value(), Glob | IntervalSweep):
            raise NCAPluginError(f"{override.input_line}: list the values, such as a.b=1,2,3")
        else:
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
    swept = [len(values) > 1 for values in choices]
    return [Job(list(job), " ".join(itertools.compress(job, swept))) for job in itertools.product(*choices)]


def check_outputs(runs: list[list[str]]) -> None:
    """Raise `NCAPluginError` if two of the runs, given by their arguments, would write to the same folder."""
    for option in _OUTPUTS:
        values = [argv[argv.index(option) + 1] for argv in runs if option in argv]
        for value, count in Counter(values).items():
            if count > 1:
                raise NCAPluginError(
                    f"{count} runs have {option} {value}: let it hold a value that differs, such as "
                    f"arguments.{option.removeprefix('--')}='runs/${{data.nca.preset}}'"
                )
