"""The runs of a study: their arguments, their starts, their folders, and which runs arms share."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from nca_plugin.study.corpus import StudyCorpus
from nca_plugin.study.design import ArmConfig, CorpusConfig, StudyConfig, SweepConfig, num_tokens, num_updates, seeded
from nca_plugin.study.run import Arguments, Question, Run, Start, Tuning, digest_of
from nca_plugin.study.sweep import INITIALISATION, Chosen, combinations, swept_arms
from nca_plugin.text.examples import read_examples
from nca_plugin.text.prepare import vocab_size
from nca_plugin.transition.changes import Transition

#: Stage 1 of the release is the warm-up, 5,000 updates, of a schedule of 50,000.
_RELEASE_DECAY: Final = 10
_WARM_UP_SHARE: Final = 10


@dataclass(frozen=True, order=True)
class LanguageKey:
    """Identifies a language run. A longer baseline run for equal compute has extra updates."""

    domain: str
    arm: str
    seed: int
    extra_updates: int = 0


@dataclass(frozen=True, order=True)
class TaskKey:
    """Identifies the run of a task."""

    task: str
    domain: str
    arm: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """The runs of a study whose texts are prepared.

    Attributes:
        root: the study's folder.
        corpora: texts of the domains, by domain.
        texts: texts of the arms whose stage 1 is natural text, by arm.
    """

    study: StudyConfig
    root: Path
    corpora: dict[str, StudyCorpus]
    texts: dict[str, StudyCorpus]

    def sweep(self) -> dict[tuple[str, int], Run]:
        """Return the runs of the baseline's sweep, by domain and number of the combination."""
        sweep = self.study.sweep
        if not sweep.arguments:
            return {}
        runs = {}
        for domain in self.study.domains:
            for number, values in enumerate(combinations(sweep)):
                run = self.language(LanguageKey(domain, self.study.baseline, sweep.seed), Chosen(values))
                updates = num_updates(self.study, "language", self._sweep_tokens(domain), values)
                title = f"sweep of {domain}: {_described(sweep, values)}"
                folder = self.root / "runs" / "sweep" / domain / f"{number}-{digest_of(values)[:6]}"
                runs[domain, number] = _tried(run, folder, title, updates, self.study.language.evaluations)
        return runs

    def stage1_sweep(self, chosen: Mapping[str, Chosen]) -> dict[tuple[str, str, int], Run]:
        """Return the runs of the sweep of stage 1, by domain, arm and number. Arms with the same stage 1 share runs.

        Args:
            chosen: by domain, what the baseline's sweep has chosen.
        """
        study, sweep = self.study, self.study.stage1_sweep
        runs = {}
        for domain in study.domains:
            for arm in swept_arms(study):
                tokens = study.arms[arm].tokens if sweep.tokens is None else sweep.tokens
                for number, values in enumerate(combinations(sweep)):
                    run = self._stage1(arm, sweep.seed, Chosen(chosen[domain].language, {arm: values}), tokens)
                    title = f"sweep of stage 1 of {arm}: {_described(sweep, values)}"
                    folder = self.root / "runs" / "sweep" / "stage1" / run.folder.name
                    runs[domain, arm, number] = _tried(run, folder, title, run.iterations, study.stage1.evaluations)
        return runs

    def template(self, arm: ArmConfig, chosen: Chosen) -> Run:
        """Return a run of one update, whose checkpoint has the shapes of an arm's model."""
        arguments = {
            **self._both_stages(arm, chosen),
            "data-source": "iid://",
            "eval-iters": 0,
            "eval-interval": 1,
            "seed": 1,
        }
        arguments |= _micro_batch(arguments, self.study)
        name = f"template-{digest_of(arguments)[:6]}"
        return Run(self.root / "runs" / name, f"{name}, for its shapes", 1, arguments, is_evaluated=False)

    def stage1(self, name: str, seed: int, chosen: Chosen) -> Run:
        """Return the stage-1 run of an arm for a run with this seed. Arms with the same stage 1 get the same run."""
        arm = self.study.arms[name]
        return self._stage1(name, seed if arm.stage1_seed is None else arm.stage1_seed, chosen, arm.tokens)

    def _stage1(self, name: str, seed: int, chosen: Chosen, tokens: Any) -> Run:
        study, arm = self.study, self.study.arms[name]
        own = chosen.stage1.get(name, {})
        updates = num_updates(study, "stage1", tokens, own)
        arguments: Arguments = {
            **self._both_stages(arm, chosen),
            **study.stage1.arguments,
            **own,
            **_schedule(study.stage1.schedule if arm.schedule is None else arm.schedule, updates),
            **arm.arguments,
            **arm.stage1_arguments,
            "seed": seed,
            "eval-interval": max(1, updates // study.stage1.evaluations),
        }
        arguments |= _micro_batch(arguments, study)
        if arm.source is not None:
            source = seeded(arm.source, seed)
            arguments["data-source"] = source.uri
            kind, uri = source.uri.partition("://")[0], source.uri
        else:
            arguments |= _text_arguments(self.texts[name], study, arguments)
            kind, uri = "text", None
        of_all_seeds = {**arguments, "seed": None, "data-source": arm.source}
        text = None if arm.text is None else asdict(arm.text)
        folder_name = f"stage1-{kind}-{digest_of([updates, of_all_seeds, text])[:6]}"
        folder = self.root / "runs" / f"seed{seed}" / folder_name
        return Run(folder, f"{name}, seed {seed}, {folder_name}", updates, arguments, None, self.texts.get(name), uri)

    def language(self, key: LanguageKey, chosen: Chosen) -> Run:
        """Return a language run."""
        study, domain, arm = self.study, self.study.domains[key.domain], self.study.arms[key.arm]
        corpus = self.corpora[key.domain]
        updates = self.language_updates(key.domain, chosen) + key.extra_updates
        arguments: Arguments = {
            **self._both_stages(arm, chosen),
            **study.language.arguments,
            **domain.arguments,
            **chosen.language,
            **arm.arguments,
            **arm.language_arguments,
            "seed": key.seed,
            "eval-interval": max(1, updates // study.language.evaluations),
        }
        arguments |= {**_micro_batch(arguments, study), **_text_arguments(corpus, study, arguments)}
        arm_name = key.arm if not key.extra_updates else f"{key.arm}+{key.extra_updates}"
        folder = self.root / "runs" / f"seed{key.seed}" / key.domain / arm_name
        title = f"{key.arm}, seed {key.seed}, {key.domain}"
        if key.extra_updates:
            title += f", {key.extra_updates} updates longer"
        return Run(folder, title, updates, arguments, self._start(key, corpus.vocab_size, chosen), corpus)

    def task(self, key: TaskKey, chosen: Chosen) -> Run:
        """Return the run that evaluates a language run's model on a task, after tuning it if there are examples."""
        study, task, domain, arm = self.study, self.study.tasks[key.task], self.study.domains[key.domain], key.arm
        language = self.language(LanguageKey(key.domain, arm, key.seed), chosen)
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
            self._task_updates(key.task, arguments["global-batch-size"]),
            arguments,
            Start(language, None),
            is_evaluated=False,
            tuning=tuning,
            question=question,
        )

    def _task_updates(self, name: str, batch: int) -> int:
        """Return the number of updates of the tuning on a task, 0 without tuning."""
        task = self.study.tasks[name]
        if task.train is None:
            return 0
        return math.ceil(task.epochs * len(read_examples(Path(task.train))) / batch)

    def language_updates(self, domain: str, chosen: Chosen) -> int:
        """Return the number of updates of a domain's language stage."""
        return num_updates(self.study, "language", self.study.domains[domain].tokens, chosen.language)

    def language_tokens(self, domain: str) -> int:
        """Return the number of tokens that a domain's language stage and its sweep need."""
        budgets = (self.study.domains[domain].tokens, self._sweep_tokens(domain))
        return max(num_tokens(self.study, "language", tokens) for tokens in budgets)

    def stage1_tokens(self, arm: str) -> int:
        """Return the number of tokens that an arm's stage 1 and its sweep need."""
        budgets = [self.study.arms[arm].tokens]
        if arm in swept_arms(self.study) and self.study.stage1_sweep.tokens is not None:
            budgets.append(self.study.stage1_sweep.tokens)
        return max(num_tokens(self.study, "stage1", tokens) for tokens in budgets)

    def _sweep_tokens(self, domain: str) -> Any:
        own = self.study.sweep.tokens
        return self.study.domains[domain].tokens if own is None else own

    def _start(self, key: LanguageKey, vocab_size: int, chosen: Chosen) -> Start:
        arm = self.study.arms[key.arm]
        if not arm.is_scratch:
            transition = Transition(arm.preset, arm.keep, arm.reinit, vocab_size=vocab_size, seed=key.seed)
            return Start(self.stage1(key.arm, key.seed, chosen), transition)
        # From scratch takes the same path as the other arms, so that shared parameters get the same values.
        is_released = arm.preset in ("release", "release-fixed")
        preset, reinit = (arm.preset, ("all",)) if is_released else ("scratch", ())
        transition = Transition(preset, reinit=reinit, vocab_size=vocab_size, seed=key.seed)
        return Start(self.template(arm, chosen), transition)

    def _both_stages(self, arm: ArmConfig, chosen: Chosen) -> Arguments:
        study = self.study
        log_interval = {"log-interval": 10, "num-workers": 1}
        initialisation = {name: value for name, value in chosen.language.items() if INITIALISATION in name}
        return {**log_interval, **study.arguments, **initialisation, **arm.arguments}


def unprepared(study: StudyConfig) -> Plan:
    """Return the plan of a study whose texts are not prepared. Only their vocabulary sizes are known."""

    def of(corpus: CorpusConfig) -> StudyCorpus:
        ids = vocab_size(corpus.tokenizer) if corpus.vocab_size is None else corpus.vocab_size
        return StudyCorpus(Path(study.output) / "corpus", ids, 0, 0)

    corpora = {name: of(domain.corpus) for name, domain in study.domains.items()}
    texts = {name: of(arm.text) for name, arm in study.arms.items() if arm.text is not None}
    return Plan(study, Path(study.output), corpora, texts)


def task_runs(plan: Plan, chosen: Mapping[str, Chosen]) -> dict[TaskKey, Run]:
    """Return the runs of tasks, by task, domain, arm and seed."""
    study = plan.study
    keys = [
        TaskKey(name, domain, arm, seed)
        for seed in study.seeds
        for name, task in study.tasks.items()
        for domain in task.domains or study.domains
        for arm in study.arms
    ]
    return {key: plan.task(key, chosen[key.domain]) for key in keys}


def _described(sweep: SweepConfig, values: Arguments) -> str:
    """Return the values of the arguments that a sweep varies."""
    return " ".join(f"{name} {values[name]}" for name, tried in sweep.arguments.items() if len(tried) > 1)


def _tried(run: Run, folder: Path, title: str, updates: int, evaluations: int) -> Run:
    """Return a run of a sweep. If it diverges, it only has the worst loss, and must not end the study."""
    arguments = {
        **run.arguments,
        "no-check-for-nan-in-loss-and-grad": True,
        "eval-interval": max(1, updates // evaluations),
    }
    return replace(
        run,
        folder=folder,
        title=title,
        iterations=updates,
        arguments=arguments,
        is_evaluated=False,
        is_kept=False,
    )


def _micro_batch(arguments: Arguments, study: StudyConfig) -> Arguments:
    """Return the micro-batch size, which must not exceed a rank's share of a global batch that a sweep makes small."""
    share = arguments["global-batch-size"] // _data_parallel_ranks(arguments, study)
    return {"micro-batch-size": min(arguments["micro-batch-size"], max(share, 1))}


def _data_parallel_ranks(arguments: Arguments, study: StudyConfig) -> int:
    ranks = study.devices_per_run
    for name in ("tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size"):
        ranks //= int(arguments.get(name) or 1)
    return max(ranks, 1)


def _schedule(name: str, updates: int) -> Arguments:
    """Return the arguments of a schedule over a number of updates."""
    # Megatron refuses lr-warmup-iters beside lr-warmup-fraction.
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
    return {
        "tokenizer-type": "NullTokenizer",
        "vocab-size": corpus.vocab_size,
        # Evaluates the same held-out tokens each time, each once. Megatron can do that only with several sets.
        "full-validation": True,
        "multiple-validation-sets": True,
        # With these options, Megatron reads one sample per rank and step.
        "eval-micro-batch-size": 1,
        "eval-global-batch-size": _data_parallel_ranks(arguments, study),
    }
