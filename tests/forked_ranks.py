"""Many small jobs of Megatron in one start: importing it takes seconds, a tiny model a fraction of one.

A test calls `run` with a script and a list of jobs; the script calls `import_megatron`, and `serve`, which forks ranks
that do one job after another.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

#: Without a job done, under any load: ranks wait for each other, such as for one that has been refused alone.
_SECONDS_WITHOUT_PROGRESS = 300

#: A job as keyword arguments of the script's own class of jobs; it has a `name`, and how many `ranks` it takes.
Job = dict[str, Any]
Results = dict[str, dict[str, Any]]


def run(script: str, folder: Path, command: str, jobs: list[Job], may_fail: bool = False) -> Results:
    """Have `script` do jobs; `folder` gets the log. Fails if one fails, unless it may.

    Returns what each job returned, by name, and the `seconds` that it took; of one that failed, only its `error`.
    """
    assert len({job["name"] for job in jobs}) == len(jobs), "two jobs of one name"
    folder.mkdir(parents=True, exist_ok=True)
    jobs_file, results_file = folder / f"{command}-jobs.json", folder / f"{command}-results.jsonl"
    jobs_file.write_text(json.dumps(jobs))
    results_file.unlink(missing_ok=True)
    arguments = [sys.executable, script, command, jobs_file, results_file, folder]
    # The script may lie in a folder below, and takes its helpers from here.
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(list(map(str, arguments)), env=environment, capture_output=True, text=True)
    (folder / f"{command}.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    results = _read(results_file)
    failures = [f"{name}: {result['error']}" for name, result in results.items() if "error" in result]
    assert may_fail or not failures, "\n".join(failures)
    return results


def serve(work: Callable[[str, Job, Path], dict[str, Any]]) -> None:
    """Do the jobs of this process's arguments: `work(command, job, folder)` for each, on every rank.

    A job that fails on one rank ends them all, since the others may wait for it; the next job gets new ones.
    """
    command, jobs_file, results_file, folder = sys.argv[1:]
    jobs, results = json.loads(Path(jobs_file).read_text()), Path(results_file)
    while jobs:
        ranks = jobs[0]["ranks"]
        _, of_equal_ranks = next(groupby(jobs, key=itemgetter("ranks")))
        error = _fork(ranks, work, command, list(of_equal_ranks), results, Path(folder))
        jobs = [job for job in jobs if job["name"] not in _read(results)]
        if error is not None:
            _append(results, jobs.pop(0)["name"], {"error": error})


def _read(results_file: Path) -> Results:
    return dict(map(json.loads, results_file.open())) if results_file.exists() else {}


def _append(results_file: Path, name: str, result: dict[str, Any]) -> None:
    with results_file.open("a") as file:
        file.write(json.dumps([name, result]) + "\n")


def _fork(ranks: int, work: Any, command: str, jobs: list[Job], results: Path, folder: Path) -> str | None:
    """Do jobs on ranks. Returns the first error, if there is one."""
    with tempfile.TemporaryDirectory() as meeting:
        processes = set()
        for rank in range(ranks):
            process = os.fork()
            if process == 0:
                _become_rank(rank, ranks, Path(meeting), work, command, jobs, results, folder)
            processes.add(process)
        done, since = _size(results), time.monotonic()
        while processes:
            process, status = os.waitpid(-1, os.WNOHANG)
            processes.discard(process)
            if _size(results) != done:
                done, since = _size(results), time.monotonic()
            is_hung = time.monotonic() - since > _SECONDS_WITHOUT_PROGRESS
            if status or is_hung:
                for other in processes:
                    os.kill(other, signal.SIGKILL)
                    os.waitpid(other, 0)
                if is_hung:
                    return f"no job was done for {_SECONDS_WITHOUT_PROGRESS} seconds"
                errors = sorted(Path(meeting).glob("error-*"), key=lambda path: path.stat().st_mtime_ns)
                return errors[0].read_text() if errors else f"a rank ended with status {status}"
            if process == 0:
                time.sleep(0.02)
    return None


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _become_rank(rank: int, ranks: int, meeting: Path, *work: Any) -> NoReturn:
    import torch

    sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in sizes.items()})
    store = torch.distributed.FileStore(str(meeting / "store"), ranks)  # type: ignore[attr-defined]
    torch.distributed.init_process_group(store=store, rank=rank, world_size=ranks)
    status = 0
    try:
        _do(*work)
    # Megatron ends the process on some errors, and those of torch's checkpoints are not of type Exception.
    except BaseException as error:
        traceback.print_exc()
        (meeting / f"error-{rank}").write_text(" ".join(f"{type(error).__name__}: {error}".split()))
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _do(
    work: Callable[[str, Job, Path], dict[str, Any]], command: str, jobs: list[Job], results: Path, folder: Path
) -> None:
    import torch
    from megatron.training.training import destroy_global_state

    for job in jobs:
        start = time.perf_counter()
        result = work(command, job, folder)
        destroy_global_state()
        result["seconds"] = round(time.perf_counter() - start, 3)
        # The last rank knows the loss.
        if torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            _append(results, job["name"], result)
        torch.distributed.barrier()


def import_megatron() -> None:
    """Do once, before the fork, what every rank, and some of it every job, would spend seconds on."""
    from nca_plugin.megatron import cpu_mode

    cpu_mode.prepare()
    import argparse
    import copy

    import megatron.core.tokenizers.text  # noqa: F401
    import quick_saves
    from megatron.training import arguments

    import nca_plugin.launch.megatron
    import nca_plugin.megatron.step

    nca_plugin.launch.process.use_shipped_dataset_helper()
    quick_saves.install()
    parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    arguments.add_megatron_arguments = lambda _: copy.deepcopy(parser)
    arguments._print_args = lambda *_: None
    _reuse_process_groups()


def _reuse_process_groups() -> None:
    """Let layouts share the groups of equal ranks: making them took most of a job's time."""
    import torch

    new_group, groups = torch.distributed.new_group, {}

    def cached(ranks: list[int] | None = None, *_: Any, **options: Any) -> Any:
        key = None if ranks is None else tuple(ranks)
        if key not in groups:
            groups[key] = new_group(ranks, **options)
        return groups[key]

    torch.distributed.new_group = cached  # type: ignore[assignment]
    torch.distributed.destroy_process_group = lambda *_: None
