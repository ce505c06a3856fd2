"""Hydra configuration files, composed with overrides."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from nca_plugin.errors import NCAPluginError


def compose_file(path: Path, overrides: list[str]) -> DictConfig:
    """Return what a file and the files that its defaults name hold, after overrides such as `a.b=1`.

    Raises:
        NCAPluginError: a file that is missing or no YAML, or an override that does not fit.
    """
    if not path.is_file():
        raise NCAPluginError(f"configuration file {path} does not exist")
    try:
        with initialize_config_dir(str(path.parent.resolve()), version_base="1.3"):
            return compose(path.stem, overrides=overrides)
    except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise NCAPluginError(f"configuration file {path}: {' '.join(str(error).split())}") from error
