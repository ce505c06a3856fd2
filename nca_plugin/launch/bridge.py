"""Runs Megatron-Bridge's pretraining with sources as data:

    torchrun ... -m nca_plugin.launch.bridge --recipe llama32_1b_pretrain_config data.source=nca data.nca.preset=code

Recipe, model, loop, parallelism, checkpoints and logging are Megatron-Bridge's. `data.source` names a source and
`data.<source>.<option>` its options, or `data.path` is a blend. They may also be in the YAML file. Without them the
recipe's own dataset stays. On a machine without a GPU the run uses CPU mode and says so.
"""

import sys
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nca_plugin.bridge import cpu as bridge_cpu
from nca_plugin.bridge.recipe import (
    Settings,
    load_complete,
    load_recipe,
    merged,
    read_file,
    read_overrides,
)
from nca_plugin.errors import NCAPluginError, one_line, one_line_errors, require
from nca_plugin.files import path_option
from nca_plugin.launch.process import (
    Parser,
    check_training_loop,
    die_with_spawning_process,
    die_with_torchrun,
    lost_worker_errors,
    use_shipped_dataset_helper,
)
from nca_plugin.launch.quiet import quiet
from nca_plugin.launch.ranks import take_rank
from nca_plugin.megatron import cpu_mode
from nca_plugin.sources.section import data_path
from nca_plugin.suggestions import unknown_names
from nca_plugin.this_rank import print_rank_0


@dataclass(frozen=True)
class Options:
    """The command line."""

    recipe: str | None
    config_file: Path | None
    dataset: str | None
    overrides: list[str]


def main() -> None:
    """Run `megatron.bridge.training.pretrain` with the configuration that this process's arguments name."""
    die_with_torchrun()
    quiet()
    with one_line_errors(of_every_rank=False):
        take_rank()
        launch(parse_command_line(sys.argv[1:]))


def parse_command_line(arguments: list[str]) -> Options:
    """Return the options of a command line. Raises `NCAPluginError` for an unknown option."""
    parser = Parser(
        prog="python -m nca_plugin.launch.bridge",
        description="Run Megatron-Bridge's pretraining, with sources as data.",
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="name of a function in megatron.bridge.recipes")
    parser.add_argument(
        "--config-file", type=path_option, help="YAML of settings, or without --recipe a whole configuration"
    )
    parser.add_argument("--dataset", help="dataset preset of Megatron-Bridge, or nca")
    parser.add_argument("overrides", nargs="*", help="such as data.source=nca or train.train_iters=1000")
    known, rest = parser.parse_known_intermixed_args(arguments)
    if rest:
        options = [option for action in parser._actions for option in action.option_strings]
        raise NCAPluginError(unknown_names("option", (argument.partition("=")[0] for argument in rest), options))
    if known.recipe is None and known.config_file is None:
        raise NCAPluginError("name a recipe with --recipe, or a whole configuration with --config-file")
    return Options(**vars(known))


def launch(options: Options) -> None:
    """Run `megatron.bridge.training.pretrain.pretrain`.

    Raises:
        NCAPluginError: if the run is impossible with these options or this configuration.
    """
    settings = read_settings(options)
    require("torch")
    check_training_loop()
    if find_spec("megatron.bridge") is None:
        raise NCAPluginError("Megatron-Bridge is not installed: docs/bridge.md says how to install it")
    # Checks that need no Megatron come first, because importing it takes seconds.
    is_cpu_mode = cpu_mode.prepare()
    if is_cpu_mode:
        stand_ins = bridge_cpu.add_stand_ins()
        print_rank_0(f"nca-plugin: no CUDA device: CPU mode, with stand-ins for {', '.join(stand_ins) or 'nothing'}")
    elif find_spec("transformer_engine") is None:
        raise NCAPluginError("Megatron-Bridge on CUDA imports Transformer Engine, which is not installed: install it")
    use_shipped_dataset_helper()
    try:
        config = configure(options, settings)
    except ImportError as error:
        raise NCAPluginError(
            f"a part of Megatron-Bridge {version('megatron-bridge')} cannot be imported: {one_line(error)} (this "
            "launcher was tested with 0.6.2)"
        ) from error
    if is_cpu_mode:
        print_rank_0(f"nca-plugin: CPU mode sets {' '.join(bridge_cpu.adapt(config))}")
    _pretrain(config)


@dataclass(frozen=True)
class UserSettings:
    """The user's settings without the `data` section, which Megatron-Bridge does not have."""

    file: Settings
    overrides: Settings
    data_path: list[str] | None
    """The data path that the `data` section stands for; None without such a section."""


def read_settings(options: Options) -> UserSettings:
    """Return the settings of the YAML file and of the overrides.

    Raises:
        NCAPluginError: if the file cannot be read, an override is invalid, or `data` has a wrong key.
    """
    file = {} if options.config_file is None else read_file(options.config_file)
    overrides = read_overrides(options.overrides)
    data = merged({"data": file.pop("data", None) or {}}, {"data": overrides.pop("data", None) or {}})["data"]
    if not isinstance(data, dict):
        raise NCAPluginError(f"data={data} must be a mapping of names to values, such as data.source=nca")
    return UserSettings(file, overrides, data_path(data))


def configure(options: Options, settings: UserSettings) -> Any:
    """Return the `ConfigContainer` of a run, checked as far as possible before a model is built.

    Raises:
        NCAPluginError: if a name or key is unknown, or the model cannot be trained on the data.
    """
    from nca_plugin.bridge.dataset import choose_dataset, register_dataset
    from nca_plugin.bridge.fit import check_checkpoint, fit

    register_dataset()
    if options.recipe is None:
        assert options.config_file is not None
        # The file is the whole configuration, so only the overrides are left to apply.
        config, user = load_complete(settings.file, options.config_file), settings.overrides
    else:
        config, user = load_recipe(options.recipe), merged(settings.file, settings.overrides)
    choose_dataset(config, options.dataset, settings.data_path, user)
    fit(config, merged(settings.file, settings.overrides), user)
    check_checkpoint(config)
    return config


def _pretrain(config: Any) -> None:
    from megatron.bridge.training.pretrain import pretrain

    from nca_plugin.bridge.log import DataReport, forward_step
    from nca_plugin.megatron.assertions import set_up_errors
    from nca_plugin.megatron.option_names import OptionNames

    # From here on a single rank may have an error, such as one in its own samples.
    with one_line_errors(of_every_rank=True), lost_worker_errors(), set_up_errors(lambda: OptionNames({}, str)):
        pretrain(config, forward_step, callbacks=[DataReport()])


# The checkpoint writer starts a process that imports this module again.
if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    die_with_spawning_process()
