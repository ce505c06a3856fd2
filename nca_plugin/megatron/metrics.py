"""The figures that a run of any stack reports on its data besides the losses.

`supervised tokens` is the number of supervised targets in a global batch, `tokens` the number of tokens trained on so
far. `generator ms per sample` is the time in which a data loader's worker makes a sample, or reads it from a generated
dataset, on the rank that logs.
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
    """Counts the samples that a data loader's workers make and the seconds that they take, in shared memory.

    Each worker has its own numbers, so that it needs no lock, which it could hold when it is killed.
    """

    def __init__(self, num_workers: int) -> None:
        # The first two numbers are for the process itself, which loads samples if there are no workers.
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
    """Write the figures that are not reported with the losses.

    Args:
        tokens: number of tokens trained on so far.
        milliseconds: time of a sample in ms; NaN, which is not written, if none was made.
        tensorboard, wandb: the writers of this rank; None if it has none.
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
    """Return a loss function of Megatron for a micro-batch that also reports `supervised tokens`.

    Args:
        parts: number of micro-batches of a global batch on all ranks. Megatron sums both reported numbers over them and
            divides one sum by the other. With 1 / `parts` as the second number, the result is the sum of the first.
    """

    def counted(output: torch.Tensor) -> Any:
        *result, report = loss(output)
        num_tokens = report["lm loss"].view(-1)[1]
        report[SUPERVISED] = torch.stack([num_tokens, torch.full_like(num_tokens, 1 / parts)])
        return *result, report

    return counted
