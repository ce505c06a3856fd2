"""What was measured of every stage 1, as plain values of `results.json`."""

import math
from typing import Any, Final

import numpy as np

from nca_plugin.sources import parse
from nca_plugin.study.execute import commands, curve_of
from nca_plugin.study.run import Run
from nca_plugin.study.study import StudyResult

#: Number of held-out samples from which token frequencies are counted if the model was not evaluated on some.
_SAMPLES: Final = 128
#: Sources whose context tells less, in nats per token, have nothing to learn.
_LEAST_TOLD: Final = 0.01


def stage1_rows(found: StudyResult) -> list[dict[str, Any]]:
    """Return one row for each stage-1 run. Arms and domains may share a run."""
    rows: dict[Any, dict[str, Any]] = {}
    seq_length = int(found.plan.study.arguments["seq-length"])
    for (domain, arm, _), (run, result) in found.stage1.items():
        row = rows.setdefault(run.folder, {"arms": [], "domains": []})
        for names, name in (("arms", arm), ("domains", domain)):
            if name not in row[names]:
                row[names].append(name)
        if "seed" in row:
            continue
        evaluation = result.evaluation or {}
        in_context = evaluation.get("in_context") or {}
        share, unigram, uniform = _of_source(run, seq_length, in_context.get("samples", _SAMPLES))
        # The oracle's loss and that of token frequencies are those of the same samples.
        loss = in_context.get("loss", result.final_loss)
        row |= {
            "seed": run.arguments["seed"],
            "source": run.source,
            "arguments": found.chosen[domain].stage1.get(arm, {}),
            "tokens": run.tokens,
            "supervised_tokens": round(share * run.tokens),
            "flops": run.tokens * found.compute.stage1[arm],
            "validation": curve_of(run, result),
            "loss": loss,
            "unigram_loss": unigram,
            "uniform_loss": uniform,
            "oracle_loss": in_context.get("oracle_loss"),
            "accuracy": in_context.get("accuracy"),
            "learned": _learned(in_context, loss, unigram),
            "hard_share": in_context.get("hard_share"),
            "in_context": _by_frame(in_context),
            "induction": evaluation.get("induction"),
            "commands": commands(run),
            "folder": found.name_of(run),
        }
    return list(rows.values())


def _learned(in_context: dict[str, Any], loss: float, unigram: float | None) -> float | None:
    """Return how much of what the context tells was learned, 0 .. 1, see `nca_plugin.probes.ceilings`; None if unknown.

    For a source without frames it is how far the loss comes from that of token frequencies to the oracle's.
    """
    oracle = in_context.get("oracle_loss")
    if in_context.get("frames") is not None or oracle is None or unigram is None:
        share: float | None = in_context.get("learned")
        return share
    return (unigram - loss) / (unigram - oracle) if unigram - oracle > _LEAST_TOLD else None


def _by_frame(accuracies: dict[str, Any]) -> dict[str, Any] | None:
    """Return the held-out accuracies by frame, None if there are no frames."""
    if not accuracies or accuracies["frames"] is None:
        return None
    names = ("frames", "patch", "cell", "grid", "copy", "best_copy", "lookup", "limit", "hard")
    return {name: accuracies[name] for name in names}


def _of_source(run: Run, seq_length: int, count: int) -> tuple[float, float | None, float | None]:
    """Return the share of supervised targets and two losses on `count` samples: of a model that knows only token
    frequencies, and of one that knows nothing; None for text. A loss below the first means that the model used the
    context."""
    if run.source is None:
        return 1.0, None, None
    source = parse(run.source)
    held_out = source.for_split("test")
    samples = [held_out.sample(i, seq_length) for i in range(count)]
    targets = np.concatenate([sample.tokens[1:][sample.loss_mask] for sample in samples])
    counts = np.bincount(targets).astype(np.float64)
    shares = counts[counts > 0] / counts.sum()
    return targets.size / (count * seq_length), -float((shares * np.log(shares)).sum()), math.log(source.vocab_size)
