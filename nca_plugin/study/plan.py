"""The runs of a study: what each is started with, where its files are, and which of them arms share."""

import hashlib
import itertools
import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from nca_plugin.study.corpus import StudyCorpus
from nca_plugin.study.design import ArmConfig, StudyConfig, num_updates, seeded
from nca_plugin.tasks.tokenizers import BYTE_TOKENIZER
from nca_plugin.text.examples import read_examples
from nca_plugin.text.prepare import BYTES
from nca_plugin.transition.changes import Transition

#: Arguments with this in their names are of the initialisation, which stage 1 shares with the language stage.
_INITIALISATION: Final = "init-method"
#: The release's stage 1 is the warm-up, 5,000 updates, of a schedule of 50,000.
_RELEASE_DECAY: Final = 10
_WARM_UP_SHARE: Final = 10
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
        return fingerprint(told)


@dataclass(frozen=True, order=True)
class LanguageKey:
    """Which language run: for an equal-compute baseline, with the updates that it has more."""

    domain: str
    arm: str
    seed: int
    extra_updates: int = 0


@dataclass(frozen=True, order=True)
class TaskKey:
    """Which run of a task."""

    task: str
    domain: str
    arm: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """The runs of a study whose texts are prepared.

    Attributes:
        root: the study's folder.
        corpora: of the domains, by name.
        texts: of the arms with a natural-text stage 1, by name.
    """

    study: StudyConfig
    root: Path
    corpora: dict[str, StudyCorpus]
    texts: dict[str, StudyCorpus]

    def sweep(self) -> dict[tuple[str, int], Run]:
        """Return a run of the baseline for each domain and combination of `combinations`."""
        if not self.study.sweep.arguments:
            return {}
        seed = self.study.sweep.seed
        runs = {}
        for domain in self.study.domains:
            for number, values in enumerate(combinations(self.study)):
                longer = self.sweep_updates(domain) - self.language_updates(domain)
                run = self.language(LanguageKey(domain, self.study.baseline, seed, longer), values)
                varied = [name for name, tried in self.study.sweep.arguments.items() if len(tried) > 1]
                title = f"sweep of {domain}: {' '.join(f'{name} {values[name]}' for name in varied)}"
                folder = self.root / "runs" / "sweep" / domain / f"{number}-{fingerprint(values)[:6]}"
                # A run that diverges has the worst loss of all, and is no reason to end the study.
                arguments = {**run.arguments, "no-check-for-nan-in-loss-and-grad": True}
                runs[domain, number] = replace(
                    run, folder=folder, title=title, arguments=arguments, is_evaluated=False, is_kept=False
                )
        return runs

    def template(self, arm: ArmConfig, best: Arguments) -> Run:
        """Return a run of one update, whose checkpoint tells what a model of an arm looks like."""
        arguments = {
            **self._both_stages(arm, best),
            "data-source": "iid://",
            "eval-iters": 0,
            "eval-interval": 1,
            "seed": 1,
        }
        name = f"template-{fingerprint(arguments)[:6]}"
        return Run(self.root / "runs" / name, f"{name}, for its shapes", 1, arguments, is_evaluated=False)

    def stage1(self, name: str, seed: int, best: Arguments) -> Run:
        """Return the stage 1 of an arm. Arms whose stage 1 is the same get the same run."""
        study, arm = self.study, self.study.arms[name]
        updates = self.stage1_updates(name)
        arguments: Arguments = {
            **self._both_stages(arm, best),
            **study.stage1.arguments,
            **_schedule(study.stage1.schedule if arm.schedule is None else arm.schedule, updates),
            **arm.arguments,
            **arm.stage1_arguments,
            "seed": seed,
            "eval-interval": max(1, updates // study.stage1.evaluations),
        }
        if arm.source is not None:
            source = seeded(arm.source, seed)
            arguments["data-source"] = source.uri
            kind, uri = source.uri.partition("://")[0], source.uri
        else:
            arguments |= _text_arguments(self.texts[name], study, arguments)
            kind, uri = "text", None
        of_all_seeds = {**arguments, "seed": None, "data-source": arm.source}
        text = None if arm.text is None else asdict(arm.text)
        own = f"stage1-{kind}-{fingerprint([updates, of_all_seeds, text])[:6]}"
        folder = self.root / "runs" / f"seed{seed}" / own
        return Run(folder, f"{name}, seed {seed}, {own}", updates, arguments, None, self.texts.get(name), uri)

    def language(self, key: LanguageKey, best: Arguments) -> Run:
        """Return a language run."""
        study, domain, arm = self.study, self.study.domains[key.domain], self.study.arms[key.arm]
        corpus = self.corpora[key.domain]
        updates = self.language_updates(key.domain) + key.extra_updates
        arguments: Arguments = {
            **self._both_stages(arm, best),
            **study.language.arguments,
            **domain.arguments,
            **best,
            **arm.arguments,
            **arm.language_arguments,
            "seed": key.seed,
            "eval-interval": max(1, updates // study.language.evaluations),
        }
        arguments |= _text_arguments(corpus, study, arguments)
        arm_name = key.arm if not key.extra_updates else f"{key.arm}+{key.extra_updates}"
        folder = self.root / "runs" / f"seed{key.seed}" / key.domain / arm_name
        title = f"{key.arm}, seed {key.seed}, {key.domain}"
        if key.extra_updates:
            title += f", {key.extra_updates} updates longer"
        return Run(folder, title, updates, arguments, self._start(key, corpus.vocab_size, best), corpus)

    def task(self, key: TaskKey, best: Arguments) -> Run:
        """Return the run that tunes the model of a language run on a task, if it has examples, and asks it."""
        study, task, domain, arm = self.study, self.study.tasks[key.task], self.study.domains[key.domain], key.arm
        language = self.language(LanguageKey(key.domain, arm, key.seed), best)
        tokenizer = domain.corpus.tokenizer
        of_text = _text_arguments(self.corpora[key.domain], study, language.arguments)
        arguments: Arguments = {name: value for name, value in language.arguments.items() if name not in of_text}
        arguments |= {**task.arguments, "sft": True, "eval-iters": 0, "eval-interval": 1}
        options = [("--samples", task.samples), ("--max-tokens", task.max_tokens), ("--limit", task.limit)]
        question = Question(
            task.task,
            (
                *(word for name, value in options if value is not None for word in (name, str(value))),
                *(["--allow-model-code"] if task.allow_model_code else []),
            ),
            task.data,
            tokenizer,
        )
        tuning = None
        if task.train is not None:
            digest = hashlib.blake2b(Path(task.train).read_bytes(), digest_size=16).hexdigest()
            tuning = Tuning(Path(task.train), digest, tokenizer)
        return Run(
            self.root / "runs" / f"seed{key.seed}" / key.domain / f"{arm}-{key.task}",
            f"{key.task} of {arm}, seed {key.seed}, {key.domain}",
            self.task_updates(key.task),
            arguments,
            Start(language, None),
            is_evaluated=False,
            tuning=tuning,
            question=question,
        )

    def task_updates(self, name: str) -> int:
        """Return the updates of the tuning on a task, 0 without."""
        task = self.study.tasks[name]
        if task.train is None:
            return 0
        batch = int({**self.study.arguments, **self.study.language.arguments}["global-batch-size"])
        return math.ceil(task.epochs * len(read_examples(Path(task.train))) / batch)

    def stage1_updates(self, arm: str) -> int:
        """Return the length of an arm's stage 1."""
        return num_updates(self.study, "stage1", self.study.arms[arm].tokens)

    def language_updates(self, domain: str) -> int:
        """Return the length of a domain's language stage."""
        return num_updates(self.study, "language", self.study.domains[domain].tokens)

    def sweep_updates(self, domain: str) -> int:
        """Return the length of each run of a domain's sweep."""
        own = self.study.sweep.tokens
        return self.language_updates(domain) if own is None else num_updates(self.study, "language", own)

    def _start(self, key: LanguageKey, vocab_size: int, best: Arguments) -> Start:
        arm = self.study.arms[key.arm]
        if not arm.is_scratch:
            transition = Transition(arm.preset, arm.keep, arm.reinit, vocab_size=vocab_size, seed=key.seed)
            return Start(self.stage1(key.arm, key.seed, best), transition)
        # Through the same path as the others, so that what they share has the same values.
        preset, reinit = ("release", ("all",)) if arm.preset == "release" else ("scratch", ())
        transition = Transition(preset, reinit=reinit, vocab_size=vocab_size, seed=key.seed)
        return Start(self.template(arm, best), transition)

    def _both_stages(self, arm: ArmConfig, best: Arguments) -> Arguments:
        study = self.study
        log_interval = {"log-interval": 10, "num-workers": 1}
        initialisation = {name: value for name, value in best.items() if _INITIALISATION in name}
        return {**log_interval, **study.arguments, **initialisation, **arm.arguments}


def combinations(study: StudyConfig) -> list[Arguments]:
    """Return every combination of the sweep's values."""
    names = list(study.sweep.arguments)
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*study.sweep.arguments.values())]


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


def _schedule(name: str, updates: int) -> Arguments:
    """Return the arguments of a schedule over so many updates."""
    # Megatron refuses both ways of naming a warm-up.
    common = {"lr-warmup-fraction": None, "min-lr": 0.0, "lr-decay-iters": updates}
    short = {"lr-warmup-iters": updates // _WARM_UP_SHARE}
    if name == "decayed":
        return {**common, **short, "lr-decay-style": "cosine"}
    if name == "constant":
        return {**common, **short, "lr-decay-style": "constant"}
    return {
        **common,
        "lr-decay-style": "cosine",
        "lr-warmup-iters": updates,
        "lr-decay-iters": _RELEASE_DECAY * updates,
    }


def _text_arguments(corpus: StudyCorpus, study: StudyConfig, arguments: Arguments) -> Arguments:
    parallel = ("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size")
    ranks = study.devices_per_run
    for name in parallel:
        ranks //= int(arguments.get(name) or 1)
    return {
        "tokenizer-type": "NullTokenizer",
        "vocab-size": corpus.vocab_size,
        # The same held-out tokens at every evaluation, each of them once. Megatron can do so with sets of them only.
        "full-validation": True,
        "multiple-validation-sets": True,
        # It reads one sample a rank and step then, whatever the batch.
        "eval-micro-batch-size": 1,
        "eval-global-batch-size": max(ranks, 1),
    }


def fingerprint(value: Any) -> str:
    """Return what tells plain values from others, 32 hexadecimal digits."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
