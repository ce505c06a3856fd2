"""Schema of a study file: which starts are compared, on which text, with which seeds, for how long.

The dataclasses are not frozen, because OmegaConf cannot merge a file into frozen ones.
"""

import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from nca_plugin.display.terminal import parse_count
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse
from nca_plugin.text.prepare import BYTES, Corpus

#: Stands for the source of Python's own standard library, a corpus that every machine with Python has.
STANDARD_LIBRARY: Final = "python-standard-library"

StageName = Literal["stage1", "language"]

#: Learning-rate schedules of stage 1.
SCHEDULES: Final = ("decayed", "constant", "release")


@dataclass
class CorpusConfig:
    """A text: what `nca-plugin prepare` takes, or what it has written."""

    inputs: list[str] = field(default_factory=list)
    pattern: str = "*"
    exclude: list[str] = field(default_factory=list)
    text_key: str = "text"
    split: str = "train"
    tokenizer: str = BYTES

    path: str | None = None
    """Prefix of `.bin/.idx` that are there already, in place of inputs."""

    vocab_size: int | None = None
    """With `path`: ids of its tokenizer."""

    epochs: float = 1.0
    """How often a run may see a token of it."""

    def corpus(self) -> Corpus:
        """Return what is to be prepared, `python-standard-library` replaced by its folder."""
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
    """Stage 1, on what an arm names."""

    tokens: Any
    """Budget, such as 164M; a multiple of the global batch. An arm may have its own."""

    schedule: str = "decayed"
    """Of its learning rate, unless an arm has its own: `decayed` (warm-up, cosine to 0), `constant` (warm-up, then
    flat) or `release` (the end of a warm-up: it rises until the last update)."""

    evaluations: int = 4
    """How often its held-out loss is measured."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's, over those of the study."""


@dataclass
class LanguageConfig:
    """Stage 2, on text."""

    tokens: Any
    """Budget; a domain may have its own."""

    validation_tokens: Any
    """Held-out tokens, all of which are evaluated each time."""

    evaluations: int = 20
    """How often, at equal distances: the resolution of the curves."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's, over those of the study."""


@dataclass
class DomainConfig:
    """A text that all arms are trained on."""

    corpus: CorpusConfig
    tokens: Any = None
    """Budget of its language stage, if it has its own."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's, over those of the language stage."""

    paper: str | None = None
    """Which of the paper's corpora it stands for: its figures are shown beside."""


@dataclass
class ArmConfig:
    """A starting point of the language stage. Without source and text it starts from new values: from scratch."""

    source: str | None = None
    """Source URI of its stage 1, without seed, which is the run's."""

    text: CorpusConfig | None = None
    """Natural text for its stage 1, in place of a source."""

    tokens: Any = None
    schedule: str | None = None
    """Of its stage 1, if it has its own."""

    preset: str = "default"
    keep: list[str] = field(default_factory=list)
    reinit: list[str] = field(default_factory=list)
    """As `nca-plugin transfer` takes them: a preset, and selectors that change it."""

    arguments: dict[str, Any] = field(default_factory=dict)
    stage1_arguments: dict[str, Any] = field(default_factory=dict)
    language_arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's, of both its stages and of each: over all others, the sweep's too."""

    label: str = ""

    @property
    def is_scratch(self) -> bool:
        """Whether it has no stage 1."""
        return self.source is None and self.text is None


@dataclass
class TaskConfig:
    """A task that the trained model of every arm is asked, after being tuned on it if it has examples to train on."""

    task: str = "nca_prompt_answer"
    """Of lm-eval, as `nca-plugin eval` takes it."""

    data: str | None = None
    """In place of its data set: `--data` of `nca-plugin eval`."""

    train: str | None = None
    """JSONL of examples to tune on, as `nca-plugin examples` writes them; without, the model is asked as it is."""

    epochs: float = 1.0
    """How often a run sees an example."""

    samples: int | None = None
    max_tokens: int | None = None
    limit: int | None = None
    allow_model_code: bool = False
    """As `nca-plugin eval` takes them."""

    domains: list[str] = field(default_factory=list)
    """Whose models are asked; all of them if none is named."""

    arguments: dict[str, Any] = field(default_factory=dict)
    """Megatron-LM's of the tuning, over all others: its learning rate."""


@dataclass
class SweepConfig:
    """Settings that the baseline is tried with first; every arm then has the best, where it names none of its own."""

    arguments: dict[str, list[Any]] = field(default_factory=dict)
    """Megatron-LM's, with the values to try: all combinations are. Names with `init-method` hold for stage 1 too."""

    tokens: Any = None
    """Of each of its runs, if not those of the language stage."""

    seed: int = 1000
    """One that the comparison does not have, so that it does not choose what it measures."""


@dataclass
class StudyConfig:
    """A study: every arm times every seed times every domain, all else equal."""

    output: str
    seeds: list[int]
    arguments: dict[str, Any]
    """Megatron-LM's, of every run."""

    domains: dict[str, DomainConfig]
    stage1: Stage1Config
    language: LanguageConfig
    arms: dict[str, ArmConfig]
    baseline: str
    """The arm that the others are compared with."""

    sweep: SweepConfig = field(default_factory=SweepConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    equal_compute: bool = True
    """Whether the baseline is also trained for longer, by the compute that an arm's stage 1 takes."""

    parallel_runs: int = 1
    """Most runs at the same time on this machine; each gets an equal share of the cores. With CUDA there are no more of
    them than fit on the devices: devices * `runs_per_device` // `devices_per_run`."""

    devices_per_run: int = 1
    """Ranks of a run."""

    runs_per_device: int = 1
    """Most runs at the same time on a CUDA device of this machine, whose memory has to hold them; above 1 for runs of
    one rank only."""


@dataclass(frozen=True)
class Study:
    """A study that has been read."""

    name: str
    """As it was asked for."""

    path: Path
    overrides: tuple[str, ...]
    config: StudyConfig
    launcher: tuple[str, ...] = ()
    """Overrides that name Hydra's launcher; without, runs are started on this machine."""

    @property
    def output(self) -> Path:
        return Path(self.config.output)


def tokens_per_update(study: StudyConfig, stage: StageName) -> int:
    """Return the tokens of a stage's global batch."""
    arguments = {**study.arguments, **getattr(study, stage).arguments}
    return int(arguments["global-batch-size"]) * int(arguments["seq-length"])


def num_updates(study: StudyConfig, stage: StageName, own_tokens: Any = None) -> int:
    """Return the updates that a stage's budget stands for, or `own_tokens` in place of it.

    Raises:
        NCAPluginError: it is no number, or no multiple of the batch.
    """
    batch = tokens_per_update(study, stage)
    if own_tokens is None:
        return _multiple(getattr(study, stage).tokens, batch, f"{stage}.tokens")
    return _multiple(own_tokens, batch, "tokens")


def validation_tokens(study: StudyConfig) -> int:
    """Return how many tokens are held out. Raises `NCAPluginError` unless they are whole sequences for all ranks."""
    batch = int(study.arguments["seq-length"]) * study.devices_per_run
    tokens = study.language.validation_tokens
    return _multiple(tokens, batch, "language.validation_tokens", "a sequence for each device") * batch


def _multiple(tokens: Any, batch: int, name: str, unit: str = "a global batch") -> int:
    count = parse_count(str(tokens), name)
    if count < batch or count % batch:
        below = max(count // batch, 1) * batch
        nearest = sorted({below, max(count // batch + 1, 1) * batch})
        raise NCAPluginError(
            f"{name} {count:,}: is no multiple of {batch:,} tokens, {unit}; the nearest that are: "
            f"{' and '.join(map(str, nearest))}"
        )
    return count // batch


def seeded(uri: str, seed: int) -> Any:
    """Return the source of a URI, with a seed."""
    uri = uri if "://" in uri else f"{uri}://"
    return parse(f"{uri}{'&' if '?' in uri else '?'}seed={seed}")
