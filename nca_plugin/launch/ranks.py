"""Finds the ranks of a run that a scheduler or MPI has started instead of torchrun.

If torchrun's variables are set, as in a torchrun that a scheduler has started, they are kept.
"""

import os
import re
import socket
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nca_plugin.errors import NCAPluginError, one_line

#: The job's identity selects one of these ports, which lie below those that the system gives to connections.
_FIRST_PORT, _NUM_PORTS = 20_000, 10_000
#: The address of rank 0 in a run of one process. Port 0 is any free port, since no other rank has to find it.
_ALONE: Final = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}


@dataclass(frozen=True)
class _Starter:
    """The names of the variables by which a program tells the processes that it starts their ranks.

    Of several names for the same number, the first that is set counts.

    Attributes:
        local_sizes: variables with the number of processes on this machine.
        jobs: variables whose values only processes of the same start share.
    """

    name: str
    rank: str
    sizes: tuple[str, ...]
    local_ranks: tuple[str, ...]
    local_sizes: tuple[str, ...]
    jobs: tuple[str, ...]


_SLURM: Final = _Starter(
    *("srun", "SLURM_PROCID", ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ("SLURM_LOCALID",), ()),
    ("SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_ID", "SLURM_STEPID"),
)
_PMI: Final = _Starter(
    *("mpiexec (PMI)", "PMI_RANK", ("PMI_SIZE",)),
    ("MPI_LOCALRANKID", "PMI_LOCAL_RANK", "PALS_LOCAL_RANKID", "SLURM_LOCALID"),
    *(("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"), ("PMI_JOBID", "PMI_KVSNAME", "PALS_APID", "SLURM_JOB_ID", "PBS_JOBID")),
)
#: The order matters: in a job of Slurm, mpirun starts its processes through Slurm, whose variables then count machines.
_STARTERS: Final = (
    _Starter(
        *("mpirun of Open MPI", "OMPI_COMM_WORLD_RANK", ("OMPI_COMM_WORLD_SIZE",), ("OMPI_COMM_WORLD_LOCAL_RANK",)),
        *(("OMPI_COMM_WORLD_LOCAL_SIZE",), ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "OMPI_MCA_orte_ess_jobid")),
    ),
    _Starter(
        *("mpirun of MVAPICH", "MV2_COMM_WORLD_RANK", ("MV2_COMM_WORLD_SIZE",), ("MV2_COMM_WORLD_LOCAL_RANK",)),
        *(("MV2_COMM_WORLD_LOCAL_SIZE",), ("PMI_ID", "HYDI_CONTROL_FD")),
    ),
    _Starter("jsrun", "JSM_NAMESPACE_RANK", ("JSM_NAMESPACE_SIZE",), ("JSM_NAMESPACE_LOCAL_RANK",), (), ("LSB_JOBID",)),
    _Starter(
        *("flux run", "FLUX_TASK_RANK", ("FLUX_JOB_SIZE",), ("FLUX_TASK_LOCAL_ID",), (), ("FLUX_JOB_ID",)),
    ),
    _PMI,
    _SLURM,
    _Starter("PALS", "PALS_RANKID", ("PALS_SIZE",), ("PALS_LOCAL_RANKID",), ("PALS_LOCAL_SIZE",), ("PALS_APID",)),
    _Starter("aprun", "ALPS_APP_PE", (), (), (), ()),
    _Starter("PMIx", "PMIX_RANK", ("PMIX_SIZE",), ("PMIX_LOCAL_RANK",), ("PMIX_LOCAL_SIZE",), ("PMIX_NAMESPACE",)),
)


def take_rank() -> None:
    """Set torchrun's variables for this process, unless they are set, from a scheduler's or for a run of one process.

    Raises:
        NCAPluginError: if a scheduler has started several processes and does not say enough about their ranks.
    """
    os.environ.update(_checked_variables())


def take_rank_beside_lightning() -> None:
    """Do as `take_rank` for PyTorch Lightning, which starts the processes of one machine itself and knows Slurm.

    Raises:
        NCAPluginError: if another scheduler or MPI has started several processes.
    """
    variables = _checked_variables()
    if variables.get("WORLD_SIZE", "1") == "1":
        return
    if _SLURM.rank not in os.environ:
        raise NCAPluginError("NeMo 2 takes ranks from torchrun and from srun only: start the run with one of them")
    os.environ.update(variables)


def _checked_variables() -> dict[str, str]:
    try:
        variables = rank_variables(os.environ)
        # torchrun has reached this address already.
        if "TORCHELASTIC_RUN_ID" not in os.environ:
            _check_address({**os.environ, **variables})
        return variables
    except NCAPluginError:
        # Rank 0 prints the error. If no process knows its rank, all of them print it.
        rank, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
        if not (_is_number(rank) and _is_number(world) and int(rank) < int(world)):
            os.environ["RANK"] = _rank_that_tells()
        raise


def _rank_that_tells() -> str:
    """Return the rank that a scheduler gives this process; "0" if it is invalid, so that an error is always printed."""
    for starter in _STARTERS:
        if starter.rank in os.environ:
            rank = os.environ[starter.rank]
            size = next((os.environ[name] for name in starter.sizes if name in os.environ), "")
            return rank if _is_number(rank) and _is_number(size) and int(rank) < int(size) else "0"
    return "0"


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of torchrun that a process with this environment lacks.

    Raises:
        NCAPluginError: for the reasons of `take_rank`.
    """
    world = environment.get("WORLD_SIZE")
    if world is not None and "RANK" in environment:
        return _lacking(environment)
    is_told = False
    for starter in _STARTERS:
        if _has_started(starter, environment):
            size = next((_number(environment, name) for name in starter.sizes if name in environment), None)
            if size is None:
                raise NCAPluginError(
                    f"{starter.name} has started this process ({starter.rank}={environment[starter.rank]}) and does "
                    "not say of how many: start the run with torchrun, or set RANK, WORLD_SIZE, LOCAL_RANK, "
                    "MASTER_ADDR and MASTER_PORT"
                )
            if world is not None and _number(environment, "WORLD_SIZE") != size:
                raise NCAPluginError(
                    f"WORLD_SIZE={world}, but {starter.name} has started {size} processes: unset WORLD_SIZE, or set "
                    "RANK too"
                )
            if "RANK" in environment and _number(environment, "RANK") != _number(environment, starter.rank):
                raise NCAPluginError(
                    f"RANK={environment['RANK']}, but {starter.name} says {starter.rank}={environment[starter.rank]}: "
                    "unset RANK, or set WORLD_SIZE too"
                )
            if size > 1:
                return _rank_of(starter, size, environment)
            is_told = True
            break
    if world is not None and _number(environment, "WORLD_SIZE") > 1:
        raise NCAPluginError(f"WORLD_SIZE={world} without RANK: start the run with torchrun, or set both")
    if "RANK" in environment and not is_told:
        raise NCAPluginError(
            f"RANK={environment['RANK']} without WORLD_SIZE: start the run with torchrun, or set both, or neither for "
            "a run of one process"
        )
    return {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **_ALONE}


def _lacking(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the missing variables of a process whose rank torchrun, or the user, has set."""
    rank, size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if rank >= size:
        raise NCAPluginError(f"RANK={rank} is no rank of WORLD_SIZE={size} processes: they are numbered from 0")
    if "LOCAL_RANK" in environment:
        _number(environment, "LOCAL_RANK")
    _check_port(environment)
    missing = [name for name in _ALONE if not environment.get(name)]
    if missing and size > 1:
        raise NCAPluginError(
            f"RANK={rank} and WORLD_SIZE={size} are set without {' and '.join(missing)}: set MASTER_ADDR to the "
            "machine of rank 0 and MASTER_PORT to a free port there, or start the run with torchrun"
        )
    return {name: _ALONE[name] for name in missing}


def _check_address(environment: Mapping[str, str]) -> None:
    """Refuse an address that cannot be resolved. The ranks would try for many minutes."""
    address = environment["MASTER_ADDR"]
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError) as error:
        raise NCAPluginError(
            f"MASTER_ADDR={address} cannot be found: {one_line(error)}; set it to the machine of rank 0"
        ) from error


def _check_port(environment: Mapping[str, str]) -> None:
    if environment.get("MASTER_PORT") and not _number(environment, "MASTER_PORT") < 1 << 16:
        raise NCAPluginError(f"MASTER_PORT={environment['MASTER_PORT']} is no port: ports end at 65535")


def _has_started(starter: _Starter, environment: Mapping[str, str]) -> bool:
    if starter.rank not in environment:
        return False
    # With PMI, srun sets both kinds of variables. Only Slurm's say where rank 0 is.
    is_srun = all(
        slurm in environment and environment.get(pmi) == environment[slurm]
        for pmi, slurm in (("PMI_RANK", "SLURM_PROCID"), ("PMI_SIZE", "SLURM_STEP_NUM_TASKS"))
    )
    return not (starter is _PMI and is_srun) and not (starter is _SLURM and _is_batch_shell(environment))


def _is_batch_shell(environment: Mapping[str, str]) -> bool:
    """Return whether this is the batch shell of a Slurm job, a single process with the job's number of tasks."""
    is_in_step = any(name in environment for name in ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS"))
    return not is_in_step and "SLURM_JOB_ID" in environment and environment.get("SLURM_PROCID") == "0"


def _rank_of(starter: _Starter, size: int, environment: Mapping[str, str]) -> dict[str, str]:
    rank = _number(environment, starter.rank)
    if rank >= size:
        raise NCAPluginError(f"{starter.rank}={rank} is no rank of {size} processes: start the run with torchrun")
    local_rank = next((_number(environment, name) for name in starter.local_ranks if name in environment), None)
    local_size = next((_number(environment, name) for name in starter.local_sizes if name in environment), None)
    if starter is _SLURM:
        local_size = _slurm_local_size(environment)
    if local_rank is None:
        raise NCAPluginError(
            f"{starter.name} has started {size} processes and does not say which of them are on one machine: set "
            f"LOCAL_RANK beside {starter.rank}, or start the run with torchrun"
        )
    variables = {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(local_rank)}
    if local_size is not None:
        variables["LOCAL_WORLD_SIZE"] = str(local_size)
    _check_port(environment)
    is_one_machine = local_size == size
    if not environment.get("MASTER_ADDR"):
        variables["MASTER_ADDR"] = _address(starter, is_one_machine=is_one_machine, environment=environment)
    if not environment.get("MASTER_PORT"):
        job = "/".join(environment[name] for name in starter.jobs if name in environment)
        if not job and is_one_machine:
            job = str(_starting_process(starter.rank))
        if not job:
            raise NCAPluginError(
                f"{starter.name} has started {size} processes: set MASTER_PORT to a free port of the machine of rank 0"
            )
        variables["MASTER_PORT"] = str(_FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS)
    return variables


def _address(starter: _Starter, *, is_one_machine: bool, environment: Mapping[str, str]) -> str:
    """Return the address of rank 0, which in Slurm is on the first machine of the step."""
    if is_one_machine:
        return "127.0.0.1"
    nodes = next((environment[name] for name in ("SLURM_STEP_NODELIST", "SLURM_NODELIST") if name in environment), "")
    if starter is _SLURM and nodes:
        return _first_host(nodes)
    raise NCAPluginError(
        f"{starter.name} has started processes on several machines: set MASTER_ADDR to the machine of rank 0, and "
        "MASTER_PORT to a free port there"
    )


def _starting_process(rank: str) -> int:
    """Return the id of the process that started all ranks of this machine.

    A rank may be started through a shell, so this is the nearest ancestor without a rank.
    """
    process = os.getppid()
    with suppress(OSError, AttributeError):
        while f"\0{rank}=" in "\0" + Path(f"/proc/{process}/environ").read_text(errors="replace"):
            status = Path(f"/proc/{process}/status").read_text()
            process = int(re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]
    return process


def _first_host(nodes: str) -> str:
    """Return the first machine of a Slurm list.

    >>> _first_host("node[07-09,12],login1")
    'node07'
    """
    found = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    assert found is not None
    return "".join(part or "" for part in found.groups())


def _slurm_local_size(environment: Mapping[str, str]) -> int | None:
    """Return the number of Slurm's tasks on this machine; None if Slurm does not say it."""
    tasks = environment.get("SLURM_GTIDS")
    if tasks:
        return len(tasks.split(","))
    if environment.get("SLURM_STEP_NUM_NODES", environment.get("SLURM_NNODES")) == "1":
        return _number(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not _is_number(text):
        raise NCAPluginError(f"{name}={text} in the environment is no number")
    return int(text)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
