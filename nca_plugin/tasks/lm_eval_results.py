"""The results of lm-eval: reading them, and the standard errors that lm-eval leaves out."""

import math
from typing import Any

from nca_plugin.tasks.scoring import normalised, normalised_error


def add_errors(result: dict[str, Any]) -> None:
    """Add the standard errors of `normalised@k` to tasks and groups. lm-eval knows only those of its own aggregations.

    Args:
        result: results of our tasks in lm-eval's layout, with samples; changed in place.
    """
    values = result["results"]
    for task, rows in result["samples"].items():
        for metric, kind in _normalised_metrics(values[task]):
            pairs = [row[metric] for row in rows if metric in row]
            if len(pairs) > 1:
                values[task][f"{metric}_stderr,{kind}"] = normalised_error(pairs)
    for group, of_group in result.get("groups", {}).items():
        for metric, kind in _normalised_metrics(of_group):
            error = f"{metric}_stderr,{kind}"
            tasks = [task for task in result["group_subtasks"][group] if f"{metric},{kind}" in values[task]]
            errors = [values[task][error] for task in tasks]
            if all(isinstance(value, float) for value in errors):
                # The group is the plain mean of its tasks, whose questions are independent. lm-eval has it twice.
                values[group][error] = of_group[error] = math.hypot(*errors) / len(errors)


def task_metrics(result: dict[str, Any], name: str) -> dict[str, list[float | None]]:
    """Return the metrics of a task or group, each as [value, standard error]; the error is None if there is none.

    Args:
        result: results in lm-eval's layout.
    """
    values = {**result["results"], **result.get("groups", {})}[name]
    metrics: dict[str, list[float | None]] = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{kind}")
            metrics[metric] = [value, error if isinstance(error, int | float) else None]
    return metrics


def _normalised_metrics(values: dict[str, Any]) -> list[list[str]]:
    """Return the metrics `normalised@k` of a task or group, each as its name and lm-eval's name of the filter."""
    prefix = f"{normalised.__name__}@"
    return [key.split(",") for key in values if key.startswith(prefix) and "_stderr" not in key]
