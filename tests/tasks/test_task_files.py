"""Paths and files that a user may hand to the commands for tasks: any name works, and what is no data is one line."""

import bz2
import gzip
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from places import CHECKPOINTS
from transformers import LlamaConfig, LlamaForCausalLM

from nca_plugin.commands.app import app
from nca_plugin.errors import NCAPluginError
from nca_plugin.evaluation.labels import labelled
from nca_plugin.tasks.harness import Harness, Settings
from nca_plugin.tasks.tokenizer_folders import save_tokenizer, write_byte_tokenizer
from nca_plugin.tasks.training_examples import write_examples
from nca_plugin.text.examples import Example, read_examples

ROW = '{"prompt": "ab? ", "answer": "BA"}\n'


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "hf"
    write_byte_tokenizer(folder)
    sizes = {"vocab_size": 288, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=64)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no example"),
        (b"\n\n", "holds no example"),
        (bytes(range(256)), "is not JSON|is not UTF-8"),
        (b'{"prompt": "a", "answ', "line 1 is not JSON"),
        (b"null\n", "line 1 is not an object"),
        (b"[1]\n", "line 1 is not an object"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (
            b'{"prompt": "a", "answer": "b"}\n{"prompt": ["c"], "answer": {"d": 1}}\n',
            "line 2 has a list in field 'prompt'",
        ),
        (b'{"prompt": "a", "answer": 2}\n', "line 1 has a number in field 'answer', where text is expected"),
        (b'{"prompt": null, "answer": "b"}\n', "line 1 has null in field 'prompt', where text is expected"),
        (b'{"q": "a"}\n', "line 1 has no text in field 'prompt'"),
    ],
)
def test_data_that_is_no_data(tmp_path: Path, content: bytes, message: str) -> None:
    """datasets ends the process at some of them, and takes others for text."""
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(NCAPluginError, match=message) as error:
        write_examples("nca_prompt_answer", tmp_path / "out.jsonl", str(tmp_path / "rows.jsonl"))
    assert "\n" not in str(error.value)
    with pytest.raises(NCAPluginError, match=r"holds no row|nested|is not|is not an object|'question' is undefined"):
        Harness(["nca_gsm8k"], Settings(data={"nca_gsm8k": str(tmp_path / "rows.jsonl")}))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("name", "compress"),
    [("a.jsonl.gz", gzip.compress), ("a", bz2.compress), ("a.jsonl", lzma.compress), ("a.json", bytes)],
)
def test_data_may_be_compressed(tmp_path: Path, name: str, compress: Callable[[bytes], bytes]) -> None:
    rows = b"\xef\xbb\xbf" + ROW.encode() + b'\r\n{"prompt": "\xc3\xa9? ", "answer": "E"}\r\n'
    (tmp_path / name).write_bytes(compress(rows))
    assert write_examples("nca_prompt_answer", tmp_path / "out.jsonl", str(tmp_path / name)).examples == 2
    assert read_examples(tmp_path / "out.jsonl") == [Example("ab? ", "BA"), Example("é? ", "E")]
    assert read_examples(tmp_path / name) == read_examples(tmp_path / "out.jsonl")


def test_data_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(NCAPluginError, match=r"pipe.jsonl is not a file"):
        write_examples("nca_prompt_answer", tmp_path / "out.jsonl", str(tmp_path / "pipe.jsonl"))
    (tmp_path / "a::b.jsonl").write_text(ROW)
    with pytest.raises(NCAPluginError, match=r"takes the '::' in .*a::b.jsonl for an archive: rename it"):
        write_examples("nca_prompt_answer", tmp_path / "out.jsonl", str(tmp_path / "a::b.jsonl"))
    with pytest.raises(NCAPluginError, match="has no data set of its own: name your JSONL file with --data"):
        write_examples("nca_prompt_answer", tmp_path / "out.jsonl")
    for name in (tmp_path, tmp_path / "x" / ("y" * 250), tmp_path / "pipe.jsonl" / "x"):
        with pytest.raises(NCAPluginError, match="cannot write"):
            write_examples("nca_prompt_answer", name, str(tmp_path / "rows.jsonl"))
    with pytest.raises(NCAPluginError, match="--max-tokens 0: must be at least 1"):
        write_examples("nca_prompt_answer", tmp_path / "out.jsonl", "rows.jsonl", max_tokens=0)


#: Names that some program takes for more than a name.
NAMES = (
    "a=b",
    "lr=1e-3-step=100",
    "a,b",
    "a:b",
    "a b",
    "é 中",
    "[1]*",
    "a?",
    "x|y",
    "[red]",
    "{a}",
    "%s",
    "~",
    "#",
)


@pytest.mark.parametrize("name", NAMES)
def test_data_under_any_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / f"{name}.jsonl").write_text(ROW)
    written = write_examples("nca_prompt_answer", tmp_path / "out.jsonl", str(tmp_path / name / f"{name}.jsonl"))
    assert written.examples == 1


@pytest.mark.parametrize("name", ["lr=1e-3-step=100", "a,b:c é 中", "[1]*?x|y[red]{a}%s~#"])
def test_a_checkpoint_and_an_output_under_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "runs" / name)
    (tmp_path / f"{name}.jsonl").write_text(ROW)
    checkpoints = [f"runs/{name}", f"one=./runs/../runs/{name}/"]
    options = ["--tasks", " nca_prompt_answer ", "--data", f"nca_prompt_answer={name}.jsonl", "--out", name]
    app(["eval", *checkpoints, *options, "--samples", "1", "--max-tokens", "2"], standalone_mode=False)
    for label in (f"runs_{name}", "one"):
        assert (tmp_path / name / label / "nca_prompt_answer.json").is_file()
    said = capsys.readouterr().out
    assert f"Written: {name}/table.md" in said and f"runs_{name}: nca_prompt_answer" in said
    table = (tmp_path / name / "table.md").read_text().splitlines()
    assert {line.replace("\\|", "").count("|") for line in table} == {4}


def test_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a=b", "b", "runs/c=d", "e" * 250):
        (tmp_path / name).mkdir(parents=True)
    assert labelled(["a=b"]) == {"a=b": Path("a=b")}
    assert labelled(["x=a=b", "a=b"]) == {"x": Path("a=b"), "a=b": Path("a=b")}
    assert labelled(["runs/c=d", "../" + tmp_path.name + "/b"]) == {
        "runs_c=d": Path("runs/c=d"),
        f"{tmp_path.name}_b": Path("../" + tmp_path.name + "/b"),
    }
    assert labelled(["."]) == {tmp_path.name: Path()}
    for text, reason in (
        ("x=nowhere", "checkpoint nowhere does not exist"),
        ("runs/x=y", "checkpoint runs/x=y does not exist"),
        ("e" * 250, "cannot be used; write another"),
        (".=b", "label '.' cannot be used"),
        ("..=b", "label '..' cannot be used"),
        ("=b", "label '' cannot be used"),
        ("table.md=b", "cannot be used"),
        ("a\nb=b", "cannot be used"),
    ):
        with pytest.raises(NCAPluginError, match=reason):
            labelled([text])


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.write_bytes(bytes(range(256)))])
def test_a_tokenizer_that_is_none(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "tokenizer")
    with pytest.raises(NCAPluginError, match="cannot be loaded") as error:
        save_tokenizer(str(tmp_path / "tokenizer"), tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tokenizer", "reason"),
    [
        ("./no/such/tok", "tokenizer ./no/such/tok does not exist"),
        ("tok.model", "tokenizer tok.model does not exist"),
        ("empty", "tokenizer 'empty' cannot be loaded"),
    ],
)
def test_a_wrong_tokenizer_is_told_before_the_first_checkpoint_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, tokenizer: str, reason: str
) -> None:
    """The first one brings its own, the second one needs it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    checkpoints = [f"first={model}", f"second={CHECKPOINTS / 'core016'}"]
    asked = ["--tasks", "nca_prompt_answer", "--tokenizer", tokenizer, "--out", "out"]
    with pytest.raises(NCAPluginError, match=reason) as error:
        app(["eval", *checkpoints, *asked], standalone_mode=False)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["tokenizer", "file/x"], "cannot write to file"),
        (["tokenizer", "x" * 300], "File name too long"),
        (["tokenizer", "."], "exists already"),
        (["eval", "file", "--tasks", "nca_prompt_answer"], "checkpoint file is not a folder"),
        (["eval", "empty", "--tasks", "nca_prompt_answer"], "empty"),
        (["eval", "hf", "--tasks", "nca_prompt_answer", "--out", "file"], "cannot write to file"),
        (["eval", "hf", "--source", "nca://toy", "--megatron-arguments", "'a"], "No closing quotation"),
        (["eval", "hf", "--tasks", "a", "--data", "a=b", "--data", "a=c"], "names data of task a twice: b and c"),
        (["eval", "hf", "--tasks", "a", "--data", "=b"], "must be TASK=PATH"),
        (["eval", "hf", "--tasks", ","], "nothing to evaluate"),
        (["export", "file", "out", "--to", "hf"], "file"),
        (["export", "empty", "out", "--to", "hf"], "empty"),
        (["export", "file", "out", "--from", "hf"], "file is no folder"),
        (["export", "empty", "out", "--from", "hf"], "config.json is missing"),
        (["export", "hf", "file/x", "--from", "hf"], "cannot write"),
        (["study", "empty"], "does not exist"),
        (["study", "file"], "file"),
        (["study", "garbage.yaml"], "garbage.yaml"),
    ],
)
def test_commands_with_what_is_not_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path, arguments: list[str], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hf").symlink_to(model)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage.yaml").write_bytes(bytes(range(256)))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(NCAPluginError, match=reason) as error:
        app(arguments, standalone_mode=False)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before
