"""Several runs of the Hydra launcher, one after the other, on the same ranks.

Megatron can be initialised once in a process, so each rank starts a process for each run. All ranks go through the runs
in the same order; the first thing a run does is to wait for its other ranks.
"""

import itertools
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep
from hydra.errors import HydraException

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.launch.configuration import ConfigFile, load_run

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
    rendezvous = _rendezvous()
    for number, job in enumerate(jobs, start=1):
        title = f"run {number} of {len(jobs)} ({job.name})"
        if os.environ.get("RANK", "0") == "0":
            print(f"nca-plugin: {title}", flush=True)
        command = [*(sys.executable, "-m", "nca_plugin.launch.hydra"), "--config-dir", str(file.folder)]
        environment = {**os.environ, **rendezvous(number)}
        done = subprocess.run([*command, "--config-name", file.name, *job.overrides], env=environment)
        if done.returncode:
            raise NCAPluginError(f"{title} ended with exit code {done.returncode}: those after it were not started")


def expand(overrides: list[str]) -> list[Job]:
    """Return the runs that overrides stand for: `["a=1,2", "b=3"]` are `["a=1", "b=3"]` and `["a=2", "b=3"]`.

    Raises:
        NCAPluginError: an override that is none, or has no finite list of values.
    """
    choices = []
    try:
        for override in OverridesParser.create().parse_overrides(overrides):
            if not override.is_sweep_override():
                choices.append([str(override.input_line)])
            elif isinstance(override.value(), Glob | IntervalSweep):
                raise NCAPluginError(f"{override.input_line}: list the values, such as a.b=1,2,3")
            else:
                choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
    except HydraException as error:
        raise NCAPluginError(one_line(error)) from error
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


def _rendezvous() -> Callable[[int], dict[str, str]]:
    """Return a function from the number of a run to the environment variables by which its ranks find each other.

    torchrun's own store serves the workers of one start: those of a second one would find the addresses of the first.
    So rank 0 serves each run at a port of its own, which it tells the others through that store.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return lambda number: {}
    # Only here, because importing torch takes seconds.
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)

    def environment(number: int) -> dict[str, str]:
        key = f"nca-plugin/run-{number}"
        if os.environ["RANK"] == "0":
            with socket.socket() as free:
                free.bind(("", 0))
                store.set(key, str(free.getsockname()[1]))
        port: bytes = store.get(key)
        return {"MASTER_PORT": port.decode(), "TORCHELASTIC_USE_AGENT_STORE": "False"}

    return environment
