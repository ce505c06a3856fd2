"""Text to .bin/.idx, read back by Megatron's own reader."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nca_plugin.errors import NCAPluginError
from nca_plugin.prepare import Corpus, input_bytes, prepare


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


def test_hugging_face_tokenizer_and_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1, "hello": 2, "world": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(
        tmp_path / "tokenizer"
    )
    # `datasets` resolves a name on its hub, or a folder in the working directory: the same call, without a network.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    rows = datasets.Dataset.from_dict({"text": ["hello world", "world"]})
    (tmp_path / "hub" / "tiny").mkdir(parents=True)
    rows.to_parquet(str(tmp_path / "hub" / "tiny" / "train.parquet"))
    monkeypatch.setattr("nca_plugin.prepare.Path.exists", lambda path: path.name != "tiny" and Path(path).is_file())
    corpus = Corpus(inputs=("hub/tiny",), tokenizer=str(tmp_path / "tokenizer"))
    result = prepare(corpus, tmp_path / "out")
    assert input_bytes(corpus) is None
    assert documents(tmp_path / "out") == [[2, 3, 0], [3, 0]]
    assert result.vocab_size == 4


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.txt", b"", "holds no text"),
        ("binary.txt", b"\xff\xfe\x00", "is not UTF-8 text"),
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
    with pytest.raises(NCAPluginError, match="cannot be loaded"):
        prepare(Corpus(inputs=(str(tmp_path / "a.txt"),), tokenizer=str(tmp_path / "nothing")), tmp_path / "out")
