"""One run in every stack: the same batches, the same losses, at every layout; and the same run when resumed."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import FinishedRun
from megatron_runs import run as run_megatron
from stacks import ITERATIONS, ROWS, SOURCE, STACKS, Job, train

from nca_plugin.checkpoint.opened import open_checkpoint
from nca_plugin.errors import NCAPluginError
from nca_plugin.lineage.read import read_trained
from nca_plugin.lineage.training_data import TrainingData, fingerprint
from nca_plugin.sources import parse, short_uri
from nca_plugin.transition.transfer import transfer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stacks")


@pytest.fixture(scope="module")
def first_weights(folder: Path) -> Path:
    """Initial weights that every run starts from, as Megatron-LM saves them."""
    run_megatron(
        folder / "first",
        *("--data-source", SOURCE, "--tokenizer-type", "NullTokenizer", "--vocab-size", str(ROWS)),
        *("--train-iters", "1", "--lr", "0", "--min-lr", "0", "--save", folder / "first-weights"),
    )
    return folder / "first-weights"


@pytest.fixture(scope="module")
def megatron(folder: Path, first_weights: Path) -> FinishedRun:
    """The run that the others are compared with."""
    return train("megatron", Job(folder / "megatron-1-1", first_weights))


@pytest.fixture(scope="module")
def bridge(folder: Path, first_weights: Path) -> FinishedRun:
    return train("bridge", Job(folder / "bridge-1-1", first_weights))


def check_losses(run: FinishedRun, expected: FinishedRun, rtol: float = 1e-3) -> None:
    assert list(run.losses) == list(expected.losses) == list(range(1, ITERATIONS + 1))
    np.testing.assert_allclose(list(run.losses.values()), list(expected.losses.values()), rtol=rtol)


def check_run(run: FinishedRun, expected: FinishedRun) -> None:
    """Of one layout: in one order of operations, losses are closer than the 1e-3 that is promised between layouts."""
    assert len(set(expected.batches)) == ITERATIONS * 4
    assert run.batches == expected.batches
    check_losses(run, expected, rtol=1e-5)


def test_bridge_trains_like_megatron(megatron: FinishedRun, bridge: FinishedRun) -> None:
    check_run(bridge, megatron)


@pytest.mark.parametrize("stack", ["hydra", "nemo1"])
def test_a_configuration_trains_like_its_arguments(
    folder: Path, first_weights: Path, megatron: FinishedRun, stack: str
) -> None:
    check_run(train(stack, Job(folder / f"{stack}-1-1", first_weights)), megatron)


@pytest.mark.parametrize("stack", STACKS)
def test_layout_does_not_change_the_losses(
    folder: Path, first_weights: Path, megatron: FinishedRun, stack: str
) -> None:
    check_losses(train(stack, Job(folder / f"{stack}-2-2", first_weights, tp=2, pp=2)), megatron)


def test_the_log_says_what_the_run_trains_on(bridge: FinishedRun) -> None:
    tokens = ITERATIONS * 8 * 128
    source = parse(SOURCE)
    line = (
        f"nca-plugin {version('nca-plugin')}: training on {tokens:,} tokens of {short_uri(source)} (vocabulary 18, "
        f"71.1% of targets supervised, fingerprint {fingerprint(source, 128)})"
    )
    assert bridge.log.count(line) == 1


def test_a_resumed_bridge_run_is_the_uninterrupted_one(folder: Path, first_weights: Path, bridge: FinishedRun) -> None:
    save = folder / "interrupted"
    until_10 = train("bridge", Job(folder / "until-10", first_weights, save=save, exit_at=10))
    from_10 = train("bridge", Job(folder / "from-10", first_weights, save=save))
    assert list(until_10.losses) == list(range(1, 11)) and list(from_10.losses) == list(range(11, 21))
    assert until_10.batches + from_10.batches == bridge.batches
    resumed = until_10.losses | from_10.losses
    for iteration, loss in bridge.losses.items():
        assert resumed[iteration] == pytest.approx(loss, rel=1e-6)


def test_a_blend_that_is_resumed_with_a_smaller_batch_has_no_end(folder: Path, first_weights: Path) -> None:
    save, tokenizer = folder / "blend", ("tokenizer.tokenizer_type=NullTokenizer", "tokenizer.vocab_size=18")
    data = ("data.path=[0.5,nca://toy,0.5,'nca://toy?seed=2']", *tokenizer)
    until_10 = train("bridge", Job(folder / "blend-until-10", first_weights, save=save, exit_at=10, data=data))
    from_10 = train("bridge", Job(folder / "blend-from-10", first_weights, save=save, data=data, batch=4))
    assert list(from_10.losses) == list(range(11, 21))
    # 10 iterations of 4 micro-batches, and 10 of 2.
    assert len(set(until_10.batches + from_10.batches)) == 60


def test_a_bridge_checkpoint_says_what_it_was_trained_on(
    configure: Callable[..., Any], folder: Path, first_weights: Path, tmp_path: Path
) -> None:
    save = folder / "short"
    other = ("data.source=nca", "data.nca.preset=toy", "data.nca.seed=7")
    train("bridge", Job(folder / "until-1", first_weights, save=save, exit_at=1))
    trained = read_trained(open_checkpoint(save))
    assert (trained.iteration, trained.samples) == (1, 8)
    assert trained.lineage is not None and trained.lineage.now == TrainingData.of([parse(SOURCE).uri], None, 128)
    run = ("--recipe", "vanilla_gpt_pretrain_config", f"model.vocab_size={ROWS}", "model.seq_length=128")
    resumed = (*run, f"checkpoint.load={save}")
    configure(*resumed, f"data.source={SOURCE}")
    with pytest.raises(
        NCAPluginError, match=r"nca://toy with seed=7 rather than seed=1234.*dataset.allow_other_data=true"
    ):
        configure(*resumed, *other)
    allowed = configure(*resumed, *other, "dataset.allow_other_data=true").dataset.nca_plugin_trained_on
    assert [data["samples"] for data in allowed["earlier"]] == [8, 8]
    transfer(save, tmp_path / "start")
    started = configure(*run, *other, f"checkpoint.pretrained_checkpoint={tmp_path / 'start'}").dataset
    assert started.nca_plugin_trained_on == allowed


@pytest.mark.parametrize("option", ["pretrained_checkpoint", "load"])
def test_a_checkpoint_of_another_vocabulary_is_refused(
    configure: Callable[..., Any], first_weights: Path, option: str
) -> None:
    """Megatron-Bridge would load it, with zeros for the rows that it lacks."""
    recipe = ("--recipe", "vanilla_gpt_pretrain_config", f"data.source={SOURCE}", "model.seq_length=128")
    run = (*recipe, f"checkpoint.{option}={first_weights}")
    configure(*run, f"model.vocab_size={ROWS}")
    message = "has 512 embedding rows, the run has 640: .*nca-plugin transfer .*--vocab-size 640"
    with pytest.raises(NCAPluginError, match=message):
        configure(*run, "model.vocab_size=640")
    # A folder of one iteration, too; and a vocabulary that comes from the tokenizer is padded.
    run = (*recipe, f"checkpoint.{option}={first_weights / 'iter_0000001'}")
    with pytest.raises(NCAPluginError, match="has 512 embedding rows, the run has 128"):
        configure(*run)
