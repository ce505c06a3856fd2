"""All runs of a study, by their purpose."""

from collections.abc import Mapping

from nca_plugin.study.compute import Compute
from nca_plugin.study.plan import LanguageKey, Plan, task_runs
from nca_plugin.study.run import Run
from nca_plugin.study.sweep import Chosen


def all_runs(plan: Plan, compute: Compute, chosen: Mapping[str, Chosen]) -> list[Run]:
    """Return the runs of a study, each once.

    Args:
        chosen: by domain, what the sweeps have chosen.
    """
    language = language_runs(plan, chosen, compute).values()
    sweeps = [*plan.sweep().values(), *plan.stage1_sweep(chosen).values()]
    starts = [run.start.origin for run in (*sweeps, *language) if run.start is not None]
    tasks = task_runs(plan, chosen).values()
    return list({run.folder: run for run in (*sweeps, *starts, *language, *tasks)}.values())


def stage1_runs(plan: Plan, chosen: Mapping[str, Chosen]) -> dict[tuple[str, str, int], Run]:
    """Return the stage-1 runs by domain, arm and seed."""
    arms = [name for name, arm in plan.study.arms.items() if not arm.is_scratch]
    return {
        (domain, arm, seed): plan.stage1(arm, seed, chosen[domain])
        for seed in plan.study.seeds
        for domain in plan.study.domains
        for arm in arms
    }


def language_runs(plan: Plan, chosen: Mapping[str, Chosen], compute: Compute) -> dict[LanguageKey, Run]:
    """Return the language runs, including the longer baseline runs for equal compute."""
    study = plan.study
    keys = []
    for seed in study.seeds:
        for domain in study.domains:
            keys += [LanguageKey(domain, arm, seed) for arm in study.arms]
            if study.equal_compute:
                extras = {compute.extra_updates(plan, domain, arm, chosen[domain]) for arm in compute.stage1}
                keys += [LanguageKey(domain, study.baseline, seed, extra) for extra in sorted(extras)]
    return {key: plan.language(key, chosen[key.domain]) for key in keys}
