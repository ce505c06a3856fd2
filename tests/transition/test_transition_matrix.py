"""The stage transition of real checkpoints: every architecture, saved at one parallel layout and loaded at another."""

import math
from pathlib import Path

import numpy as np
import pytest
from model_zoo import LoadJob, Results, load_checkpoints, save_checkpoints
from transition_cases import ALL, FEW, NOT_RUN, Case

from nca_plugin.checkpoint.dtypes import Values
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.opened import Checkpoint, read_checkpoint
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.transfer import transfer

VOCAB_SIZE = 150


def test_the_next_stage_starts_from_what_was_planned(zoo: Path, zoo_saved: Results, tmp_path: Path) -> None:
    check(FEW, zoo, zoo_saved, tmp_path)


@pytest.mark.slow
def test_it_does_so_for_every_combination(tmp_path: Path) -> None:
    cases = tuple(dict.fromkeys(ALL))
    saved = save_checkpoints(tmp_path / "saved", [case.job for case in cases])
    check(cases, tmp_path / "saved", saved, tmp_path)


def check(cases: tuple[Case, ...], origins: Path, saved: Results, folder: Path) -> None:
    """Transfer checkpoints to a new vocabulary, to the same one, and to new values, and have Megatron load them."""
    jobs = []
    for case in cases:
        jobs += [new_vocabulary(case, origins, folder), same_vocabulary(case, origins, folder)]
    loaded = load_checkpoints(folder, jobs)

    scratch: dict[tuple[str, str], Values] = {}
    for case in cases:
        origin = read_checkpoint(origins / case.name)
        again = read_checkpoint(folder / "again" / case.name)
        check_new_vocabulary(case, origin, again)
        check_scratch(case, origin, folder, scratch)
        for kind in ("new", "same"):
            assert loaded[f"{case.name}-{kind}"]["iteration"] == 0
            assert not loaded[f"{case.name}-{kind}"]["passed_over"]
        if case.arch != NOT_RUN:
            rows = again.tensors["embedding.word_embeddings.weight"].shape[0]
            assert loaded[f"{case.name}-new"]["loss"] == pytest.approx(math.log(rows), abs=0.4), case.name
            assert loaded[f"{case.name}-same"]["loss"] == pytest.approx(saved[case.name]["loss"], abs=2e-6), case.name


def new_vocabulary(case: Case, origins: Path, folder: Path) -> LoadJob:
    """Transfer to another vocabulary, and have Megatron load that at another layout and save it again."""
    tp, pp = case.loaded_at
    start = folder / "new" / case.name
    transition = Transition(vocab_size=VOCAB_SIZE, tensor_model_parallel_size=tp, seed=5)
    transfer(origins / case.name, start, transition, num_workers=2)
    return LoadJob(
        name=f"{case.name}-new",
        arch=case.arch,
        tp=tp,
        pp=pp,
        checkpoint=str(start),
        arguments=("--vocab-size", str(VOCAB_SIZE)),
        save=str(folder / "again" / case.name),
    )


def same_vocabulary(case: Case, origins: Path, folder: Path) -> LoadJob:
    """Transfer with everything kept, whose loss is that of the weights that were saved."""
    tp, pp = case.loaded_at
    start = folder / "same" / case.name
    # As many rows as before: those that pad the vocabulary count in Megatron's loss.
    divisible_by = 8 * case.layout[0] // tp
    transition = Transition(
        keep=["embedding", "output"] if "tied" not in case.arch else ["embedding"],
        make_vocab_size_divisible_by=divisible_by,
        tensor_model_parallel_size=tp,
        layout="copy",
    )
    transfer(origins / case.name, start, transition, num_workers=2)
    arguments = ("--make-vocab-size-divisible-by", str(divisible_by))
    return LoadJob(name=f"{case.name}-same", arch=case.arch, tp=tp, pp=pp, checkpoint=str(start), arguments=arguments)


def check_new_vocabulary(case: Case, origin: Checkpoint, again: Checkpoint) -> None:
    """What Megatron loaded and saved again is what was kept, bit for bit, and new rows, none of them zero."""
    names = {name for name in origin.tensors if parameter(name).role != "run"}
    assert names == {name for name in again.tensors if parameter(name).role != "run"}
    rows = math.ceil(VOCAB_SIZE / (8 * case.loaded_at[0])) * 8 * case.loaded_at[0]
    for name in names:
        tensor = again.tensor(name)
        if name.startswith(("embedding.word", "output_layer")):
            assert tensor.shape == (rows, 32)
            assert np.abs(tensor).sum(axis=1).min() > 0, f"{case.name}: zero row in {name}"
        else:
            assert np.array_equal(tensor, origin.tensor(name)), f"{case.name}: {name}"


def check_scratch(case: Case, origin: Checkpoint, folder: Path, scratch: dict[tuple[str, str], Values]) -> None:
    """What is drawn anew is the same at every layout, and distributed as Megatron's own initial values."""
    start = folder / "scratch" / case.name
    transition = Transition(preset="scratch", vocab_size=VOCAB_SIZE, tensor_model_parallel_size=1, seed=6)
    transfer(origin.folder, start, transition, num_workers=2)
    drawn = read_checkpoint(start)
    for name in drawn.tensors:
        tensor = drawn.tensor(name)
        assert np.array_equal(tensor, scratch.setdefault((case.arch, name), tensor)), f"{case.name}: {name}"
        if case.optimizer == "none" and parameter(name).role != "module":
            same_distribution(tensor, origin.tensor(name), f"{case.name}: {name}")


def same_distribution(ours: Values, megatrons: Values, name: str) -> None:
    """Compare first and second moments within five standard errors of their difference."""
    a, b = ours.reshape(-1).astype(np.float64), megatrons.reshape(-1).astype(np.float64)
    if len(np.unique(b)) == 1:
        assert (a == b[0]).all(), name
        return
    error = math.sqrt(a.var() / a.size + b.var() / b.size)
    assert abs(a.mean() - b.mean()) < 5 * error, name
    spread = math.sqrt(((a - a.mean()) ** 2).var() / a.size + ((b - b.mean()) ** 2).var() / b.size)
    assert abs(a.var() - b.var()) < 5 * spread, name
