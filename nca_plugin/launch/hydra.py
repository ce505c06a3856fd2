"""Megatron-LM's pretraining from a Hydra configuration, with sources as data:

    torchrun ... -m nca_plugin.launch.hydra --config-dir D --config-name C data.source=nca data.nca.preset=code

`arguments` holds Megatron-LM's arguments without their dashes; `data`, which the file need not have, takes the place of
their data arguments: `data.source` names a source and `data.<source>.<option>` its options, or `data.path` is what
`--data-path` takes, such as `[0.1, nca://web, 0.9, my_text_document]`.
"""

import argparse
import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NoReturn

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nca_plugin.errors import NCAPluginError, one_line_errors
from nca_plugin.hydra_files import compose_file
from nca_plugin.launch.megatron import launch
from nca_plugin.megatron.arguments import megatron_arguments, with_options, without_data_arguments
from nca_plugin.sources import schemes
from nca_plugin.sources.uri import format_value, split_uri


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
    """Return the Megatron-LM arguments, with `--data-source` if the configuration has a source.

    Raises:
        NCAPluginError: a file that cannot be read, or an unknown key.
    """
    context = f"configuration file {path}"
    try:
        config = OmegaConf.to_container(compose_file(path, list(map(_added, overrides))), resolve=True)
    except OmegaConfBaseException as error:
        raise NCAPluginError(f"{context}: {' '.join(str(error).split())}") from error
    assert isinstance(config, dict)
    _check_keys(context, "", config, ("arguments", "data"))
    arguments, data = (_section(context, config, name) for name in ("arguments", "data"))
    _check_keys(context, "data.", data, ("source", "path", *schemes()))
    source, paths = data.pop("source", None), data.pop("path", None)
    if source is not None and paths is not None:
        raise NCAPluginError(f"{context}: data.source and data.path contradict each other: give one of them")
    if source is not None and not isinstance(source, str):
        raise NCAPluginError(f"{context}: data.source={source} must be a name or a URI, such as nca")
    scheme = None if source is None else split_uri(source).scheme
    for other in data:
        if other != scheme:
            raise NCAPluginError(f"{context}: data.{other} does not apply without data.source={other}: leave it out")
    argv = megatron_arguments(arguments)
    if paths is not None:
        values = paths if isinstance(paths, list) else [paths]
        return [*without_data_arguments(argv)[0], "--data-path", *map(str, values)]
    if source is None or scheme is None:
        return argv
    options = {key: format_value(_tuples(value)) for key, value in _section(context, data, scheme, "data.").items()}
    return [*argv, "--data-source", with_options(source, options, lambda name: f"data.{scheme}.{name}")]


def _added(override: str) -> str:
    """Return an override that adds a key of `data` where the file has none: an unknown one is found later."""
    return f"++{override}" if override.startswith("data.") else override


def _section(context: str, config: dict[Any, Any], name: str, prefix: str = "") -> dict[Any, Any]:
    """Return a mapping of the configuration, empty if it is absent or null."""
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise NCAPluginError(f"{context}: {prefix}{name} must be a mapping of names to values")
    return section


def _check_keys(context: str, prefix: str, section: dict[Any, Any], known: Collection[str]) -> None:
    for key in section:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {prefix}{near[0]}? " if near else ""
            raise NCAPluginError(f"{context}: unknown key {prefix}{key}; {hint}known: {', '.join(known)}")


def _tuples(value: Any) -> Any:
    """Return a band given as a list as the pair that it is."""
    return tuple(value) if isinstance(value, list) else value


# The checkpoint writer starts a process that imports this module again.
if __name__ == "__main__":
    main()
