"""The stage transition: what is kept, drawn and resized, and what is written."""

import json
import math
import os
import shlex
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import digests
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron_runs import run
from model_zoo import ARCHITECTURES, BASE
from places import CHECKPOINTS
from releases import needs_0_19
from training_jobs import Job, train

from nca_plugin.checkpoint.contents import contiguous_regions
from nca_plugin.checkpoint.dtypes import DTYPES, Values
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.opened import Checkpoint, read_checkpoint
from nca_plugin.checkpoint.stored import Record
from nca_plugin.commands.app import app
from nca_plugin.errors import NCAPluginError
from nca_plugin.megatron.freeze import freeze
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.model_initialisation import Distribution, draw
from nca_plugin.transition.transfer import transfer

DATA = CHECKPOINTS
#: In NeMo's description of its objects.
VOCABULARY_LEAF = '{{"type": "leaf", "value": {}, "paths": ["<root>.model.config.vocab_size"]}}'
EMBEDDING, OUTPUT = "embedding.word_embeddings.weight", "output_layer.weight"
MLP = "decoder.layers.mlp.linear_fc1.weight"
#: Of the zoo's checkpoints: 100 ids, padded for two tensor-parallel ranks.
IDS, ROWS = 100, 112


def model(checkpoint: Checkpoint) -> dict[str, Values]:
    return {name: checkpoint.tensor(name) for name in checkpoint.tensors if parameter(name).role != "run"}


def started(origin: Path, target: Path, **options: Any) -> Checkpoint:
    transfer(origin, target, Transition(**options), num_workers=2)
    return read_checkpoint(target)


# It freezes layers.
@needs_0_19
def test_the_language_run_starts_from_what_was_kept_and_a_restart_resumes_it(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    asked = ["--vocab-size", "300", "--tensor-model-parallel-size", "1", "--freeze", "attention", "--freeze", "mlp"]
    app(["transfer", "--from", str(zoo / "llama"), "--to", str(start), *asked], standalone_mode=False)
    says = "Start the next stage with "
    (command,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(says))
    arguments = (
        *(*BASE, *ARCHITECTURES["llama"], "--seq-length", "128", "--max-position-embeddings", "128"),
        *("--data-source", "copy://?vocab_size=300", "--vocab-size", "300", "--tokenizer-type", "NullTokenizer"),
        *(*shlex.split(command.removeprefix(says)), "--save-interval", "2"),
        *("--save", tmp_path / "language", "--load", tmp_path / "language"),
    )
    first = run(tmp_path / "first", *arguments, "--train-iters", "4", "--exit-interval", "2")
    again = run(tmp_path / "again", *arguments, "--train-iters", "4")
    assert list(first.losses) == [1, 2] and list(again.losses) == [3, 4]
    assert first.losses[1] == pytest.approx(math.log(304), abs=0.2)

    before, after = model(read_checkpoint(zoo / "llama")), model(read_checkpoint(tmp_path / "language"))
    for name, tensor in after.items():
        is_frozen = parameter(name).role.startswith(("attention", "mlp"))
        assert np.array_equal(tensor, before[name]) == is_frozen, name


# It names the option of 0.19.
@needs_0_19
def test_a_resume_where_only_the_padding_of_the_vocabulary_differs_loses_nothing(tmp_path: Path) -> None:
    saved = str(tmp_path / "saved")
    arguments = ("--data-source", "copy://?vocab_size=100", "--save-interval", "2", "--override-opt_param-scheduler")
    resumed = (*arguments, "--load", saved, "--train-iters", "4", "--save")
    other_padding = ("--tensor-model-parallel-size", "2", "--padded-vocab-size", "104")
    jobs = [
        Job("first", (*arguments, "--train-iters", "2", "--save", saved)),
        Job("same", (*resumed, str(tmp_path / "same"))),
        Job("other", (*resumed, str(tmp_path / "other"), *other_padding), ranks=2),
    ]
    done = train(tmp_path / "jobs", jobs)
    same, other = done["same"], done["other"]
    assert list(same.losses) == list(other.losses) == [3, 4]
    assert list(other.losses.values()) == pytest.approx(list(same.losses.values()), abs=1e-5)
    one, two = read_checkpoint(tmp_path / "same"), read_checkpoint(tmp_path / "other")
    assert one.tensors.keys() == two.tensors.keys()
    for name in one.tensors:
        assert np.allclose(one.tensor(name), two.tensor(name), atol=2e-4), name


def test_what_is_kept_is_linked_and_the_report_tells_all(zoo: Path, tmp_path: Path) -> None:
    before = digests(zoo / "llama")
    report = transfer(
        zoo / "llama", tmp_path / "start", Transition(vocab_size=150, seed=5), command=["nca-plugin", "x"]
    )
    origin, start = read_checkpoint(zoo / "llama"), read_checkpoint(tmp_path / "start")
    for name in report["linked_files"]:
        assert (start.folder / name).samefile(origin.folder / name)
    new = sum(path.stat().st_size for path in (tmp_path / "start").rglob("*") if path.stat().st_nlink == 1)
    drawn = sum(start.tensors[name].num_bytes for name in (EMBEDDING, OUTPUT))
    assert new < drawn + (1 << 20)

    assert report == json.loads((tmp_path / "start" / "transfer_report.json").read_text())
    assert (report["seed"], report["command"], report["layout"]) == (5, ["nca-plugin", "x"], "link")
    rows = {row["name"]: row for row in report["tensors"]}
    assert set(rows) == set(origin.names)
    assert (rows[EMBEDDING]["action"], rows[EMBEDDING]["new_shape"]) == ("reinit", [160, 32])
    assert rows[EMBEDDING]["drawn"] == 160 * 32
    values = start.tensor(EMBEDDING)
    assert rows[EMBEDDING]["mean"] == pytest.approx(values.mean(), abs=1e-7)
    assert rows[EMBEDDING]["std"] == pytest.approx(values.std(), rel=1e-4)
    for name, row in rows.items():
        if row["action"] == "keep" and name in origin.tensors:
            tensor = origin.tensors[name]
            assert row["crc32"] == {
                ",".join(map(str, block.offsets)): f"{zip_crc(tensor.stored(block).record):08x}"
                for block in tensor.blocks
            }
    assert digests(zoo / "llama") == before


def zip_crc(record: Record) -> int:
    with record.file.open("rb") as file:
        file.seek(record.position)
        return zlib.crc32(file.read(record.size))


@pytest.mark.parametrize("kind", ["llama", "bf16", "legacy"])
@pytest.mark.parametrize("layout", ["link", "copy"])
def test_pytorch_reads_what_is_written(zoo: Path, tmp_path: Path, kind: str, layout: str) -> None:
    start = started(zoo / kind, tmp_path / "start", vocab_size=150, reinit=["mlp[1:3]"], layout=layout)
    contents = dcp.FileSystemReader(start.folder).read_metadata().state_dict_metadata
    read = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in contents.items()
        if hasattr(entry, "size")
    }
    dcp.load(read, checkpoint_id=start.folder, no_dist=True)
    for name, tensor in read.items():
        ours = torch.from_numpy(start.tensor(name))
        assert torch.equal(tensor, ours.view(tensor.dtype)), name
    common = torch.load(start.folder / "common.pt", weights_only=False)
    assert (common["args"].padded_vocab_size, common["args"].iteration, common["iteration"]) == (160, 0, 0)
    for file in start.folder.glob("transfer_*"):
        for item in (block.source for tensor in start.tensors.values() for block in tensor.blocks):
            if item.file == file:
                with file.open("rb") as data:
                    data.seek(item.offset)
                    archive = tmp_path / "archive"
                    archive.write_bytes(data.read(item.length))
                assert zipfile.ZipFile(archive).testzip() is None
                torch.load(archive, mmap=True)


@pytest.mark.parametrize(("old", "new"), [("legacy", "llama"), ("experts-legacy", "experts")])
def test_the_old_format_holds_what_the_new_one_does(zoo: Path, old: str, new: str) -> None:
    ours, theirs = model(read_checkpoint(zoo / old)), model(read_checkpoint(zoo / new))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_rows_of_a_vocabulary_are_kept_and_mapped(zoo: Path, tmp_path: Path) -> None:
    old = read_checkpoint(zoo / "llama").tensor(EMBEDDING)
    fresh = started(zoo / "llama", tmp_path / "fresh", vocab_size=150, seed=3).tensor(EMBEDDING)
    kept = started(zoo / "llama", tmp_path / "kept", vocab_size=150, seed=3, keep_rows="0:20,50:100").tensor(EMBEDDING)
    assert np.array_equal(kept[:20], old[:20]) and np.array_equal(kept[50:100], old[50:100])
    assert np.array_equal(kept[20:50], fresh[20:50]) and np.array_equal(kept[100:], fresh[100:])

    (tmp_path / "map").write_text("# new old\n3 99\n149 0  # the end\n\n7 99\n")
    mapped = started(zoo / "llama", tmp_path / "mapped", vocab_size=150, seed=3, row_map=tmp_path / "map")
    for name in (EMBEDDING, OUTPUT):
        tensor, before = mapped.tensor(name), read_checkpoint(zoo / "llama").tensor(name)
        assert np.array_equal(tensor[[3, 149, 7]], before[[99, 0, 99]])
    report = json.loads((tmp_path / "mapped/transfer_report.json").read_text())
    row = next(row for row in report["tensors"] if row["name"] == EMBEDDING)
    assert (row["action"], row["rows_kept"], row["drawn"]) == ("resize", 3, (160 - 3) * 32)


def test_the_output_can_be_drawn_anew_while_rows_of_the_embedding_are_kept(zoo: Path, tmp_path: Path) -> None:
    start = started(zoo / "llama", tmp_path / "start", keep_rows="0:100", reinit=["output"])
    before = read_checkpoint(zoo / "llama")
    assert np.array_equal(start.tensor(EMBEDDING)[:IDS], before.tensor(EMBEDDING)[:IDS])
    assert not np.isin(start.tensor(OUTPUT), before.tensor(OUTPUT)).any()


def test_another_padding_of_the_same_vocabulary_keeps_its_rows(zoo: Path, tmp_path: Path) -> None:
    start = started(
        *(zoo / "llama", tmp_path / "start"), keep=["embedding", "output"], make_vocab_size_divisible_by=100
    )
    for name in (EMBEDDING, OUTPUT):
        tensor = start.tensor(name)
        assert tensor.shape[0] == 200
        assert np.array_equal(tensor[:IDS], read_checkpoint(zoo / "llama").tensor(name)[:IDS])
        assert (np.abs(tensor).sum(axis=1) > 0).all()


def test_the_vocabulary_is_padded_as_megatron_pads_it(zoo: Path) -> None:
    def rows(**options: int) -> int:
        return int(transfer(zoo / "llama", Path("nowhere"), Transition(**options), dry_run=True)["padded_vocab_size"])

    assert rows() == ROWS
    assert rows(tensor_model_parallel_size=1) == 104
    assert rows(vocab_size=113) == 128
    assert rows(vocab_size=113, tensor_model_parallel_size=1) == 120
    assert rows(vocab_size=113, tensor_model_parallel_size=1, make_vocab_size_divisible_by=1) == 113
    assert not Path("nowhere").exists()


def test_presets_of_new_rows(zoo: Path, tmp_path: Path) -> None:
    released = started(zoo / "llama", tmp_path / "release", preset="release", vocab_size=2000)
    assert released.tensor(EMBEDDING).std() == pytest.approx(1, rel=0.02)
    output = released.tensor(OUTPUT)
    assert np.abs(output).max() == pytest.approx(32**-0.5, rel=1e-3)
    assert output.std() == pytest.approx(32**-0.5 / 3**0.5, rel=0.02)
    # The rows that pad a vocabulary are not trained, and count for nothing.
    trained = read_checkpoint(zoo / "llama").tensor(EMBEDDING)[:IDS]
    matched = started(zoo / "llama", tmp_path / "matched", preset="matched", vocab_size=2000).tensor(EMBEDDING)
    assert matched.std() == pytest.approx(np.sqrt(np.square(trained).mean()), rel=0.02)
    fixed = started(zoo / "llama", tmp_path / "fixed", preset="release-fixed", vocab_size=2000)
    assert [fixed.tensor(name).std() for name in (EMBEDDING, OUTPUT)] == pytest.approx([0.02, 0.02], rel=0.02)


def test_everything_drawn_anew_can_keep_the_scale_of_what_was_trained(zoo: Path, tmp_path: Path) -> None:
    before, after = read_checkpoint(zoo / "llama"), started(zoo / "llama", tmp_path / "rescaled", preset="rescaled")
    for name, tensor in before.tensors.items():
        if not name.startswith(("optimizer", "rng")) and name in after.tensors:
            old, new = (found.tensor(name).astype(np.float64) for found in (before, after))
            trained = old[:IDS] if name in (EMBEDDING, OUTPUT) else old
            assert np.sqrt(np.square(new[: len(trained)]).mean()) == pytest.approx(
                np.sqrt(np.square(trained).mean()), rel=0.1
            ), name
            assert tensor.shape == new.shape
    assert not np.allclose(before.tensor(MLP), after.tensor(MLP), atol=0.01)


def test_new_values_do_not_depend_on_what_else_is_drawn(zoo: Path, tmp_path: Path) -> None:
    """So that the arms of a study start from equal values wherever they draw them."""
    few = started(zoo / "llama", tmp_path / "few", vocab_size=150, seed=9)
    everything = started(zoo / "llama", tmp_path / "all", vocab_size=150, seed=9, preset="scratch", layout="copy")
    larger = started(zoo / "llama", tmp_path / "larger", vocab_size=1500, seed=9)
    assert np.array_equal(few.tensor(OUTPUT), everything.tensor(OUTPUT))
    assert np.array_equal(few.tensor(OUTPUT)[:150], larger.tensor(OUTPUT)[:150])
    part = started(zoo / "llama", tmp_path / "part", reinit=["mlp[1:3]"], seed=9).tensor(MLP)
    assert np.array_equal(part[1:3], everything.tensor(MLP)[1:3])
    assert np.array_equal(part[[0, 3]], read_checkpoint(zoo / "llama").tensor(MLP)[[0, 3]])
    assert not np.array_equal(part[1], part[2])
    other = started(zoo / "llama", tmp_path / "other", vocab_size=150, seed=10)
    assert not np.array_equal(other.tensor(OUTPUT), few.tensor(OUTPUT))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple), st.integers(1, 60), st.integers(0, 2**64 - 1))
@settings(deadline=None, max_examples=50)
def test_blocks_cover_a_tensor_and_do_not_change_its_values(shape: tuple[int, ...], most: int, seed: int) -> None:
    found = parameter("decoder.layers.3.mlp.linear_fc1.weight")
    whole = draw(Distribution("normal", 1.0), found, shape, tuple((0, n) for n in shape), DTYPES["float32"], seed)
    parts = np.full(shape, np.nan, np.float32)
    for region in contiguous_regions(shape, most):
        values = draw(Distribution("normal", 1.0), found, shape, region, DTYPES["float32"], seed)
        assert values.size <= most
        parts[tuple(slice(*span) for span in region)] = values
    assert np.array_equal(parts, whole)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_bfloat16_is_rounded_as_pytorch_rounds(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array).to(torch.bfloat16)
    rounded = DTYPES["bfloat16"].from_float32(array)
    assert torch.equal(torch.from_numpy(rounded).view(torch.bfloat16), expected)
    if expected.isfinite().all():
        assert np.array_equal(DTYPES["bfloat16"].to_float32(rounded), expected.float().numpy())


@pytest.mark.parametrize(("kept", "drawn"), [("embedding", OUTPUT), ("output", EMBEDDING)])
def test_a_transferred_checkpoint_can_be_transferred(zoo: Path, tmp_path: Path, kept: str, drawn: str) -> None:
    """Whichever of its files the second refers to, the names of the new ones are free."""
    once = started(zoo / "llama", tmp_path / "once", vocab_size=150, seed=5)
    twice = started(tmp_path / "once", tmp_path / "twice", keep=[kept], seed=6)
    assert all(np.array_equal(once.tensor(name), twice.tensor(name)) for name in once.tensors if name != drawn)
    assert not np.array_equal(once.tensor(drawn), twice.tensor(drawn))


def test_where_links_are_impossible_it_copies_and_says_so(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    report = transfer(zoo / "llama", tmp_path / "start", Transition())
    assert (report["layout"], report["linked_files"]) == ("copy", [])
    assert "Invalid cross-device link" in report["why_copied"]
    assert np.array_equal(read_checkpoint(tmp_path / "start").tensor(MLP), read_checkpoint(zoo / "llama").tensor(MLP))


def test_a_copy_is_independent_and_holds_nothing_else(zoo: Path, tmp_path: Path) -> None:
    start = started(zoo / "llama", tmp_path / "start", layout="copy")
    stored = sum(tensor.num_bytes for tensor in start.tensors.values())
    assert sum(path.stat().st_size for path in start.folder.iterdir()) < stored + (1 << 20)
    assert all(path.stat().st_nlink == 1 for path in start.folder.iterdir())


@pytest.mark.parametrize("stack", ["bridge", "nemo2", "core016"])
def test_checkpoints_of_other_stacks(tmp_path: Path, stack: str) -> None:
    """Whether these stacks start from the result was tried with them; here it is that nothing is lost."""
    before = digests(DATA / stack)
    origin = read_checkpoint(DATA / stack)
    start = started(DATA / stack, tmp_path / "start", vocab_size=200)
    for name, tensor in model(origin).items():
        if not name.endswith((EMBEDDING, OUTPUT)):
            assert np.array_equal(start.tensor(name), tensor), name
        else:
            assert start.tensor(name).shape[0] == {"bridge": 224, "nemo2": 200, "core016": 256}[stack]
    # Megatron refuses a checkpoint without them.
    states = {name for name in origin.objects if parameter(name).role == "module"}
    assert states and states <= set(start.objects)
    assert not any(parameter(name).role == "run" and "common" not in name for name in start.names)
    assert (start.folder / "common.pt").is_file()
    assert digests(DATA / stack) == before
    if stack == "bridge":
        assert start.folder.name == "release" and (tmp_path / "start/latest_checkpointed_iteration.txt").is_file()
        assert start.model.vocab_size == 200 and start.model.get("num_layers") == 2
        state = torch.load(start.folder / "train_state.pt")
        assert all(value == 0 for value in state.values())
    if stack == "nemo2":
        assert {"weights", "context"} <= {path.name for path in (tmp_path / "start").iterdir()}
        before_and_after = [(folder / "context/io.json").read_text() for folder in (DATA / stack, tmp_path / "start")]
        old, new = map(json.loads, before_and_after)
        # It is the vocabulary that was set, and nothing else.
        assert json.dumps(old) == json.dumps(new).replace(VOCABULARY_LEAF.format(200), VOCABULARY_LEAF.format(128))
        assert json.dumps(old) != json.dumps(new)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"vocab_size": 0}, "--vocab-size 0: must lie in 1 .. 16777216"),
        ({"tensor_model_parallel_size": -1}, "--tensor-model-parallel-size -1"),
        ({"make_vocab_size_divisible_by": 0}, "--make-vocab-size-divisible-by 0"),
        ({"seed": -1}, "--seed -1"),
        ({"layout": "links"}, "--layout links: choose link or copy"),
        ({"keep": ["embedding"], "vocab_size": 5000}, "say which rows mean the same tokens, with --keep-rows 0:100"),
        ({"keep_rows": "0:101"}, "row 100 is to be kept, but 'embedding.* has rows for 100 ids"),
        ({"keep_rows": "0:100", "vocab_size": 50}, "row 99 is to be kept, but the new vocabulary has 50 ids"),
        ({"keep_rows": "5"}, "write start:stop"),
        ({"keep_rows": "0:5,4:9"}, "row 4 is named twice"),
        ({"keep_rows": "0:5", "row_map": Path("x")}, "give one of them"),
        ({"row_map": Path("no-such-file")}, "no-such-file cannot be read"),
        ({"keep_rows": "0:5", "reinit": ["output", "embedding"]}, "no rows are kept"),
        ({"freeze": ["mamab"]}, "unknown selector 'mamab'"),
        ({"freeze": ["router"]}, "--freeze router matches nothing"),
    ],
)
def test_impossible_transitions_are_refused(zoo: Path, tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason):
        transfer(zoo / "llama", tmp_path / "refused", Transition(**options))
    assert not list(tmp_path.iterdir())


def test_an_output_that_exists_is_left_alone(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(NCAPluginError, match="there exists already"):
        transfer(zoo / "llama", tmp_path / "there")


class Layer(torch.nn.Module):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.layer_number = number
        self.input_layernorm = torch.nn.LayerNorm(2)
        self.mlp = torch.nn.ModuleDict({"linear_fc1": torch.nn.Linear(2, 2)})


def stage(*numbers: int) -> torch.nn.Module:
    """A pipeline stage of a model, whose layers Megatron counts from 1."""
    decoder = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(map(Layer, numbers))})
    return torch.nn.ModuleDict({"decoder": decoder})


def test_frozen_layers_are_those_of_the_whole_model() -> None:
    chunk = stage(3, 4)
    freeze([chunk], ["mlp[2:3]", "norm"], num_layers=4)
    frozen = {name for name, values in chunk.named_parameters() if not values.requires_grad}
    assert frozen == {
        *("decoder.layers.0.mlp.linear_fc1.weight", "decoder.layers.0.mlp.linear_fc1.bias"),
        *(f"decoder.layers.{i}.input_layernorm.{part}" for i in (0, 1) for part in ("weight", "bias")),
    }
    with pytest.raises(NCAPluginError, match=r"'mlp\[0:2\]' matches no parameter"):
        freeze([chunk], ["mlp[0:2]"], num_layers=4)
