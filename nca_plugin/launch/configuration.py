"""A Hydra configuration file as Megatron-LM arguments: one of ours, or one of NeMo 1."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.hydra_files import checked_by, compose_file, resolved
from nca_plugin.megatron.arguments import megatron_arguments, with_data_path
from nca_plugin.nemo.nemo1.translation import RESOLVERS, Translation, is_nemo1, translate
from nca_plugin.sources.section import data_path

_ARGUMENTS = "arguments."
_OPEN_SECTIONS = (_ARGUMENTS, "data.")


@dataclass
class LaunchConfig:
    """What a configuration file holds. Not frozen, because OmegaConf cannot merge a file into frozen ones."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's arguments without their dashes; true for a flag."""

    data: dict[str, Any] = field(default_factory=dict)
    """What takes the place of their data arguments; see `nca_plugin.sources.section`."""


@dataclass(frozen=True)
class Run:
    """What a configuration file stands for."""

    arguments: list[str]
    """Megatron-LM's."""

    translation: Translation | None
    """How they came from a NeMo 1 file; None for other files."""


def compose_run(path: Path, overrides: list[str]) -> DictConfig:
    """Return a file after overrides, which may add keys to `arguments` and `data`: those are checked later, by name.

    Raises:
        NCAPluginError: a file that cannot be read, or an override that does not fit.
    """
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    return compose_file(
        path, [f"++{override}" if override.startswith(_OPEN_SECTIONS) else override for override in overrides]
    )


def load_run(path: Path, overrides: list[str]) -> Run:
    """Return the Megatron-LM arguments, with `--data-path` if the configuration has a source or a blend.

    A file with `trainer` and `model` is NeMo 1's; `arguments` beside them win over what they say.

    Raises:
        NCAPluginError: a file that cannot be read, an unknown key, or what Megatron-LM has nothing for. The names of
            `arguments` are Megatron's to check.
    """
    config = compose_run(path, overrides)
    with in_context(f"configuration file {path}"):
        if not is_nemo1(config):
            ours = checked_by(LaunchConfig, config)
            return Run(_with_data(ours.arguments, ours), None)
        ours = checked_by(LaunchConfig, OmegaConf.masked_copy(config, ["arguments", "data"]))
        translation = translate({key: value for key, value in resolved(config).items() if key not in vars(ours)})
        return Run(_with_data({**translation.arguments, **ours.arguments}, ours), translation)


def check_world_size(run: Run) -> None:
    """Raise `NCAPluginError` if torchrun started another number of processes than a NeMo 1 file asks for."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if run.translation is not None and run.translation.world_size not in (None, started):
        raise NCAPluginError(
            f"trainer.devices times trainer.num_nodes is {run.translation.world_size}, but the number of processes is "
            f"{started}: start as many with torchrun, or change the file's"
        )


def key_of(option: str) -> str:
    """Return how a configuration file spells an option: `arguments.lr` for `--lr`."""
    return _ARGUMENTS + option.removeprefix("--")


def _with_data(arguments: dict[str, Any], config: LaunchConfig) -> list[str]:
    paths = data_path(config.data)
    argv = megatron_arguments(arguments)
    return argv if paths is None else with_data_path(argv, paths)
