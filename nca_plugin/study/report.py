"""What a study found: a table, `results.json` and a picture."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from nca_plugin.files import complete_files
from nca_plugin.study.config import StudyConfig
from nca_plugin.study.study import StudyResult

#: Two-sided 95 % quantile of Student's t for 1, 2, ... degrees of freedom.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def t95(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t with `freedom` >= 1 degrees of freedom, to 0.003."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    # Abramowitz and Stegun 26.7.5, from the normal quantile.
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def results(study: StudyConfig, result: StudyResult) -> dict[str, Any]:
    """Return everything measured as plain values; losses in nats a token."""
    tokens_per_iteration = int(study.arguments["global-batch-size"]) * int(study.arguments["seq-length"])
    warm_ups = []
    for (name, seed), warm_up in result.warm_ups.items():
        warm_ups.append(
            {
                "warm_up": name,
                "seed": seed,
                "source": warm_up.uri,
                "tokens": study.warm_ups[name].iterations * tokens_per_iteration,
                "held_out_loss": warm_up.run.validation_loss[-1][1],
                "unigram_loss": warm_up.unigram_loss,
                "uniform_loss": float(warm_up.uniform_loss),
                "seconds": warm_up.run.seconds,
                "validation_curve": warm_up.run.validation_loss,
            }
        )
    arms = []
    for (name, seed), run in result.arms.items():
        loss = run.validation_loss[-1][1]
        arms.append(
            {
                "arm": name,
                "label": study.arms[name].label or name,
                "seed": seed,
                "validation_loss": loss,
                "perplexity": math.exp(loss),
                "difference_to_baseline": loss - result.arms[study.baseline, seed].validation_loss[-1][1],
                "seconds": run.seconds,
                "validation_curve": run.validation_loss,
            }
        )
    return {
        "seeds": study.seeds,
        "baseline": study.baseline,
        "tokens_per_iteration": tokens_per_iteration,
        "language_tokens": study.language.iterations * tokens_per_iteration,
        "vocab_size": result.vocab_size,
        "corpus_tokens": result.corpus_tokens,
        "seconds": result.seconds,
        "warm_ups": warm_ups,
        "arms": arms,
        "summary": {name: _summary([a for a in arms if a["arm"] == name]) for name in study.arms},
        "study": dataclasses.asdict(study),
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return means over seeds, and the 95 % interval of the paired difference to the baseline (None for one seed)."""
    differences = np.array([row["difference_to_baseline"] for row in rows])
    half_width = None
    if len(rows) > 1:
        freedom = len(rows) - 1
        half_width = float(t95(freedom) * differences.std(ddof=1) / math.sqrt(len(rows)))
    mean_loss = float(np.mean([row["validation_loss"] for row in rows]))
    return {
        "label": rows[0]["label"],
        "validation_loss": mean_loss,
        "perplexity": math.exp(mean_loss),
        "difference": float(differences.mean()),
        "difference_95": half_width,
        "seconds": float(np.mean([row["seconds"] for row in rows])),
    }


def tables(values: dict[str, Any]) -> list[Table]:
    """Return the tables of a study's results for the terminal."""
    warm_ups = Table(title="Warm-up: was anything learned? (held-out loss, nats a supervised token)")
    for heading in ("warm-up", "seed", "tokens", "held-out loss", "token frequencies alone", "uniform", "seconds"):
        warm_ups.add_column(heading, justify="left" if heading == "warm-up" else "right")
    for row in values["warm_ups"]:
        warm_ups.add_row(
            row["warm_up"],
            str(row["seed"]),
            f"{row['tokens']:,}",
            *(f"{row[key]:.3f}" for key in ("held_out_loss", "unigram_loss", "uniform_loss")),
            f"{row['seconds']:.0f}",
        )
    arms = Table(title=f"Language: validation after {values['language_tokens']:,} tokens, {_seeds(values)}")
    for heading in ("arm", "loss (nats)", "perplexity", f"loss minus {values['baseline']}", "seconds"):
        arms.add_column(heading, justify="left" if heading == "arm" else "right")
    for name, row in values["summary"].items():
        spread = "" if row["difference_95"] is None else f" ± {row['difference_95']:.4f}"
        difference = "-" if name == values["baseline"] else f"{row['difference']:+.4f}{spread}"
        arms.add_row(
            row["label"],
            f"{row['validation_loss']:.4f}",
            f"{row['perplexity']:.3f}",
            difference,
            f"{row['seconds']:.0f}",
        )
    return [warm_ups, arms]


def verdict(values: dict[str, Any]) -> str:
    """Return what the numbers can and cannot show, in words."""
    if len(values["seeds"]) == 1:
        others = {n: r for n, r in values["summary"].items() if n != values["baseline"]}
        lowest = min(others.values(), key=lambda row: row["difference"])
        direction = "below" if lowest["difference"] < 0 else "above"
        return (
            f"The best warm-up arm, '{lowest['label']}', ended {abs(lowest['difference']):.4f} nats {direction} "
            f"{values['baseline']}. One seed shows that the path works; it does not show that any arm is better. Runs "
            "of this size differ by a few hundredths of a nat from seed to seed: add seeds, such as seeds=[1,2,3,4,5]."
        )
    lines = []
    for name, row in values["summary"].items():
        if name == values["baseline"]:
            continue
        is_real = abs(row["difference"]) > row["difference_95"]
        claim = ("lower" if row["difference"] < 0 else "higher") if is_real else "no difference shown"
        lines.append(f"{row['label']}: {claim} ({row['difference']:+.4f} ± {row['difference_95']:.4f})")
    return (
        f"Paired over {len(values['seeds'])} seeds, loss minus {values['baseline']} with its 95 % interval: "
        + "; ".join(lines)
        + ". The result holds for this model, text and budget."
    )


def write_report(values: dict[str, Any], folder: Path) -> list[Path]:
    """Write `results.json` and `curves.png` to `folder`, and return their paths."""
    paths = [folder / "results.json", folder / "curves.png"]
    with complete_files(*paths) as partials:
        partials[0].write_text(json.dumps(values, indent=1))
        _draw(values, partials[1])
    return paths


def _draw(values: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    warm_up_axes, axes = figure.subplots(1, 2, width_ratios=[2, 3])
    step = values["tokens_per_iteration"] / 1e6
    for index, name in enumerate(dict.fromkeys(row["warm_up"] for row in values["warm_ups"])):
        rows = [row for row in values["warm_ups"] if row["warm_up"] == name]
        color = f"C{index + 4}"
        _draw_curves(warm_up_axes, rows, step, color, name)
        warm_up_axes.axhline(rows[0]["unigram_loss"], color=color, linestyle=":", label=f"{name}: token frequencies")
    warm_up_axes.set(
        title="Warm-up: held-out loss", xlabel="synthetic tokens (millions)", ylabel="nats a supervised token"
    )
    for index, name in enumerate(values["summary"]):
        rows = [row for row in values["arms"] if row["arm"] == name]
        _draw_curves(axes, rows, step, f"C{index}", rows[0]["label"])
    axes.set(
        title=f"Language: validation loss, {_seeds(values)}", xlabel="text tokens (millions)", ylabel="nats a token"
    )
    for a in (warm_up_axes, axes):
        a.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, frameon=False, fontsize=9)
        a.grid(alpha=0.3)
        a.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _draw_curves(axes: Any, rows: list[dict[str, Any]], step: float, color: str, label: str) -> None:
    """Draw each seed thin and their mean thick."""
    x = [iteration * step for iteration, _ in rows[0]["validation_curve"]]
    curves = np.array([[value for _, value in row["validation_curve"]] for row in rows])
    if len(rows) > 1:
        axes.plot(x, curves.T, color=color, linewidth=0.7, alpha=0.5)
    axes.plot(x, curves.mean(axis=0), color=color, linewidth=2, marker="o", markersize=3, label=label)


def _seeds(values: dict[str, Any]) -> str:
    count = len(values["seeds"])
    return "1 seed" if count == 1 else f"mean of {count} seeds"
