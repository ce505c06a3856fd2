"""What a run of a study is: its arguments, what it starts from, and where its files are."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nca_plugin.study.corpus import StudyCorpus
from nca_plugin.tasks.tokenizer_folders import BYTE_TOKENIZER
from nca_plugin.text.prepare import BYTES
from nca_plugin.transition.changes import Transition

_SAVES: Final = 5

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        origin: the run whose last checkpoint it is made of.
        transition: what it takes over; None for all of it, as it is.
    """

    origin: "Run"
    transition: Transition | None


@dataclass(frozen=True)
class Tuning:
    """What a run tunes its model on.

    Attributes:
        examples: a JSONL file.
        digest: of its content.
        tokenizer: that of its text, as `nca_plugin.text.prepare` takes it.
    """

    examples: Path
    digest: str
    tokenizer: str


@dataclass(frozen=True)
class Question:
    """What a run's model is asked.

    Attributes:
        task: of lm-eval.
        options: of `nca-plugin eval`, without paths.
        data: in place of the task's data set.
        tokenizer: as `nca_plugin.text.prepare` takes it.
    """

    task: str
    options: tuple[str, ...]
    data: str | None
    tokenizer: str


@dataclass(frozen=True)
class Run:
    """A run of Megatron.

    Attributes:
        folder: of its files, below the study's.
        title: for people.
        iterations: its updates.
        arguments: Megatron-LM's, without those of length, start and output.
        start: None to start from Megatron's own new values.
        corpus: the text that it is trained on; None for a source, which its arguments name.
        source: URI of a source whose held-out samples the trained model is to predict; None for text.
        is_evaluated: whether the trained model's predictions and heads are looked at.
        is_kept: whether another run, or a user, needs its last checkpoint.
        tuning: None for a run on a text or a source.
        question: None for a run whose model is not asked anything.
    """

    folder: Path
    title: str
    iterations: int
    arguments: Arguments
    start: Start | None = None
    corpus: StudyCorpus | None = None
    source: str | None = None
    is_evaluated: bool = True
    is_kept: bool = True
    tuning: Tuning | None = None
    question: Question | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def start_checkpoint(self) -> Path:
        """Made for this run, where its start has a transition."""
        return self.folder / "start"

    @property
    def index_cache(self) -> Path:
        """Where Megatron keeps the order of the text's samples while the run is under way."""
        return self.folder / "cache"

    @property
    def identity(self) -> str:
        """A fingerprint of all that its result depends on; not of where its files are."""
        start = None if self.start is None else [self.start.origin.identity, _described(self.start.transition)]
        text = None if self.corpus is None else self.corpus.facts
        told = [self.iterations, self.arguments, text, start, self.source]
        if self.tuning is not None:
            told += [self.tuning.digest, self.tuning.tokenizer]
        if self.question is not None:
            told.append(asdict(self.question))
        return digest_of(told)


def megatron_options(run: Run) -> Arguments:
    """Return all of Megatron-LM's arguments of a run."""
    text: Arguments = {}
    if run.corpus is not None:
        text = {
            "train-data-path": run.corpus.train,
            "valid-data-path": run.corpus.validation,
            # Megatron writes the files of its cache in place: another run would have mapped them.
            "data-cache-path": str(run.index_cache),
        }
    if run.tuning is not None:
        text = {
            "train-data-path": str(run.tuning.examples),
            "tokenizer-type": "HuggingFaceTokenizer",
            "tokenizer-model": str(BYTE_TOKENIZER) if run.tuning.tokenizer == BYTES else run.tuning.tokenizer,
            "tokenizer-hf-no-include-special-tokens": True,
        }
    return {
        "save-interval": max(1, -(-run.iterations // _SAVES)),
        **run.arguments,
        **text,
        "train-iters": run.iterations,
        "save": str(run.checkpoint),
        "load": str(run.checkpoint),
        "pretrained-checkpoint": None if run.start is None else str(_started_from(run)),
        "tensorboard-dir": str(run.folder / "tensorboard"),
    }


def _started_from(run: Run) -> Path:
    assert run.start is not None
    return run.start.origin.checkpoint if run.start.transition is None else run.start_checkpoint


def _described(transition: Transition | None) -> Any:
    return None if transition is None else transition.described()


def digest_of(value: Any) -> str:
    """Return what tells plain values from others, 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
