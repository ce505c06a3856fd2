"""The evaluation of checkpoints: answers that are known, of numbers and of a model set by hand, at every layout.

This module is also the script that does the jobs of Megatron.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import forked_ranks
import numpy as np
import pytest
from corpora import write

from nca_plugin.automata import decode
from nca_plugin.errors import NCAPluginError
from nca_plugin.probes.accuracy import frame_accuracy, supervised_accuracy
from nca_plugin.probes.ceilings import ceilings
from nca_plugin.probes.retrieval import RetrievalLayout, retrieval_sequences
from nca_plugin.sources import Sample, parse
from nca_plugin.sources.details import oracle_losses
from nca_plugin.text.prepare import Corpus, prepare

SEQ_LENGTH = 32
#: Frames of 4 patches, 6 tokens: five whole ones in 33 tokens, and half of another.
SOURCE = "nca://toy?grid_size=4&band=none"
VOCAB_SIZE = 18
#: More than the source has: rows that are never predicted. Megatron pads them at no layout.
ROWS = 512
PERIOD = 16
COMMON = (
    *("--seq-length", str(SEQ_LENGTH), "--max-position-embeddings", str(SEQ_LENGTH)),
    *("--untie-embeddings-and-output-weights", "--attention-dropout", "0", "--hidden-dropout", "0"),
    *("--micro-batch-size", "2", "--global-batch-size", "8", "--num-workers", "0", "--train-iters", "2"),
    *("--lr", "1e-2", "--lr-decay-style", "constant", "--eval-interval", "1000", "--eval-iters", "0"),
    *("--data-source", SOURCE, "--tokenizer-type", "NullTokenizer", "--vocab-size", str(ROWS)),
    *("--no-create-attention-mask-in-dataloader", "--save-interval", "2"),
)
#: Weights by hand.
KNOWN = (*COMMON, *("--num-layers", "2", "--hidden-size", "64", "--num-attention-heads", "2"))
#: Weights by training.
TRAINED = (
    *(*COMMON, "--num-layers", "4", "--hidden-size", "32", "--num-attention-heads", "4", "--normalization", "RMSNorm"),
    *("--group-query-attention", "--num-query-groups", "2", "--position-embedding-type", "rope"),
)
#: Attention in the first and third of four layers.
HYBRID = (
    *(*COMMON, "--hidden-size", "32", "--num-attention-heads", "4", "--normalization", "RMSNorm"),
    *("--position-embedding-type", "none", "--spec", "local_hybrid", "SPEC", "--hybrid-layer-pattern", "*-*-"),
)
LAYOUTS = {
    "tp1-pp1": (1, ()),
    "dp2": (2, ()),
    "tp2": (2, ("--tensor-model-parallel-size", "2", "--sequence-parallel")),
    "pp2": (2, ("--pipeline-model-parallel-size", "2")),
    "pp2-vpp2": (2, ("--pipeline-model-parallel-size", "2", "--num-virtual-stages-per-pipeline-rank", "2")),
    "tp2-pp2": (4, ("--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2")),
}
SAMPLES = ("--evaluation-source", SOURCE, "--evaluation-samples", "5", "--induction-samples", "3")
#: Documents of the dataset, and bytes of the text that perplexity is measured on.
DOCUMENTS, TEXT = 11, b"All work and no play. " * 9


# Accuracies.


def samples_of(uri: str, count: int, seq_length: int) -> tuple[np.ndarray, np.ndarray]:
    samples: list[Sample] = [parse(uri).sample(index, seq_length) for index in range(count)]
    return np.stack([sample.tokens for sample in samples]), np.stack([sample.loss_mask for sample in samples])


def test_predictions_that_are_all_right() -> None:
    tokens, loss_mask = samples_of(SOURCE, 8, SEQ_LENGTH)
    layout = parse(SOURCE).frames
    result = frame_accuracy(tokens, tokens[:, 1:], layout)
    assert result.num_frames_seen == (0, 1, 2, 3, 4, 5)
    assert result.patch == result.cell == (1.0,) * 6
    # The last frame has two of its four patches.
    assert result.grid == (1.0,) * 5 + (None,)
    assert supervised_accuracy(tokens, tokens[:, 1:], loss_mask) == 1


def test_copies_score_as_the_baseline() -> None:
    tokens, _ = samples_of(SOURCE, 8, SEQ_LENGTH)
    layout = parse(SOURCE).frames
    copies = np.roll(tokens, layout.frame_length, axis=1)[:, 1:]
    result = frame_accuracy(tokens, copies, layout)
    assert result.copy[0] is None
    assert result.patch[1:] == result.copy[1:]
    # By another route: whole frames, patch by patch.
    frames = tokens[:, :30].reshape(8, 5, 6)[:, :, 1:-1]
    expected = (frames[:, 1:] == frames[:, :-1]).mean(axis=(0, 2))
    np.testing.assert_allclose(result.copy[1:5], expected)
    assert 0 < expected.mean() < 1


def test_one_wrong_cell_in_one_patch() -> None:
    layout = parse("nca://toy?grid_size=4&band=none").frames
    tokens = np.array([[16, 0, 3, 5, 15, 17] * 2 + [16]], np.int32)
    predictions = tokens[:, 1:].copy()
    # The second frame's last patch, all four cells 1: now one of them is 0.
    predictions[0, 6 + 3] = 7
    result = frame_accuracy(tokens, predictions, layout)
    assert result.patch == (1, 3 / 4) and result.cell == (1, 15 / 16) and result.grid == (1, 0)
    assert result.copy == (None, 1)
    shown = decode(np.array([16, 0, 3, 5, 7, 17]), 2, 2, 4), decode(tokens[0, 6:12], 2, 2, 4)
    assert (shown[0] == shown[1]).mean() == 15 / 16


@pytest.mark.parametrize("predicted", [16, 17, 18, 400])
def test_all_cells_of_what_is_no_patch_are_wrong(predicted: int) -> None:
    layout = parse("nca://toy?grid_size=4&band=none").frames
    tokens = np.array([[16, 0, 0, 0, 0, 17, 16]], np.int32)
    predictions = tokens[:, 1:].copy()
    predictions[0, 1] = predicted
    assert frame_accuracy(tokens, predictions, layout).cell == (3 / 4,)


def test_ids_may_have_an_offset() -> None:
    uri = f"{SOURCE}&vocab_offset=1000"
    tokens, _ = samples_of(uri, 4, SEQ_LENGTH)
    layout = parse(uri).frames
    assert layout is not None and layout.offset == 1000
    predictions = tokens[:, 1:].copy()
    predictions[:, 0] = 5  # an id of the text
    result = frame_accuracy(tokens, predictions, layout)
    plain, _ = samples_of(SOURCE, 4, SEQ_LENGTH)
    assert result.copy == frame_accuracy(plain, plain[:, 1:], parse(SOURCE).frames).copy
    assert result.patch == (3 / 4, 1, 1, 1, 1, 1) == result.cell


def test_without_a_supervised_target_there_is_no_accuracy() -> None:
    tokens, loss_mask = samples_of(SOURCE, 1, SEQ_LENGTH)
    with pytest.raises(NCAPluginError, match="no target"):
        supervised_accuracy(tokens, tokens[:, 1:], np.zeros_like(loss_mask))


# Induction.


def attention_to(offset: int, size: int = 24) -> Any:
    """Attention of each position to the one `offset` before it, at the start to the first."""
    import torch

    to = (torch.arange(size) - offset).clamp_min(0)
    return torch.nn.functional.one_hot(to, size).float()[None, None]


def test_scores_of_patterns_by_hand() -> None:
    import torch

    from nca_plugin.probes.induction import chance_score, prefix_matching_scores

    period, size = 8, 24
    assert prefix_matching_scores(attention_to(period - 1), period).item() == 1
    assert prefix_matching_scores(attention_to(1), period).item() == 0
    # To the previous occurrence itself, not to what followed it.
    assert prefix_matching_scores(attention_to(period), period).item() == 0
    uniform = torch.ones(size, size).tril() / torch.arange(1, size + 1)[:, None]
    both = torch.stack([uniform, attention_to(period - 1)[0, 0]]).expand(3, 2, size, size)
    scores = prefix_matching_scores(both, period)
    assert scores.shape == (3, 2)
    np.testing.assert_allclose(scores, [[chance_score(size, period), 1]] * 3, rtol=1e-6)


def test_repeated_sequences() -> None:
    from nca_plugin.probes.induction import repeated_sequences

    tokens = repeated_sequences(np.random.default_rng(0), 5, 8, 3, 10)
    assert tokens.shape == (5, 24) and tokens.dtype == np.int32
    blocks = tokens.reshape(5, 3, 8)
    assert (blocks == blocks[:, :1]).all()
    assert all(len(set(block)) == 8 for block in blocks[:, 0].tolist())
    assert tokens.min() >= 0 and tokens.max() < 10 and len(np.unique(tokens[:, :8], axis=0)) == 5
    np.testing.assert_array_equal(tokens, repeated_sequences(np.random.default_rng(0), 5, 8, 3, 10))
    # A vocabulary smaller than the block.
    assert set(repeated_sequences(np.random.default_rng(0), 20, 8, 2, 3).ravel().tolist()) == {0, 1, 2}
    with pytest.raises(NCAPluginError, match="2 of each"):
        repeated_sequences(np.random.default_rng(0), 1, 1, 2, 10)


# Checkpoints.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


def job(name: str, work: str, *arguments: Any, ranks: int = 1) -> dict[str, Any]:
    return {"name": name, "work": work, "arguments": list(map(str, arguments)), "ranks": ranks}


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What each job returned."""
    known, trained = folder / "known", folder / "trained"
    write(folder / "corpus", f"{SOURCE}&seed=7", documents=DOCUMENTS, seq_length=SEQ_LENGTH)
    (folder / "text.txt").write_bytes(TEXT)
    prepare(Corpus(inputs=(str(folder / "text.txt"),)), folder / "text")
    data = ("--evaluation-data", folder / "text", folder / "corpus", "--retrieval-samples", "3")
    wanted = ("--load", known, "--retrieval-samples", "3")
    # What says where a run writes, and starts: no evaluation may heed it.
    run = ("--save", folder / "other", "--tensorboard-dir", folder / "other", "--log-progress", "--finetune")
    run = (*run, "--pretrained-checkpoint", folder / "nowhere", "--ckpt-step", "0")
    jobs = [
        job("softmax", "softmax", *TRAINED, "--apply-query-key-layer-scaling"),
        job("known", "known", *KNOWN, "--save", known),
        job("trained", "train", *validating(folder / "corpus"), "--save", trained),
        job("again", "evaluate", *KNOWN, "--load", known, *SAMPLES, *data, "--evaluation-out", folder / "again.json"),
        job("plain", "evaluate", *KNOWN, "--load", known, "--evaluation-out", folder / "plain.json"),
        job("no-load", "evaluate", *KNOWN, "--evaluation-out", folder / "no.json"),
        job("no-folder", "evaluate", *KNOWN, "--load", folder / "none", "--evaluation-out", folder / "no.json"),
        job("no-tracker", "evaluate", *KNOWN, "--load", known / "iter_0000007", "--evaluation-out", folder / "no.json"),
        job("rows", "evaluate", *KNOWN, "--vocab-size", "300", "--load", known, "--evaluation-out", folder / "no.json"),
        job("retrieval-nothing", "evaluate", *KNOWN, *wanted, "--evaluation-out", folder / "no.json"),
        job("retrieval-generated", "evaluate", *KNOWN, *wanted, *data[::2], "--evaluation-out", folder / "no.json"),
        job("layers", "evaluate", *KNOWN, "--num-layers", "4", "--load", known, "--evaluation-out", folder / "no.json"),
    ]
    jobs.append(job("hybrid-training", "train", *HYBRID, "--save", folder / "hybrid"))
    out = (
        "--evaluation-out",
        folder / "hybrid.json",
        "--evaluation-source",
        "copy://?vocab_size=10&min_length=2&max_length=8",
        "--induction-samples",
        "2",
    )
    jobs.append(job("hybrid", "evaluate", *HYBRID, "--load", folder / "hybrid", *out))
    window = ("--window-size", "(4,0)", "--evaluation-out", folder / "no.json")
    jobs.append(job("window", "evaluate", *KNOWN, "--load", known, *window))
    out = ("--evaluation-out", folder / "window.json", "--induction-samples", "0")
    jobs.append(job("window-without", "evaluate", *KNOWN, "--load", known, *window, *out))
    for name, uri in (("short", "nca://web"), ("vocabulary", "nca://web?grid_size=4&band=none")):
        arguments = (*KNOWN, "--load", known, "--evaluation-source", uri, "--evaluation-out", folder / "no.json")
        jobs.append(job(name, "evaluate", *arguments))
    for name, (ranks, layout) in LAYOUTS.items():
        for model, arguments in (("known", KNOWN), ("trained", TRAINED)):
            # Interleaved stages need a layer each.
            if model == "known" and "vpp" in name:
                continue
            out = folder / f"{model}-{name}.json"
            jobs.append(
                job(
                    f"{model}-{name}",
                    *("evaluate", *arguments, *run, *layout, "--load", folder / model, *SAMPLES, *data),
                    *("--evaluation-out", out),
                    ranks=ranks,
                )
            )
    return forked_ranks.run(__file__, folder, "work", sorted(jobs, key=lambda job: job["ranks"]))


def validating(corpus: Path) -> tuple[str | Path, ...]:
    """Return the arguments of a run that Megatron validates on a whole dataset."""
    rest = tuple(argument for argument in TRAINED if argument not in ("--data-source", SOURCE))
    return (
        *(*rest, "--train-data-path", SOURCE, "--valid-data-path", corpus, "--full-validation"),
        *("--multiple-validation-sets", "--eval-iters", "1", "--eval-interval", "2", "--eval-micro-batch-size", "1"),
        *("--eval-global-batch-size", "1"),
    )


def evaluation(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def assert_close(actual: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_close(actual[key], expected[key])
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected, strict=True):
            assert_close(a, b)
    else:
        assert actual == (pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "vpp" not in name])
def test_a_model_with_known_answers(folder: Path, results: Any, layout: str) -> None:
    result = evaluation(folder, f"known-{layout}")
    assert result["iteration"] == 7
    induction = result["induction"]
    assert (induction["period"], induction["samples"], induction["layers"]) == (PERIOD, 3, [1, 2])
    (copying, previous), uniform = induction["scores"]
    assert copying > 0.99 and previous < 0.01
    assert uniform == pytest.approx([induction["chance"]] * 2, rel=1e-5)
    # It predicts by position alone, on samples of the test split.
    uri = f"{SOURCE}&split=test"
    tokens, loss_mask = samples_of(uri, 5, SEQ_LENGTH)
    predictions = np.tile(predicted_at(np.arange(SEQ_LENGTH)), (5, 1))
    frames = frame_accuracy(tokens, predictions, parse(uri).frames)
    found = ceilings(parse(uri), tokens, predictions)
    assert_close(
        result["in_context"],
        {
            "uri": parse(uri).uri,
            "samples": 5,
            "accuracy": supervised_accuracy(tokens, predictions, loss_mask),
            "loss": result["in_context"]["loss"],
            "oracle_loss": None,
            "frames": [0, 1, 2, 3, 4, 5],
            **{name: list(getattr(frames, name)) for name in ("patch", "cell", "grid", "copy")},
            **{name: list(getattr(found.every, name)) for name in ("best_copy", "lookup", "limit")},
            "hard_share": found.hard_share,
            "hard": {
                **{name: list(getattr(found.hard, name)) for name in ("patch", "best_copy", "lookup", "limit")},
                "learned": list(found.learned_by_frame),
            },
            "learned": found.learned,
        },
    )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "tp1-pp1"])
def test_a_trained_model_at_every_layout(folder: Path, results: Any, layout: str) -> None:
    expected = evaluation(folder, "trained-tp1-pp1")
    assert expected["iteration"] == 2
    assert np.array(expected["induction"]["scores"]).shape == (4, 4)
    assert_close(evaluation(folder, f"trained-{layout}"), expected)


def test_perplexity_is_that_of_megatrons_own_validation(folder: Path, results: Any) -> None:
    text, corpus = evaluation(folder, "trained-tp1-pp1")["perplexity"]
    loss_mask = samples_of(SOURCE, 1, SEQ_LENGTH)[1]
    assert (corpus["path"], corpus["tokens"]) == (str(folder / "corpus"), DOCUMENTS * loss_mask.sum())
    validated = re.findall(r"on validation set \| lm loss value: (\S+) \|", (folder / "work.log").read_text())
    assert corpus["loss"] == pytest.approx(float(validated[-1]), rel=1e-5)
    assert corpus["perplexity"] == pytest.approx(np.exp(corpus["loss"]))
    # All bytes and the mark of the end, but the first.
    assert (text["path"], text["tokens"]) == (str(folder / "text"), len(TEXT))
    assert len(text["documents"]) == 1 and len(corpus["documents"]) == DOCUMENTS
    for entry in (text, corpus):
        tokens, losses = np.array(entry["documents"]).sum(axis=0)
        assert tokens == entry["tokens"] and losses / tokens == pytest.approx(entry["loss"])


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "vpp" not in name])
def test_retrieval_of_a_model_with_known_answers(folder: Path, results: Any, layout: str) -> None:
    found = evaluation(folder, f"known-{layout}")["retrieval"]
    assert (found["path"], found["samples"]) == (str(folder / "text"), 3)
    assert (found["segment"], found["skipped"], found["distances"]) == (8, 1, [0])
    text = np.array([*TEXT, 256], np.int32)
    plan = RetrievalLayout.of(SEQ_LENGTH, text.size)
    (pair,) = retrieval_sequences(
        lambda first, count: text[first : first + count], text.size, plan, 3, np.random.default_rng(1234)
    )
    for kind, tokens in (("repeated", pair.repeated), ("control", pair.control)):
        hits = tokens[:, 1:] == predicted_at(np.arange(16))
        assert found[f"accuracy_{kind}"] == [plan.last_segment(hits.astype(np.float32))]
    assert found["gain"] == pytest.approx([found["loss_control"][0] - found["loss_repeated"][0]])


def test_retrieval_needs_a_text(folder: Path, results: Any) -> None:
    for name in ("retrieval-nothing", "retrieval-generated"):
        assert "--retrieval-samples needs a text" in results[name]["refusal"]
    assert evaluation(folder, "plain")["retrieval"] is None


@pytest.mark.parametrize("num_tokens", [2, 5, 6, 11, 23])
def test_windows_hold_every_token_once(tmp_path: Path, num_tokens: int) -> None:
    from nca_plugin.probes.windows import IndexedWindows

    (tmp_path / "text.txt").write_bytes(bytes(range(32, 31 + num_tokens)))
    prepare(Corpus(inputs=(str(tmp_path / "text.txt"),)), tmp_path / "text")
    stream = np.append(np.arange(32, 31 + num_tokens), 256)
    windows = IndexedWindows(str(tmp_path / "text"), 5)
    pieces = [windows.read(i, min(i + 2, windows.num_sequences)) for i in range(0, windows.num_sequences, 2)]
    tokens, counts = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in ("tokens", "counts"))
    np.testing.assert_array_equal(tokens[:, 1:][counts], stream[1:])
    np.testing.assert_array_equal(tokens[:, :-1][counts], stream[:-1])
    assert not tokens[:, 1:][~counts].any() and (~counts).sum() < 5


def test_each_token_of_a_text_belongs_to_the_document_it_lies_in(tmp_path: Path) -> None:
    from nca_plugin.probes.windows import IndexedText, IndexedWindows

    lengths = (3, 1, 9, 2)
    for number, length in enumerate(lengths):
        (tmp_path / f"{number}.txt").write_bytes(bytes([65 + number]) * length)
    inputs = tuple(str(tmp_path / f"{number}.txt") for number in range(len(lengths)))
    prepare(Corpus(inputs=inputs), tmp_path / "text")
    # Each document ends with a mark.
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    text = IndexedText(str(tmp_path / "text"))
    np.testing.assert_array_equal(text.document_starts, starts)
    np.testing.assert_array_equal(text.read(2, 4), [65, 256, 66, 256])
    windows = IndexedWindows(str(tmp_path / "text"), 5)
    piece = windows.read(0, windows.num_sequences)
    expected = np.repeat(np.arange(4), [length + 1 for length in lengths])
    np.testing.assert_array_equal(piece.documents[piece.counts], expected[1:])
    assert windows.num_documents == 4


def test_windows_of_no_dataset(tmp_path: Path) -> None:
    from nca_plugin.probes.windows import IndexedWindows

    with pytest.raises(NCAPluginError, match=r"none cannot be read"):
        IndexedWindows(str(tmp_path / "none"), 5)


def test_the_same_command_gives_the_same_file(folder: Path, results: Any) -> None:
    assert (folder / "again.json").read_bytes() == (folder / "known-tp1-pp1.json").read_bytes()
    assert evaluation(folder, "plain")["in_context"] is None


def test_nothing_else_is_written(folder: Path, results: Any) -> None:
    assert not (folder / "other").exists() and not (folder / "no.json").exists()
    assert not list(folder.glob(".partial*"))
    assert [path.name for path in (folder / "known").iterdir() if path.is_dir()] == ["iter_0000007"]


def test_recomputed_attention_is_the_models_own(results: Any) -> None:
    assert results["softmax"]["layers"] == 4
    assert results["softmax"]["largest"] > 0.2
    assert results["softmax"]["difference"] < 1e-6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-load", "--load is missing"),
        ("no-folder", "none does not exist"),
        ("no-tracker", "no latest_checkpointed_iteration.txt: name the folder"),
        ("rows", "has 512 embedding rows, the run has 384"),
        ("short", "--evaluation-source: sequence length 32 is too short"),
        ("vocabulary", "--evaluation-source: vocabulary of 512 is smaller than the 10002 ids"),
    ],
)
def test_refusals(results: Any, name: str, message: str) -> None:
    refusal = results[name]["refusal"]
    assert message in refusal and "\n" not in refusal


def test_layers_without_attention_have_no_scores(folder: Path, results: Any) -> None:
    result = evaluation(folder, "hybrid")
    assert result["induction"]["layers"] == [1, 3] and np.array(result["induction"]["scores"]).shape == (2, 4)
    # Nor has a source without grids frames.
    in_context = result["in_context"]
    assert 0 <= in_context["accuracy"] <= 1 and "split=test" in in_context["uri"]
    by_frame = (
        "frames",
        "patch",
        "cell",
        "grid",
        "copy",
        "best_copy",
        "lookup",
        "limit",
        "hard_share",
        "hard",
        "learned",
    )
    assert all(in_context[name] is None for name in by_frame)
    # Its loss is held against that of one who knows the law.
    losses = [oracle_losses(parse(in_context["uri"]), index, SEQ_LENGTH) for index in range(128)]
    assert (
        in_context["oracle_loss"] == pytest.approx(np.mean(losses)) and in_context["oracle_loss"] < in_context["loss"]
    )


def test_refusals_of_ranks_are_one_line(folder: Path, results: Any) -> None:
    assert results["layers"]["exit"] == results["window"]["exit"] == 2
    log = (folder / "work.log").read_text().splitlines()
    other_model, window = (line for line in log if "nca-plugin: error" in line)
    assert "known cannot be loaded into this model: " in other_model
    assert "within a window (--window-size) are not supported: add --induction-samples 0" in window
    assert evaluation(folder, "window")["induction"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--evaluation-out"),
        (("--evaluation-out", "x", "--evaluation-samples", "0"), "at least 1"),
        (("--evaluation-out", "x", "--induction-samples", "-1"), "at least 0"),
        (("--evaluation-out", "x", "--retrieval-samples", "-1"), "at least 0"),
        (("--evaluation-out", "x", "--evaluation-source", "ncb://toy"), "did you mean"),
        (("--evaluation-out", "/dev/null/x"), "cannot write"),
    ],
)
def test_refusals_before_anything_is_loaded(arguments: tuple[str, ...], message: str) -> None:
    from nca_plugin.launch.evaluate import evaluate

    with pytest.raises(NCAPluginError, match=message):
        evaluate(list(arguments))


def test_as_a_user_starts_it(folder: Path, results: Any) -> None:
    out = folder / "started.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "nca_plugin.launch.evaluate", *KNOWN, *LAYOUTS["tp2"][1], "--load", str(folder / "known")]
    command += [*SAMPLES, "--evaluation-out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert f"evaluation of iteration 7 of {folder / 'known'}: {out}" in done.stdout
    expected = {**evaluation(folder, "known-tp1-pp1"), "perplexity": [], "retrieval": None}
    assert_close(evaluation(folder, "started"), expected)


# The jobs.


def predicted_at(position: np.ndarray) -> np.ndarray:
    """What the model with known answers predicts at a position."""
    return (position * 7 % 16).astype(np.int32)


def work(_: str, job: dict[str, Any], folder: Path) -> dict[str, Any]:
    from nca_plugin.launch.evaluate import evaluate
    from nca_plugin.launch.megatron import launch
    from nca_plugin.megatron.cuda_on_cpu import CPU_ARGUMENTS

    arguments = [*job["arguments"], *CPU_ARGUMENTS]
    if job["work"] == "train":
        launch(arguments, str)
    elif job["work"] == "evaluate":
        try:
            evaluate(arguments)
        except NCAPluginError as error:
            return {"refusal": str(error)}
        except SystemExit as exit:
            return {"exit": exit.code}
    else:
        return {"softmax": compare_softmax, "known": save_known_model}[job["work"]](arguments)
    return {}


def save_known_model(arguments: list[str]) -> dict[str, Any]:
    """Save, as iteration 7, a model of two layers whose states are the positions, one-hot, throughout.

    In the first layer, one head attends to position t - PERIOD + 1, which an induction head finds by the tokens, and
    the other one to t - 1. In the second layer both attend to all positions alike.
    """
    import torch
    from megatron.training.checkpointing import save_checkpoint

    from nca_plugin.launch.megatron import parsed
    from nca_plugin.probes.forward import build_model

    chunks = build_model(parsed(arguments, str))
    (model,) = chunks
    with torch.no_grad():
        for name, values in model.named_parameters():
            if "norm" not in name:
                values.zero_()
        positions = torch.eye(SEQ_LENGTH, 64)
        model.embedding.position_embeddings.weight.copy_(positions)
        # [heads, query key value, channels, hidden]
        qkv = model.decoder.layers[0].self_attention.linear_qkv.weight.view(2, 3, 32, 64)
        for head, offset in enumerate((PERIOD - 1, 1)):
            qkv[head, 1] = positions
            for t in range(offset, SEQ_LENGTH):
                qkv[head, 0, t - offset, t] = 5
        for t in range(SEQ_LENGTH):
            model.output_layer.weight[predicted_at(np.array(t)), t] = 1
        # Rows above the source's ids: never a prediction.
        model.output_layer.weight[VOCAB_SIZE:, :SEQ_LENGTH] = 100
    save_checkpoint(7, chunks, None, None, 0)
    return {}


def compare_softmax(arguments: list[str]) -> dict[str, Any]:
    """Return the largest difference between recomputed attention and that of the local implementation's softmax."""
    import torch
    from megatron.core.transformer.attention import SelfAttention

    from nca_plugin.launch.megatron import parsed
    from nca_plugin.probes.attention import attention_scale, causal_attention
    from nca_plugin.probes.forward import build_model, predictions

    (model,) = build_model(parsed(arguments, str))
    given: list[Any] = []
    softmax: list[torch.Tensor] = []
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, SelfAttention):
                # Attention of weights as they are drawn is nearly uniform.
                module.linear_qkv.weight *= 20
                core = module.core_attention
                core.register_forward_pre_hook(lambda _, inputs: given.append((inputs[0].clone(), inputs[1].clone())))
                core.scale_mask_softmax.register_forward_hook(lambda *call: softmax.append(call[-1].clone()))
    tokens, _ = samples_of(SOURCE, 2, SEQ_LENGTH)
    predictions([model], tokens[:, :-1], 2, VOCAB_SIZE)
    recomputed = [causal_attention(query, key, attention_scale(model.config)) for query, key in given]
    assert recomputed[0].shape == (2, 4, SEQ_LENGTH, SEQ_LENGTH)
    pairs = zip(recomputed, softmax, strict=True)
    return {
        "layers": len(recomputed),
        "largest": float(min(probabilities[..., 8:, :].max() for probabilities in softmax)),
        "difference": float(max((ours - theirs).abs().max() for ours, theirs in pairs)),
    }


def main() -> None:
    forked_ranks.import_megatron()
    import nca_plugin.probes.forward  # noqa: F401

    # Compile, or load, what makes samples and looks neighbourhoods up.
    tokens, _ = samples_of(SOURCE, 1, SEQ_LENGTH)
    ceilings(parse(SOURCE), tokens, tokens[:, 1:])
    forked_ranks.serve(work)


if __name__ == "__main__":
    main()
