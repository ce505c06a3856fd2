"""A Hydra configuration file as Megatron-LM arguments."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from nca_plugin.errors import NCAPluginError
from nca_plugin.hydra_files import checked_by, compose_file
from nca_plugin.megatron.arguments import megatron_arguments, with_data_path
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


def compose_run(path: Path, overrides: list[str]) -> DictConfig:
    """Return a file after overrides, which may add keys to `arguments` and `data`: those are checked later, by name.

    Raises:
        NCAPluginError: a file that cannot be read, or an override that does not fit.
    """
    return compose_file(
        path, [f"++{override}" if override.startswith(_OPEN_SECTIONS) else override for override in overrides]
    )


def load_arguments(path: Path, overrides: list[str]) -> list[str]:
    """Return the Megatron-LM arguments, with `--data-path` if the configuration has a source or a blend.

    Raises:
        NCAPluginError: a file that cannot be read, or an unknown key. The names of `arguments` are Megatron's to check.
    """
    context = f"configuration file {path}"
    config = checked_by(LaunchConfig, compose_run(path, overrides), context)
    try:
        paths = data_path(config.data)
    except NCAPluginError as error:
        raise NCAPluginError(f"{context}: {error}") from None
    argv = megatron_arguments(config.arguments)
    return argv if paths is None else with_data_path(argv, paths)


def key_of(option: str) -> str:
    """Return how a configuration file spells an option: `arguments.lr` for `--lr`."""
    return _ARGUMENTS + option.removeprefix("--")
