"""The Hydra launcher: the arguments that Megatron-LM gets, from a file and overrides."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import write
from megatron_runs import MODEL

from nca_plugin.errors import NCAPluginError
from nca_plugin.launch.hydra import load_arguments, main
from nca_plugin.megatron.arguments import resolve_data_source


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("arguments:\n  num-layers: 4\n  untie-embeddings-and-output-weights: true\n  data-path: my_text\n")
    return path


def test_without_a_source_nothing_changes(config: Path) -> None:
    arguments = load_arguments(config, ["arguments.num-layers=2"])
    expected = ["--num-layers", "2", "--untie-embeddings-and-output-weights", "--data-path", "my_text"]
    assert resolve_data_source(arguments) == expected


@pytest.mark.parametrize(
    ("overrides", "argv"),
    [
        (["data.source=nca"], ["--data-source", "nca"]),
        (
            ["data.source=nca", "data.nca.preset=code", "data.nca.band=[0.3,0.35]", "data.nca.seed=7"],
            ["--data-source", "nca", "--nca-preset", "code", "--nca-band", "0.3:0.35", "--nca-seed", "7"],
        ),
        (
            ["data.source=nca", "data.nca.band=null", "data.nca.vocab_offset=50257"],
            ["--data-source", "nca", "--nca-band", "none", "--nca-vocab-offset", "50257"],
        ),
        (["data.source=dyck", "data.dyck.k=8"], ["--data-source", "dyck://?k=8"]),
        (["data.source='dyck://?k=8'"], ["--data-source", "dyck://?k=8"]),
    ],
)
def test_a_source_is_what_the_command_line_says(config: Path, overrides: list[str], argv: list[str]) -> None:
    arguments = ["--num-layers", "4", "--untie-embeddings-and-output-weights"]
    assert resolve_data_source(load_arguments(config, overrides)) == resolve_data_source([*arguments, *argv])


def test_a_blend(config: Path) -> None:
    arguments = load_arguments(
        config, ["+arguments.mock-data=true", "data.path=[0.1,'nca://web?vocab_offset=50257',0.9,my_text_document]"]
    )
    blend = ["--data-path", "0.1", "nca://web?vocab_offset=50257", "0.9", "my_text_document"]
    assert arguments == ["--num-layers", "4", "--untie-embeddings-and-output-weights", *blend]


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["data.sorce=nca"], "unknown key 'data.sorce': did you mean 'data.source'"),
        (["data.source=nca", "data.nac.preset=web"], "unknown key 'data.nac': did you mean 'data.nca'"),
        (["data.nca.preset=web"], "data.nca does not apply without data.source=nca"),
        (["data.source=nca", "data.dyck.k=8"], "data.dyck does not apply"),
        (["data.path=[a]", "data.nca.preset=web"], "data.nca does not apply"),
        (["data.source=5"], "data.source=5 must be a name or a URI"),
        (["data.source={a: 1}"], "must be a name or a URI"),
        (["data.source=nca", "data.path=[a]"], "contradict each other"),
        (["data.source=nca://web", "data.nca.preset=code"], "data.nca.preset: code contradicts source nca://web"),
        (["data.source=nca", "data.nca=web"], "data.nca must be a mapping"),
        (["+argument.lr=1"], "unknown key 'argument': did you mean 'arguments'"),
        (["arguments.num-layer=1"], "Could not override"),
        (["data.source"], "configuration file .*run.yaml"),
    ],
)
def test_what_is_wrong_is_one_line(config: Path, overrides: list[str], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        load_arguments(config, overrides)
    assert "\n" not in str(error.value)


def test_what_is_typed_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--config-dir", "x"], ["--config-nam", "x"], ["a.b=1", "--config-name", "missing", "c.d=2"]):
        monkeypatch.setattr(sys, "argv", ["hydra", *arguments])
        with pytest.raises(SystemExit, match="2"):
            main()
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("nca-plugin: error: ")
    assert "missing.yaml does not exist" in line


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"a: \xff")
    with pytest.raises(NCAPluginError, match=r"configuration file .*run.yaml"):
        load_arguments(tmp_path / "run.yaml", [])


def test_an_unknown_option_of_a_source(config: Path) -> None:
    with pytest.raises(NCAPluginError, match="unknown option 'burnin': did you mean 'burn_in'"):
        resolve_data_source(load_arguments(config, ["data.source=nca", "data.nca.burnin=5"]))


def test_megatron_trains_on_a_blend(tmp_path: Path) -> None:
    """As a user starts it; in a blend with a corpus on disk."""
    write(tmp_path / "corpus", "nca://toy?seed=2", documents=40, seq_length=128)
    arguments: dict[str, str | int | bool] = {"tokenizer-type": "NullTokenizer", "vocab-size": 18}
    for argument in MODEL:
        if argument.startswith("--"):
            name = argument.removeprefix("--")
            arguments[name] = True
        else:
            arguments[name] = argument
    (tmp_path / "run.yaml").write_text(json.dumps({"arguments": arguments}))
    command = (
        *(sys.executable, "-m", "nca_plugin.launch.hydra", "--config-dir", tmp_path, "--config-name", "run"),
        *(f"data.path=[0.5,nca://toy,0.5,{tmp_path}/corpus]", "+arguments.train-iters=2", "+arguments.split='100,0,0'"),
    )
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"SourceGPTDataset of nca://toy, {tmp_path}/corpus" in done.stdout
    assert "iteration        2/       2" in done.stdout


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NCAPluginError, match=r"missing.yaml does not exist"):
        load_arguments(tmp_path / "missing.yaml", [])
