"""Hydra configuration files, composed with overrides."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from nca_plugin.errors import NCAPluginError, in_context, one_line, unknown_name

#: The package of the configuration files that come with nca-plugin.
SHIPPED: Final = "nca_plugin.conf"


def shipped_folder() -> Path:
    """Return the folder of the configuration files that come with nca-plugin."""
    return Path(str(resources.files(SHIPPED)))


def find_file(path: Path, group: str) -> Path:
    """Return the file `path`; a bare name may be that of a file in `group` that comes with nca-plugin.

    Raises:
        NCAPluginError: there is none, with the names of those that come with the package.
    """
    shipped = shipped_folder() / group
    for candidate in (path, shipped / f"{path.name}.yaml"):
        if candidate.is_file() and (candidate is path or path.parent == Path()):
            return candidate
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
    raise NCAPluginError(f"{group} file {path} does not exist (those that come with the package: {names})")


def compose_file(path: Path, folder: Path, overrides: list[str]) -> DictConfig:
    """Return what a file and the files that its defaults name hold, after overrides such as `a.b=1`.

    Args:
        folder: where files are looked for, `path` among them; those that come with nca-plugin are found after them.

    Raises:
        NCAPluginError: a file that is missing or no YAML, or an override that does not fit, with the nearest key.
    """
    if not path.is_file():
        raise NCAPluginError(f"configuration file {path} does not exist")
    Plugins.instance().register(_ShippedFiles)
    with in_context(f"configuration file {path}"):
        try:
            with initialize_config_dir(str(folder.resolve()), version_base="1.3"):
                try:
                    return compose(path.relative_to(folder).with_suffix("").as_posix(), overrides=overrides)
                except HydraException as error:
                    # Here, where Hydra still knows its groups of files.
                    raise NCAPluginError(_described(error)) from error
        except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, ValueError) as error:
            raise NCAPluginError(one_line(error)) from error


def checked_by[T](schema: type[T], config: DictConfig) -> T:
    """Return `config` as the dataclass `schema`, its interpolations resolved.

    Raises:
        NCAPluginError: an unknown key, with the nearest known one, a value of the wrong type, or a missing one.
    """
    try:
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), config))
    except OmegaConfBaseException as error:
        raise NCAPluginError(_described(error)) from error
    assert isinstance(result, schema)
    return result


def resolved(config: DictConfig) -> dict[Any, Any]:
    """Return `config` as a mapping, its interpolations resolved. Raises `NCAPluginError` if they cannot be."""
    try:
        container = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise NCAPluginError(_described(error)) from error
    assert isinstance(container, dict)
    return container


class _ShippedFiles(SearchPathPlugin):
    """Puts our files last on the search path, so that the user's of the same name win."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("nca-plugin", f"pkg://{SHIPPED}")


def _described(error: Exception) -> str:
    """Return what is wrong: for an unknown key or file, with the nearest known one."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return unknown_name("option", f"{group}={name}", [f"{group}={option}" for option in error.options])
    cause = error if isinstance(error, OmegaConfBaseException) else error.__cause__
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key and cause.parent_node is not None:
        if cause.full_key.partition(".")[0] in _groups(""):
            group = cause.full_key.partition(".")[0]
            return f"{group} is a group of files: choose one with {group}=..., and set its keys where they end up"
        prefix = cause.full_key.removesuffix(str(cause.key))
        known = [f"{prefix}{key}" for key in dict.fromkeys([*cause.parent_node.keys(), *_groups(prefix)])]
        return unknown_name("key", cause.full_key, known)
    if isinstance(cause, MissingMandatoryValue):
        return f"{cause.full_key} has no value: give it one, {cause.full_key}=..."
    return one_line(error)


def _groups(prefix: str) -> Sequence[Any]:
    """Return the groups of files, which an override may name as it does a key."""
    if prefix or not GlobalHydra.instance().is_initialized():
        return ()
    loader = GlobalHydra.instance().config_loader()
    return [group for group in loader.list_groups("") if group != "hydra"]
