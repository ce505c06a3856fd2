"""The schema of a study file: which starts are compared, on which texts, with which seeds, for how long.

The dataclasses are not frozen, because OmegaConf cannot merge a file into frozen ones.
"""

import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

from nca_plugin.display.terminal import parse_count
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse
from nca_plugin.text.prepare import BYTES, Corpus

#: As an input, this stands for the source code of Python's standard library, which every machine with Python has.
STANDARD_LIBRARY: Final = "python-standard-library"

StageName = Literal["stage1", "language"]

#: Learning-rate schedules of stage 1.
SCHEDULES: Final = ("decayed", "constant", "release")


@dataclass
class CorpusConfig:
    """A text, given as inputs for `nca-plugin prepare` or as the files that it wrote."""

    inputs: list[str] = field(default_factory=list)
    pattern: str = "*"
    exclude: list[str] = field(default_factory=list)
    text_key: str = "text"
    split: str = "train"
    tokenizer: str = BYTES

    path: str | None = None
    """Prefix of existing `.bin/.idx` files, instead of inputs."""

    vocab_size: int | None = None
    """With `path`: vocabulary size of its tokenizer."""

    epochs: float = 1.0
    """How often a run may see each token."""

    def corpus(self) -> Corpus:
        """Return the corpus to prepare, with `python-standard-library` replaced by its folder."""
        library = sysconfig.get_paths()["stdlib"]
        return Corpus(
            inputs=tuple(library if name == STANDARD_LIBRARY else name for name in self.inputs),
            pattern=self.pattern,
            exclude=tuple(self.exclude),
            text_key=self.text_key,
            split=self.split,
            tokenizer=self.tokenizer,
        )


@dataclass
class Stage1Config:
    """Stage 1, on the source or text that an arm names."""

    tokens: Any
    """Number of tokens, such as 164M; a multiple of the global batch. An arm may have its own."""

    schedule: str = "decayed"
    """Learning-rate schedule, unless an arm has its own: `decayed` (warm-up, then cosine to 0), `constant` (warm-up,
    then flat) or `release` (a warm-up until the last update)."""

    evaluations: int = 4
    """How often the held-out loss is measured."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM arguments, which override those of the study."""


@dataclass
class LanguageConfig:
    """Stage 2, on text."""

    tokens: Any
    """Number of tokens; a domain may have its own."""

    validation_tokens: Any
    """Number of held-out tokens, all of which are evaluated each time."""

    evaluations: int = 20
    """Number of evaluations, at equal intervals. They are the points of the curves."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM arguments, which override those of the study."""


@dataclass
class DomainConfig:
    """A text that all arms are trained on."""

    corpus: CorpusConfig
    tokens: Any = None
    """Number of tokens of its language stage, if not the common one."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM arguments, which override those of the language stage."""

    paper: str | None = None
    """Name of a corpus of the paper, whose figures are shown beside this domain's."""


@dataclass
class ArmConfig:
    """A starting point of the language stage. Without source and text it is a model from scratch."""

    source: str | None = None
    """Source URI for its stage 1, without a seed, because each run has its own."""

    text: CorpusConfig | None = None
    """Natural text for its stage 1, instead of a source."""

    tokens: Any = None
    schedule: str | None = None
    """Learning-rate schedule of its stage 1, if not the common one."""

    stage1_seed: int | None = None
    """Seed of one stage 1 that the runs of all seeds start from. Without it, each seed has a stage 1 of its own."""

    preset: str = "default"
    keep: list[str] = field(default_factory=list)
    reinit: list[str] = field(default_factory=list)
    """What stage 2 takes over, as for `nca-plugin transfer`: a preset, and selectors that change it."""

    arguments: dict[str, Any] = field(default_factory=dict)
    stage1_arguments: dict[str, Any] = field(default_factory=dict)
    language_arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM arguments of both its stages and of each, which override all others, also those of the sweep."""

    label: str = ""

    @property
    def is_scratch(self) -> bool:
        """Whether the arm has no stage 1."""
        return self.source is None and self.text is None


@dataclass
class TaskConfig:
    """A task for the trained model of every arm, which is first tuned on the task's examples if there are any."""

    task: str = "nca_prompt_answer"
    """Name of the task, as for `nca-plugin eval`."""

    data: str | None = None
    """Own data instead of the task's data set, as for `--data` of `nca-plugin eval`."""

    train: str | None = None
    """JSONL file of examples to tune on, as `nca-plugin examples` writes it; None to evaluate without tuning."""

    epochs: float = 1.0
    """How often a run sees each example."""

    samples: int | None = None
    max_tokens: int | None = None
    limit: int | None = None
    allow_model_code: bool = False
    """Options of `nca-plugin eval`."""

    domains: list[str] = field(default_factory=list)
    """Domains whose models are evaluated (default: all)."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM arguments of the tuning, such as its learning rate, which override all others."""


@dataclass
class SweepConfig:
    """Settings to try first. The language stage's are tried with the baseline, and all arms then use the best ones;
    stage 1's are tried for each stage 1 on its own loss. An arm may name its own."""

    arguments: dict[str, list[Any]] = field(default_factory=dict)
    """Megatron-LM arguments, each with the values to try; all combinations are tried. In the language stage's sweep,
    names with `init-method` also apply to stage 1, and a `global-batch-size` keeps the number of tokens."""

    tokens: Any = None
    """Number of tokens of each run, if not that of the stage."""

    seed: int = 1000
    """Seed of the sweep. The comparison must not use it, because the sweep would then choose what it measures."""


@dataclass
class StudyConfig:
    """A study: one run for every arm, seed and domain, with all else equal."""

    output: str
    seeds: list[int]
    arguments: dict[str, Any]
    """Megatron-LM arguments of every run."""

    domains: dict[str, DomainConfig]
    stage1: Stage1Config
    language: LanguageConfig
    arms: dict[str, ArmConfig]
    baseline: str
    """The arm that the others are compared with."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    stage1_sweep: SweepConfig = field(default_factory=SweepConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    equal_compute: bool = True
    """Whether the baseline is also trained longer, by the compute of an arm's stage 1."""

    parallel_runs: int = 1
    """Most runs at the same time on this machine, each with an equal share of the cores. With CUDA, at most
    devices * `runs_per_device` // `devices_per_run` run at the same time."""

    devices_per_run: int = 1
    """Number of ranks of each run."""

    runs_per_device: int = 1
    """Most runs at the same time on one CUDA device of this machine, whose memory has to hold them. More than 1 is only
    for runs of one rank."""


@dataclass(frozen=True)
class Study:
    """A study as read from its file."""

    name: str
    """The name or path that the user gave."""

    path: Path
    overrides: tuple[str, ...]
    config: StudyConfig
    launcher: tuple[str, ...] = ()
    """Overrides that name a Hydra launcher; empty to start runs on this machine."""

    @property
    def output(self) -> Path:
        return Path(self.config.output)


def num_tokens(study: StudyConfig, stage: StageName, own_tokens: Any = None) -> int:
    """Return the number of tokens of a stage's budget, or of `own_tokens` instead.

    Raises:
        NCAPluginError: the budget is not a number.
    """
    if own_tokens is None:
        return parse_count(str(getattr(study, stage).tokens), f"{stage}.tokens")
    return parse_count(str(own_tokens), "tokens")


def num_updates(
    study: StudyConfig, stage: StageName, own_tokens: Any = None, swept: Mapping[str, Any] = MappingProxyType({})
) -> int:
    """Return the number of updates for a stage's budget, or for `own_tokens` instead.

    Args:
        swept: arguments that a sweep sets, such as the global batch size.

    Raises:
        NCAPluginError: the budget is not a number, or not a multiple of the batch.
    """
    arguments = {**study.arguments, **getattr(study, stage).arguments, **swept}
    batch = int(arguments["global-batch-size"]) * int(arguments["seq-length"])
    tokens = num_tokens(study, stage, own_tokens)
    return _multiple(tokens, batch, f"{stage}.tokens" if own_tokens is None else "tokens")


def validation_tokens(study: StudyConfig) -> int:
    """Return the number of held-out tokens. Raises `NCAPluginError` unless they are whole sequences for all ranks."""
    batch = int(study.arguments["seq-length"]) * study.devices_per_run
    tokens = parse_count(str(study.language.validation_tokens), "language.validation_tokens")
    return _multiple(tokens, batch, "language.validation_tokens", "a sequence for each device") * batch


def _multiple(count: int, batch: int, name: str, unit: str = "a global batch") -> int:
    if count < batch or count % batch:
        below = max(count // batch, 1) * batch
        nearest = sorted({below, max(count // batch + 1, 1) * batch})
        raise NCAPluginError(
            f"{name} {count:,}: is not a multiple of {batch:,} tokens, {unit}; the nearest multiples are "
            f"{' and '.join(map(str, nearest))}"
        )
    return count // batch


def seeded(uri: str, seed: int) -> Any:
    """Return the source of a URI with a seed."""
    uri = uri if "://" in uri else f"{uri}://"
    return parse(f"{uri}{'&' if '?' in uri else '?'}seed={seed}")
