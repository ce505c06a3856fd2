"""Several runs of the Hydra launcher, one after the other, on the same ranks.

Megatron can be initialised once in a process, so each rank starts a process for each run. All ranks go through the runs
in the same order; the first thing a run does is to wait for its other ranks.
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

# Folders that a run writes to.
_OUTPUTS = ("--save", "--tensorboard-dir")


@dataclass(frozen=True)
class Job:
    """One run of a multirun."""

    overrides: list[str]
    name: str
    """Its part of the overrides that differ between runs."""


def run_jobs(file: ConfigFile) -> None:
    """Run a configuration with each combination of the values that its overrides, such as `a.b=1,2`, list.

    Raises:
        NCAPluginError: a run that cannot be composed, two with the same output, or one that fails.
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
        NCAPluginError: an override that is none, or has no finite list of values.
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
    """Raise `NCAPluginError` if two runs, given by their arguments, would overwrite or resume each other."""
    for option in _OUTPUTS:
        values = [argv[argv.index(option) + 1] for argv in runs if option in argv]
        for value, count in Counter(values).items():
            if count > 1:
                raise NCAPluginError(
                    f"{count} runs have {option} {value}: let it hold a value that differs, such as "
                    f"arguments.{option.removeprefix('--')}='runs/${{data.nca.preset}}'"
                )
