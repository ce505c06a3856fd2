"""Running a study: the baseline's sweep, stage 1 of each arm, then a language run for every arm, seed and domain."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from nca_plugin.errors import NCAPluginError, in_context
from nca_plugin.files import check_folder, complete_files, try_lock
from nca_plugin.huggingface.export import check_llama
from nca_plugin.study.all_runs import all_runs, language_runs, stage1_runs
from nca_plugin.study.allowed_changes import NAMED, check_changes
from nca_plugin.study.compute import CHECKED, Compute, check_lengths, checked
from nca_plugin.study.corpus import StudyCorpus, study_corpus
from nca_plugin.study.design import CorpusConfig, Study, StudyConfig, validation_tokens
from nca_plugin.study.execute import Result, is_complete, read_result
from nca_plugin.study.plan import LanguageKey, Plan, TaskKey, task_runs
from nca_plugin.study.run import Run
from nca_plugin.study.runner import Progress, Runner
from nca_plugin.study.sweep import Chosen, any_choice, best_number, combinations, concerns_stage1
from nca_plugin.tasks.harness import Harness, Settings
from nca_plugin.text.prepare import input_bytes
from nca_plugin.transition.transfer import transfer

_STUDY: Final = "study.json"
_LOCK: Final = "lock"


@dataclass(frozen=True)
class StudyResult:
    """Everything that was measured.

    Attributes:
        swept: runs of the baseline's sweep, by domain and number of the combination.
        swept_stage1: runs of the sweep of stage 1, by domain, arm and number of the combination.
        chosen: what the sweeps have chosen, by domain.
        stage1: by domain, arm and seed; arms and domains may share a run.
        language: language runs, including the longer baseline runs for equal compute; empty if only stage 1 was run.
        tasks: evaluations of the models of the language runs on tasks.
    """

    plan: Plan
    compute: Compute
    swept: dict[tuple[str, int], tuple[Run, Result]]
    swept_stage1: dict[tuple[str, str, int], tuple[Run, Result]]
    chosen: dict[str, Chosen]
    stage1: dict[tuple[str, str, int], tuple[Run, Result]]
    language: dict[LanguageKey, tuple[Run, Result]]
    tasks: dict[TaskKey, tuple[Run, Result]]

    def name_of(self, run: Run) -> str:
        """Return the folder of a run below that of the study."""
        return str(run.folder.relative_to(self.plan.root))


def run_study(study: Study, progress: Progress, *, only_stage1: bool = False) -> StudyResult:
    """Do what is not complete yet, and return all results. After any interruption, the same call continues.

    Args:
        only_stage1: whether to end after stage 1, without a language run but those of a sweep that concerns stage 1.

    Raises:
        NCAPluginError: the folder holds something else or another study, Megatron refuses settings, a text is too
            short, or a run failed.
    """
    runner = Runner(study, progress)
    with _claimed(study):
        _check_tasks(study.config)
        compute = checked(study, is_run=True)
        _mark(study)
        plan = _prepared(study, progress)
        check_lengths(plan, compute)
        choice = any_choice(study.config)
        if not only_stage1:
            progress.expect(_missing_updates(all_runs(plan, compute, choice)))
            baseline = study.config.arms[study.config.baseline]
            shape = plan.template(baseline, next(iter(choice.values())))
            runner.run_all([shape])
            _check_transitions(plan, shape)
            if study.config.tasks:
                with in_context("tasks"):
                    check_llama(shape.checkpoint)
        swept = {} if only_stage1 and not concerns_stage1(study.config.sweep) else plan.sweep()
        runner.run_all([run.start.origin for run in swept.values() if run.start is not None])
        runner.run_all(list(swept.values()))
        chosen = {domain: Chosen() for domain in study.config.domains}
        for domain, numbers in _losses(swept).items():
            chosen[domain] = Chosen(combinations(study.config.sweep)[best_number(numbers)])
        swept_stage1 = plan.stage1_sweep(chosen)
        runner.run_all(list(swept_stage1.values()))
        by_arm = {((domain, arm), number): run for (domain, arm, number), run in swept_stage1.items()}
        for (domain, arm), numbers in _losses(by_arm).items():
            found = combinations(study.config.stage1_sweep)[best_number(numbers)]
            chosen[domain] = replace(chosen[domain], stage1={**chosen[domain].stage1, arm: found})
        stage1 = stage1_runs(plan, chosen)
        language, tasks = dict[LanguageKey, Run](), dict[TaskKey, Run]()
        if only_stage1:
            progress.expect(_missing_updates({run.folder: run for run in stage1.values()}.values()))
            runner.run_all(list(stage1.values()))
        else:
            progress.expect(_missing_updates(all_runs(plan, compute, chosen)))
            language, tasks = language_runs(plan, chosen, compute), task_runs(plan, chosen)
            runner.run_all([run.start.origin for run in language.values() if run.start is not None])
            runner.run_all(list(language.values()))
            runner.run_all(list(tasks.values()))
        return StudyResult(
            plan,
            compute,
            _with_results(swept),
            _with_results(swept_stage1),
            chosen,
            _with_results(stage1),
            _with_results(language),
            _with_results(tasks),
        )


def _losses[Key](runs: Mapping[tuple[Key, int], Run]) -> dict[Key, dict[int, float]]:
    """Return the final losses of a sweep's runs by number of the combination, for each sweep."""
    losses: dict[Key, dict[int, float]] = {}
    for (key, number), (_, result) in _with_results(runs).items():
        losses.setdefault(key, {})[number] = result.final_loss
    return losses


def _missing_updates(runs: Iterable[Run]) -> int:
    return sum(run.iterations for run in runs if not is_complete(run))


def _check_transitions(plan: Plan, shape: Run) -> None:
    """Raise `NCAPluginError` for an arm's selector that would otherwise fail only after its stage 1 was trained."""
    for name in plan.study.arms:
        start = plan.language(LanguageKey(next(iter(plan.corpora)), name, plan.study.seeds[0]), Chosen()).start
        assert start is not None and start.transition is not None
        with in_context(f"arms.{name}"):
            transfer(shape.checkpoint, shape.folder / "unwritten", start.transition, dry_run=True)


def _check_tasks(study: StudyConfig) -> None:
    """Raise `NCAPluginError` for a task that would otherwise fail only after its models were trained."""
    for name, task in study.tasks.items():
        data = {} if task.data is None else {task.task: task.data}
        with in_context(f"tasks.{name}"):
            Harness([task.task], Settings(data=data, allow_model_code=task.allow_model_code))


@contextmanager
def _claimed(study: Study) -> Iterator[None]:
    """Hold the lock on a study's folder, and check that it was begun with compatible settings."""
    root = study.output
    mark = root / _STUDY
    if root.exists() and not mark.is_file() and not _is_ours(root):
        raise NCAPluginError(f"output {root} exists and is not the folder of a study: choose another with output=...")
    check_folder(root)
    root.mkdir(parents=True, exist_ok=True)
    with (root / _LOCK).open("w") as lock:
        if not try_lock(lock):
            raise NCAPluginError(f"output {root}: another process runs this study")
        if mark.is_file():
            with in_context(f"study in {root}"):
                check_changes(json.loads(mark.read_text()), _settings(study))
        yield


def _is_ours(root: Path) -> bool:
    """Whether a folder holds only what a study leaves that was killed at its very start."""
    # The names of unfinished files begin with .partial.
    return root.is_dir() and all(
        path.name in (_LOCK, CHECKED) or path.name.startswith(".partial.") for path in root.iterdir()
    )


def _mark(study: Study) -> None:
    """Write the settings of a study that begins or continues to its folder."""
    mark, settings = study.output / _STUDY, _settings(study)
    if mark.is_file():
        before = json.loads(mark.read_text())
        # Arms, domains and tasks that are left out now may come back later.
        for section in NAMED:
            settings[section] = {**before.get(section, {}), **settings[section]}
    with complete_files(mark) as (unfinished,):
        unfinished.write_text(json.dumps(settings, indent=1))


def _settings(study: Study) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads(json.dumps(asdict(study.config)))
    return settings


def _prepared(study: Study, progress: Progress) -> Plan:
    """Return the plan of a study, with its texts prepared."""
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


def _with_results[Key](runs: Mapping[Key, Run]) -> dict[Key, tuple[Run, Result]]:
    found = {}
    for key, run in runs.items():
        result = read_result(run)
        if result is None:
            raise NCAPluginError(f"{run.title} left no result in {run.folder}, or it is not seen yet: start again")
        found[key] = run, result
    return found
