"""Estimates of what a study needs, before anything is started."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.table import Table

from nca_plugin.display.terminal import short
from nca_plugin.study.all_runs import language_runs, stage1_runs
from nca_plugin.study.compute import checked
from nca_plugin.study.design import Study, num_tokens, validation_tokens
from nca_plugin.study.plan import LanguageKey, task_runs, unprepared
from nca_plugin.study.run import Run
from nca_plugin.study.sweep import any_choice

#: Dense bf16 peak in TFLOP/s (NVIDIA's data sheets), and the share of it that well-tuned training reaches.
PEAKS: Final = {"H100": 989.0, "A100": 312.0}
UTILISATION: Final = 0.4
#: Weights, two moments and a copy of the weights in float32. With weights in bf16 it is less.
_BYTES_PER_PARAMETER: Final = 16
#: A forward pass takes a third of a training step.
_EVALUATION_SHARE: Final = 1 / 3
#: Number of checkpoints that a run has beside its last one while it trains: other saves, and the start checkpoint.
_SAVES_UNDER_WAY: Final = 5
_UNITS: Final = ((86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
#: Share of the CPU's speed in large products of matrices that training reaches, all runs at a time together.
_CPU_UTILISATION: Final = 0.65
#: Seconds that a run on a CPU takes beside its operations: to import and build everything, twice with its evaluation,
#: and for each update or held-out sequence.
_START_SECONDS: Final = 15.0
_STEP_SECONDS: Final = 0.055
#: Rows of the matrix that is multiplied by itself to measure the CPU.
_MATRIX: Final = 1024
_SECONDS_TO_MEASURE: Final = 0.5


@dataclass(frozen=True)
class CostItem:
    """The cost of all runs of one kind.

    Attributes:
        name: name of the kind for the table.
        runs: number of runs.
        steps: number of updates of all runs, and of held-out sequences, which are evaluated one by one.
        tokens: number of tokens that all runs are trained on.
        flops: operations of all runs, including the evaluation of held-out text.
    """

    name: str
    runs: int
    steps: int
    tokens: int
    flops: float


@dataclass(frozen=True)
class Needs:
    """What a study needs.

    Attributes:
        parts: its runs by kind.
        parameters: number of parameters of its largest model; None if Megatron does not report it.
        final_bytes: size of all checkpoints at the end; None likewise.
        peak_bytes: largest size of all checkpoints while runs train; None likewise. `parallel_runs` train at the same
            time on this machine, and possibly all of them as jobs of a launcher.
        text_tokens: number of tokens needed of each text, for training and held out, by name.
        at_a_time: number of runs at the same time on a machine without CUDA.
    """

    parts: Sequence[CostItem]
    parameters: int | None
    final_bytes: int | None
    peak_bytes: int | None
    text_tokens: dict[str, int]
    at_a_time: int


def needs(study: Study) -> Needs:
    """Return what a study needs, apart from the answers of models to tasks. Nothing is written or started.

    Raises:
        NCAPluginError: see `checked`.
    """
    compute, plan = checked(study, is_run=False), unprepared(study.config)
    config = study.config
    chosen = any_choice(config)
    held_out = validation_tokens(config) * config.language.evaluations

    def part(name: str, runs: Iterable[tuple[Run, float]], evaluated: int = 0) -> CostItem:
        """Return the cost of runs, each with its operations per token, and of `evaluated` held-out tokens for each."""
        unique = list({run.folder: (run, flops) for run, flops in runs}.values())
        return CostItem(
            name,
            len(unique),
            sum(run.iterations + evaluated // int(run.arguments["seq-length"]) for run, _ in unique),
            sum(run.tokens for run, _ in unique),
            sum((run.tokens + evaluated * _EVALUATION_SHARE) * flops for run, flops in unique),
        )

    def of_text(runs: Mapping[LanguageKey, Run], is_longer: bool) -> list[tuple[Run, float]]:
        return [
            (run, compute.language[key.domain]) for key, run in runs.items() if bool(key.extra_updates) == is_longer
        ]

    stage1 = stage1_runs(plan, chosen)
    swept_stage1 = plan.stage1_sweep(chosen)
    language = language_runs(plan, chosen, compute)
    parts = [
        part(
            "sweep of the baseline",
            [(run, compute.language[domain]) for (domain, _), run in plan.sweep().items()],
            held_out,
        ),
        part("sweep of stage 1", [(run, compute.stage1[arm]) for (_, arm, _), run in swept_stage1.items()]),
        part("stage 1", [(run, compute.stage1[arm]) for (_, arm, _), run in stage1.items()]),
        part("language", of_text(language, is_longer=False), held_out),
        part("language, equal compute", of_text(language, is_longer=True), held_out),
    ]
    tuned = {key: run for key, run in task_runs(plan, chosen).items() if run.tuning is not None}
    parts.append(part("tuning on tasks", [(run, compute.language[key.domain]) for key, run in tuned.items()]))
    final = peak = None
    if compute.parameters is not None:
        one = compute.parameters * _BYTES_PER_PARAMETER
        folders = {run.folder for run in stage1.values()}
        folders |= {run.start.origin.folder for run in language.values() if run.start is not None}
        final = one * (len(folders) + len(language) + len(tuned))
        at_a_time = config.parallel_runs
        if study.launcher:
            at_a_time = max(len(language), *(part.runs for part in parts))
        peak = final + one * _SAVES_UNDER_WAY * at_a_time
    texts = {
        domain: max(run.tokens for key, run in language.items() if key.domain == domain) + validation_tokens(config)
        for domain in config.domains
    }
    for name, arm in config.arms.items():
        if arm.text is not None:
            texts[f"stage 1 of {name}"] = num_tokens(config, "stage1", arm.tokens) + validation_tokens(config)
    return Needs([part for part in parts if part.runs], compute.parameters, final, peak, texts, config.parallel_runs)


def cpu_teraflops() -> float:
    """Measure the speed of this machine's CPU in float32, in 10^12 operations per second. Takes a second."""
    # Imported here, because importing torch takes seconds.
    import torch

    matrix = torch.rand(_MATRIX, _MATRIX)
    matrix @ matrix
    began, count = time.monotonic(), 0
    while time.monotonic() - began < _SECONDS_TO_MEASURE:
        matrix @ matrix
        count += 1
    return count * 2 * _MATRIX**3 / (time.monotonic() - began) / 1e12


def tables(needs: Needs, teraflops: float | None, cpu: float | None = None) -> list[Table]:
    """Return the tables of `--estimate`.

    Args:
        teraflops: 10^12 operations per second that one device reaches in training; None for two common devices.
        cpu: see `cpu_teraflops`; None if the runs use CUDA devices.
    """
    rates = {name: UTILISATION * peak for name, peak in PEAKS.items()} if teraflops is None else {"device": teraflops}
    runs = Table(title="What the runs take")
    for heading in ("", "runs", "tokens", "FLOPs", *rates, *([] if cpu is None else ["this CPU"])):
        runs.add_column(heading, justify="right" if heading else "left", no_wrap=not heading)
    everything = CostItem(
        "all",
        sum(part.runs for part in needs.parts),
        sum(part.steps for part in needs.parts),
        sum(part.tokens for part in needs.parts),
        sum(part.flops for part in needs.parts),
    )
    for part in (*needs.parts, everything):
        times = [part.flops / (rate * 1e12) for rate in rates.values()]
        if cpu is not None:
            overhead = part.runs * _START_SECONDS + part.steps * _STEP_SECONDS
            times.append(part.flops / (_CPU_UTILISATION * cpu * 1e12) + overhead / min(part.runs, needs.at_a_time))
        runs.add_row(part.name, f"{part.runs:,}", short(part.tokens), f"{part.flops:.2e}", *map(duration, times))
    captions = []
    if teraflops is None:
        shares = ", ".join(f"{name} {peak:g}" for name, peak in PEAKS.items())
        captions.append(f"at {UTILISATION:.0%} of the peak in bf16 ({shares} TFLOP/s); --teraflops for your own")
    if cpu is not None:
        captions.append(
            f"this CPU: at {_CPU_UTILISATION:.0%} of {1000 * cpu:,.0f} GFLOP/s, measured just now, with "
            f"{_START_SECONDS:g} s for each run and {1000 * _STEP_SECONDS:g} ms for each update and held-out sequence"
        )
    runs.caption = "\n".join(captions) or None
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


def duration(seconds: float) -> str:
    """Return a time as text, in the largest unit that it fills.

    >>> [duration(seconds) for seconds in (0.03, 42, 90, 7500, 2e6)]
    ['0.03 s', '42 s', '1.5 min', '2.1 h', '23 days']
    """
    size, unit = next(((size, unit) for size, unit in _UNITS if seconds >= size), _UNITS[-1])
    value = seconds / size
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"
