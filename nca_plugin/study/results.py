"""What a study found, as the plain values of `results.json`. Losses are in nats per supervised token."""

import dataclasses
import math
import platform
import shlex
from importlib.metadata import version
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.study.corpus import StudyCorpus, read_documents
from nca_plugin.study.curves import gain_percent, speed_up
from nca_plugin.study.design import Study, SweepConfig, num_tokens
from nca_plugin.study.execute import Result, commands, curve_of
from nca_plugin.study.linear_model import differences
from nca_plugin.study.ngram import ngram_losses
from nca_plugin.study.plan import LanguageKey, TaskKey
from nca_plugin.study.stage1_rows import stage1_rows
from nca_plugin.study.study import StudyResult
from nca_plugin.study.summary import Comparison
from nca_plugin.study.sweep import combinations

#: Version of the layout of these values.
FORMAT: Final = 2
_PACKAGES: Final = ("nca-plugin", "megatron-core", "torch", "numpy", "numba")
_NGRAM_ORDERS: Final = (3, 4, 5)
#: With a larger budget n-grams are not counted, because they would not fit into memory.
_MOST_COUNTED: Final = 1 << 25
#: Seed of the choice of the documents that n-grams are counted in.
_COUNTED_SEED: Final = 0


def results(study: Study, found: StudyResult) -> dict[str, Any]:
    """Return everything that was measured, and what is needed to repeat it.

    Two runs of the same study on the same machine differ only in `timings`.
    """
    config = study.config
    runs = (found.swept, found.swept_stage1, found.stage1, found.language, found.tasks)
    values: dict[str, Any] = {
        "format": FORMAT,
        "command": shlex.join(["nca-plugin", "study", study.name, *study.overrides]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "seeds": config.seeds,
        "baseline": config.baseline,
        "domains": {name: _domain(found, name) for name in config.domains},
        "arms": {name: _arm(found, name) for name in config.arms},
        "sweep": _sweep(found),
        "stage1_sweep": _stage1_sweep(found),
        "stage1": stage1_rows(found),
        "language": [_language_row(found, key) for key in sorted(found.language)],
        "tasks": [],
        "summary": {},
        "study": dataclasses.asdict(config),
        "timings": {found.name_of(run): result.seconds for group in runs for run, result in group.values()},
    }
    if found.language:
        values["tasks"] = _tasks(found)
        for name in config.domains:
            comparison = _comparison(found, name, values["language"])
            values["summary"][name] = comparison.summary
            values["domains"][name]["noise"] = comparison.noise
    return values


def _comparison(found: StudyResult, domain: str, rows: list[dict[str, Any]]) -> Comparison:
    study, longer = found.plan.study, {}
    if study.equal_compute:
        chosen = found.chosen[domain]
        longer = {arm: found.compute.extra_updates(found.plan, domain, arm, chosen) for arm in found.compute.stage1}
    return Comparison([row for row in rows if row["domain"] == domain], list(study.arms), study.baseline, longer)


def _domain(found: StudyResult, name: str) -> dict[str, Any]:
    config, corpus = found.plan.study, found.plan.corpora[name]
    domain = config.domains[name]
    tokens = num_tokens(config, "language", domain.tokens)
    # One of the tokens is predicted for each held-out token; without a tokenizer, bytes are unknown.
    text_bytes = corpus.validation_bytes
    return {
        "paper": domain.paper,
        "corpus": domain.corpus.path or " ".join(domain.corpus.inputs),
        **corpus.facts,
        "bytes_per_token": text_bytes and text_bytes / corpus.validation_tokens,
        "tokens": tokens,
        "flops_per_token": found.compute.language[name],
        "best_arguments": found.chosen[name].language,
        "ngram_losses": _ngram_losses(corpus, tokens) if found.language else None,
    }


def _ngram_losses(corpus: StudyCorpus, tokens: int) -> dict[str, float] | None:
    """Return the losses of n-gram models that counted as many tokens as a run sees, each once; None for too many."""
    if tokens > _MOST_COUNTED:
        return None
    counted, count = list[NDArray[np.integer]](), 0
    for document in read_documents(corpus.train, _COUNTED_SEED):
        counted.append(document)
        count += len(document)
        if count >= tokens:
            break
    held_out = np.concatenate(list(read_documents(corpus.validation)))
    losses = ngram_losses(np.concatenate(counted)[:tokens], held_out, corpus.vocab_size, _NGRAM_ORDERS)
    return {str(order): loss for order, loss in losses.items()}


def _sweep(found: StudyResult) -> dict[str, Any]:
    sweep, settings = found.plan.study.sweep, combinations(found.plan.study.sweep)
    best = {domain: chosen.language for domain, chosen in found.chosen.items()}
    return {
        "seed": sweep.seed,
        "tokens": sum(run.tokens for run, _ in found.swept.values()),
        "tried": [
            {
                "domain": domain,
                "arguments": settings[number],
                "loss": _finite(result),
                "is_best": settings[number] == best[domain],
                "flops": run.tokens * found.compute.language[domain],
                "folder": found.name_of(run),
            }
            for (domain, number), (run, result) in found.swept.items()
        ],
        "at_edge": {domain: _at_edge(sweep, arguments) for domain, arguments in best.items()},
    }


def _stage1_sweep(found: StudyResult) -> dict[str, Any]:
    sweep, settings = found.plan.study.stage1_sweep, combinations(found.plan.study.stage1_sweep)
    rows: dict[str, dict[str, Any]] = {}
    for (domain, arm, number), (run, result) in found.swept_stage1.items():
        best = found.chosen[domain].stage1[arm]
        row = {
            "arms": [],
            "arguments": settings[number],
            "loss": _finite(result),
            "is_best": settings[number] == best,
            "at_edge": _at_edge(sweep, best),
            "flops": run.tokens * found.compute.stage1[arm],
            "folder": found.name_of(run),
        }
        arms = rows.setdefault(found.name_of(run), row)["arms"]
        if arm not in arms:
            arms.append(arm)
    tokens = {run.folder: run.tokens for run, _ in found.swept_stage1.values()}
    return {"seed": sweep.seed, "tokens": sum(tokens.values()), "tried": list(rows.values())}


def _finite(result: Result) -> float | None:
    """Return the final loss of a run, None if it has diverged."""
    return result.final_loss if math.isfinite(result.final_loss) else None


def _arm(found: StudyResult, name: str) -> dict[str, Any]:
    study = found.plan.study
    arm = study.arms[name]
    common = {"label": arm.label or name, "preset": arm.preset, "keep": arm.keep, "reinit": arm.reinit}
    if arm.is_scratch:
        return {**common, "source": None, "text": None, "schedule": None, "tokens": 0}
    return {
        **common,
        "source": arm.source,
        "text": None if arm.text is None else arm.text.path or " ".join(arm.text.inputs),
        "schedule": study.stage1.schedule if arm.schedule is None else arm.schedule,
        "tokens": num_tokens(study, "stage1", arm.tokens),
    }


def _language_row(found: StudyResult, key: LanguageKey) -> dict[str, Any]:
    run, result = found.language[key]
    curve = curve_of(run, result)
    baseline = curve_of(*found.language[LanguageKey(key.domain, found.plan.study.baseline, key.seed)])
    flops = run.tokens * found.compute.language[key.domain]
    stage1_tokens = _arm(found, key.arm)["tokens"]
    loss = curve[-1][1]
    evaluation = result.evaluation or {}
    return {
        "domain": key.domain,
        "arm": key.arm,
        "seed": key.seed,
        "extra_updates": key.extra_updates,
        "tokens": run.tokens,
        "stage1_tokens": stage1_tokens,
        "flops": flops,
        "flops_with_stage1": flops + stage1_tokens * found.compute.stage1.get(key.arm, 0.0),
        "validation": curve,
        "loss": loss,
        "perplexity": math.exp(loss),
        "difference": loss - baseline[-1][1],
        "gain_percent": gain_percent(baseline[-1][1], loss),
        "speed_up": speed_up(baseline, curve),
        "documents": (evaluation.get("perplexity") or [{}])[0].get("documents"),
        "retrieval": _without_path(evaluation.get("retrieval")),
        "induction": evaluation.get("induction"),
        "commands": commands(run),
        "folder": found.name_of(run),
    }


def _without_path(retrieval: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return a measurement without the path of its text, so that results do not depend on where the study lies."""
    return retrieval and {name: value for name, value in retrieval.items() if name != "path"}


def _tasks(found: StudyResult) -> list[dict[str, Any]]:
    """Return an entry for each task and domain, with all metrics of every run."""
    study = found.plan.study
    entries = []
    for name, task in study.tasks.items():
        for domain in task.domains or study.domains:
            rows = [
                {
                    "arm": arm,
                    "seed": seed,
                    "metrics": result.evaluation,
                    "commands": commands(run),
                    "folder": found.name_of(run),
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
                    "updates": found.tasks[TaskKey(name, domain, study.baseline, study.seeds[0])][0].iterations,
                    "runs": rows,
                    "summary": _of_task(rows, list(study.arms), study.baseline),
                }
            )
    return entries


def _of_task(rows: list[dict[str, Any]], arms: list[str], baseline: str) -> dict[str, dict[str, Any]]:
    """Return each metric of each arm over the seeds, and its difference from the baseline."""
    by_arm = {arm: [row["metrics"] for row in rows if row["arm"] == arm] for arm in arms}
    others = [arm for arm in arms if arm != baseline]
    summary: dict[str, dict[str, Any]] = {arm: {} for arm in arms}
    for metric in by_arm[baseline][0]:
        values = np.array([[metrics[metric][0] for metrics in by_arm[arm]] for arm in arms])
        found = differences(values, [(arms.index(arm), arms.index(baseline)) for arm in others])
        for arm, of_arm in zip(arms, values, strict=True):
            summary[arm][metric] = {"mean": float(of_arm.mean()), "difference": None, "is_shown": False}
        for arm, difference in zip(others, found, strict=True):
            summary[arm][metric] |= {"difference": dataclasses.asdict(difference), "is_shown": difference.is_shown}
    return summary


def _at_edge(sweep: SweepConfig, best: dict[str, Any]) -> list[str]:
    """Return the arguments whose best value is the smallest or the largest number that was tried."""
    tried = sweep.arguments
    return [
        name
        for name, value in best.items()
        if len(tried[name]) > 1
        and all(isinstance(v, int | float) for v in tried[name])
        and value in (min(tried[name]), max(tried[name]))
    ]
