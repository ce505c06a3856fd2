"""The whole benchmark of a source: its measurements in order, its table, its JSON."""

import dataclasses
import json
import os
import platform
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.table import Table

from nca_plugin.errors import NCAPluginError
from nca_plugin.inspection.roofline import Roofline, Shares, measure_roofline, measure_shares
from nca_plugin.inspection.throughput import StartTimes, Throughput, measure_start, measure_throughput
from nca_plugin.sources import parse
from nca_plugin.sources.details import automaton

#: Number of samples for which the steps are timed one by one.
_SAMPLES_IN_STEPS: Final = 400


@dataclass(frozen=True)
class Benchmark:
    """All figures of a source. `shares` and `roofline` are None unless the source is a single automaton."""

    uri: str
    seq_length: int
    machine: dict[str, str | int]
    start: StartTimes
    throughput: tuple[Throughput, ...]
    shares: Shares | None
    roofline: Roofline | None


def run_benchmark(
    uri: str, seq_length: int, processes: int, seconds: float, say: Callable[[str], None] = lambda _: None
) -> Benchmark:
    """Measure the source `uri` with samples of `seq_length` tokens, in 1 .. `processes` processes.

    Args:
        seconds: time for each number of processes, 0 to 3600.
        say: is called with a line before each measurement.

    Raises:
        NCAPluginError: if the source, the length, the number of processes or the time is invalid.
    """
    if processes < 1 or not 0 < seconds <= 3600:
        raise NCAPluginError(
            f"bench with {processes} processes for {seconds:g} s: it takes 1 process or more, and up to 3600 s"
        )
    source = parse(uri)
    # Making a sample first raises any error here, not in a worker process.
    source.sample(0, seq_length)
    say(f"{uri}: compiling everything once (about ten seconds)")
    start = measure_start(uri, seq_length)
    throughput = []
    for count in _process_counts(processes):
        say(f"{uri}: {count} process{'es' if count > 1 else ''}, {seconds:g} s")
        throughput.append(measure_throughput(uri, seq_length, count, seconds))
    shares = roofline = None
    config = automaton(source)
    if config is not None:
        say(f"{uri}: steps of a sample")
        measure_shares(config, seq_length, 1)
        shares = measure_shares(config, seq_length, _SAMPLES_IN_STEPS)
        roofline = measure_roofline(config, shares)
    return Benchmark(source.uri, seq_length, _machine(), start, tuple(throughput), shares, roofline)


def table(result: Benchmark) -> Table:
    """Return a table of the figures for a terminal."""
    shown = Table(title=result.uri.partition("?")[0], show_header=False, title_justify="left")
    shown.add_column(style="bold")
    shown.add_column(justify="right")
    shown.add_column()
    for point in result.throughput:
        name = f"{point.processes} process{'es' if point.processes > 1 else ''}"
        shown.add_row(name, f"{point.tokens_per_cpu_second:,.0f}", "tokens per CPU-second")
        factor = point.tokens_per_second / result.throughput[0].tokens_per_second
        beside = f", {factor:.2f} times one" if point.processes > 1 else ""
        shown.add_row("", f"{point.tokens_per_second:,.0f}", f"tokens per second{beside}")
    one = result.throughput[0]
    quantiles = " / ".join(f"{one.latency_ms[q]:.2f}" for q in ("p50", "p90", "p99", "p100"))
    shown.add_row("latency", quantiles, f"ms a sample of {result.seq_length} tokens: median / 90 % / 99 % / longest")
    shown.add_row("memory", f"{one.memory_mb:.0f}", "MB a process")
    start = result.start
    shown.add_row("import", f"{start.import_seconds:.2f}", "s")
    shown.add_row("first sample", f"{start.first_sample_seconds:.1f}", "s after an installation (compiles)")
    shown.add_row("", f"{start.first_sample_cached_seconds:.2f}", "s in every later process")
    if result.shares is not None and result.roofline is not None:
        _add_automaton(shown, result.shares, result.roofline)
    return shown


def _add_automaton(shown: Table, shares: Shares, roofline: Roofline) -> None:
    shown.add_row("accepted", f"{1 / shares.attempts:.1%}", f"of the rules tried: {shares.attempts:.2f} a sample")
    parts = {
        "rollout": shares.rollout,
        "gzip": shares.gzip,
        "random numbers": shares.random_numbers,
        "encoding": shares.encoding,
    }
    total = sum(parts.values())
    for i, (name, microseconds) in enumerate(parts.items()):
        shown.add_row("" if i else "time", f"{microseconds:.0f}", f"us a sample: {name}, {microseconds / total:.0%}")
    shown.add_row("roofline", f"{roofline.cells:,.0f}", "cells computed a sample")
    shown.add_row("", f"{roofline.operations / 1e6:.2f}", "million float32 operations a sample")
    shown.add_row("", f"{roofline.bytes / 1e6:.2f}", "MB through the first cache a sample")
    shown.add_row("", f"{roofline.peak_gflops:.0f}", "GFLOP/s at most here (measured; no contraction)")
    shown.add_row("", f"{roofline.peak_gbytes:.0f}", "GB/s from the first cache at most (measured)")
    gap = roofline.measured_us / roofline.least_us
    shown.add_row("", f"{roofline.least_us:.0f}", f"us a sample at least; the rollouts take {gap:.1f} times that")


def to_json(results: list[Benchmark]) -> str:
    """Return all figures as JSON."""
    return json.dumps([dataclasses.asdict(result) for result in results], indent=2) + "\n"


def _process_counts(most: int) -> list[int]:
    """Return 1, 2, 4, ... and `most`."""
    return sorted({1 << k for k in range(most.bit_length())} | {most})


def _machine() -> dict[str, str | int]:
    return {
        "processor": _processor(),
        "processors": os.cpu_count() or 1,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numba": version("numba"),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }


def _processor() -> str:
    """Return the name of the processor in Linux, or else the architecture."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
