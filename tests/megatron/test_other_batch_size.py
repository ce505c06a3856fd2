"""A run that is resumed with another batch size goes on with the sample after the last one, and to its end."""

from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import write
from training_jobs import SEQ_LENGTH, Done, Job, train

TOKENS = ("--tokenizer-type", "NullTokenizer", "--vocab-size", "64")
#: Two iterations of 8 samples.
FIRST = 16
WHOLE = 48

#: Of each resumed run: its data, its number of ranks, its arguments, and the samples that it ends after.
RESUMED = {
    "smaller": ("source", 1, ("--train-iters", "8", "--global-batch-size", "4"), 40),
    "half": ("source", 1, ("--train-iters", "4", "--global-batch-size", "4"), 24),
    "smaller, of a dataset": ("corpus", 1, ("--train-iters", "8", "--global-batch-size", "4"), 40),
    "smaller, of a blend": ("blend", 1, ("--train-iters", "8", "--global-batch-size", "4"), 40),
    "smaller, of a blend on two ranks": ("blend", 2, ("--train-iters", "8", "--global-batch-size", "4"), 40),
    "larger, of a blend": ("blend", 1, ("--train-iters", "4", "--global-batch-size", "16"), 48),
    "half, of text": ("text", 1, ("--train-iters", "4", "--global-batch-size", "4"), 24),
    # Megatron makes iterations of them as if the batch had always been the same.
    "smaller, by samples": ("samples", 1, ("--train-samples", "32", "--global-batch-size", "4"), 40),
    "more samples": ("samples", 1, ("--train-samples", "32"), 32),
}


def arguments(folder: Path, data: str) -> tuple[str, ...]:
    source, text = "nca://toy", str(folder / "text_document")
    cached = (*TOKENS, "--data-cache-path", str(folder / f"cache-{data}"))
    evaluated = ("--eval-interval", "2", "--eval-iters", "1")
    return {
        "source": (*TOKENS, *evaluated, "--data-path", source),
        "corpus": (*TOKENS, *evaluated, "--data-path", str(folder / "corpus"), "--split", "80,20,0"),
        "blend": (*cached, *evaluated, "--data-path", "0.25", source, "0.75", text, "--split", "80,20,0"),
        "text": (*cached, "--data-path", text, "--split", "100,0,0"),
        "samples": (
            *(*cached, *evaluated, "--train-data-path", "0.5", source, "0.5", "dyck://?k=8"),
            *("--valid-data-path", "0.5", source, "0.5", text),
        ),
    }[data]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    folder = tmp_path_factory.mktemp("other-batch-size")
    write(folder / "corpus", "nca://toy", documents=100, seq_length=SEQ_LENGTH)
    write_text(folder / "text_document")
    jobs = []
    for data in sorted({data for data, *_ in RESUMED.values()}):
        own, saved = arguments(folder, data), str(folder / f"checkpoint-{data}")
        option, each = ("--train-samples", 1) if data == "samples" else ("--train-iters", 8)
        first, whole = ((option, str(samples // each)) for samples in (FIRST, WHOLE))
        jobs += [
            Job(f"first of {data}", (*own, *first, "--save", saved, "--save-interval", "2")),
            Job(f"whole of {data}", (*own, *whole)),
        ]
    for name, (data, ranks, what, _) in RESUMED.items():
        loaded = ("--load", str(folder / f"checkpoint-{data}"), "--override-opt_param-scheduler")
        jobs.append(Job(name, (*arguments(folder, data), *loaded, *what), ranks))
    return train(folder, jobs, may_fail=True)


def write_text(prefix: Path) -> None:
    """Write an indexed dataset that the longest run reads less than once."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for document in np.random.default_rng(0).integers(0, 60, (50, 2 * SEQ_LENGTH)):
        builder.add_item(torch.tensor(document))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def tokens(done: Done) -> np.ndarray:
    """Return the tokens that a run trained on, sample by sample, int64 [samples, S]."""
    assert not done.error and not done.refusal, done.error or done.refusal
    ranks = sorted(done.ranks, key=lambda rank: rank.coordinates["dp"])
    of_ranks = [np.stack([batch["tokens"] for batch in rank.training]) for rank in ranks]
    return np.stack(of_ranks, axis=1).reshape(-1, SEQ_LENGTH)


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_with_another_batch_size_reads_on_to_its_end(runs: dict[str, Done], name: str) -> None:
    data, _, _, end = RESUMED[name]
    np.testing.assert_array_equal(tokens(runs[name]), tokens(runs[f"whole of {data}"])[FIRST:end])
