"""What a run reports of its data beside its losses, whichever stack trains.

`supervised tokens`: targets that count, of one global batch. `tokens`: trained on so far. `generator ms per sample`:
what a worker of the data loader took to make one, or to read it from a corpus, on the rank that logs.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import RawArray
from typing import Any, Final

import torch
from torch.utils.data import get_worker_info

SUPERVISED: Final = "supervised tokens"
TOKENS: Final = "tokens"
GENERATOR: Final = "generator ms per sample"


class SampleMeter:
    """Samples that were made and the seconds that they took, counted by the workers of a data loader in memory that
    they share with the process that reads it.

    Each worker has numbers of its own, so that there is no lock to hold when it is killed.
    """

    def __init__(self, num_workers: int) -> None:
        # Two for each worker, and before them for the process itself, which loads if there are none.
        self._values = RawArray("d", 2 * (num_workers + 1))
        self._read = (0.0, 0.0)

    @contextmanager
    def sample(self) -> Iterator[None]:
        """Count one sample and the time until the end of the context."""
        start = time.perf_counter()
        yield
        worker = get_worker_info()
        place = 0 if worker is None else 2 * (worker.id + 1)
        self._values[place] += 1
        self._values[place + 1] += time.perf_counter() - start

    def milliseconds(self) -> float:
        """Return the mean time of a sample since the last call, in ms; NaN if none was made."""
        totals = sum(self._values[0::2]), sum(self._values[1::2])
        samples, seconds = (total - before for total, before in zip(totals, self._read, strict=True))
        self._read = totals
        return 1e3 * seconds / samples if samples else math.nan


def write_progress(tokens: int, milliseconds: float, iteration: int, tensorboard: Any, wandb: Any) -> None:
    """Write what does not come with the losses; no time where no sample was made since the last one.

    Args:
        tokens: trained on so far.
        milliseconds: of a sample.
        tensorboard, wandb: the writers of this rank, None where it has none.
    """
    values: dict[str, float] = {TOKENS: tokens}
    if not math.isnan(milliseconds):
        values[GENERATOR] = milliseconds
    if tensorboard is not None:
        for name, value in values.items():
            tensorboard.add_scalar(name, value, iteration)
    if wandb is not None:
        wandb.log(values, iteration)


def with_supervised_tokens(loss: Callable[[torch.Tensor], Any], parts: int) -> Callable[[torch.Tensor], Any]:
    """Return a micro-batch's loss function of Megatron that reports `supervised tokens` too.

    Args:
        parts: micro-batches of a global batch, over all ranks: Megatron divides the sums of both numbers that are
            reported over them, and what is wanted is the sum of the first.
    """

    def counted(output: torch.Tensor) -> Any:
        *result, report = loss(output)
        num_tokens = report["lm loss"].view(-1)[1]
        report[SUPERVISED] = torch.stack([num_tokens, torch.full_like(num_tokens, 1 / parts)])
        return *result, report

    return counted
