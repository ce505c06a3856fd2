"""What a run says of its data: in its log, in its checkpoints, and against another run that resumes them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from places import CHECKPOINTS
from training_jobs import SEQ_LENGTH, Done, Job, train

from nca_plugin.checkpoint.opened import open_checkpoint
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.generate import generate
from nca_plugin.lineage.diagnosis import diagnose
from nca_plugin.lineage.read import read_trained
from nca_plugin.lineage.same_data import continued, difference
from nca_plugin.lineage.training_data import KEY, DataPath, Lineage, TrainingData, fingerprint
from nca_plugin.sources import parse
from nca_plugin.text.prepare import Corpus, prepare
from nca_plugin.transition.transfer import transfer

TOY = "nca://toy"


def test_the_fingerprint_of_a_source_is_pinned() -> None:
    """Another one is another stream of samples: checkpoints could no longer be resumed without a word."""
    assert fingerprint(parse(TOY), SEQ_LENGTH) == "eca45a111416407e"


def test_a_dataset_has_the_identity_of_the_source_that_it_was_written_from(tmp_path: Path) -> None:
    corpus = str(tmp_path / "corpus")
    generate(TOY, corpus, num_tokens=8 * SEQ_LENGTH, seq_length=SEQ_LENGTH, num_workers=1)
    written, online = (TrainingData.of([path], None, SEQ_LENGTH) for path in (corpus, TOY))
    assert difference(written, online) is None
    assert written.parts[0].uri == parse(TOY).uri


def described(*parts: DataPath, seq_length: int = 96, version: str = "1") -> TrainingData:
    return TrainingData(version, seq_length, parts)


NCA = DataPath("nca://toy", None, "nca://toy?seed=1&split=train", "aa")
TEXT = DataPath("text", None, None, "bb")


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        (described(NCA), described(NCA, version="2"), None),
        (described(NCA), described(replace(NCA, path="corpora/toy")), None),
        (described(TEXT), described(replace(TEXT, path="moved/text")), None),
        (described(NCA), described(NCA, seq_length=128), "sequences of 128 tokens rather than 96"),
        (
            described(NCA),
            described(replace(NCA, uri="nca://toy?seed=2&split=train")),
            "nca://toy with seed=2 rather than seed=1",
        ),
        (described(NCA), described(TEXT), "text rather than nca://toy?seed=1"),
        (
            described(NCA),
            described(replace(NCA, fingerprint="cc"), version="2"),
            "nca://toy?seed=1 with other samples (fingerprint cc rather than aa): nca-plugin 2 rather than "
            "1, or another deflate library",
        ),
        # Without a source the data are Megatron's alone.
        (described(TEXT), described(replace(TEXT, fingerprint="cc")), None),
        (described(NCA, TEXT), described(NCA, replace(TEXT, fingerprint="cc")), "text of cc rather than bb"),
        (
            described(NCA, replace(TEXT, fingerprint=None)),
            described(NCA, replace(TEXT, path="moved", fingerprint=None)),
            "moved rather than text",
        ),
        (
            described(replace(NCA, weight=0.1), replace(TEXT, weight=0.9)),
            described(replace(NCA, weight=0.2), replace(TEXT, weight=0.8)),
            "0.2 nca://toy?seed=1 0.8 text rather than 0.1 nca://toy?seed=1 0.9 text",
        ),
    ],
)
def test_what_differs_is_named(before: TrainingData, now: TrainingData, expected: str | None) -> None:
    assert difference(before, now) == expected


def test_what_is_stored_is_plain_and_comes_back() -> None:
    lineage = Lineage(described(NCA, TEXT), (replace(described(TEXT), samples=7),))
    assert Lineage.from_stored(json.loads(json.dumps(lineage.stored()))) == lineage
    with pytest.raises(NCAPluginError, match="what the checkpoint says of its data cannot be read"):
        Lineage.from_stored({"now": {}})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lineage")


@pytest.fixture(scope="module")
def text(folder: Path) -> Path:
    (folder / "text.jsonl").write_text("\n".join([json.dumps({"text": "All work and no play. " * 100})] * 20))
    prepare(Corpus(inputs=(str(folder / "text.jsonl"),)), folder / "text_document")
    return folder / "text_document"


def arguments(save: Path, iterations: int, *data: str | Path) -> tuple[str, ...]:
    common = (
        "--override-opt-param-scheduler",
        "--train-iters",
        iterations,
        "--save-interval",
        2,
        "--save",
        save,
        "--load",
        save,
    )
    return tuple(map(str, (*common, *data)))


@pytest.fixture(scope="module")
def runs(folder: Path, text: Path) -> dict[str, Done]:
    """The first stage: its checkpoint is resumed with the same data and others."""
    first, legacy = folder / "first", folder / "legacy"
    corpus = str(folder / "corpus")
    generate(TOY, corpus, num_tokens=64 * SEQ_LENGTH, seq_length=SEQ_LENGTH, num_workers=1)
    toy, tokens = ("--data-source", TOY), ("--tokenizer-type", "NullTokenizer", "--vocab-size", "300")
    old = ("--ckpt-format", "torch")
    jobs = [
        Job("begun", arguments(first, 2, *toy, *tokens)),
        Job("resumed", arguments(first, 4, *toy, *tokens)),
        Job("other seed", arguments(first, 6, *toy, *tokens, "--nca-seed", "7")),
        Job("text", arguments(first, 6, "--data-path", text, *tokens, "--split", "100,0,0")),
        Job("corpus", arguments(first, 6, "--data-path", corpus, *tokens, "--split", "100,0,0")),
        Job("allowed", arguments(first, 8, *toy, *tokens, "--nca-seed", "7", "--allow-other-data")),
        Job("old format", arguments(legacy, 2, *toy, *tokens, *old)),
        Job("old format, other seed", arguments(legacy, 4, *toy, *tokens, *old, "--nca-seed", "7")),
    ]
    return train(folder, jobs, may_fail=True)


def test_a_checkpoint_says_what_it_was_trained_on(runs: dict[str, Done], folder: Path) -> None:
    assert [job.error for job in runs.values()] == [None] * len(runs)
    trained = read_trained(open_checkpoint(folder / "first" / "iter_0000004"))
    assert (trained.iteration, trained.samples) == (4, 32)
    assert trained.lineage == Lineage(TrainingData.of([parse(TOY).uri], None, SEQ_LENGTH))
    assert read_trained(open_checkpoint(folder / "legacy")).lineage == trained.lineage


def test_the_same_data_are_resumed(runs: dict[str, Done]) -> None:
    assert list(runs["resumed"].losses) == [3, 4]
    # The documents of a dataset are the samples of the source that it was written from.
    assert list(runs["corpus"].losses) == [5, 6]


@pytest.mark.parametrize("job", ["other seed", "text", "old format, other seed"])
def test_other_data_are_refused(runs: dict[str, Done], folder: Path, job: str) -> None:
    refusal = runs[job].refusal
    assert refusal is not None and "would be resumed with other data, " in refusal
    expected = (
        "text_document rather than nca://toy: " if job == "text" else "nca://toy with seed=7 rather than seed=1234: "
    )
    assert expected in refusal
    assert refusal.endswith(", or add --allow-other-data")
    assert f"nca-plugin transfer --from {folder}" in refusal


def test_other_data_can_be_allowed(runs: dict[str, Done], folder: Path) -> None:
    assert list(runs["allowed"].losses) == [7, 8]
    lineage = read_trained(open_checkpoint(folder / "first")).lineage
    assert lineage is not None and lineage.now is not None
    assert lineage.now.parts[0].uri == parse(f"{TOY}?seed=7").uri
    assert [(before.name, before.samples) for before in lineage.earlier] == [(parse(TOY).uri, 48)]


def test_the_doctor_says_what_a_checkpoint_was_trained_on(runs: dict[str, Done], folder: Path, text: Path) -> None:
    del runs
    checkpoint = folder / "first" / "iter_0000004"
    right = diagnose(checkpoint, ([TOY], None))
    assert right.is_right
    assert right.lines[0] == f"checkpoint {checkpoint}: iteration 4, samples 32"
    assert right.lines[1].startswith(f"Trained on {32 * SEQ_LENGTH:,} tokens of {parse(TOY).uri} (")
    assert right.lines[2:] == (
        "  ok     fingerprint eca45a111416407e, as here",
        "  ok     a run with these data resumes it",
    )
    for paths, weights, reason in (
        ([f"{TOY}?seed=7"], None, "nca://toy with seed=7 rather than seed=1234"),
        ([str(text)], None, f"{text} rather"),
        ([TOY, str(text)], [0.9, 0.1], f"0.9 {TOY} 0.1 {text} rather"),
    ):
        wrong = diagnose(checkpoint, (paths, weights))
        assert not wrong.is_right
        assert f"BROKEN a run with these data does not resume it: it would have {reason}" in wrong.lines[3]
    # With other data since, both are named.
    assert [line[:10] for line in diagnose(folder / "first").lines].count("Trained on") == 2


def test_samples_that_are_made_otherwise_are_noticed(runs: dict[str, Done], folder: Path) -> None:
    """As those of a version, or a deflate library, that makes other samples of the same URI."""
    del runs
    file = folder / "legacy" / "iter_0000002" / "mp_rank_00" / "model_optim_rng.pt"
    state = torch.load(file, weights_only=False)
    vars(state["args"])[KEY]["now"]["parts"][0]["fingerprint"] = "0123456789abcdef"
    torch.save(state, file)
    wrong = diagnose(folder / "legacy")
    assert not wrong.is_right
    assert (
        "BROKEN this machine makes other samples: fingerprint eca45a111416407e rather than 01234567" in wrong.lines[2]
    )
    data = TrainingData.of([TOY], None, SEQ_LENGTH)
    with pytest.raises(NCAPluginError, match=r"resumed with other data, nca://toy.* with other samples"):
        continued(
            data, open_checkpoint(folder / "legacy"), is_resumed=True, allow="--allow-other-data", is_allowed=False
        )
    assert continued(data, open_checkpoint(folder / "legacy"), is_resumed=False, allow="", is_allowed=False).now == data


def test_the_next_stage_knows_of_the_first(runs: dict[str, Done], folder: Path, text: Path) -> None:
    del runs
    report = transfer(folder / "first" / "iter_0000002", folder / "start")
    assert [(data["parts"][0]["uri"], data["samples"]) for data in report["trained_on"]] == [(parse(TOY).uri, 16)]
    assert read_trained(open_checkpoint(folder / "start")).lineage == Lineage.from_stored(
        {"now": None, "earlier": report["trained_on"]}
    )
    data = ("--data-path", text, "--split", "100,0,0", "--data-cache-path", folder / "cache")
    data = (*data, "--tokenizer-type", "NullTokenizer", "--vocab-size", "300")
    started = arguments(folder / "second", 2, *data, "--pretrained-checkpoint", folder / "start")
    assert list(train(folder, [Job("second", started)])["second"].losses) == [1, 2]
    lineage = read_trained(open_checkpoint(folder / "second")).lineage
    assert lineage is not None and lineage.now is not None
    assert lineage.now.name == str(text)
    assert [data.name for data in lineage.earlier] == [parse(TOY).uri]


@pytest.mark.parametrize("is_there", [True, False])
def test_a_checkpoint_without_its_data_is_not_called_right(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "checkpoint"
    shutil.copytree(CHECKPOINTS / "core016", folder)
    for file in folder.glob("*.distcp"):
        file.write_bytes(file.read_bytes()[:1000]) if is_there else file.unlink()
    reason = "is truncated" if is_there else "is incomplete: .* is missing"
    with pytest.raises(NCAPluginError, match=reason):
        diagnose(folder)
    with pytest.raises(NCAPluginError, match=reason):
        _ = open_checkpoint(folder).embedding_rows
