"""Measures the tokens per second of a source in one and several processes, and the time to start a process."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Final

import numpy as np

from nca_plugin.display.ending import without_interrupts
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse

#: Number of sample indices that are reserved for each process.
_SAMPLES_PER_PROCESS: Final = 1 << 40
_START_TIMEOUT: Final = 120.0

_START: Final = """
import sys, time
start = time.perf_counter()
import nca_plugin.automata
imported = time.perf_counter()
from nca_plugin.display.ending import without_interrupts
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse
source = parse(sys.argv[1])
called = time.perf_counter()
source.sample(0, int(sys.argv[2]))
print(imported - start, time.perf_counter() - called)
"""


@dataclass(frozen=True)
class Throughput:
    """The throughput of `processes` processes that run at the same time.

    Attributes:
        tokens_per_cpu_second: mean over the processes, by their own CPU clocks.
        tokens_per_second: sum over all processes, by the wall clock.
        latency_ms: milliseconds of a call of `sample`, by quantile in percent, over all processes.
        memory_mb: resident memory of the largest process in MB (10^6 bytes).
    """

    processes: int
    tokens_per_cpu_second: float
    tokens_per_second: float
    latency_ms: dict[str, float]
    memory_mb: float


@dataclass(frozen=True)
class StartTimes:
    """Wall-clock seconds until a new process can work.

    Attributes:
        import_seconds: time to import `nca_plugin.automata`.
        first_sample_seconds: time of the first sample after an installation, with compilation.
        first_sample_cached_seconds: time of the first sample in every later process.
    """

    import_seconds: float
    first_sample_seconds: float
    first_sample_cached_seconds: float


def measure_throughput(uri: str, seq_length: int, processes: int, seconds: float) -> Throughput:
    """Measure `processes` new processes that make samples of `seq_length` tokens at the same time for `seconds`."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    pipes = [context.Pipe(duplex=False) for _ in range(processes)]
    workers = [
        context.Process(target=_work, args=(uri, seq_length, seconds, i * _SAMPLES_PER_PROCESS, barrier, sender))
        for i, (_, sender) in enumerate(pipes)
    ]
    for worker, (_, sender) in zip(workers, pipes, strict=True):
        with without_interrupts():
            worker.start()
        # Only the worker may hold the sender, so that `recv` fails if the worker ends early.
        sender.close()
    try:
        results = [receiver.recv() for receiver, _ in pipes]
    except EOFError:
        raise NCAPluginError(f"a process that made samples of {uri} ended early: look above for its error") from None
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    latencies = np.concatenate([latencies for latencies, _, _ in results])
    return Throughput(
        processes=processes,
        tokens_per_cpu_second=float(np.mean([len(calls) * seq_length / cpu for calls, cpu, _ in results])),
        tokens_per_second=float(np.sum([len(calls) * seq_length / calls.sum() for calls, _, _ in results])),
        latency_ms={f"p{q}": float(np.percentile(latencies, q)) * 1e3 for q in (50, 90, 99, 100)},
        memory_mb=max(memory for _, _, memory in results) / 1e6,
    )


def _work(uri: str, seq_length: int, seconds: float, first: int, barrier: Barrier, result: Connection) -> None:
    source = parse(uri)
    source.sample(first, seq_length)
    # Processes wait for those that start last, but not forever for one that has failed.
    barrier.wait(timeout=_START_TIMEOUT)
    latencies: list[float] = []
    cpu_start, end = time.process_time(), time.perf_counter() + seconds
    before = time.perf_counter()
    while before < end or not latencies:
        source.sample(first + len(latencies), seq_length)
        after = time.perf_counter()
        latencies.append(after - before)
        before = after
    cpu = time.process_time() - cpu_start
    result.send((np.array(latencies), cpu, _resident_bytes()))


def _resident_bytes() -> int:
    # `resource` reports the peak, which a process inherits from the one that started it.
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def measure_start(uri: str, seq_length: int) -> StartTimes:
    """Measure a process that has to compile everything, and one that finds everything compiled."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (_start(uri, seq_length, cache) for _ in range(2))
    return StartTimes(import_seconds=warm[0], first_sample_seconds=cold[1], first_sample_cached_seconds=warm[1])


def _start(uri: str, seq_length: int, cache: str) -> Sequence[float]:
    command = [sys.executable, "-c", _START, uri, str(seq_length)]
    with without_interrupts():
        process = subprocess.Popen(command, env=os.environ | {"NUMBA_CACHE_DIR": cache}, stdout=subprocess.PIPE)
    try:
        shown, _ = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise NCAPluginError(f"a new process could not make a sample of {uri}: look above for its error")
    return [float(text) for text in shown.split()]
