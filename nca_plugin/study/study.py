"""Run a study: the baseline's sweep, stage 1 of each arm, then the language runs, every arm times seed times domain."""

import fcntl
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import check_folder, complete_files
from nca_plugin.huggingface.export import check_llama
from nca_plugin.launch.check import ArgumentSet, check_argument_sets
from nca_plugin.launch.configuration import unset_options
from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.study.changes import check_changes
from nca_plugin.study.corpus import StudyCorpus, study_corpus
from nca_plugin.study.design import CorpusConfig, Study, StudyConfig, tokens_per_update, validation_tokens
from nca_plugin.study.launchers import Progress, Runner
from nca_plugin.study.plan import (
    Arguments,
    LanguageKey,
    Plan,
    Run,
    TaskKey,
    combinations,
    fingerprint,
    megatron_options,
)
from nca_plugin.study.runs import Result, is_complete, read_result
from nca_plugin.tasks.harness import Harness, Settings
from nca_plugin.text.prepare import input_bytes, vocab_size
from nca_plugin.transition.transfer import transfer

_STUDY: Final = "study.json"
_CHECKED: Final = "checked.json"
_LOCK: Final = "lock"
#: Equal compute is one to so many parts of the language stage.
_EXTRA_STEPS: Final = 100
#: They name files that may not be there yet.
_OF_TEXT: Final = ("train-data-path", "valid-data-path", "data-cache-path")


@dataclass(frozen=True)
class Compute:
    """What runs take, as Megatron counts it.

    Attributes:
        stage1: floating-point operations a token of a training step, by arm.
        language: the same by domain.
        parameters: of the largest model; None where Megatron does not tell.
    """

    stage1: dict[str, float]
    language: dict[str, float]
    parameters: int | None

    def extra_updates(self, plan: Plan, domain: str, arm: str) -> int:
        """Return the updates of a language run that take the compute of an arm's stage 1, to 1 % of the run's."""
        updates = plan.language_updates(domain)
        flops = plan.stage1_updates(arm) * tokens_per_update(plan.study, "stage1") * self.stage1[arm]
        extra = flops / (tokens_per_update(plan.study, "language") * self.language[domain])
        # So that arms that hardly differ are compared with one run.
        step = max(1, updates // _EXTRA_STEPS)
        return max(1, round(extra / step)) * step


@dataclass(frozen=True)
class StudyResult:
    """All that was measured.

    Attributes:
        stage1: by domain, arm and seed; arms and domains may share a run.
        language: those of the baseline that are longer by an arm's stage 1 among them.
        tasks: what the models of the language runs answered.
        swept: the baseline's sweep, by domain and number of the combination.
        best: arguments that it found to be the best, by domain; none without a sweep.
    """

    plan: Plan
    compute: Compute
    swept: dict[tuple[str, int], tuple[Run, Result]]
    best: dict[str, Arguments]
    stage1: dict[tuple[str, str, int], tuple[Run, Result]]
    language: dict[LanguageKey, tuple[Run, Result]]
    tasks: dict[TaskKey, tuple[Run, Result]]


def run_study(study: Study, progress: Progress) -> StudyResult:
    """Do what is not complete yet, and return everything. Interrupted in whatever way, the same call continues.

    Raises:
        NCAPluginError: a folder that holds something else, or a study that is not this one; settings that Megatron does
            not take; texts that are too short; a run that failed.
    """
    runner = Runner(study, progress)
    with _claimed(study):
        _check_tasks(study.config)
        compute = checked(study, is_run=True)
        _mark(study)
        plan = _prepared(study, progress)
        check_lengths(plan, compute)
        swept = plan.sweep()
        progress.expect(_missing_updates(all_runs(plan, compute, _any(study.config))))
        shape = plan.template(study.config.arms[study.config.baseline], _any(study.config)[next(iter(plan.corpora))])
        runner.run_all([shape])
        _check_transitions(plan, shape)
        if study.config.tasks:
            with in_context("tasks"):
                check_llama(shape.checkpoint)
        runner.run_all([run.start.origin for run in swept.values() if run.start is not None])
        runner.run_all(list(swept.values()))
        best = _best(study.config, _with_results(swept))
        progress.expect(_missing_updates(all_runs(plan, compute, best)))
        stage1, language, tasks = stage1_runs(plan, best), language_runs(plan, best, compute), task_runs(plan, best)
        runner.run_all([run.start.origin for run in language.values() if run.start is not None])
        runner.run_all(list(language.values()))
        runner.run_all(list(tasks.values()))
        return StudyResult(
            plan,
            compute,
            _with_results(swept),
            best,
            _with_results(stage1),
            _with_results(language),
            _with_results(tasks),
        )


def all_runs(plan: Plan, compute: Compute, best: Mapping[str, Arguments]) -> list[Run]:
    """Return the runs of a study, each once.

    Args:
        best: the best arguments of each domain's sweep.
    """
    language = language_runs(plan, best, compute).values()
    sweep = plan.sweep().values()
    starts = [run.start.origin for run in (*sweep, *language) if run.start is not None]
    tasks = task_runs(plan, best).values()
    return list({run.folder: run for run in (*sweep, *starts, *language, *tasks)}.values())


def _missing_updates(runs: Iterable[Run]) -> int:
    return sum(run.iterations for run in runs if not is_complete(run))


def _check_transitions(plan: Plan, shape: Run) -> None:
    """Raise `NCAPluginError` for an arm's selector that would fail only when its stage 1 has been trained."""
    for name in plan.study.arms:
        start = plan.language(LanguageKey(next(iter(plan.corpora)), name, plan.study.seeds[0]), {}).start
        assert start is not None and start.transition is not None
        with in_context(f"arms.{name}"):
            transfer(shape.checkpoint, shape.folder / "unwritten", start.transition, dry_run=True)


def _check_tasks(study: StudyConfig) -> None:
    """Raise `NCAPluginError` for a task that would fail only when its models have been trained."""
    for name, task in study.tasks.items():
        data = {} if task.data is None else {task.task: task.data}
        with in_context(f"tasks.{name}"):
            Harness([task.task], Settings(data=data, allow_model_code=task.allow_model_code))


def _any(study: StudyConfig) -> dict[str, Arguments]:
    """Return arguments that a sweep may find to be the best."""
    return dict.fromkeys(study.domains, combinations(study)[0])


def unprepared(study: StudyConfig) -> Plan:
    """Return the plan of a study whose texts are not prepared: of them it knows the vocabulary only."""

    def of(corpus: CorpusConfig) -> StudyCorpus:
        ids = vocab_size(corpus.tokenizer) if corpus.vocab_size is None else corpus.vocab_size
        return StudyCorpus(Path(study.output) / "corpus", ids, 0, 0)

    corpora = {name: of(domain.corpus) for name, domain in study.domains.items()}
    texts = {name: of(arm.text) for name, arm in study.arms.items() if arm.text is not None}
    return Plan(study, Path(study.output), corpora, texts)


def checked(study: Study, *, is_run: bool) -> Compute:
    """Return the compute of the runs, after checking that Megatron takes all their arguments.

    Args:
        is_run: whether the study's folder may remember what was found to be right.

    Raises:
        NCAPluginError: it does not, with the part of the study file that is to blame.
    """
    config, plan = study.config, unprepared(study.config)
    seed, best = config.seeds[0], combinations(config)[0]
    runs: dict[tuple[str, str], Run] = {}
    for arm in config.arms:
        if not config.arms[arm].is_scratch:
            runs["stage1", arm] = plan.stage1(arm, seed, best)
        for domain in config.domains:
            runs[f"domains.{domain}", f"arms.{arm}"] = plan.language(LanguageKey(domain, arm, seed), best)
    for key, run in task_runs(plan, dict.fromkeys(config.domains, best)).items():
        if run.tuning is not None and key.seed == seed:
            runs[f"tasks.{key.task}", f"arms.{key.arm}, domains.{key.domain}"] = run
    for (domain, number), run in plan.sweep().items():
        runs[f"domains.{domain}", f"sweep, combination {number + 1}"] = run
    sets = [_argument_set(run) for run in runs.values()]
    # Most arms differ in nothing that Megatron sees.
    unique = list({fingerprint(asdict(arguments)): arguments for arguments in sets}.values())
    outcomes = _outcomes(study, unique, is_run)
    flops, parameters = {}, []
    for name, arguments in zip(runs, sets, strict=True):
        outcome = outcomes[unique.index(arguments)]
        if "error" in outcome:
            raise NCAPluginError(f"study file {study.path}: {', '.join(name)}: {outcome['error']}")
        flops[name] = outcome["flops_per_token"]
        parameters.append(outcome["parameters"])
    for domain in config.domains:
        for arm in config.arms:
            if flops[f"domains.{domain}", f"arms.{arm}"] != flops[f"domains.{domain}", f"arms.{config.baseline}"]:
                raise NCAPluginError(
                    f"study file {study.path}: arms.{arm}: its model takes other compute a token than that of "
                    f"{config.baseline}: arms of a study have one model"
                )
    return Compute(
        stage1={name[1]: value for name, value in flops.items() if name[0] == "stage1"},
        language={domain: flops[f"domains.{domain}", f"arms.{config.baseline}"] for domain in config.domains},
        parameters=None if None in parameters else max(parameters),
    )


def check_lengths(plan: Plan, compute: Compute) -> None:
    """Raise `NCAPluginError` if a text is too short for the runs on it."""
    study = plan.study
    for name, domain in study.domains.items():
        wanted, why = max(plan.language_updates(name), plan.sweep_updates(name)), ""
        if study.equal_compute:
            extra = max((compute.extra_updates(plan, name, arm) for arm in compute.stage1), default=0)
            if plan.language_updates(name) + extra > wanted:
                wanted = plan.language_updates(name) + extra
                why = " for the baseline of equal compute, which equal_compute=false leaves out"
        with in_context(f"domains.{name}"):
            _check_length(plan.corpora[name], domain.corpus, wanted * tokens_per_update(study, "language"), why)
    for name, text in plan.texts.items():
        corpus = study.arms[name].text
        assert corpus is not None
        with in_context(f"arms.{name}.text"):
            _check_length(text, corpus, plan.stage1_updates(name) * tokens_per_update(study, "stage1"), "")


def _check_length(text: StudyCorpus, corpus: CorpusConfig, wanted: int, why: str) -> None:
    if wanted > text.train_tokens * corpus.epochs:
        raise NCAPluginError(
            f"the budget is {wanted:,} tokens{why}; the text has {text.train_tokens:,} to train on"
            + (f" (times {corpus.epochs:g} epochs)" if corpus.epochs != 1 else "")
            + ": add text, lower tokens, or allow repetition with corpus.epochs"
        )


def _argument_set(run: Run) -> ArgumentSet:
    # Examples are there already.
    missing = () if run.tuning is not None else _OF_TEXT
    options = {name: value for name, value in megatron_options(run).items() if name not in missing}
    # Nothing of it is there yet, or is made.
    options |= {"load": None, "save": None, "pretrained-checkpoint": None, "tensorboard-dir": None}
    return ArgumentSet(megatron_arguments(options), unset_options(run.arguments))


def _outcomes(study: Study, sets: list[ArgumentSet], is_run: bool) -> list[dict[str, Any]]:
    """Return what follows from arguments. What is right is remembered, since it takes a quarter of a minute."""
    path = study.output / _CHECKED
    key = fingerprint([asdict(arguments) for arguments in sets])
    if path.is_file():
        stored = json.loads(path.read_text())
        if stored["key"] == key:
            known: list[dict[str, Any]] = stored["outcomes"]
            return known
    outcomes = check_argument_sets(sets, study.config.devices_per_run)
    if is_run and not any("error" in outcome for outcome in outcomes):
        with complete_files(path) as (unfinished,):
            unfinished.write_text(json.dumps({"key": key, "outcomes": outcomes}))
    return outcomes


@contextmanager
def _claimed(study: Study) -> Iterator[None]:
    """Hold a study's folder, which nobody else works on, with the settings that it was begun with."""
    root = study.output
    mark = root / _STUDY
    if root.exists() and not mark.is_file() and not _is_ours(root):
        raise NCAPluginError(f"output {root} exists and is not the folder of a study: choose another with output=...")
    check_folder(root)
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NCAPluginError(f"output {root}: another process runs this study") from None
        if mark.is_file():
            with in_context(f"study in {root}"):
                check_changes(json.loads(mark.read_text()), _settings(study))
        yield


def _is_ours(root: Path) -> bool:
    """Whether a folder holds nothing but what a study that was killed at its very start has left."""
    # Unfinished files are hidden.
    return root.is_dir() and all(
        path.name in (_LOCK, _CHECKED) or path.name.startswith(".partial.") for path in root.iterdir()
    )


def _mark(study: Study) -> None:
    """Write down the settings of a study that is about to begin, or goes on."""
    mark, settings = study.output / _STUDY, _settings(study)
    if mark.is_file():
        before = json.loads(mark.read_text())
        # An arm that is left out now may be there again later.
        for section in ("arms", "domains", "tasks"):
            settings[section] = {**before.get(section, {}), **settings[section]}
    with complete_files(mark) as (unfinished,):
        unfinished.write_text(json.dumps(settings, indent=1))


def _settings(study: Study) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(study.config)))
    return settings


def _prepared(study: Study, progress: Progress) -> Plan:
    """Return the plan of a study with its texts."""
    config = study.config
    held_out = validation_tokens(config)

    def prepare(kind: str, name: str, corpus: CorpusConfig) -> StudyCorpus:
        size = 0 if corpus.path is not None else input_bytes(corpus.corpus()) or 0
        progress.start(f"text of {name}", size)
        done = 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            done += num_bytes
            progress.update(f"text of {name}", done)

        text = study_corpus(corpus, study.output / "corpus" / kind / name, held_out, advance)
        progress.finish(f"text of {name}", f"{text.train_tokens:,} tokens, and {text.validation_tokens:,} held out")
        return text

    corpora = {name: prepare("domains", name, domain.corpus) for name, domain in config.domains.items()}
    texts = {name: prepare("arms", name, arm.text) for name, arm in config.arms.items() if arm.text is not None}
    return Plan(config, study.output, corpora, texts)


def _best(study: StudyConfig, swept: Mapping[tuple[str, int], tuple[Run, Result]]) -> dict[str, Arguments]:
    """Return for each domain the arguments whose run ended with the lowest held-out loss."""
    settings = combinations(study)
    losses = {key: result.validation[-1][1] for key, (_, result) in swept.items()}
    losses = {key: loss if math.isfinite(loss) else math.inf for key, loss in losses.items()}
    best = {}
    for domain in study.domains:
        numbers = [number for of, number in losses if of == domain]
        best[domain] = settings[min(numbers, key=lambda number: losses[domain, number])] if numbers else {}
    return best


def stage1_runs(plan: Plan, best: Mapping[str, Arguments]) -> dict[tuple[str, str, int], Run]:
    """Return stage 1 by domain, arm and seed, with the best arguments of each domain's sweep."""
    arms = [name for name, arm in plan.study.arms.items() if not arm.is_scratch]
    return {
        (domain, arm, seed): plan.stage1(arm, seed, best[domain])
        for seed in plan.study.seeds
        for domain in plan.study.domains
        for arm in arms
    }


def language_runs(plan: Plan, best: Mapping[str, Arguments], compute: Compute) -> dict[LanguageKey, Run]:
    """Return the language runs, those of the baseline that are longer by an arm's stage 1 among them."""
    study = plan.study
    keys = []
    for seed in study.seeds:
        for domain in study.domains:
            keys += [LanguageKey(domain, arm, seed) for arm in study.arms]
            if study.equal_compute:
                extras = {compute.extra_updates(plan, domain, arm) for arm in compute.stage1}
                keys += [LanguageKey(domain, study.baseline, seed, extra) for extra in sorted(extras)]
    return {key: plan.language(key, best[key.domain]) for key in keys}


def task_runs(plan: Plan, best: Mapping[str, Arguments]) -> dict[TaskKey, Run]:
    """Return the runs of tasks, those of each arm, seed and domain that is asked."""
    study = plan.study
    keys = [
        TaskKey(name, domain, arm, seed)
        for seed in study.seeds
        for name, task in study.tasks.items()
        for domain in task.domains or study.domains
        for arm in study.arms
    ]
    return {key: plan.task(key, best[key.domain]) for key in keys}


def _with_results[Key](runs: Mapping[Key, Run]) -> dict[Key, tuple[Run, Result]]:
    found = {}
    for key, run in runs.items():
        result = read_result(run)
        if result is None:
            raise NCAPluginError(f"{run.title} left no result in {run.folder}, or it is not seen yet: start again")
        found[key] = run, result
    return found
