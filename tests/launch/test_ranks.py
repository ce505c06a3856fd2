"""Ranks of processes that torchrun has not started: from the scheduler's variables, or one line."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from warm import Ended, WarmProcess

from nca_plugin.errors import NCAPluginError
from nca_plugin.launch.ranks import rank_variables, take_rank, take_rank_beside_lightning

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}

STEP = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}
BATCH_SHELL = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0"}
TWO_NODES = {**STEP, "SLURM_STEP_NODELIST": "node[07-08]", "SLURM_STEP_NUM_NODES": "2"}
IN_SLURM = {**TWO_NODES, "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-x@1"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"MASTER_PORT": "29500"},
        {"WORLD_SIZE": "1"},
        BATCH_SHELL,
        # A shell of salloc has the job's numbers and no rank.
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},
        # One task of a step in a job of more.
        {**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "0"},
        {"PMI_RANK": "0", "PMI_SIZE": "1"},
    ],
)
def test_a_process_without_others_is_the_only_rank(environment: dict[str, str]) -> None:
    assert rank_variables(environment) == ALONE


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"},
        {"RANK": "1", "WORLD_SIZE": "2"},
        # torchrun in a task of srun, or under mpirun.
        {**STEP, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"},
        {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "1", "RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_what_torchrun_says_stays(environment: dict[str, str]) -> None:
    assert rank_variables({**environment, "MASTER_ADDR": "head", "MASTER_PORT": "29500"}) == {}


def test_the_only_rank_needs_no_address() -> None:
    alone = {"RANK": "0", "WORLD_SIZE": "1"}
    assert rank_variables(alone) == {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    assert rank_variables({**alone, "MASTER_ADDR": "127.0.0.1"}) == {"MASTER_PORT": "0"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (
            {**TWO_NODES, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_GTIDS": "2,3"},
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node07"},
        ),
        (
            {**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"},
            {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"},
        ),
        # Users export the number of processes for torchrun, and do not use it.
        (
            {**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "2", "SLURM_LOCALID": "2", "WORLD_SIZE": "4"},
            {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"},
        ),
        (
            {**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        ),
        # mpirun in a job of Slurm, which counts the machines.
        (
            {
                **TWO_NODES,
                **OPEN_MPI,
                "SLURM_PROCID": "1",
                "OMPI_COMM_WORLD_RANK": "0",
                "OMPI_COMM_WORLD_LOCAL_RANK": "0",
            },
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        ),
        (
            {
                **{"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
                **{"PMI_KVSNAME": "kvs_1"},
            },
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        ),
        # srun --mpi=pmi2, the default of some clusters.
        (
            {
                **{**STEP, "SLURM_STEP_NUM_NODES": "1", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"},
                **{"PMI_RANK": "2", "PMI_SIZE": "4", "PMI_JOBID": "7.0"},
            },
            {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1"},
        ),
        (
            {
                **{**TWO_NODES, "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_GTIDS": "2,3"},
                **{"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_JOBID": "7.0"},
            },
            {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "node07"},
        ),
        # mpiexec of MPICH, which names no job.
        (
            {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "9", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        ),
    ],
)
def test_a_process_of_a_scheduler_is_the_rank_that_it_says(
    environment: dict[str, str], expected: dict[str, str]
) -> None:
    found = rank_variables(environment)
    port = int(found.pop("MASTER_PORT"))
    assert found == expected
    assert 1024 < port < 32768
    # Where the user says it, that counts.
    asked = {"MASTER_ADDR": "head", "MASTER_PORT": "29500"}
    own = {name: value for name, value in expected.items() if name != "MASTER_ADDR"}
    assert rank_variables({**environment, **asked}) == own


def test_the_processes_of_a_start_find_the_same_port_and_those_of_another_one_do_not() -> None:
    def port(step: str, task: str) -> str:
        ids = {"SLURM_STEP_ID": step, "SLURM_PROCID": task, "SLURM_LOCALID": "0"}
        return rank_variables({**TWO_NODES, **ids})["MASTER_PORT"]

    assert port("0", "0") == port("0", "3")
    assert len({port(str(step), "0") for step in range(5)}) == 5


def test_processes_that_name_no_job_find_the_port_of_the_process_that_started_them(tmp_path: Path) -> None:
    file = tmp_path / "rank.py"
    file.write_text(
        "import os\nfrom nca_plugin.launch.ranks import rank_variables\n"
        "print(rank_variables(os.environ)['MASTER_PORT'])\n"
    )
    python = f"{sys.executable} {file}"
    # The second one is started by a shell of its own.
    script = f"PMI_RANK=0 MPI_LOCALRANKID=0 {python}; PMI_RANK=1 MPI_LOCALRANKID=1 bash -c '{python}; true'; true"
    environment = {**os.environ, "PMI_SIZE": "2", "MPI_LOCALNRANKS": "2"}
    one, other = (
        subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True).stdout.split()
        for _ in range(2)
    )
    assert one[0] == one[1] and other[0] == other[1] and one[0] != other[0]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 without RANK"),
        ({"RANK": "1"}, "RANK=1 without WORLD_SIZE"),
        ({"RANK": "0"}, "RANK=0 without WORLD_SIZE"),
        ({**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "RANK": "1"}, "RANK=1, but srun says SLURM_PROCID=0"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 is no rank of WORLD_SIZE=2"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 is no rank of WORLD_SIZE=0"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "without MASTER_ADDR and MASTER_PORT: set MASTER_ADDR"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "head"}, "are set without MASTER_PORT: set"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "abc"}, "MASTER_PORT=abc in the environment is no number"),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port"),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "x"}, "LOCAL_RANK=x in the environment is no number"),
        ({**IN_SLURM, "MASTER_PORT": "abc"}, "MASTER_PORT=abc in the environment is no number"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE=two in the environment is no number"),
        ({**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "WORLD_SIZE": "8"}, "srun has started 4 processes"),
        ({**STEP, "SLURM_PROCID": "9", "SLURM_LOCALID": "0"}, "SLURM_PROCID=9 is no rank of 4"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}, "set MASTER_ADDR"),
        ({"PMIX_RANK": "1"}, "does not say of how many"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "which of them are on one machine"),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            "on several machines: set MASTER_ADDR",
        ),
    ],
)
def test_what_is_not_enough_is_one_line(environment: dict[str, str], message: str) -> None:
    with pytest.raises(NCAPluginError, match=message) as error:
        rank_variables(environment)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("variables", "is_said"),
    [
        ({"RANK": "1"}, True),
        ({"RANK": "abc", "WORLD_SIZE": "2"}, True),
        ({"RANK": "2", "WORLD_SIZE": "2"}, True),
        ({"WORLD_SIZE": "2"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2"}, True),
        # Rank 0 says it.
        ({"RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, False),
        # What is no rank of its job says it too.
        ({"PMI_RANK": "3", "PMI_SIZE": "2"}, True),
        ({"PMIX_RANK": "1"}, True),
        ({"ALPS_APP_PE": "1"}, True),
        ({"SLURM_PROCID": "x", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1"}, True),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "", "MASTER_PORT": "29511"}, True),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "nope.invalid", "MASTER_PORT": "29511"}, True),
    ],
)
def test_a_process_that_is_no_rank_says_why(
    variables: dict[str, str], is_said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for take in (take_rank, take_rank_beside_lightning):
        with pytest.raises(NCAPluginError):
            take()
        assert (os.environ["RANK"] == "0") == is_said


@pytest.mark.slow
def test_two_tasks_of_srun_train_one_model(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (
        *("--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--seq-length", "96"),
        *(
            "--max-position-embeddings",
            "96",
            "--micro-batch-size",
            "2",
            "--global-batch-size",
            "4",
            "--num-workers",
            "0",
        ),
        *("--num-workers", "0", "--lr", "1e-3", "--train-iters", "2", "--eval-interval", "1000", "--eval-iters", "0"),
        *("--data-source", "nca://toy", "--save", "checkpoint", "--save-interval", "2"),
    )
    ended: dict[int, Ended] = {}

    def task(rank: int) -> None:
        ids = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NUM_NODES": "1"}
        environment = {**STEP, **ids, "SLURM_STEP_NUM_TASKS": "2", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        with WarmProcess("warm_megatron") as process:
            ended[rank] = process.run("warm_megatron", arguments, tmp_path, environment, 300)

    tasks = [threading.Thread(target=task, args=(rank,)) for rank in range(2)]
    for thread in tasks:
        thread.start()
    for thread in tasks:
        thread.join()
    assert [ended[rank].code for rank in range(2)] == [0, 0], ended[0].stderr + ended[1].stderr
    assert "data-parallel size: 2" in ended[0].stdout
    assert (tmp_path / "checkpoint" / "latest_checkpointed_iteration.txt").read_text() == "2"
