"""Reading the results of lm-eval."""

from typing import Any


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
