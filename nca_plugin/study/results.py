"""What a study found, as the plain values of `results.json`. Losses are in nats per supervised token."""

import dataclasses
import math
import platform
import shlex
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from nca_plugin.megatron.arguments import megatron_arguments
from nca_plugin.sources import parse
from nca_plugin.study.comparison import Curve, Estimate, estimate, gain_percent, smallest_effect, speed_up
from nca_plugin.study.design import Study, tokens_per_update
from nca_plugin.study.execute import Result, question_arguments
from nca_plugin.study.plan import LanguageKey, TaskKey
from nca_plugin.study.run import Run, megatron_options
from nca_plugin.study.study import StudyResult
from nca_plugin.study.sweep import combinations

#: Version of the layout of these values.
FORMAT: Final = 1
#: Number of held-out samples from which token frequencies and the share of supervised targets are counted.
_SAMPLES: Final = 256
_PACKAGES: Final = ("nca-plugin", "megatron-core", "torch", "numpy", "numba")


def results(study: Study, found: StudyResult) -> dict[str, Any]:
    """Return everything that was measured, and what is needed to repeat it.

    Two runs of the same study on the same machine differ only in `timings`.
    """
    config, plan = study.config, found.plan
    batch = tokens_per_update(config, "language")
    return {
        "format": FORMAT,
        "command": shlex.join(["nca-plugin", "study", study.name, *study.overrides]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "seeds": config.seeds,
        "baseline": config.baseline,
        "tokens_per_update": {"stage1": tokens_per_update(config, "stage1"), "language": batch},
        "domains": {
            name: {
                "paper": domain.paper,
                "corpus": domain.corpus.path or " ".join(domain.corpus.inputs),
                **plan.corpora[name].facts,
                "tokens": plan.language_updates(name) * batch,
                "flops_per_token": found.compute.language[name],
                "best_arguments": found.best[name],
            }
            for name, domain in config.domains.items()
        },
        "arms": {name: _arm(found, name) for name in config.arms},
        "sweep": {
            "seed": config.sweep.seed,
            "tokens": sum(run.iterations * batch for run in plan.sweep().values()),
            "tried": _sweep_rows(found),
            "at_edge": {name: _at_edge(config.sweep.arguments, best) for name, best in found.best.items()},
        },
        "stage1": _stage1_rows(found),
        "language": [_language_row(found, key) for key in sorted(found.language)],
        "tasks": _tasks(found),
        "summary": {domain: {arm: _summary(found, domain, arm) for arm in config.arms} for domain in config.domains},
        "study": dataclasses.asdict(config),
        "timings": {
            _folder(found, run): result.seconds
            for run, result in (
                *found.swept.values(),
                *found.stage1.values(),
                *found.language.values(),
                *found.tasks.values(),
            )
        },
    }


def _sweep_rows(found: StudyResult) -> list[dict[str, Any]]:
    settings, batch = combinations(found.plan.study), tokens_per_update(found.plan.study, "language")
    return [
        {
            "domain": domain,
            "arguments": settings[number],
            # None if the run has diverged.
            "loss": loss if math.isfinite(loss := result.final_loss) else None,
            "is_best": settings[number] == found.best[domain],
            "flops": run.iterations * batch * found.compute.language[domain],
            "folder": _folder(found, run),
        }
        for (domain, number), (run, result) in found.swept.items()
    ]


def _folder(found: StudyResult, run: Run) -> str:
    return str(run.folder.relative_to(found.plan.root))


def _arm(found: StudyResult, name: str) -> dict[str, Any]:
    study, plan = found.plan.study, found.plan
    arm = study.arms[name]
    common = {"label": arm.label or name, "preset": arm.preset, "keep": arm.keep, "reinit": arm.reinit}
    if arm.is_scratch:
        return {**common, "source": None, "text": None, "schedule": None, "tokens": 0}
    return {
        **common,
        "source": arm.source,
        "text": None if arm.text is None else arm.text.path or " ".join(arm.text.inputs),
        "schedule": study.stage1.schedule if arm.schedule is None else arm.schedule,
        "tokens": plan.stage1_updates(name) * tokens_per_update(study, "stage1"),
    }


def _stage1_rows(found: StudyResult) -> list[dict[str, Any]]:
    """Return one row for each stage-1 run. Arms and domains may share a run."""
    rows: dict[Any, dict[str, Any]] = {}
    study = found.plan.study
    batch = tokens_per_update(study, "stage1")
    for (domain, arm, seed), (run, result) in found.stage1.items():
        row = rows.setdefault(run.folder, {"arms": [], "domains": []})
        for names, name in (("arms", arm), ("domains", domain)):
            if name not in row[names]:
                row[names].append(name)
        if "seed" in row:
            continue
        tokens = run.iterations * batch
        share, unigram, uniform = _of_source(run, int(study.arguments["seq-length"]))
        evaluation = result.evaluation or {}
        row |= {
            "seed": seed,
            "source": run.source,
            "tokens": tokens,
            "supervised_tokens": round(share * tokens),
            "flops": tokens * found.compute.stage1[arm],
            "validation": _curve(result, batch),
            "loss": result.final_loss,
            "unigram_loss": unigram,
            "uniform_loss": uniform,
            "accuracy": (evaluation.get("in_context") or {}).get("accuracy"),
            "in_context": _by_frame(evaluation.get("in_context")),
            "induction": evaluation.get("induction"),
            "commands": _commands(run),
            "folder": _folder(found, run),
        }
    return list(rows.values())


def _by_frame(accuracies: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the held-out accuracies by frame, None if there are no frames."""
    if accuracies is None or accuracies["frames"] is None:
        return None
    return {name: accuracies[name] for name in ("frames", "patch", "cell", "grid", "copy")}


def _language_row(found: StudyResult, key: LanguageKey) -> dict[str, Any]:
    plan, (run, result) = found.plan, found.language[key]
    batch = tokens_per_update(plan.study, "language")
    curve = _curve(result, batch)
    baseline = _curve(found.language[_baseline(found, key)][1], batch)
    tokens = run.iterations * batch
    flops = tokens * found.compute.language[key.domain]
    stage1_tokens = _arm(found, key.arm)["tokens"]
    loss = curve[-1][1]
    return {
        "domain": key.domain,
        "arm": key.arm,
        "seed": key.seed,
        "extra_updates": key.extra_updates,
        "tokens": tokens,
        "stage1_tokens": stage1_tokens,
        "flops": flops,
        "flops_with_stage1": flops + stage1_tokens * found.compute.stage1.get(key.arm, 0.0),
        "validation": curve,
        "loss": loss,
        "perplexity": math.exp(loss),
        "difference": loss - baseline[-1][1],
        "gain_percent": gain_percent(baseline[-1][1], loss),
        "speed_up": speed_up(baseline, curve),
        "induction": (result.evaluation or {}).get("induction"),
        "commands": _commands(run),
        "folder": _folder(found, run),
    }


def _baseline(found: StudyResult, key: LanguageKey) -> LanguageKey:
    return LanguageKey(key.domain, found.plan.study.baseline, key.seed)


def _summary(found: StudyResult, domain: str, arm: str) -> dict[str, Any]:
    study = found.plan.study
    keys = [LanguageKey(domain, arm, seed) for seed in study.seeds]
    rows = [_language_row(found, key) for key in keys]
    summary: dict[str, Any] = {
        "loss": _estimate(row["loss"] for row in rows),
        "perplexity": _estimate(row["perplexity"] for row in rows),
        "difference": None,
        "gain_percent": None,
        "speed_up": None,
        "equal_compute": None,
        "smallest_effect": None,
        "verdict": "baseline",
    }
    if arm == study.baseline:
        return summary
    difference = estimate([row["difference"] for row in rows])
    summary |= {
        "difference": dataclasses.asdict(difference),
        "gain_percent": _gain(difference),
        "speed_up": _speed_ups([row["speed_up"] for row in rows]),
        "verdict": _verdict(difference),
    }
    if len(rows) > 1:
        deviation = float(np.std(difference.values, ddof=1))
        summary["smallest_effect"] = smallest_effect(deviation, len(rows)) if deviation else 0.0
    if study.equal_compute and not study.arms[arm].is_scratch:
        extra = found.compute.extra_updates(found.plan, domain, arm)
        longer = [
            found.language[dataclasses.replace(_baseline(found, key), extra_updates=extra)][1].final_loss
            for key in keys
        ]
        against = estimate([row["loss"] - loss for row, loss in zip(rows, longer, strict=True)])
        summary["equal_compute"] = {
            "extra_tokens": extra * tokens_per_update(study, "language"),
            "difference": dataclasses.asdict(against),
            "gain_percent": _gain(against),
            "verdict": _verdict(against),
        }
    return summary


def _tasks(found: StudyResult) -> list[dict[str, Any]]:
    """Return an entry for each task and domain, with all metrics of every run."""
    study, plan = found.plan.study, found.plan
    entries = []
    for name, task in study.tasks.items():
        for domain in task.domains or study.domains:
            rows = [
                {
                    "arm": arm,
                    "seed": seed,
                    "metrics": result.evaluation,
                    "commands": _commands(run),
                    "folder": _folder(found, run),
                }
                for arm in study.arms
                for seed in study.seeds
                for run, result in [found.tasks[TaskKey(name, domain, arm, seed)]]
            ]
            entries.append(
                {
                    "name": name,
                    "task": task.task,
                    "domain": domain,
                    "updates": plan.task_updates(name),
                    "runs": rows,
                    "summary": {arm: _of_task(rows, arm, study.baseline) for arm in study.arms},
                }
            )
    return entries


def _of_task(rows: list[dict[str, Any]], arm: str, baseline: str) -> dict[str, Any]:
    """Return each metric of an arm over the seeds, and its paired difference from the baseline."""
    own, base = ([row["metrics"] for row in rows if row["arm"] == name] for name in (arm, baseline))
    summary = {}
    for metric in own[0]:
        values = [metrics[metric][0] for metrics in own]
        difference = estimate([value - metrics[metric][0] for value, metrics in zip(values, base, strict=True)])
        summary[metric] = {
            "estimate": _estimate(values),
            "difference": None if arm == baseline else dataclasses.asdict(difference),
            "is_shown": arm != baseline and difference.is_shown,
        }
    return summary


def _speed_ups(values: list[float | None]) -> dict[str, Any]:
    """Return the speed-ups, and their mean if every seed reached the baseline's final perplexity."""
    reached = [value for value in values if value is not None]
    mean = _estimate(reached) if len(reached) == len(values) else None
    return {"values": values, "reached": len(reached), "estimate": mean}


def _verdict(difference: Estimate) -> str:
    if difference.low is None:
        return "one seed"
    if not difference.is_shown:
        return "none"
    return "better" if difference.mean < 0 else "worse"


def _gain(difference: Estimate) -> dict[str, Any]:
    """Return a difference in loss as a gain in per cent. Both intervals hold 0, or neither does."""
    ends = (difference.high, difference.low)
    low, high = (None if end is None else gain_percent(0.0, end) for end in ends)
    values = tuple(gain_percent(0.0, value) for value in difference.values)
    return dataclasses.asdict(Estimate(gain_percent(0.0, difference.mean), low, high, values))


def _estimate(values: Iterable[float]) -> dict[str, Any]:
    return dataclasses.asdict(estimate(list(values)))


def _curve(result: Result, batch: int) -> Curve:
    return [(updates * batch, loss) for updates, loss in result.validation]


def _at_edge(tried: dict[str, list[Any]], best: dict[str, Any]) -> list[str]:
    """Return the arguments whose best value is the smallest or the largest number that was tried."""
    return [
        name
        for name, value in best.items()
        if len(tried[name]) > 1
        and all(isinstance(v, int | float) for v in tried[name])
        and value in (min(tried[name]), max(tried[name]))
    ]


def _of_source(run: Run, seq_length: int) -> tuple[float, float | None, float | None]:
    """Return the share of supervised targets and two losses: of a model that knows only token frequencies, and of one
    that knows nothing; None for text. A loss below the first means that the model used the context."""
    if run.source is None:
        return 1.0, None, None
    source = parse(run.source)
    held_out = source.for_split("valid")
    samples = [held_out.sample(i, seq_length) for i in range(_SAMPLES)]
    targets = np.concatenate([sample.tokens[1:][sample.loss_mask] for sample in samples])
    counts = np.bincount(targets).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return targets.size / (_SAMPLES * seq_length), -float((shares * np.log(shares)).sum()), math.log(source.vocab_size)


def _commands(run: Run) -> list[str]:
    """Return the commands that repeat a run by hand, after the runs that it starts from."""
    commands = []
    if run.start is not None and run.start.transition is not None:
        transition = run.start.transition
        options = [f"--preset {transition.preset}", *(f"--keep {s}" for s in transition.keep)]
        options += [f"--reinit {s}" for s in transition.reinit]
        commands.append(
            f"nca-plugin transfer --from {run.start.origin.checkpoint} --to {run.start_checkpoint} {' '.join(options)} "
            f"--vocab-size {transition.vocab_size} --seed {transition.seed}"
        )
    if run.iterations:
        arguments = shlex.join(megatron_arguments(megatron_options(run)))
        commands.append(f"python -m nca_plugin.launch.megatron {arguments}")
    if run.question is not None:
        commands.append(shlex.join(["nca-plugin", *question_arguments(run, run.question)]))
    return commands
