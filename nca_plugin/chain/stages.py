"""Reads a chain file, which lists the stages and what each takes over from the stage before it.

The dataclasses for a file are not frozen, because OmegaConf cannot merge a file into frozen ones.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from nca_plugin import launch
from nca_plugin.configuration.hydra_files import checked_by, compose_file, find_file, shipped_folder
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.launch.configuration import ConfigFile, LaunchArguments, load_run, unset_options
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.presets import PRESETS
from nca_plugin.transition.selectors import check_selectors
from nca_plugin.transition.summary import FREEZE_LIST

#: Overrides of these keys may add them to a file.
_OPEN: Final = re.compile(r"(arguments|stages\.[^.=]+\.(arguments|transition))\.")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")

#: Megatron-LM's arguments that a stage must not have, with the reasons.
_REFUSED: Final = {
    **dict.fromkeys(
        ("save", "load", "pretrained-checkpoint", "exit-signal-handler", "exit-signal", "freeze-list"),
        "the chain sets it",
    ),
    **dict.fromkeys(("train-iters", "train-samples"), "give it beside the stage's arguments, as train_iters"),
    **dict.fromkeys(("finetune", "ckpt-step"), "the chain decides where a stage starts"),
    **dict.fromkeys(
        ("no-save-optim", "no-save-rng", "no-load-optim", "no-load-rng"),
        "a stage that was killed could not continue as if it had not been",
    ),
    **dict.fromkeys(
        ("exit-interval", "exit-duration-in-mins", "phase-transition-iterations", "skip-train"),
        "it ends a stage before it is complete; to stop a chain, make the file that it names at its start",
    ),
}


@dataclass
class TransitionConfig:
    """What a stage takes over from the stage before it. The fields are those of `Transition`."""

    preset: str = "default"
    keep: list[str] = field(default_factory=list)
    reinit: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)
    freeze: list[str] = field(default_factory=list)
    vocab_size: int | None = None
    make_vocab_size_divisible_by: int | None = None
    tensor_model_parallel_size: int | None = None
    keep_rows: str | None = None
    row_map: str | None = None
    seed: int = 1234
    layout: str = "link"
    verify: bool = False

    def transition(self) -> Transition:
        """Return the transition. Raises `NCAPluginError` for values that are wrong for any checkpoint."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if self.preset not in PRESETS:
            raise NCAPluginError(f"unknown preset '{self.preset}': choose from {', '.join(PRESETS)}")
        check_selectors((*self.keep, *self.reinit, *self.drop, *self.freeze))
        return Transition(**{**values, "row_map": None if self.row_map is None else Path(self.row_map)})


@dataclass
class StageConfig:
    """A run of Megatron-LM: its length, and its arguments or a Hydra file with them."""

    train_iters: int | None = None
    train_samples: int | None = None
    """The length of the stage. Exactly one of the two is set."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's arguments without their dashes, true for a flag. They override those of the chain."""

    config_name: str | None = None
    """A file for `nca_plugin.launch.hydra`, instead of arguments."""

    config_dir: str | None = None
    """The folder of that file; the folder of nca-plugin's own files by default."""

    overrides: list[str] = field(default_factory=list)
    """Overrides of values in that file, such as `data.source=nca`."""

    transition: TransitionConfig = field(default_factory=TransitionConfig)
    """What the stage takes over from the stage before it."""


@dataclass
class ChainConfig:
    """The contents of a chain file."""

    folder: str
    """The folder to which the chain writes everything."""

    stages: dict[str, StageConfig]
    """The stages in the order in which they are trained."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's arguments for every stage without a Hydra file."""


@dataclass(frozen=True)
class Stage:
    """A stage with everything that is needed to train it."""

    name: str
    folder: Path
    """The save folder."""

    module: str
    """The module that torchrun would start with `-m`."""

    arguments: tuple[str, ...]
    """The arguments of the module, including those that the chain sets."""

    options: tuple[str, ...]
    """Megatron-LM's arguments, which `arguments` stand for."""

    unset: tuple[str, ...]
    """Options that the file sets to false or null, which are therefore not in `options`."""

    train_iters: int | None
    train_samples: int | None
    """The length of the stage. One of the two is None."""

    transition: Transition | None
    start: Path | None
    """The transition to this stage, and its start checkpoint. Both are None for the first stage."""

    @property
    def length(self) -> str:
        """The length, for people to read."""
        return f"{self.train_iters:,}" if self.train_iters is not None else f"{self.train_samples:,} samples"

    def progress(self, iteration: int) -> str:
        """Return the progress at an iteration, for people to read."""
        return f"at iteration {iteration:,} of {self.length}" if self.train_iters else f"at iteration {iteration:,}"


@dataclass(frozen=True)
class Chain:
    """The stages of a chain, in order."""

    path: Path
    """The chain file."""

    folder: Path
    stages: tuple[Stage, ...]

    @property
    def stop_file(self) -> Path:
        """The file that a scheduler creates to make the chain save and end."""
        return self.folder / "stop"


def load_chain(path: Path, overrides: list[str]) -> Chain:
    """Return the chain of a Hydra file with overrides such as `stages.nca.train_iters=100`.

    Args:
        path: a file, or the bare name of one that comes with the package: `demo`.

    Raises:
        NCAPluginError: if the file is missing, a key is unknown, a value has the wrong type, or values contradict each
            other. `check_stages` checks the names of Megatron-LM's arguments.
    """
    path = find_file(path, "chain")
    overrides = [f"++{override}" if _OPEN.match(override) else override for override in overrides]
    values = compose_file(path, path.parent, overrides)
    with in_context(f"chain file {path}"):
        config = checked_by(ChainConfig, values)
        folder = Path(config.folder)
        if not config.stages:
            raise NCAPluginError("stages is empty: name one or more")
        starts = {name: folder / f"{previous}-to-{name}" for previous, name in pairwise(config.stages)}
        stages = []
        for name, stage in config.stages.items():
            with in_context(f"stages.{name}"):
                if not _NAME.fullmatch(name):
                    raise NCAPluginError("a stage's name becomes that of a folder: use letters, digits, _ and .")
                stages.append(_stage(name, stage, config.arguments, folder, starts.get(name)))
    return Chain(path, folder, tuple(stages))


def _stage(name: str, config: StageConfig, common: dict[str, Any], folder: Path, start: Path | None) -> Stage:
    if (config.train_iters is None) == (config.train_samples is None):
        raise NCAPluginError("give its length: train_iters or train_samples")
    length = config.train_samples if config.train_iters is None else config.train_iters
    assert length is not None
    if length < 1:
        raise NCAPluginError(f"a length of {length}: must be at least 1")
    if start is None and config.transition != TransitionConfig():
        raise NCAPluginError("transition has no meaning for the first stage: leave it out")
    with in_context("transition"):
        transition = None if start is None else config.transition.transition()
    own: dict[str, Any] = {
        "train-iters" if config.train_samples is None else "train-samples": length,
        "save": str(folder / name),
        "load": str(folder / name),
        "pretrained-checkpoint": None if start is None else str(start),
        "freeze-list": str(start / FREEZE_LIST) if start and transition and transition.freeze else None,
        "exit-signal-handler": True,
    }
    if config.config_name is None:
        if config.config_dir is not None or config.overrides:
            raise NCAPluginError("config_dir and overrides belong to a Hydra file: name it with config_name")
        given = {**common, **config.arguments}
        _check_options(given)
        module, run = (
            launch.MEGATRON,
            LaunchArguments(megatron_arguments({**given, **own}), unset_options(given), None),
        )
        arguments = run.arguments
    else:
        module, (arguments, run) = launch.HYDRA, _of_hydra_file(config, config.config_name, own)
    return Stage(
        name=name,
        folder=folder / name,
        module=module,
        arguments=tuple(arguments),
        options=tuple(run.arguments),
        unset=tuple(run.unset),
        train_iters=config.train_iters,
        train_samples=config.train_samples,
        transition=transition,
        start=start,
    )


def _of_hydra_file(config: StageConfig, name: str, own: dict[str, Any]) -> tuple[list[str], LaunchArguments]:
    """Return the launcher's arguments, and Megatron-LM's arguments that they stand for."""
    if config.arguments:
        raise NCAPluginError("arguments beside config_name: write them into overrides, as arguments.lr=1e-3")
    folder = shipped_folder() if config.config_dir is None else Path(config.config_dir)
    given = load_run(ConfigFile(folder, name, config.overrides)).arguments
    # The file may give the length too, as the files of the package do.
    length = ("train-iters", "train-samples")
    _check_options({option.removeprefix("--") for option in given if option.startswith("--")} - {*length})
    own = {**dict.fromkeys(length), **own}
    ours = [f"arguments.{key}={_quoted(value)}" for key, value in own.items() if value is not None]
    ours += [f"arguments.{key}=null" for key in length if own[key] is None and f"--{key}" in given]
    overrides = [*config.overrides, *ours]
    run = load_run(ConfigFile(folder, name, overrides))
    place = [] if config.config_dir is None else ["--config-dir", config.config_dir]
    return [*place, "--config-name", name, *overrides], run


def _quoted(value: Any) -> str:
    """Return a value as Hydra's overrides write it."""
    return f"'{value}'" if isinstance(value, str) else str(value).lower()


def _check_options(names: Any) -> None:
    for name in names:
        if name in _REFUSED:
            raise NCAPluginError(f"arguments.{name}: leave it out, {_REFUSED[name]}")
    if "save-interval" not in names:
        raise NCAPluginError("arguments.save-interval is missing: a stage that is killed continues from its last save")
