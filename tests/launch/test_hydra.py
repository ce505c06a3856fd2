"""The Hydra launcher: the arguments that Megatron-LM gets, from a file and overrides."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import write
from megatron_runs import MODEL
from omegaconf import OmegaConf

from nca_plugin.configuration.hydra_files import shipped_folder
from nca_plugin.errors import NCAPluginError
from nca_plugin.launch.configuration import ConfigFile, load_run
from nca_plugin.launch.hydra import main
from nca_plugin.launch.multirun import check_outputs, expand
from nca_plugin.lineage.training_data import fingerprint
from nca_plugin.megatron.arguments import resolve_data_source
from nca_plugin.sources import parse


def load_arguments(path: Path, overrides: list[str]) -> list[str]:
    return load_run(ConfigFile(path.parent, path.name, overrides)).arguments


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
        (["data.source"], "configuration file .*run.yaml: override data.source has no value"),
        (["hydra.run.dir=x"], "hydra.run.dir=x has no effect"),
        (["data.source=nca", "arguments.data-source=dyck"], "name the source with data.source"),
        (["arguments.nca-preset=code", "data.source=nca"], "name the source with data.source"),
    ],
)
def test_what_is_wrong_is_one_line(config: Path, overrides: list[str], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        load_arguments(config, overrides)
    assert "\n" not in str(error.value)


def test_what_is_typed_wrong_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["--config-dir", "x"],
        ["--config-nam", "x"],
        ["--config-name", "pretrain", "--cfg", "job", "arguments.save=${nope}"],
        ["--config-name", "pretrain", "--cfg", "megatron", "--multirun", "data.source=nca,dyck"],
        ["a.b=1", "--config-name", "missing", "c.d=2"],
    ):
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


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["modle=400m"], "unknown key 'modle': did you mean 'model'"),
        (["model=400mm"], "unknown option 'model=400mm': did you mean 'model=400m'"),
        (["dat.source=nca"], "unknown key 'dat': did you mean 'data'"),
        (["data.nca.temprature=1"], "unknown option 'temprature': did you mean 'temperature'"),
        (["data.nca.preset=web,code"], "add --multirun"),
        (["data=text"], "data.path has no value"),
        (["stage=null"], "configuration file .*pretrain.yaml: "),
        (["model.num-layers=3"], "model is a group of files: choose one with model=..."),
        (["data.source=dyck"], "leave it out, or set data.nca=null"),
    ],
)
def test_what_is_wrong_with_our_own_configuration_is_one_line(overrides: list[str], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        load_arguments(shipped_folder() / "pretrain.yaml", overrides)
    assert "\n" not in str(error.value)


def test_a_configuration_may_name_our_files(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("defaults: [model: 160m, stage: nca, data: dyck, _self_]\narguments: {lr: 5}\n")
    arguments = load_arguments(tmp_path / "mine.yaml", ["data.dyck.k=8"])
    assert {"--lr", "5", "--hidden-size", "768", "--train-iters", "5000"} <= set(arguments)
    assert arguments[arguments.index("--data-path") + 1].startswith("dyck://?seed=1234&k=8")


@pytest.mark.parametrize(
    ("model", "millions"), [("tiny", 0.9), ("160m", 85), ("400m", 403), ("600m", 629), ("1b6", 1611)]
)
def test_our_models_have_the_sizes_that_their_files_say(model: str, millions: float) -> None:
    argv = load_arguments(shipped_folder() / "pretrain.yaml", [f"model={model}"])
    layers, width, inner = (
        int(argv[argv.index(f"--{name}") + 1]) for name in ("num-layers", "hidden-size", "ffn-hidden-size")
    )
    weights = layers * (4 * width**2 + 3 * width * inner)
    assert weights / 1e6 == pytest.approx(millions, rel=0.01, abs=0.05)
    assert f"{millions} million" in (shipped_folder() / "model" / f"{model}.yaml").read_text()


def test_megatron_knows_every_argument_of_ours() -> None:
    from megatron.training.arguments import add_megatron_arguments

    megatron_options = set(add_megatron_arguments(argparse.ArgumentParser())._option_string_actions)
    for group in ("model", "stage"):
        for file in (shipped_folder() / group).glob("*.yaml"):
            names = OmegaConf.load(file).keys() - {"defaults"}
            assert {f"--{name}" for name in names} <= megatron_options, file


def test_a_file_in_a_folder_of_the_folder(tmp_path: Path) -> None:
    """Its groups are those of the folder, before ours."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "160m.yaml").write_text("# @package arguments\nnum-layers: 99\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "run.yaml").write_text("# @package _global_\ndefaults: [/model: 160m, _self_]\n")
    for name in ("sub/run", "sub/run.yaml"):
        assert load_run(ConfigFile(tmp_path, name, [])).arguments == ["--num-layers", "99"]


def test_what_is_switched_off_has_to_exist_too(config: Path) -> None:
    run = load_run(
        ConfigFile(config.parent, "run", ["arguments.bf61=false", "arguments.lr=null", "arguments.bf16=true"])
    )
    assert run.unset == ["--bf61", "--lr"]


def test_other_sources_options_may_be_taken_away() -> None:
    arguments = load_arguments(shipped_folder() / "pretrain.yaml", ["data.source=dyck", "data.nca=null"])
    assert arguments[arguments.index("--data-path") + 1].startswith("dyck://")


def test_the_runs_of_a_multirun() -> None:
    jobs = expand(["data.nca.preset=web,code", "a=[1,2]", "arguments.lr=1,2"])
    assert [job.name for job in jobs] == [
        f"data.nca.preset={preset} arguments.lr={lr}" for preset in ("web", "code") for lr in (1, 2)
    ]
    assert jobs[0].overrides == ["data.nca.preset=web", "a=[1,2]", "arguments.lr=1"]
    for sweep in ("arguments.lr=interval(0,1)", "model=glob(*)"):
        with pytest.raises(NCAPluginError, match="list the values"):
            expand([sweep])


def test_runs_that_would_overwrite_each_other_are_refused() -> None:
    with pytest.raises(NCAPluginError, match=r"2 runs have --save x: .* arguments.save='runs/\$\{data.nca.preset\}'"):
        check_outputs([["--save", "x"], ["--lr", "1", "--save", "x"]])


def test_a_multirun_trains_once_for_each_value(tmp_path: Path) -> None:
    """Under torchrun, whose store the second run must not find full of the first one's addresses."""
    small = ("num-layers=1", "hidden-size=16", "ffn-hidden-size=16", "num-attention-heads=1", "seq-length=128")
    short = ("train-iters=1", "eval-iters=0", "global-batch-size=2", "micro-batch-size=1", "split='100,0,0'")
    command = (
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "nca_plugin.launch.hydra", "--config-name", "pretrain", "--multirun", "data.nca.preset=toy,code"),
        *(f"arguments.{argument}" for argument in (*small, *short)),
        f"arguments.tensorboard-dir={tmp_path}/${{data.nca.preset}}",
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("iteration        1/       1") == 2
    assert "run 2 of 2 (data.nca.preset=code)" in done.stdout
    assert {folder.name for folder in tmp_path.iterdir()} == {"toy", "code"}


def test_megatron_trains_on_a_blend(tmp_path: Path) -> None:
    """As a user starts it; in a blend with a dataset on disk."""
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
    source = parse("nca://toy")
    share = "(vocabulary 18, 71.1% of targets supervised, fingerprint"
    blend = f"0.5 nca://toy {share} {fingerprint(source, 128)}) 0.5 {tmp_path}/corpus, written from nca://toy?seed=2 ("
    assert f"training on 2,048 tokens of {blend}" in done.stdout
    assert "iteration        2/       2" in done.stdout


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(NCAPluginError, match=r"missing.yaml does not exist"):
        load_arguments(tmp_path / "missing.yaml", [])
