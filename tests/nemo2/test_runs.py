"""NeMo's own loop trains on a source, resumes with the next sample, and writes what `nca-plugin transfer` reads."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from before_the_model import set_up
from nemo_runs import ITERATIONS, SAVE_AT, NemoRun, run, start

from nca_plugin.checkpoint.opened import open_checkpoint
from nca_plugin.checkpoint.torch_dist import read_table
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.read import read_trained
from nca_plugin.nemo2.data import SourceDataModule
from nca_plugin.sources import parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def whole(folder: Path) -> NemoRun:
    """The run that the others are compared with."""
    return run(folder / "whole")


def test_a_recipe_trains_on_nca(whole: NemoRun) -> None:
    losses = whole.losses
    assert list(losses) == list(range(1, ITERATIONS + 1))
    assert losses[ITERATIONS] < losses[1] - 0.5
    assert whole.log.count(f"training on {ITERATIONS * 8 * 128:,} tokens of nca://toy (") == 1
    assert "nca-plugin: CPU mode sets model.config." in whole.log
    source = parse("nca://toy")
    assert whole.largest_ids == [int(source.sample(i, 128).tokens[:-1].max()) for i in range(ITERATIONS * 8)]


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path, whole: NemoRun) -> None:
    resumed = run(folder / "resumed", f"resume.resume_from_path={whole.saved_at(SAVE_AT)}")
    assert list(resumed.losses) == list(range(SAVE_AT + 1, ITERATIONS + 1))
    assert resumed.batches == whole.batches[SAVE_AT * 4 :]
    for iteration, loss in resumed.losses.items():
        assert loss == pytest.approx(whole.losses[iteration], rel=1e-6)


def test_a_blend_that_is_resumed_with_a_smaller_batch_has_no_end(folder: Path) -> None:
    data = ("data=nca", "data.path=0.5 nca://toy 0.5 nca://toy?seed=2", "data.tokenizer_vocab_size=18")
    whole = run(folder / "blend", data=data)
    settings = (f"resume.resume_from_path={whole.saved_at(SAVE_AT)}", "data.global_batch_size=4")
    resumed = run(folder / "blend-smaller", *settings, data=data)
    assert list(resumed.losses) == list(range(SAVE_AT + 1, ITERATIONS + 1))
    # An iteration has 2 micro-batches in place of 4.
    assert resumed.batches == whole.batches[4 * SAVE_AT :][: 2 * (ITERATIONS - SAVE_AT)]


def test_a_run_resumes_at_another_layout(folder: Path, whole: NemoRun) -> None:
    resumed = run(
        folder / "two-ranks",
        *(f"resume.resume_from_path={whole.saved_at(SAVE_AT)}", "trainer.strategy.tensor_model_parallel_size=2"),
        # Two ranks would pad the vocabulary to twice as many rows.
        "model.config.vocab_size=128",
        ranks=2,
    )
    assert resumed.batches == whole.batches[SAVE_AT * 4 :]
    assert resumed.log.count("training on ") == 1
    expected = [whole.losses[iteration] for iteration in resumed.losses]
    np.testing.assert_allclose(list(resumed.losses.values()), expected, rtol=1e-3)


def test_a_checkpoint_that_does_not_fit_is_refused(whole: NemoRun) -> None:
    checkpoint = whole.saved_at(SAVE_AT)
    trained = read_trained(open_checkpoint(checkpoint))
    assert trained.lineage is not None and trained.lineage.now is not None
    assert trained.lineage.now.parts[0].uri == parse("nca://toy").uri
    settings = {"ckpt_path": str(checkpoint)}
    set_up(SourceDataModule(preset="toy"), **settings)
    message = "would be resumed with other data, nca://toy with seed=7 rather than seed=1234: .* data.allow_other_data"
    with pytest.raises(NCAPluginError, match=message):
        set_up(SourceDataModule(preset="toy", seed=7), **settings)
    set_up(SourceDataModule(preset="toy", seed=7, allow_other_data=True), **settings)
    # NeMo would fill the rows that are missing with zeros.
    message = "has 128 embedding rows, the run has 256: set model.config.vocab_size=128 "
    with pytest.raises(NCAPluginError, match=message):
        set_up(SourceDataModule(preset="toy"), tensor_parallel_size=2, **settings)
    set_up(SourceDataModule(preset="toy"), tensor_parallel_size=2, vocab_size=128, **settings)


def test_a_mistake_ends_the_run_with_one_line(folder: Path) -> None:
    done = start(folder / "refused", "data.presett=code")
    # The report of torchrun holds it once more.
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("nca-plugin: error:"))
    assert line == "nca-plugin: error: unknown key 'data.presett': did you mean 'data.preset'?"


def test_what_rank_0_refuses_for_all_ranks_is_one_line(folder: Path, whole: NemoRun) -> None:
    resume = f"resume.resume_from_path={whole.saved_at(SAVE_AT)}"
    done = start(folder / "other-data", resume, "data.seed=7", "model.config.vocab_size=128", ranks=2)
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("nca-plugin: error:"))
    assert "would be resumed with other data, " in line


def test_transfer_reads_its_checkpoint(folder: Path, whole: NemoRun) -> None:
    checkpoint, made = whole.saved_at(SAVE_AT), folder / "start"
    arguments = ("transfer", "--from", checkpoint, "--to", made, "--vocab-size", "300")
    command = [sys.executable, "-c", "from nca_plugin.__main__ import main; main()", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"Trained on {parse('nca://toy').uri}" in done.stdout.replace("\n", "")
    before, after = (_weights(path / "weights") for path in (checkpoint, made))
    embedding = "module.embedding.word_embeddings.weight"
    assert before.pop(embedding).shape == (128, 64) and after.pop(embedding).shape == (384, 64)
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)
    # As the command says: weights alone, from iteration 0.
    assert "resume.restore_config=Config[nemo.lightning.RestoreConfig]" in done.stdout.replace("\n", "")
    restored = ("resume.restore_config=Config[nemo.lightning.RestoreConfig]", f"resume.restore_config.path={made}")
    data = ("data=iid", "data.vocab_size=300")
    steps = ("trainer.max_steps=2", "trainer.val_check_interval=2", "log.ckpt.every_n_train_steps=2")
    next_stage = run(folder / "next", *restored, *steps, data=data)
    assert list(next_stage.losses) == [1, 2]
    trained = read_trained(open_checkpoint(next_stage.saved_at(2)))
    assert trained.lineage is not None and trained.lineage.now is not None
    assert [part.uri for data in trained.lineage.earlier for part in data.parts] == [parse("nca://toy").uri]


def _weights(folder: Path) -> dict[str, np.ndarray]:
    tensors, _ = read_table(folder).entries()
    return {name: tensor.read() for name, tensor in tensors.items() if name.startswith("module.")}
