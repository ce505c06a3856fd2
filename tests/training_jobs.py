"""Small runs of `nca_plugin.launch.megatron`, many in one start, with everything that their ranks trained on.

This module is also the script that is started.
"""

import os
import pickle
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import context_parallel_attention
import forked_ranks
import numpy as np

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import Sample, parse, register

SEQ_LENGTH = 96
MODEL = (
    *("--num-layers", "4", "--hidden-size", "32", "--num-attention-heads", "4", "--normalization", "RMSNorm"),
    *("--seq-length", str(SEQ_LENGTH), "--max-position-embeddings", str(SEQ_LENGTH)),
    *("--position-embedding-type", "rope", "--untie-embeddings-and-output-weights", "--disable-bias-linear"),
    *("--attention-dropout", "0", "--hidden-dropout", "0", "--make-vocab-size-divisible-by", "8"),
    *("--micro-batch-size", "2", "--num-workers", "0"),
    *("--lr", "1e-3", "--lr-decay-style", "constant", "--eval-interval", "1000", "--eval-iters", "0"),
    *("--no-create-attention-mask-in-dataloader", "--log-interval", "1", "--tensorboard-log-interval", "1"),
)


@dataclass(frozen=True)
class Job:
    """A run of Megatron with MODEL and these arguments."""

    name: str
    arguments: tuple[str, ...]
    ranks: int = 1


@dataclass(frozen=True)
class RankRecord:
    """What one rank was given, micro-batch by micro-batch."""

    coordinates: dict[str, int]
    """The rank in each parallel dimension: tp, pp, dp, cp."""
    training: list[dict[str, np.ndarray]]
    """Tensors by key, those that the rank's stage has."""
    evaluation: list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Done:
    losses: dict[int, float]
    """Training loss by iteration."""
    scalars: dict[str, list[float]]
    """What the run wrote to TensorBoard, by name, in order."""
    ranks: list[RankRecord]
    refusal: str | None
    """The `NCAPluginError` that ended the run."""
    error: str | None
    """The error of any other kind."""


def train(folder: Path, jobs: Iterable[Job], may_fail: bool = False) -> dict[str, Done]:
    """Run Megatron for each job, those of equal numbers of ranks after one another. Fails if one does, unless it may.

    A job that is refused has not failed.
    """
    jobs = sorted(jobs, key=lambda job: job.ranks)
    results = forked_ranks.run(__file__, folder, "train", list(map(asdict, jobs)), may_fail)
    return {job.name: _done(folder / job.name, results[job.name], job.ranks) for job in jobs}


def _done(folder: Path, result: dict[str, Any], ranks: int) -> Done:
    error, refusal = result.get("error"), result.get("refusal")
    if error or refusal:
        return Done({}, {}, [], refusal, error)
    scalars = _scalars(folder / "tensorboard")
    records = [RankRecord(**pickle.loads((folder / f"{rank}.pickle").read_bytes())) for rank in range(ranks)]
    return Done(dict(enumerate(scalars.get("lm loss", []), result["first"])), scalars, records, None, None)


def _scalars(folder: Path) -> dict[str, list[float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


class FailingSource:
    """`nca://toy` without its sample 5."""

    uri = "failing://"
    vocab_size = 18
    frames = None

    @classmethod
    def from_uri(cls, _: Any) -> Self:
        return cls()

    def for_split(self, _: str) -> Self:
        return self

    def check_seq_length(self, seq_length: int) -> None: ...

    def sample(self, index: int, seq_length: int) -> Sample:
        if index == 5:
            raise NCAPluginError("sample 5 cannot be made")
        return parse("nca://toy").sample(index, seq_length)


def main() -> None:
    forked_ranks.import_megatron()
    context_parallel_attention.install()
    import torch.utils.tensorboard  # noqa: F401

    # Compile, or load, what makes samples.
    parse("nca://toy").sample(0, SEQ_LENGTH)
    register("failing", FailingSource.from_uri)
    forked_ranks.serve(_train)


def _train(_: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from megatron.core import mpu
    from megatron.training import get_args

    from nca_plugin.launch.megatron import launch
    from nca_plugin.megatron import step
    from nca_plugin.megatron.cuda_on_cpu import CPU_ARGUMENTS

    own = folder / job["name"]
    own.mkdir(exist_ok=True)
    first_iteration = 1
    record: dict[str, Any] = {"training": [], "evaluation": []}
    next_batch = step._next_batch

    def recorded(data_iterator: Any, model: Any) -> Any:
        nonlocal first_iteration
        first_iteration = get_args().iteration + 1
        batch = next_batch(data_iterator, model)
        tensors = {key: tensor.cpu().numpy().copy() for key, tensor in batch.items() if tensor is not None}
        record["training" if model.training else "evaluation"].append(tensors)
        return batch

    step._next_batch = recorded
    try:
        batch = () if "--step-batch-size-schedule" in job["arguments"] else ("--global-batch-size", "8")
        launch([*MODEL, *batch, *job["arguments"], "--tensorboard-dir", str(own / "tensorboard"), *CPU_ARGUMENTS], str)
    except NCAPluginError as error:
        return {"refusal": str(error)}
    except SystemExit as exit:
        # --exit-interval ends the process.
        if exit.code:
            raise
    finally:
        step._next_batch = next_batch
    record["coordinates"] = {
        "tp": mpu.get_tensor_model_parallel_rank(),
        "pp": mpu.get_pipeline_model_parallel_rank(),
        "dp": mpu.get_data_parallel_rank(),
        "cp": mpu.get_context_parallel_rank(),
    }
    (own / f"{os.environ['RANK']}.pickle").write_bytes(pickle.dumps(record))
    return {"first": first_iteration}


if __name__ == "__main__":
    main()
