"""What the environment says about the rank of this process, before there is a process group."""

import os
from typing import Final

#: Environment variable with the id of the process that started a rank, if it was not torchrun.
PARENT: Final = "NCA_PLUGIN_PARENT"


def is_rank_0() -> bool:
    """Return whether this process is the first rank of its job, or its only process."""
    # Lightning sets only the local rank for the processes that it starts.
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def print_rank_0(message: str) -> None:
    """Print a line in the log on rank 0 only."""
    if is_rank_0():
        print(message, flush=True)


def ends_with_others() -> bool:
    """Return whether what started this rank, torchrun or `PARENT`, ends all ranks of the job as soon as one fails."""
    return not os.environ.keys().isdisjoint(("TORCHELASTIC_RUN_ID", PARENT))


def must_check() -> bool:
    """Return whether this rank has to check what is the same for all ranks.

    Rank 0 does, and its error ends the others. Where it would not, as under srun, they would wait for rank 0 until a
    timeout, so every rank checks.
    """
    return is_rank_0() or not ends_with_others()
