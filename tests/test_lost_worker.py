"""A worker of the data loader that is killed ends the run, with one line that says so."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from megatron_runs import MODEL


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
        workers = [process.pid for process in run.children(recursive=True) if process.name() == "pt_data_worker"]
        # The first is the one of training.
        os.kill(min(workers), signal.SIGKILL)
        assert run.wait(timeout=100) == 1
    finally:
        if run.is_running():
            for process in [*run.children(recursive=True), run]:
                process.kill()
    errors = [line for line in log.read_text().splitlines() if "nca-plugin: error" in line]
    assert len(errors) == 1
    # PyTorch notices it in one of two ways.
    assert re.search(r"DataLoader worker .*(is killed by signal: Killed|exited unexpectedly); most often", errors[0])
    assert "Traceback" not in log.read_text().split("nca-plugin: error")[0]
