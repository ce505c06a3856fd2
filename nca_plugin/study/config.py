"""A study file: what is trained, from which starts, on which text, for how long.

The dataclasses are not frozen, because OmegaConf cannot merge a file into frozen ones.
"""

import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nca_plugin.checkpoint.plan import PRESETS
from nca_plugin.checkpoint.selectors import check_selectors
from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.hydra_files import checked_by, compose_file, find_file
from nca_plugin.prepare import BYTES, Corpus
from nca_plugin.sources import parse

#: Stands for the source of Python's own standard library, a corpus that every machine with Python has.
STANDARD_LIBRARY = "python-standard-library"


@dataclass
class CorpusConfig:
    """The text of the language stage; see `nca_plugin.prepare.Corpus`."""

    inputs: list[str] = field(default_factory=list)
    pattern: str = "*"
    exclude: list[str] = field(default_factory=list)
    text_key: str = "text"
    tokenizer: str = BYTES

    def corpus(self) -> Corpus:
        """Return the corpus, `python-standard-library` replaced by its folder."""
        library = sysconfig.get_paths()["stdlib"]
        inputs = tuple(library if name == STANDARD_LIBRARY else name for name in self.inputs)
        return Corpus(
            inputs=inputs,
            pattern=self.pattern,
            exclude=tuple(self.exclude),
            text_key=self.text_key,
            tokenizer=self.tokenizer,
        )


@dataclass
class StageConfig:
    """One run of Megatron."""

    iterations: int
    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM arguments without their dashes; true for a flag."""


@dataclass
class WarmUpConfig(StageConfig):
    """A stage on synthetic tokens."""

    source: str = ""
    """Source URI without its seed, which is the study's."""


@dataclass
class ArmConfig:
    """A starting point of the language stage."""

    warm_up: str
    """Name of the warm-up whose checkpoint it starts from."""

    preset: str = "default"
    keep: list[str] = field(default_factory=list)
    reinit: list[str] = field(default_factory=list)
    """As `nca-plugin transfer` takes them: a preset, and selectors that change it."""

    label: str = ""


@dataclass
class StudyConfig:
    """A study: every arm times every seed, all else equal."""

    output: str
    seeds: list[int]
    parallel_runs: int
    """Runs at the same time; each gets an equal share of the cores."""

    corpus: CorpusConfig
    arguments: dict[str, Any]
    """Megatron-LM arguments of every run."""

    warm_ups: dict[str, WarmUpConfig]
    language: StageConfig
    arms: dict[str, ArmConfig]
    baseline: str
    """The arm that the others are compared with."""


def load_study(path: Path, overrides: list[str]) -> StudyConfig:
    """Return the study of a Hydra file with overrides such as `seeds=[1,2,3]`.

    Args:
        path: a file, or the bare name of one that comes with the package: `demo`.

    Raises:
        NCAPluginError: a missing file, an unknown key, a value of the wrong type, or parts that do not fit together.
    """
    path = find_file(path, "study")
    values = compose_file(path, path.parent, overrides)
    with in_context(f"study file {path}"):
        study = checked_by(StudyConfig, values)
    _check(study, path)
    return study


def _check(study: StudyConfig, path: Path) -> None:
    def refuse(reason: str) -> None:
        raise NCAPluginError(f"study file {path}: {reason}")

    if not study.seeds or len(set(study.seeds)) < len(study.seeds):
        refuse("seeds must be one or more different numbers")
    for name in ("global-batch-size", "seq-length"):
        if name not in study.arguments:
            refuse(f"arguments.{name} is missing: the report counts tokens by it")
    if study.parallel_runs < 1:
        refuse("parallel_runs must be at least 1")
    if len(study.arms) < 2:
        refuse("arms must be two or more, to compare")
    if study.baseline not in study.arms:
        refuse(f"baseline '{study.baseline}' is not an arm: {', '.join(study.arms)}")
    for name, warm_up in study.warm_ups.items():
        if warm_up.iterations < 1 or study.language.iterations < 1:
            refuse("iterations must be at least 1")
        parse(warm_up.source)
        if "seed=" in warm_up.source:
            refuse(f"warm_ups.{name}.source: leave out seed, it is the study's")
    for name, arm in study.arms.items():
        if arm.warm_up not in study.warm_ups:
            refuse(f"arms.{name}.warm_up '{arm.warm_up}' is not a warm-up: {', '.join(study.warm_ups)}")
        if arm.preset not in PRESETS:
            refuse(f"arms.{name}: unknown preset '{arm.preset}': choose from {', '.join(PRESETS)}")
        try:
            check_selectors((*arm.keep, *arm.reinit))
        except NCAPluginError as error:
            refuse(f"arms.{name}: {error}")
