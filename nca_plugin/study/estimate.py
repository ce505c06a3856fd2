"""What a study will take, before anything of it is started."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from nca_plugin.study.config import Study, tokens_per_update, validation_tokens
from nca_plugin.study.plan import Run, combinations
from nca_plugin.study.study import checked, language_runs, stage1_runs, task_runs, unprepared
from nca_plugin.terminal import short

#: Dense bf16 peak in TFLOP/s (NVIDIA's data sheets), and the share of it that a well-run training reaches.
PEAKS: Final = {"H100": 989.0, "A100": 312.0}
UTILISATION: Final = 0.4
#: Weights, and the optimizer's two moments and copy of the weights, in float32; weights that train in bf16 take less.
_BYTES_PER_PARAMETER: Final = 16
#: A forward pass takes a third of a training step.
_EVALUATION_SHARE: Final = 1 / 3
#: Checkpoints that a run has beside its last: other saves, and the start.
_SAVES_UNDER_WAY: Final = 5


@dataclass(frozen=True)
class Part:
    """Runs of a kind.

    Attributes:
        name: for people.
        runs: how many.
        tokens: trained on, by all of them.
        flops: of all of them, held-out text included.
    """

    name: str
    runs: int
    tokens: int
    flops: float


@dataclass(frozen=True)
class Needs:
    """What a study takes.

    Attributes:
        parts: its runs by kind.
        parameters: of its largest model; None where Megatron does not tell.
        final_bytes: of checkpoints at the end; None likewise.
        peak_bytes: of checkpoints while runs are under way, on a machine where nothing but `parallel_runs` limits how
            many there are at a time, or as jobs of a launcher, which may all run at the same time; None likewise.
        text_tokens: of each text that is trained on or held out, by its name.
    """

    parts: Sequence[Part]
    parameters: int | None
    final_bytes: int | None
    peak_bytes: int | None
    text_tokens: dict[str, int]


def needs(study: Study) -> Needs:
    """Return what a study takes, without what models take to answer; nothing is written or started.

    Raises:
        NCAPluginError: see `checked`.
    """
    compute, plan = checked(study, is_run=False), unprepared(study.config)
    config = study.config
    best = dict.fromkeys(config.domains, combinations(config)[0])
    held_out = validation_tokens(config) * config.language.evaluations * _EVALUATION_SHARE
    batch = tokens_per_update(config, "language")

    def part(name: str, runs: Sequence[tuple[Run, str]]) -> Part:
        tokens = sum(run.iterations * batch for run, _ in runs)
        flops = sum((run.iterations * batch + held_out) * compute.language[domain] for run, domain in runs)
        return Part(name, len(runs), tokens, flops)

    stage1 = {run.folder: (run, arm) for (_, arm, _), run in stage1_runs(plan, best).items()}
    stage1_batch = tokens_per_update(config, "stage1")
    language = language_runs(plan, best, compute)
    parts = [
        part("sweep of the baseline", [(run, domain) for (domain, _), run in plan.sweep().items()]),
        Part(
            "stage 1",
            len(stage1),
            sum(run.iterations * stage1_batch for run, _ in stage1.values()),
            sum(run.iterations * stage1_batch * compute.stage1[arm] for run, arm in stage1.values()),
        ),
        part("language", [(run, key.domain) for key, run in language.items() if not key.extra_updates]),
        part(
            "language, equal compute",
            [(run, key.domain) for key, run in language.items() if key.extra_updates],
        ),
    ]
    tuned = [(run, key.domain) for key, run in task_runs(plan, best).items() if run.tuning is not None]
    tokens = sum(run.iterations * batch for run, _ in tuned)
    parts.append(
        Part(
            "tuning on tasks",
            len(tuned),
            tokens,
            sum(run.iterations * batch * compute.language[domain] for run, domain in tuned),
        )
    )
    final = peak = None
    if compute.parameters is not None:
        one = compute.parameters * _BYTES_PER_PARAMETER
        templates = {run.start.origin.folder for run in language.values() if run.start is not None} - stage1.keys()
        final = one * (len(stage1) + len(language) + len(templates))
        at_a_time = config.parallel_runs
        if study.launcher:
            at_a_time = max(len(stage1), len(language), len(tuned), len(plan.sweep()))
        peak = final + one * _SAVES_UNDER_WAY * at_a_time
    texts = {
        domain: max(run.iterations for key, run in language.items() if key.domain == domain) * batch
        + validation_tokens(config)
        for domain in config.domains
    }
    for name, arm in config.arms.items():
        if arm.text is not None:
            texts[f"stage 1 of {name}"] = plan.stage1_updates(name) * stage1_batch + validation_tokens(config)
    return Needs([part for part in parts if part.runs], compute.parameters, final, peak, texts)


def tables(needs: Needs, teraflops: float | None) -> list[Table]:
    """Return the tables of `--estimate`.

    Args:
        teraflops: what a device at hand reaches in training, 10^12 operations a second; None for two common ones.
    """
    if teraflops is None:
        rates = {f"{name} hours": UTILISATION * peak for name, peak in PEAKS.items()}
    else:
        rates = {"device hours": teraflops}
    runs = Table(title="What the runs take")
    for heading in ("", "runs", "tokens", "FLOPs", *rates):
        runs.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    everything = Part(
        "all",
        sum(part.runs for part in needs.parts),
        sum(part.tokens for part in needs.parts),
        sum(part.flops for part in needs.parts),
    )
    for part in (*needs.parts, everything):
        hours = (_hours(part.flops / (rate * 1e12) / 3600) for rate in rates.values())
        runs.add_row(part.name, f"{part.runs:,}", short(part.tokens), f"{part.flops:.2e}", *hours)
    if teraflops is None:
        shares = ", ".join(f"{name} {peak:g}" for name, peak in PEAKS.items())
        runs.caption = f"hours at {UTILISATION:.0%} of the peak in bf16 ({shares} TFLOP/s); --teraflops for your own"
    space = Table(title="What has to be there")
    for heading in ("", "amount"):
        space.add_column(heading, justify="right" if heading else "left")
    for name, tokens in needs.text_tokens.items():
        space.add_row(f"text of {name}, in tokens", f"{tokens:,}")
    if needs.parameters is not None and needs.final_bytes is not None and needs.peak_bytes is not None:
        space.add_row("parameters of the model", f"{needs.parameters:,}")
        space.add_row("disk for checkpoints at the end", f"{short(needs.final_bytes)}B")
        space.add_row("disk for checkpoints at most", f"{short(needs.peak_bytes)}B")
    return [runs, space]


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"
