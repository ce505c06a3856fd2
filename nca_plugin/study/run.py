"""A run of a study: its arguments, what it starts from, and where its files are."""

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
        origin: the run whose last checkpoint is used.
        transition: what is taken over from the checkpoint; None to use it as it is.
    """

    origin: "Run"
    transition: Transition | None


@dataclass(frozen=True)
class Tuning:
    """The examples on which a run tunes its model.

    Attributes:
        examples: a JSONL file.
        digest: digest of the file.
        tokenizer: tokenizer of the model's text, as in `nca_plugin.text.prepare.Corpus`.
    """

    examples: Path
    digest: str
    tokenizer: str


@dataclass(frozen=True)
class Question:
    """The task on which a run's model is evaluated.

    Attributes:
        task: name of a task of lm-eval.
        options: options of `nca-plugin eval`, without paths.
        data: own data instead of the task's data set.
        tokenizer: tokenizer of the model's text, as in `nca_plugin.text.prepare.Corpus`.
    """

    task: str
    options: tuple[str, ...]
    data: str | None
    tokenizer: str


@dataclass(frozen=True)
class Run:
    """A run of Megatron.

    Attributes:
        folder: folder of its files, below the study's.
        title: title for messages.
        iterations: number of updates.
        arguments: Megatron-LM arguments, without those for length, start and output.
        start: None to start from Megatron's own initial values.
        corpus: the text that it is trained on; None for a source, which its arguments name.
        source: URI of a source whose held-out samples the trained model is evaluated on; None for text.
        is_evaluated: whether the predictions and heads of the trained model are measured.
        is_kept: whether another run, or a user, needs its last checkpoint.
        tuning: None for a run on a text or a source.
        question: None for a run whose model is not evaluated on a task.
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
    def tokens_per_update(self) -> int:
        """Number of tokens of its global batch."""
        return int(self.arguments["global-batch-size"]) * int(self.arguments["seq-length"])

    @property
    def tokens(self) -> int:
        """Number of tokens that it is trained on."""
        return self.iterations * self.tokens_per_update

    @property
    def start_checkpoint(self) -> Path:
        """The start checkpoint that is made for this run, if its start has a transition."""
        return self.folder / "start"

    @property
    def index_cache(self) -> Path:
        """The folder in which Megatron caches the order of the text's samples while the run trains."""
        return self.folder / "cache"

    @property
    def identity(self) -> str:
        """A fingerprint of all that the result depends on, which does not include where the files are."""
        start = None if self.start is None else [self.start.origin.identity, _described(self.start.transition)]
        text = None if self.corpus is None else self.corpus.facts
        told = [self.iterations, self.arguments, text, start, self.source]
        if self.tuning is not None:
            told += [self.tuning.digest, self.tuning.tokenizer]
        if self.question is not None:
            told.append(asdict(self.question))
        return digest_of(told)


def megatron_options(run: Run) -> Arguments:
    """Return all Megatron-LM arguments of a run."""
    text: Arguments = {}
    if run.corpus is not None:
        text = {
            "train-data-path": run.corpus.train,
            "valid-data-path": run.corpus.validation,
            # Each run has its own cache, because Megatron overwrites files in place, which another run may have mapped.
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
    """Return a digest of plain values, 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
