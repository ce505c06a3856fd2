"""All runs of a study, by their purpose."""

from collections.abc import Mapping

from nca_plugin.study.compute import Compute
from nca_plugin.study.plan import LanguageKey, Plan, task_runs
from nca_plugin.study.run import Arguments, Run


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


def stage1_runs(plan: Plan, best: Mapping[str, Arguments]) -> dict[tuple[str, str, int], Run]:
    """Return the stage-1 runs by domain, arm and seed, with the best arguments of each domain's sweep."""
    arms = [name for name, arm in plan.study.arms.items() if not arm.is_scratch]
    return {
        (domain, arm, seed): plan.stage1(arm, seed, best[domain])
        for seed in plan.study.seeds
        for domain in plan.study.domains
        for arm in arms
    }


def language_runs(plan: Plan, best: Mapping[str, Arguments], compute: Compute) -> dict[LanguageKey, Run]:
    """Return the language runs, including the longer baseline runs for equal compute."""
    study = plan.study
    keys = []
    for seed in study.seeds:
        for domain in study.domains:
            keys += [LanguageKey(domain, arm, seed) for arm in study.arms]
            if study.equal_compute:
                extras = {compute.extra_updates(plan, domain, arm) for arm in compute.stage1}
                keys += [LanguageKey(domain, study.baseline, seed, extra) for extra in sorted(extras)]
    return {key: plan.language(key, best[key.domain]) for key in keys}
