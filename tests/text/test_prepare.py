"""Text to .bin/.idx, read back by Megatron's own reader."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.core.datasets.indexed_dataset import IndexedDataset
from small_disks import small_disk
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nca_plugin.errors import NCAPluginError
from nca_plugin.text.prepare import Corpus, PreparedCorpus, empty_splits, input_bytes, prepare, vocab_size


def documents(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(str(prefix))
    return [dataset[i].tolist() for i in range(len(dataset))]


def test_bytes_of_text_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "skipped").mkdir()
    (tmp_path / "a.txt").write_text("naïve\n")
    (tmp_path / "b" / "2.py").write_text("two")
    (tmp_path / "b" / "1.py").write_text("one")
    (tmp_path / "b" / "note.md").write_text("not taken")
    (tmp_path / "b" / "empty.py").write_text("")
    (tmp_path / "b" / "skipped" / "3.py").write_text("not taken")
    corpus = Corpus(inputs=(str(tmp_path / "a.txt"), str(tmp_path / "b")), pattern="*.py", exclude=("skipped",))
    progress: list[int] = []
    result = prepare(corpus, tmp_path / "out" / "text", progress.append)
    assert documents(tmp_path / "out" / "text") == [[*t.encode(), 256] for t in ("naïve\n", "one", "two")]
    assert (result.documents, result.tokens, result.vocab_size) == (3, 7 + 3 + 3 + 3, 257)
    assert sum(progress) == input_bytes(corpus) == 13
    assert IndexedDataset(str(tmp_path / "out" / "text")).index.dtype == np.uint16
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["text.bin", "text.idx"]


def test_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({"body": text}) for text in ("first", "second")) + "\n\n")
    prepare(Corpus(inputs=(str(path),), text_key="body"), tmp_path / "out")
    assert documents(tmp_path / "out") == [[*b"first", 256], [*b"second", 256]]
    with pytest.raises(NCAPluginError, match=r"line 1 has no text in field 'text': name it with --text-key \(body\)"):
        prepare(Corpus(inputs=(str(path),)), tmp_path / "out-2")
    path.write_text('{"body": "fine"}\n{broken\n')
    with pytest.raises(NCAPluginError, match="line 2 is not JSON"):
        prepare(Corpus(inputs=(str(path),), text_key="body"), tmp_path / "out-2")
    assert not list(tmp_path.glob("*out-2*"))


def save_tokenizer(folder: Path, **words: int) -> str:
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, **words}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    loaded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    loaded.save_pretrained(folder)
    return str(folder)


def test_hugging_face_tokenizer_and_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = datasets.Dataset.from_dict({"text": ["hello world", "world"]}).to_iterable_dataset()
    monkeypatch.setattr("datasets.load_dataset", lambda name, split, streaming: rows)
    monkeypatch.setattr("nca_plugin.text.hub.is_reachable", lambda name, kind, what: True)
    corpus = Corpus(inputs=("hub/tiny",), tokenizer=save_tokenizer(tmp_path / "tokenizer", hello=2, world=3))
    result = prepare(corpus, tmp_path / "out")
    assert input_bytes(corpus) is None
    assert documents(tmp_path / "out") == [[2, 3, 0], [3, 0]]
    assert result.vocab_size == 4


@pytest.mark.parametrize(
    ("highest", "dtype"),
    [(2, np.uint16), (300, np.uint16), (65_498, np.uint16), (65_499, np.int32), (70_000, np.int32)],
)
def test_ids_with_gaps_keep_their_values(tmp_path: Path, highest: int, dtype: type) -> None:
    """Type and vocabulary follow from the highest id: how many there are says nothing of it."""
    (tmp_path / "a.txt").write_text("hello hello")
    tokenizer = save_tokenizer(tmp_path / "tokenizer", hello=highest)
    result = prepare(Corpus(inputs=(str(tmp_path / "a.txt"),), tokenizer=tokenizer), tmp_path / "out")
    assert documents(tmp_path / "out") == [[highest, highest, 0]]
    assert result.vocab_size == vocab_size(tokenizer) == highest + 1
    assert IndexedDataset(str(tmp_path / "out")).index.dtype == dtype


def test_an_added_token_counts_by_its_id(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello <new>")
    tokenizer = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path / "tokenizer", hello=80_000))
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tmp_path / "more")
    new = tokenizer.convert_tokens_to_ids("<new>")
    corpus = Corpus(inputs=(str(tmp_path / "a.txt"),), tokenizer=str(tmp_path / "more"))
    assert prepare(corpus, tmp_path / "out").vocab_size == 1 + max(80_000, new)
    assert documents(tmp_path / "out") == [[80_000, new, 0]]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "holds no text"),
        ("binary.txt", b"\x80\x81\x00", "is not UTF-8 text"),
        ("utf16.txt", "text".encode("utf-16"), "is UTF-16 text"),
        ("missing.txt", None, "does not exist"),
    ],
)
def test_bad_inputs_leave_nothing_behind(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(NCAPluginError, match=reason):
        prepare(Corpus(inputs=(str(path),)), tmp_path / "out" / "text")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_an_output_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "out.idx").write_text("mine")
    with pytest.raises(NCAPluginError, match="exists already"):
        prepare(Corpus(inputs=(str(tmp_path / "a.txt"),)), tmp_path / "out")
    assert (tmp_path / "out.idx").read_text() == "mine"
    assert not (tmp_path / "out.bin").exists()


def test_a_tokenizer_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(NCAPluginError, match=r"tokenizer .*nothing does not exist"):
        prepare(Corpus(inputs=(str(tmp_path / "a.txt"),), tokenizer=str(tmp_path / "nothing")), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NCAPluginError, match=r"tokenizer .*empty' cannot be loaded: ") as error:
        prepare(Corpus(inputs=(str(tmp_path / "a.txt"),), tokenizer=str(tmp_path / "empty")), tmp_path / "out")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 15, 16, 17, 60, 499, 500, 501, 999, 1000, 1001, 10**6])
def test_splits_that_would_have_no_document_are_told(count: int) -> None:
    """As Megatron divides the documents of a path."""
    matrix = convert_split_vector_to_split_matrix(parse_and_normalize_split("969, 30, 1"))
    edges = [(round(begin * count), round(end * count)) for begin, end in (pair for pair in matrix if pair)]
    empty = [name for name, (a, b) in zip(("train", "validation", "test"), edges, strict=True) if a == b]
    assert empty_splits(count) == empty
    notes = PreparedCorpus(Path("x"), 257, documents=count).notes
    assert bool(notes) == bool(empty) and all(name in notes[0] for name in empty)


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("", "is not a prefix for files"),
        (".", "is not a prefix for files"),
        ("..", "is not a prefix for files"),
        ("new/", "is not a prefix for files"),
        ("folder", "is a folder: name the files"),
        ("folder/", "is not a prefix for files"),
        ("a.txt/out", "cannot write to a.txt"),
        ("s3://bucket/text", "is not on this machine"),
        ("/proc/out", "cannot write"),
        ("x" * 300, "cannot write|too long"),
    ],
)
def test_an_output_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("a.txt").write_text("text")
    with pytest.raises(NCAPluginError, match=reason) as error:
        prepare(Corpus(inputs=("a.txt",)), out)
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "folder"]


def test_an_output_may_be_named_by_one_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    prepare(Corpus(inputs=(str(tmp_path / "a.txt"),)), str(tmp_path / "new" / "out.bin"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out.bin", "out.idx"]


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text" * 1_000_000)
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        with pytest.raises(NCAPluginError, match=r"cannot write .*out: No space left on device; make room"):
            prepare(Corpus(inputs=(str(tmp_path / "a.txt"),)), disk / "out")
        assert not list(disk.iterdir())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("text.tx", r"input text.tx is not a file .*: did you mean 'text.txt'\?"),
        ("text.text", r"input text.text does not exist: did you mean 'text.txt'\?"),
        ("./nothing", "input ./nothing does not exist"),
        ("a/b/c", "input a/b/c does not exist"),
        ("user/data-set-v1.1", "input user/data-set-v1.1 is not a file or folder here, and the hub"),
        ("", "does not exist"),
        ("x" * 5000, "nor on the hub"),
        ("nul\0", "does not exist"),
    ],
)
def test_a_name_of_nothing_is_refused_without_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    Path("text.txt").write_text("text")
    for input_name, tokenizer in ((name, "bytes"), ("text.txt", name)):
        with pytest.raises(NCAPluginError, match=reason if tokenizer == "bytes" else None) as error:
            prepare(Corpus(inputs=(input_name,), tokenizer=tokenizer), "out")
        assert "\n" not in str(error.value)


def test_a_command_that_is_interrupted_leaves_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "word word word word"}\n' * 1_000_000)
    command = [sys.executable, "-m", "nca_plugin", "prepare", "a.jsonl", "--out", "out/text"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while not list(tmp_path.glob("out/.partial*")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        errors = process.communicate()[1]
    assert process.returncode == 130 and errors.splitlines()[-1] == "nca-plugin: interrupted"
    assert "Traceback" not in errors and not list((tmp_path / "out").iterdir())
