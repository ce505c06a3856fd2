"""Runs of a study side by side, on this machine or as jobs of a Hydra launcher such as submitit for SLURM."""

import queue
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cached_property
from typing import Final, Protocol

from nca_plugin.display.terminal import num_cores
from nca_plugin.study.design import Study
from nca_plugin.study.devices import cuda_devices, device_groups, fewer_runs_note
from nca_plugin.study.execute import execute, read_result, updates_done
from nca_plugin.study.hydra_jobs import run_as_jobs
from nca_plugin.study.rank_processes import Place
from nca_plugin.study.run import Run

_SECONDS_BETWEEN_LOOKS: Final = 0.5


class Progress(Protocol):
    """The interface through which a study reports its progress."""

    def expect(self, total: int) -> None:
        """Set the number of steps of all tasks together. Without it, the time left is unknown."""

    def start(self, name: str, total: int) -> None:
        """Begin a task of `total` steps."""

    def update(self, name: str, done: int) -> None:
        """Set the number of steps of a task that are done."""

    def finish(self, name: str, message: str) -> None:
        """End a task."""

    def note(self, message: str) -> None:
        """Print one line that does not belong to a task."""


class Runner:
    """Does the runs of a study."""

    def __init__(self, study: Study, progress: Progress) -> None:
        self._study = study
        self._progress = progress

    def run_all(self, runs: Sequence[Run]) -> None:
        """Do the incomplete ones of some runs, none of which needs another. A failure or an interrupt stops runs on
        this machine; jobs of a launcher continue.

        Raises:
            NCAPluginError: a run failed, or cannot be started as the study says.
        """
        unique = {run.folder: run for run in runs}
        assert all(run.identity == unique[run.folder].identity for run in runs), "runs that differ share a folder"
        missing = [run for run in unique.values() if read_result(run) is None]
        if not missing:
            return
        with _watched(missing, self._progress):
            if self._study.launcher:
                ranks = self._study.config.devices_per_run
                run_as_jobs(missing, self._study.launcher, ranks, self._study.output / "jobs")
            else:
                self._run_here(missing)

    @cached_property
    def _groups(self) -> list[Sequence[str] | None]:
        """The devices of each run that is done at the same time on this machine."""
        config, devices = self._study.config, cuda_devices()
        groups = device_groups(devices, config)
        if len(groups) < config.parallel_runs:
            self._progress.note(fewer_runs_note(len(devices), len(groups), config))
        return groups

    def _run_here(self, runs: Sequence[Run]) -> None:
        ranks = self._study.config.devices_per_run
        threads = max(1, num_cores() // (len(self._groups) * ranks))
        slots: queue.SimpleQueue[Sequence[str] | None] = queue.SimpleQueue()
        for devices in self._groups:
            slots.put(devices)
        stop = threading.Event()

        def one(run: Run) -> None:
            devices = slots.get()
            try:
                execute(run, Place(ranks, threads, devices, stop))
            finally:
                slots.put(devices)

        with ThreadPoolExecutor(len(self._groups)) as pool:
            futures = [pool.submit(one, run) for run in runs]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True)
                raise


@contextmanager
def _watched(runs: Sequence[Run], progress: Progress) -> Iterator[None]:
    """Report the progress of runs, which is read from their files, wherever they run."""
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(runs, progress, done), daemon=True)
    watch.start()
    try:
        yield
    finally:
        done.set()
        watch.join()


def _watch(runs: Sequence[Run], progress: Progress, done: threading.Event) -> None:
    waiting, started = list(runs), list[Run]()
    is_last = False
    while not is_last:
        is_last = done.wait(_SECONDS_BETWEEN_LOOKS)
        for run in [run for run in waiting if (run.folder / "run.json").is_file()]:
            waiting.remove(run)
            started.append(run)
            progress.start(run.title, run.iterations)
        for run in list(started):
            progress.update(run.title, updates_done(run))
            result = read_result(run)
            if result is not None:
                started.remove(run)
                last = f"held-out loss {result.final_loss:.4f}" if result.validation else "done"
                progress.finish(run.title, f"{last} ({result.seconds:.0f} s)")
