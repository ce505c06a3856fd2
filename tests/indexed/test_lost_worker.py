"""A worker of the data loader that is killed ends the run, with one line that says so."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from megatron_runs import MODEL

from nca_plugin.errors import NCAPluginError
from nca_plugin.launch.process import lost_worker_errors

KILLED = RuntimeError("DataLoader worker (pid 17) is killed by signal: Killed. ")
EXITED = RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly")


def raise_as_cause(error: Exception) -> None:
    raise ValueError("another") from error


def raise_while_handled(error: Exception) -> None:
    try:
        raise error
    except RuntimeError:
        [][0]


def raise_in_a_text(error: Exception) -> None:
    raise OSError(f"rank 0:\n{error}\n")


def raise_hidden(error: Exception) -> None:
    try:
        raise_while_handled(error)
    except IndexError as index_error:
        raise KeyError("third") from index_error


def test_a_killed_worker_ends_the_run(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "nca_plugin.launch.megatron", *MODEL, "--data-source", "nca://toy", "--train-iters", "100000"),
        # The other rank waits for the batch of the first.
        *("--tensor-model-parallel-size", "2"),
    ]
    log = tmp_path / "log"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        run = psutil.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 300
        while "iteration        2/" not in log.read_text():
            assert run.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        workers = [process for process in run.children(recursive=True) if process.name() == "pt_data_worker"]
        # The first is the one of training.
        min(workers, key=psutil.Process.create_time).kill()
        assert run.wait(timeout=100) == 1
    finally:
        if run.is_running():
            for process in [*run.children(recursive=True), run]:
                process.kill()
    errors = [line for line in log.read_text().splitlines() if "nca-plugin: error" in line]
    assert len(errors) == 2, log.read_text()[-8000:]
    # The rank's own, and torchrun's report of it.
    assert errors[1] == f"  traceback : {errors[0]}"
    # PyTorch notices it in one of two ways.
    assert re.search(r"DataLoader worker .*(is killed by signal: Killed|exited unexpectedly); most often", errors[0])
    assert "Traceback" not in log.read_text().split("nca-plugin: error")[0]


@pytest.mark.parametrize("error", [KILLED, EXITED])
@pytest.mark.parametrize("how", [raise_as_cause, raise_while_handled, raise_in_a_text, raise_hidden])
def test_an_error_that_follows_from_a_lost_worker_says_so(error: Exception, how: Callable[[Exception], None]) -> None:
    message = r"^DataLoader worker \(pid.* 1[78]\) (is killed by|exited un).*; most"
    with pytest.raises(NCAPluginError, match=message), lost_worker_errors():
        how(error)


@pytest.mark.parametrize("error", [ConnectionResetError(), EOFError(), RuntimeError("received 0 items of ancdata")])
def test_an_error_of_the_connection_asks_for_the_worker(error: Exception) -> None:
    loader = torch.utils.data.DataLoader(range(1000), num_workers=1)
    batches = iter(loader)
    next(batches)
    with pytest.raises(type(error)), lost_worker_errors():
        raise error
    (worker,) = batches._workers
    message = f"worker .*{worker.pid}.* is killed by signal: Killed; most often"
    with pytest.raises(NCAPluginError, match=message), lost_worker_errors():
        worker.kill()
        raise error


def test_other_errors_stay() -> None:
    with pytest.raises(KeyError), lost_worker_errors():
        raise KeyError("DataLoader worker")
