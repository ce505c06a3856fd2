"""Turns a Hydra configuration file, ours or one of NeMo 1, into Megatron-LM arguments."""

import copy
import os
import re
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nca_plugin.configuration.hydra_files import checked_by, compose_file, resolved
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.megatron.arguments import megatron_arguments, with_data_path
from nca_plugin.nemo1.translation import RESOLVERS, Translation, is_nemo1, translate, unset_required
from nca_plugin.sources.section import data_path

_OURS = ["arguments", "data"]
#: Matches OmegaConf's messages about a value that is missing or `???`.
_MISSING: Final = re.compile(r"Interpolation key '([^']+)' not found|Missing mandatory value: (\S+)")
_OPEN_SECTIONS = tuple(f"{section}." for section in _OURS)


@dataclass
class LaunchConfig:
    """The contents of a configuration file. Not frozen, because OmegaConf cannot merge a file into a frozen class."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's arguments without their dashes, true for a flag."""

    data: dict[str, Any] = field(default_factory=dict)
    """The data, instead of Megatron-LM's data arguments; see `nca_plugin.sources.section`."""


@dataclass(frozen=True)
class ConfigFile:
    """A file and the overrides of its values."""

    folder: Path
    name: str
    """The name within the folder, with or without `.yaml`."""
    overrides: list[str]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name.removesuffix('.yaml')}.yaml"


@dataclass(frozen=True)
class LaunchArguments:
    """The Megatron-LM arguments that a configuration file stands for."""

    arguments: list[str]

    unset: list[str]
    """Options that the file sets to false or null, which are therefore not in `arguments`."""

    translation: Translation | None
    """The translation of a NeMo 1 file; None for other files."""

    keys: dict[str, str] = field(default_factory=dict)
    """The key of a NeMo 1 file from which each option comes, by option."""

    def spelling(self, option: str) -> str:
        """Return how the file spells an option."""
        return self.keys.get(option) or key_of(option)


def compose_run(file: ConfigFile) -> DictConfig:
    """Return a file with its overrides, which may add keys to `arguments` and `data`. These keys are checked later.

    Raises:
        NCAPluginError: if the file cannot be read, or an override does not fit.
    """
    overrides = []
    for override in file.overrides:
        if override.lstrip("+~").startswith(("hydra.", "hydra/")) and "hydra.searchpath" not in override:
            raise NCAPluginError(f"{override} has no effect here: what the run writes, and where, is in arguments")
        overrides.append(f"++{override}" if override.startswith(_OPEN_SECTIONS) else override)
    for name, resolver in RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    return compose_file(file.path, file.folder, overrides)


def load_run(file: ConfigFile) -> LaunchArguments:
    """Return the Megatron-LM arguments, with `--data-path` if the configuration has a source or a blend.

    A file with `trainer` and `model` is one of NeMo 1. If it also has `arguments`, these override the translated ones.

    Raises:
        NCAPluginError: if the file cannot be read, a key is unknown, or Megatron-LM has no option for it. Megatron
            itself checks the names in `arguments`.
    """
    config = compose_run(file)
    with in_context(f"configuration file {file.path}"):
        translation = None
        if is_nemo1(config):
            translation = translate({key: value for key, value in _resolved_nemo1(config).items() if key not in _OURS})
            config = OmegaConf.masked_copy(config, _OURS)
        ours = checked_by(LaunchConfig, config)
        for name in ours.arguments:
            if name == "data-source" or name.startswith("nca-"):
                raise NCAPluginError(f"arguments.{name}: name the source with data.source and data.<source>.<option>")
        arguments = {**(translation.arguments if translation else {}), **ours.arguments}
        paths = data_path(ours.data)
        argv = megatron_arguments(arguments)
        unset = unset_options(ours.arguments)
        keys = {} if translation is None else _keys(translation, ours.arguments)
        return LaunchArguments(argv if paths is None else with_data_path(argv, paths), unset, translation, keys)


def _resolved_nemo1(config: DictConfig) -> dict[Any, Any]:
    try:
        return resolved(config)
    except NCAPluginError as error:
        missing = _missing_values(config, str(error))
        if not missing:
            raise
        raise NCAPluginError(
            f"these values are missing: {', '.join(missing)}; name the file that the NeMo Framework Launcher writes, "
            "<results_dir>/<name>_hydra.yaml, which has all values"
        ) from error


def _missing_values(config: DictConfig, message: str) -> list[str]:
    """Return the names of all values that a configuration needs and lacks. OmegaConf reports only one at a time.

    Args:
        message: OmegaConf's message about the first missing value.
    """
    needed = unset_required(OmegaConf.to_container(config, resolve=False))
    config = copy.deepcopy(config)
    missing: list[str] = []
    while (match := _MISSING.search(message)) and (name := match[1] or match[2]) not in missing:
        missing.append(name)
        try:
            # With any value here, OmegaConf reports the next missing one.
            OmegaConf.update(config, name, 1, force_add=True)
            resolved(config)
        except NCAPluginError as error:
            message = str(error)
        except OmegaConfBaseException:
            break
        else:
            break
    return missing and list(dict.fromkeys((*missing, *needed)))


def _keys(translation: Translation, arguments: Container[str]) -> dict[str, str]:
    """Return the key of NeMo 1 from which each option comes, unless the option is in the file's `arguments`."""
    rows = (*translation.defaults, *translation.translated)
    return {f"--{name}": key for key, _, names in rows for name in names if name not in arguments}


def unset_options(arguments: dict[str, Any]) -> list[str]:
    """Return the options that are set to false or null in arguments without their dashes."""
    return [f"--{name}" for name, value in arguments.items() if value is None or value is False]


def check_world_size(run: LaunchArguments) -> None:
    """Raise `NCAPluginError` if the number of processes is not that of the NeMo 1 file."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if run.translation is not None and run.translation.world_size not in (None, started):
        raise NCAPluginError(
            f"trainer.devices times trainer.num_nodes is {run.translation.world_size}, but the number of processes is "
            f"{started}: start as many with torchrun, or change the file's"
        )


def key_of(option: str) -> str:
    """Return how a configuration file spells an option: `arguments.lr` for `--lr`."""
    return f"arguments.{option.removeprefix('--')}"
