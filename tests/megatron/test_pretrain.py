"""Megatron's own pretraining on NCA tokens, as a user starts it: the same losses at every layout and when resumed.

Most of it takes minutes: test_parallelism.py tries the same in one start, with a smaller model and fewer iterations.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from corpora import write
from megatron_runs import FinishedRun, run

from nca_plugin.text.prepare import Corpus, prepare

ROWS = 512
# Megatron pads a vocabulary to a multiple of 128 times the tensor-parallel size: this one needs none at any size.
NCA = ("--data-source", "nca://toy", "--tokenizer-type", "NullTokenizer", "--vocab-size", str(ROWS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pretrain")


@pytest.fixture(scope="module")
def first_weights(folder: Path) -> Path:
    """Initial weights that every layout starts from; a run's own depend on its layout."""
    return run(
        folder / "first", *NCA, "--train-iters", "1", "--lr", "0", "--min-lr", "0", "--save", folder / "first-weights"
    ).folder.with_name("first-weights")


@pytest.fixture(scope="module")
def one_rank(folder: Path, first_weights: Path) -> FinishedRun:
    return run(folder / "one-rank", *NCA, "--train-iters", "20", "--pretrained-checkpoint", first_weights)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tp", "pp", "dp"),
    [
        (2, 2, 1),
        (1, 1, 2),
        (2, 1, 1),
        (1, 2, 1),
        (2, 1, 2),
        (1, 2, 2),
        (1, 4, 1),
        (4, 1, 1),
    ],
)
def test_losses_do_not_depend_on_the_layout(
    folder: Path, first_weights: Path, one_rank: FinishedRun, tp: int, pp: int, dp: int
) -> None:
    parallel = run(
        folder / f"tp{tp}-pp{pp}-dp{dp}",
        *(*NCA, "--train-iters", "20", "--pretrained-checkpoint", first_weights),
        *("--tensor-model-parallel-size", str(tp), "--pipeline-model-parallel-size", str(pp)),
        ranks=tp * pp * dp,
    )
    expected = one_rank.losses
    assert list(parallel.losses) == list(expected) == list(range(1, 21))
    np.testing.assert_allclose(list(parallel.losses.values()), list(expected.values()), rtol=1e-3)


@pytest.mark.slow
def test_the_loss_starts_at_uniform_and_falls(one_rank: FinishedRun) -> None:
    losses = one_rank.losses
    assert losses[1] == pytest.approx(np.log(ROWS), abs=0.15)
    assert losses[20] < losses[1] - 0.5


@pytest.mark.slow
def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, first_weights: Path, one_rank: FinishedRun) -> None:
    checkpoint = folder / "interrupted"
    common = (
        *(*NCA, "--train-iters", "20", "--pretrained-checkpoint", first_weights),
        *("--save", checkpoint, "--load", checkpoint, "--save-interval", "10"),
    )
    until_10 = run(folder / "until-10", *common, "--exit-interval", "10")
    from_10 = run(folder / "from-10", *common)
    assert list(until_10.losses) == list(range(1, 11))
    assert list(from_10.losses) == list(range(11, 21))
    assert until_10.batches + from_10.batches == one_rank.batches
    assert len(set(one_rank.batches)) == 20 * 4
    resumed = {**until_10.losses, **from_10.losses}
    for iteration, loss in one_rank.losses.items():
        assert resumed[iteration] == pytest.approx(loss, rel=1e-6)


# An id of the text is below 257, one of the source 257 or more.
OFFSET = 257


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    rows = [json.dumps({"text": "All work and no play makes Jack a dull boy. " * 100})] * 20
    (folder / "text.jsonl").write_text("\n".join(rows))
    prepare(Corpus(inputs=(str(folder / "text.jsonl"),)), folder / "text_document")
    return folder / "text_document"


def blend(folder: Path, text: Path, source: str | Path) -> tuple[str | Path, ...]:
    return (
        *("--data-path", "0.25", source, "0.75", text, "--split", "90,10,0", "--data-cache-path", folder / "cache"),
        # The tokenizer is the text's; the model has rows for the source's ids too.
        *("--tokenizer-type", "NullTokenizer", "--vocab-size", str(OFFSET), "--padded-vocab-size", str(ROWS)),
        *("--tensor-model-parallel-size", "2", "--train-iters", "10", "--eval-iters", "1", "--save-interval", "5"),
    )


@pytest.fixture(scope="module")
def blended(folder: Path, text: Path) -> FinishedRun:
    return run(folder / "blend", *blend(folder, text, f"nca://toy?vocab_offset={OFFSET}"), ranks=2)


def test_a_blend_keeps_its_weights(blended: FinishedRun) -> None:
    largest = np.array(blended.largest_ids)
    # A validation batch follows the last iteration.
    assert largest.size == 10 * 8 + 8
    assert (largest[:80] >= OFFSET).sum() == 20
    assert (largest[80:] >= OFFSET).sum() == 2


@pytest.mark.slow
def test_a_resumed_blend_is_the_uninterrupted_one(folder: Path, text: Path, blended: FinishedRun) -> None:
    checkpoint = folder / "blend-checkpoint"
    arguments = (
        *blend(folder, text, f"nca://toy?vocab_offset={OFFSET}"),
        *("--save", checkpoint, "--load", checkpoint),
    )
    until_5 = run(folder / "blend-until-5", *arguments, "--exit-interval", "5", ranks=2)
    from_5 = run(folder / "blend-from-5", *arguments, ranks=2)
    assert list(until_5.losses) == list(range(1, 6)) and list(from_5.losses) == list(range(6, 11))
    assert until_5.batches + from_5.batches == blended.batches
    for iteration, loss in (until_5.losses | from_5.losses).items():
        assert loss == pytest.approx(blended.losses[iteration], rel=1e-6)


@pytest.mark.slow
def test_a_dataset_trains_like_the_source_it_was_written_from(folder: Path, text: Path, blended: FinishedRun) -> None:
    write(folder / "corpus", f"nca://toy?vocab_offset={OFFSET}", documents=40, seq_length=128)
    stored = run(folder / "blend-stored", *blend(folder, text, folder / "corpus"), ranks=2)
    # The validation split is the last of the documents, where the source has a stream of its own.
    assert stored.batches[:40] == blended.batches[:40] and stored.batches[40:] != blended.batches[40:]
    assert stored.losses == blended.losses
