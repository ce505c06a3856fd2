"""What every launcher does in its process, whatever stack it starts."""

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from nca_plugin.errors import NCAPluginError, one_line


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise NCAPluginError(f"{message} (see --help)")


def become_only_rank_without_torchrun() -> None:
    """Give a process that torchrun did not start the environment of the only rank."""
    if "WORLD_SIZE" not in os.environ:
        # Port 0: any free one, since no other rank has to find it.
        single = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}
        os.environ.update({name: str(value) for name, value in single.items()})


def print_rank_0(message: str) -> None:
    """Print a line of the log once in all ranks."""
    if os.environ["RANK"] == "0":
        print(message, flush=True)


@contextmanager
def lost_worker_errors() -> Iterator[None]:
    """Turn PyTorch's error for a data loader's worker that is gone, which may interrupt any line of the training, into
    an `NCAPluginError`."""
    try:
        yield
    except RuntimeError as error:
        if not re.match(r"DataLoader worker \(pid.* (is killed|exited unexpectedly)", str(error)):
            raise
        raise NCAPluginError(
            f"{one_line(error).rstrip('. ')}; most often the machine ran out of memory: give the job more, or fewer "
            "workers. Started again, the run resumes from its last checkpoint"
        ) from error


def use_shipped_dataset_helper() -> None:
    """Keep Megatron from compiling its dataset helper where only the compiled one is there, as in the wheel: the
    Makefile is missing, and Megatron would end the run."""
    import megatron.core.datasets.utils as dataset_utils

    has_makefile = (Path(dataset_utils.__file__).parent / "Makefile").is_file()
    if not has_makefile and find_spec("megatron.core.datasets.helpers_cpp") is not None:
        dataset_utils.compile_helpers = lambda: None


def check_embedding_rows(path: Path, rows: int, vocab_size: int, tensor_parallel_size: int) -> bool:
    """Refuse a checkpoint with other embedding rows than the run: Megatron loads it without a word, the rows that are
    missing as zeros and those too many cut off.

    Args:
        rows: of the run's word embedding, padding included.
        vocab_size: ids of the run, without padding.

    Returns:
        Whether there is a checkpoint whose rows could be compared.

    Raises:
        NCAPluginError: they differ.
    """
    from nca_plugin.checkpoint.folders import embedding_rows

    stored = embedding_rows(path)
    if stored is not None and stored != rows:
        raise NCAPluginError(
            f"checkpoint {path} has {stored} embedding rows, the run has {rows}: make it fit with "
            f"nca-plugin transfer --from {path} --to ... --vocab-size {vocab_size} "
            f"--tensor-model-parallel-size {tensor_parallel_size}"
        )
    return stored is not None
