"""Fine-tuning on examples: what is learned is answers, in an order that depends on the seed alone."""

import json
from pathlib import Path

import numpy as np
import pytest
from training_jobs import SEQ_LENGTH, Done, Job, train

from nca_plugin.errors import NCAPluginError
from nca_plugin.tasks.tokenizer_folders import write_byte_tokenizer, write_id_tokenizer
from nca_plugin.text.examples import Example, read_examples

#: Of different lengths, the last one as long as a sample can be: its last token is a target only.
EXAMPLES = [
    *(Example(f"{n} + {n}? ", f"{2 * n}") for n in range(11)),
    Example("Name the day. ", "Montag, naïve \N{CLOCK FACE ONE OCLOCK}"),
    Example("x" * (SEQ_LENGTH - 1), "y"),
]
END = 256
BATCH = 8

TP, PP = ("--tensor-model-parallel-size", "2"), ("--pipeline-model-parallel-size", "2")
CP = ("--context-parallel-size", "2", "--calculate-per-token-loss")
#: Ranks and arguments of other layouts of the same run.
LAYOUTS = {
    "data": (2, ()),
    "a worker": (1, ("--num-workers", "1")),
    "tensor x stages": (4, (*TP, *PP, "--sequence-parallel")),
}
EPOCHS = 3
ITERATIONS = 5
"""Of three epochs of 13 examples in batches of 8."""


def write_examples(path: Path, examples: list[Example]) -> None:
    lines = [json.dumps({"id": 1, "prompt": example.prompt, "answer": example.answer}) for example in examples]
    path.write_text("\n".join(lines) + "\n\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    write_byte_tokenizer(folder / "bytes")
    write_examples(folder / "train.jsonl", EXAMPLES)
    write_examples(folder / "long.jsonl", [*EXAMPLES, Example("x" * SEQ_LENGTH, "y")])
    return folder


def tokenizer(folder: Path) -> tuple[str, ...]:
    rows = ("--padded-vocab-size", "288")
    return ("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder / "bytes"), *rows)


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Done]:
    path = str(folder / "train.jsonl")
    sft = ("--sft", *tokenizer(folder))
    data = (*sft, "--train-data-path", path, "--sft-epochs", str(EPOCHS))
    weights = str(folder / "weights")
    saved = ("--save", str(folder / "checkpoint"), "--save-interval", "2")
    start = ("--pretrained-checkpoint", weights)
    evaluated = (
        *("--full-validation", "--multiple-validation-sets", "--eval-iters", "1", "--eval-micro-batch-size", "1"),
        *("--valid-data-path", path, "--eval-interval", str(ITERATIONS)),
    )
    one_iteration = ("--train-iters", "1", "--lr", "0", "--min-lr", "0", "--save-interval", "1")
    #: What is refused.
    wrong = {
        "a source": ("--sft", *tokenizer(folder), "--data-source", "nca://toy", "--train-iters", "1"),
        "no data": (*sft, "--train-iters", "1"),
        "ids": (
            *("--sft", "--tokenizer-type", "NullTokenizer", "--vocab-size", "64", "--train-data-path", path),
            *("--train-iters", "1"),
        ),
        "long": (*sft, "--train-data-path", str(folder / "long.jsonl"), "--train-iters", "1"),
        "both lengths": (*data, "--train-iters", "2"),
        "epochs of a source": ("--data-source", "nca://toy", "--sft-epochs", "2"),
        "no epochs": (*sft, "--train-data-path", path, "--sft-epochs", "none"),
        "epochs without end": (*sft, "--train-data-path", path, "--sft-epochs", "1e99999999"),
        "epochs of two files": (*sft, "--data-path", "1", path, "1", path, "--sft-epochs", "1"),
        "documents": (*data, "--eod-mask-loss"),
        "context parallel means": (*data, "--context-parallel-size", "2"),
        "uneven validation": (*data, *evaluated, "--eval-global-batch-size", "2"),
    }
    jobs = [
        Job("first", (*sft, "--train-data-path", path, *one_iteration, "--save", weights)),
        Job("run", (*data, *start, *evaluated, "--eval-global-batch-size", "1")),
        *(Job(name, (*data, *start, *arguments), ranks) for name, (ranks, arguments) in LAYOUTS.items()),
        Job("context parallel", (*data, *start, *CP), 2),
        Job("mean of all tokens", (*data, *start, *CP[2:])),
        Job("interrupted", (*data, *start, *saved, "--exit-interval", "2")),
        Job("resumed", (*data, "--load", str(folder / "checkpoint"))),
        Job("resumed on ranks", (*data, "--load", str(folder / "checkpoint")), 2),
        *(
            Job(
                f"refused {name}",
                arguments,
                2 if name in ("context parallel means", "uneven validation") else 1,
            )
            for name, arguments in wrong.items()
        ),
    ]
    return train(folder, jobs, may_fail=True)


def given(done: Done, kind: str = "training") -> dict[str, np.ndarray]:
    """Return the samples of all ranks of a run, those of its data-parallel ranks in the order of the run."""
    assert not done.error and not done.refusal, done.error or done.refusal
    by_rank = {}
    for rank in done.ranks:
        if rank.coordinates["tp"] == 0:
            for key in set().union(*getattr(rank, kind)):
                batches = [batch[key] for batch in getattr(rank, kind)]
                by_rank.setdefault(key, {})[rank.coordinates["dp"]] = batches
    return {
        key: np.concatenate(
            [batch for turn in zip(*(ranks[dp] for dp in sorted(ranks)), strict=True) for batch in turn]
        )
        for key, ranks in by_rank.items()
    }


def test_the_loss_is_of_answers_only(runs: dict[str, Done]) -> None:
    samples = given(runs["run"])
    assert samples["tokens"].shape == (ITERATIONS * BATCH, SEQ_LENGTH)
    expected = {example.prompt.encode(): example.answer.encode() for example in EXAMPLES}
    for tokens, labels, mask in zip(samples["tokens"], samples["labels"], samples["loss_mask"], strict=True):
        learned = labels[mask == 1]
        assert set(mask) <= {0, 1} and learned[-1] == END
        answer = bytes(learned[:-1].tolist())
        first = int(mask.argmax())
        prompt = bytes(tokens[: first + 1].tolist())
        assert expected[prompt] == answer
        # What is read before a target is what was to be predicted.
        np.testing.assert_array_equal(tokens[first + 1 : first + len(learned)], learned[:-1])
        # In one piece.
        assert mask[first : first + len(learned)].all()
        assert (tokens[first + len(learned) :] == END).all()


def test_every_epoch_has_all_examples_in_an_order_of_its_own(runs: dict[str, Done]) -> None:
    rows = [row.tobytes() for row in given(runs["run"])["tokens"]]
    epochs = [rows[i : i + len(EXAMPLES)] for i in range(0, EPOCHS * len(EXAMPLES), len(EXAMPLES))]
    assert all(set(epoch) == set(epochs[0]) and len(set(epoch)) == len(EXAMPLES) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == EPOCHS


@pytest.mark.parametrize("name", LAYOUTS)
def test_samples_and_losses_do_not_depend_on(runs: dict[str, Done], name: str) -> None:
    for key, values in given(runs["run"]).items():
        np.testing.assert_array_equal(given(runs[name])[key], values)
    losses = [list(runs[which].losses.values()) for which in (name, "run")]
    # The mean of each micro-batch counts the same, and data-parallel ranks take the same micro-batches.
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)
    assert len(losses[0]) == ITERATIONS


def test_nor_on_context_parallel_ranks(runs: dict[str, Done]) -> None:
    losses = [list(runs[name].losses.values()) for name in ("context parallel", "mean of all tokens")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_a_run_resumes_exactly(runs: dict[str, Done]) -> None:
    whole = runs["run"].losses
    assert runs["resumed"].losses == {iteration: whole[iteration] for iteration in (3, 4, 5)}
    np.testing.assert_array_equal(given(runs["resumed"])["tokens"], given(runs["run"])["tokens"][2 * BATCH :])
    assert list(runs["resumed on ranks"].losses) == [3, 4, 5]


def test_validation_reads_every_example_once_in_the_order_of_the_file(runs: dict[str, Done]) -> None:
    tokens = given(runs["run"], "evaluation")["tokens"]
    # Megatron evaluates at the interval, and again after the last iteration.
    assert len(tokens) % len(EXAMPLES) == 0
    for row, example in zip(tokens, EXAMPLES * (len(tokens) // len(EXAMPLES)), strict=True):
        assert bytes(row[: len(example.prompt.encode())].tolist()) == example.prompt.encode()


def test_the_log_says_what_is_learned(runs: dict[str, Done], folder: Path) -> None:
    tokens = sum(len(example.answer.encode()) + 1 for example in EXAMPLES)
    line = f"fine-tuning on 13 examples of {folder}/train.jsonl, {tokens} answer tokens in each of 3.077 epochs"
    assert line in (folder / "train.log").read_text()


REFUSED = {
    "a source": "--sft trains on examples: name JSONL files",
    "no data": "--sft trains on examples: name JSONL files",
    "ids": "--sft needs a tokenizer of text",
    "long": "1 of 14 examples are longer than a sequence of 96 tokens, the longest of 98, the first 'xxxxxxxxxx",
    "both lengths": "--sft-epochs stands in place of --train-iters",
    "epochs of a source": "--sft-epochs needs --sft",
    "no epochs": "--sft-epochs none must be a finite number above 0",
    "epochs without end": "--sft-epochs 1e99999999 must be a finite number above 0",
    "epochs of two files": "--sft-epochs counts the examples of one file",
    "documents": "--eod-mask-loss is for documents",
    "context parallel means": "needs --calculate-per-token-loss: a prompt has no targets",
    "uneven validation": "holds 13 examples, which 2 data-parallel ranks cannot share evenly",
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(runs: dict[str, Done], name: str) -> None:
    done = runs[f"refused {name}"]
    assert done.error is None, done.error
    assert done.refusal is not None and REFUSED[name] in done.refusal
    assert "\n" not in done.refusal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no example"),
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is not an object"),
        (
            '{"prompt": "a", "answer": "b"}\n{"question": "a", "answer": "b"}',
            "line 2 has no text in field 'prompt' .*question",
        ),
        ('{"prompt": "a", "answer": ""}', "line 1 has no text in field 'answer'"),
        ('{"prompt": "a\\ud800", "answer": "b"}', "line 1 has half of a surrogate pair in field 'prompt'"),
        ('\n{"prompt": "a", "answer": "\\ude00\\ud83d"}', "line 2 has half of a surrogate pair in field 'answer'"),
    ],
)
def test_files_that_hold_no_examples(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "examples.jsonl").write_text(content)
    with pytest.raises(NCAPluginError, match=message):
        read_examples(tmp_path / "examples.jsonl")


def test_what_editors_of_windows_put_at_the_beginning(tmp_path: Path) -> None:
    row = b'\xef\xbb\xbf{"prompt": "a\\ud83d\\ude00", "answer": "b"}\r\n'
    (tmp_path / "examples.jsonl").write_bytes(row)
    assert read_examples(tmp_path / "examples.jsonl") == [Example("a\U0001f600", "b")]


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NCAPluginError, match="cannot be read"):
        read_examples(tmp_path / "none.jsonl")


def test_the_tokenizer_of_bytes_is_that_of_prepare(folder: Path) -> None:
    from transformers import AutoTokenizer

    bytes_ = AutoTokenizer.from_pretrained(folder / "bytes")
    text = "".join(map(chr, range(0x20, 0x500))) + "\x00\x01\r\n\t  \N{CLOCK FACE ONE OCLOCK}"
    assert bytes_.encode(text) == list(text.encode())
    assert bytes_.decode(bytes_.encode(text)) == text
    assert (len(bytes_), bytes_.eos_token_id) == (257, END)


def test_the_tokenizer_of_ids(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    write_id_tokenizer(tmp_path / "ids", 300)
    ids = AutoTokenizer.from_pretrained(tmp_path / "ids")
    assert ids.encode(" ".join(map(str, range(300)))) == list(range(300)) and len(ids) == 300
    with pytest.raises(NCAPluginError, match="exists already"):
        write_id_tokenizer(tmp_path / "ids", 18)
