"""Megatron-LM's pretraining from a Hydra configuration, with sources as data:

    torchrun ... -m nca_plugin.launch.hydra --config-dir D --config-name C data.source=nca data.nca.preset=code

`arguments` holds Megatron-LM's arguments without their dashes; `data`, which the file need not have, takes the place of
their data arguments: `data.source` names a source and `data.<source>.<option>` its options, or `data.path` is what
`--data-path` takes, such as `[0.1, nca://web, 0.9, my_text_document]`.
"""

import argparse
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nca_plugin.errors import NCAPluginError, one_line_errors, unknown_name
from nca_plugin.hydra_files import compose_file
from nca_plugin.launch.megatron import launch
from nca_plugin.megatron.arguments import megatron_arguments, with_data_path
from nca_plugin.sources.section import data_path


def main() -> None:
    """Run `megatron.training.pretrain` with the configuration that this process's arguments name."""
    with one_line_errors(of_every_rank=False):
        parser = _Parser(description="Run Megatron-LM's pretraining from a Hydra configuration.", allow_abbrev=False)
        parser.add_argument("--config-dir", type=Path, default=Path(), help="folder of the configuration")
        parser.add_argument("--config-name", required=True, help="name of its file, without .yaml")
        parser.add_argument("overrides", nargs="*", help="such as data.source=nca or arguments.lr=1e-3")
        options = parser.parse_intermixed_args()
        launch(load_arguments(options.config_dir / f"{options.config_name}.yaml", options.overrides))


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise NCAPluginError(f"{message} (see --help)")


def load_arguments(path: Path, overrides: list[str]) -> list[str]:
    """Return the Megatron-LM arguments, with `--data-path` if the configuration has a source or a blend.

    Raises:
        NCAPluginError: a file that cannot be read, or an unknown key.
    """
    context = f"configuration file {path}"
    try:
        config = OmegaConf.to_container(compose_file(path, list(map(_added, overrides))), resolve=True)
    except OmegaConfBaseException as error:
        raise NCAPluginError(f"{context}: {' '.join(str(error).split())}") from error
    assert isinstance(config, dict)
    for key in config:
        if key not in ("arguments", "data"):
            raise NCAPluginError(f"{context}: {unknown_name('key', str(key), ('arguments', 'data'))}")
    arguments, data = (_section(context, config, name) for name in ("arguments", "data"))
    argv = megatron_arguments(arguments)
    try:
        paths = data_path(data)
    except NCAPluginError as error:
        raise NCAPluginError(f"{context}: {error}") from None
    return argv if paths is None else with_data_path(argv, paths)


def _added(override: str) -> str:
    """Return an override that adds a key of `data` where the file has none: an unknown one is found later."""
    return f"++{override}" if override.startswith("data.") else override


def _section(context: str, config: dict[Any, Any], name: str) -> dict[Any, Any]:
    """Return a mapping of the configuration, empty if it is absent or null."""
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise NCAPluginError(f"{context}: {name} must be a mapping of names to values")
    return section


# The checkpoint writer starts a process that imports this module again.
if __name__ == "__main__":
    main()
