"""The stage transition, on checkpoints that Megatron wrote and read back by Megatron."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron_runs import FinishedRun, run

from nca_plugin.checkpoint.torch_dist import Checkpoint, read_checkpoint
from nca_plugin.checkpoint.transfer import transfer
from nca_plugin.errors import NCAPluginError

VOCAB_SIZE, ROWS = 300, 384
LANGUAGE_TEXT = "".join(f"line {i}: the quick brown fox jumps over the lazy dog\n" for i in range(3000))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transfer")


@pytest.fixture(scope="module")
def stage_1(folder: Path) -> Path:
    """A checkpoint of two tensor-parallel ranks, with optimizer state."""
    done = run(
        folder / "stage-1",
        *("--data-source", "nca", "--nca-preset", "toy", "--train-iters", "3"),
        *("--tensor-model-parallel-size", "2", "--save", folder / "stage-1-checkpoint"),
        ranks=2,
    )
    return done.folder.with_name("stage-1-checkpoint")


def language_run(folder: Path, start: Path) -> FinishedRun:
    """One iteration on text from `start`, with a learning rate of 0, so that what is saved is what was loaded."""
    from nca_plugin.prepare import Corpus, prepare

    text = folder / "text.txt"
    text.parent.mkdir(parents=True, exist_ok=True)
    text.write_text(LANGUAGE_TEXT)
    prepare(Corpus(inputs=(str(text),)), folder / "text_document")
    return run(
        folder,
        *("--data-path", folder / "text_document", "--split", "100,0,0", "--tokenizer-type", "NullTokenizer"),
        *("--vocab-size", str(VOCAB_SIZE), "--pretrained-checkpoint", start),
        *("--train-iters", "1", "--lr", "0", "--min-lr", "0", "--weight-decay", "0", "--save", folder / "checkpoint"),
    )


def model_tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {
        name: checkpoint.tensor(name)
        for name in checkpoint.names
        if name.startswith(("embedding", "decoder", "output")) and "_extra_state" not in name
    }


def test_the_language_run_starts_from_what_was_kept(folder: Path, stage_1: Path) -> None:
    start = folder / "start"
    # Stage 1 had two tensor-parallel ranks, the language run has one: another padding of the vocabulary.
    report = transfer(stage_1, start, vocab_size=VOCAB_SIZE, tensor_parallel_size=1, seed=5)
    done = language_run(folder / "language", start)
    assert done.losses[1] == pytest.approx(np.log(ROWS), abs=0.15)

    before = model_tensors(read_checkpoint(stage_1))
    after = model_tensors(read_checkpoint(done.checkpoint))
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        if name.startswith("decoder"):
            assert torch.equal(tensor, before[name]), name
        else:
            assert tensor.shape == (ROWS, 64)
            assert tensor.abs().sum(dim=1).min() > 0, f"zero row in {name}"
            assert tensor.std() == pytest.approx(0.02, rel=0.02)
    actions = {row["name"]: row["action"] for row in report["tensors"]}
    assert {name for name, action in actions.items() if action == "reinit"} == {
        "embedding.word_embeddings.weight",
        "output_layer.weight",
    }
    assert all(action == "drop" for name, action in actions.items() if name.startswith("optimizer"))


def test_attention_only(folder: Path, stage_1: Path) -> None:
    start = folder / "attention-only"
    report = transfer(stage_1, start, vocab_size=VOCAB_SIZE, keep=["attention"], seed=5)
    before, after = model_tensors(read_checkpoint(stage_1)), model_tensors(read_checkpoint(start))
    for name, tensor in after.items():
        if "linear_qkv.weight" in name or "linear_proj.weight" in name:
            assert torch.equal(tensor, before[name])
        elif name.endswith("bias") and "norm" in name:
            assert torch.equal(tensor, torch.zeros_like(tensor))
        elif "norm" in name:
            assert torch.equal(tensor, torch.ones_like(tensor))
        elif "fc1.weight" in name:
            assert tensor.std() == pytest.approx(0.02, rel=0.02)
        elif "fc2.weight" in name:
            assert tensor.std() == pytest.approx(0.02 / np.sqrt(8), rel=0.02)
    assert {row["role"] for row in report["tensors"] if row["action"] == "keep"} == {"attention", ""}


def test_new_values_do_not_depend_on_what_else_is_drawn(folder: Path, stage_1: Path) -> None:
    """So that the arms of a study start from equal values wherever they draw them."""
    starts = {}
    for name, options in {"some": {"keep": ["attention"]}, "all": {"reinit": ["all"]}, "few": {}}.items():
        transfer(stage_1, folder / f"paired-{name}", vocab_size=VOCAB_SIZE, seed=9, **options)
        starts[name] = model_tensors(read_checkpoint(folder / f"paired-{name}"))
    for name in starts["all"]:
        drawn = torch.equal(starts["some"][name], starts["all"][name])
        assert drawn or ("self_attention" in name and "norm" not in name)
    for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
        assert torch.equal(starts["few"][name], starts["all"][name])
    layers = starts["all"]["decoder.layers.mlp.linear_fc1.weight"]
    assert not torch.equal(layers[0], layers[1])
    transfer(stage_1, folder / "other-seed", vocab_size=VOCAB_SIZE, seed=10)
    other = read_checkpoint(folder / "other-seed").tensor("output_layer.weight")
    assert not torch.equal(other, starts["few"]["output_layer.weight"])


def test_the_vocabulary_is_padded_as_megatron_pads_it(stage_1: Path) -> None:
    def rows(**options: int) -> int:
        return transfer(stage_1, Path("nowhere"), dry_run=True, **options)["padded_vocab_size"]

    assert rows() == 256  # 18 ids, padded for two tensor-parallel ranks
    assert rows(vocab_size=257, tensor_parallel_size=1) == 384
    assert rows(vocab_size=257) == 512
    assert rows(vocab_size=257, tensor_parallel_size=1, make_vocab_size_divisible_by=1) == 257
    assert not Path("nowhere").exists()


def test_what_is_kept_is_linked_and_the_report_tells_all(folder: Path, stage_1: Path) -> None:
    start = folder / "linked"
    transfer(stage_1, start, vocab_size=VOCAB_SIZE, seed=5)
    origin = read_checkpoint(stage_1)
    for name in {info.relative_path for index, info in origin.stored() if index.fqn.startswith("decoder")}:
        assert (start / "release" / name).samefile(origin.folder / name)
    report = json.loads((start / "transfer_report.json").read_text())
    assert {row["name"] for row in report["tensors"]} == set(origin.names)
    kept = [row for row in report["tensors"] if row["action"] == "keep" and row["role"]]
    assert kept and all(len(row["blake2b"]) == 32 for row in kept)


def test_a_transferred_checkpoint_can_be_transferred(folder: Path, stage_1: Path) -> None:
    once, twice = folder / "once", folder / "twice"
    transfer(stage_1, once, vocab_size=VOCAB_SIZE, seed=5)
    transfer(once, twice, keep=["all"])
    first, second = model_tensors(read_checkpoint(once)), model_tensors(read_checkpoint(twice))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keep": ["attnetion"]}, "unknown selector 'attnetion'"),
        ({"keep": ["mlp"], "reinit": ["mlp"]}, "both to keep and to re-initialise"),
        ({"keep": ["embedding"], "vocab_size": 5000}, "rows of another vocabulary"),
        ({"vocab_size": 0}, "must be at least 1"),
    ],
)
def test_impossible_plans_are_refused(folder: Path, stage_1: Path, options: dict, reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason):
        transfer(stage_1, folder / "refused", **options)
    assert not (folder / "refused").exists()


def broken_copy(stage_1: Path, to: Path) -> tuple[Path, Path]:
    """Return a copy of a checkpoint to break, and its iteration's folder."""
    shutil.copytree(stage_1, to)
    return to, to / "iter_0000003"


def test_a_truncated_checkpoint_is_refused(tmp_path: Path, stage_1: Path) -> None:
    broken, iteration = broken_copy(stage_1, tmp_path / "broken")
    data = iteration / "__0_0.distcp"
    data.write_bytes(data.read_bytes()[:-100])
    with pytest.raises(NCAPluginError, match=r"truncated: __0_0.distcp has \d+ of \d+ bytes"):
        transfer(broken, tmp_path / "out")
    data.unlink()
    with pytest.raises(NCAPluginError, match=r"__0_0\.distcp is missing"):
        transfer(broken, tmp_path / "out")


def test_damaged_metadata_is_refused(tmp_path: Path, stage_1: Path) -> None:
    broken, iteration = broken_copy(stage_1, tmp_path / "broken")
    (iteration / ".metadata").write_bytes((iteration / ".metadata").read_bytes()[:500])
    with pytest.raises(NCAPluginError, match=r"\.metadata cannot be read"):
        transfer(broken, tmp_path / "out")
    (iteration / ".metadata").unlink()
    with pytest.raises(NCAPluginError, match=r"\.metadata is missing"):
        transfer(broken, tmp_path / "out")
    (iteration / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    with pytest.raises(NCAPluginError, match=r"unknown format \(zarr\)"):
        transfer(broken, tmp_path / "out")


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_reading_runs_no_code_from_a_checkpoint(tmp_path: Path, stage_1: Path) -> None:
    broken, iteration = broken_copy(stage_1, tmp_path / "broken")
    (iteration / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    with pytest.raises(NCAPluginError, match="refused to load"):
        transfer(broken, tmp_path / "out")
    assert not (tmp_path / "executed").exists()
