"""The wrong thing typed: one line that says what is wrong, exit code 2, nothing half-written."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from megatron_runs import MODEL
from omegaconf import OmegaConf
from places import CHECKPOINTS
from warm import WarmProcess
from wrong_inputs import commands

from nca_plugin import errors
from nca_plugin.chain import __main__ as chain
from nca_plugin.chain.stages import ChainConfig
from nca_plugin.commands.app import main
from nca_plugin.configuration.hydra_files import checked_by
from nca_plugin.errors import NCAPluginError
from nca_plugin.launch import bridge, evaluate, hydra
from nca_plugin.megatron.arguments import resolve_data_source
from nca_plugin.study.design import StudyConfig

LAUNCH = (*MODEL, "--train-iters", "1")


@pytest.fixture(scope="module")
def launcher() -> Iterator[WarmProcess]:
    with WarmProcess("warm_megatron") as process:
        yield process


def check_refusal(code: int, stderr: str, reason: str, folder: Path) -> None:
    assert code == 2
    errors = [line for line in stderr.splitlines() if line.startswith("nca-plugin: error:")]
    assert len(errors) == 1 and reason in errors[0], stderr[-2000:]
    assert "Traceback" not in stderr
    assert not list(folder.iterdir())


def test_the_lack_of_a_stack_is_one_line(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "nca_plugin.launch.bridge", "--recipe", "x")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    check_refusal(done.returncode, done.stderr, "Megatron-Bridge is not installed", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((*LAUNCH, "--data-source", "ncaa"), "unknown source 'ncaa': did you mean 'nca'?"),
        ((*LAUNCH, "--data-source", "nca", "--nca-preset", "wbe"), "unknown NCA preset 'wbe'"),
        ((*LAUNCH, "--data-source", "nca", "--nca-band", "0.7:0.9"), "above the ceiling 0.674"),
        ((*LAUNCH, "--data-source", "nca", "--nca-band"), "expected one argument"),
        ((*LAUNCH, "--nca-preset", "web"), "needs --data-source"),
        ((*LAUNCH, "--data-source", "nca", "--seq-length", "64"), "too short for two frames"),
        (
            (*LAUNCH, "--data-source", "nca", "--tokenizer-type", "NullTokenizer", "--vocab-size", "9984"),
            "vocabulary of 9984 is smaller than the 10002 ids",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_of_launches_are_one_line_and_code_2(
    launcher: WarmProcess, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    ended = launcher.run("warm_megatron", arguments, tmp_path)
    check_refusal(ended.code, ended.stderr, reason, tmp_path)


@pytest.mark.parametrize(("arguments", "begins"), [((), "Usage: nca-plugin"), (("--version",), "nca-plugin 0.")])
def test_what_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], begins: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["nca-plugin", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    shown = capsys.readouterr()
    assert not exit_.value.code and shown.out.strip().startswith(begins) and not shown.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("transfer", "--from", "missing", "--to", "out"), "checkpoint missing does not exist"),
        (("transfer", "--from", ".", "--to", "out"), "is no checkpoint: it holds"),
        (("transfer", "--from", ".", "--to", "existing.txt"), "exists already"),
        (("transfer", "--from", "."), "Missing option '--to'"),
        (("prepare", "empty.txt", "--out", "out"), "holds no text"),
        (("prepare", "missing.txt", "--out", "out"), "missing.txt does not exist"),
        (("study", "missing.yaml"), "missing.yaml does not exist"),
        (("study", "broken.yaml"), "broken.yaml"),
        (("bench", "ncaa"), "unknown source 'ncaa'"),
        (("bench", "--processes", "0"), "--processes 0: must be at least 1"),
        (("bench", "nca://web", "--seq-length", "9"), "too short for two frames"),
        (("bench", "--json", "existing.txt/bench.json"), "cannot write to existing.txt"),
        (("inspect", "ncaa://web"), "unknown source 'ncaa': did you mean 'nca'?"),
        (("inspect", "nca://web", "--count", "0"), "--count 0: must be at least 1"),
        (("inspect", "nca://web", "--count", "1000000000"), "fit in memory"),
        (("inspect", "nca://web", "--seq-length", "64"), "too short for two frames"),
        (("inspect", "dyck", "--seq-length", "0"), "--seq-length 0: must be at least 1"),
        (("inspect", "nca://toy", "--out", "existing.txt"), "cannot write to existing.txt"),
        (("inspect", "nca://toy", "--out", "existing.txt/page"), "existing.txt is not a folder"),
        (("inspect", "nca://toy", "--out", 300 * "x"), "the name is too long"),
        (("show", "nca://web?band=0.7:0.9"), "above the ceiling 0.674"),
        (("show", "dyck", "--index", "-1"), "--index -1: must not be below 0"),
        (("show", "nca", "--index", str(1 << 63)), "must be at most 9,223,372,036,854,775,807"),
        (("show", "nca", "--split", "training"), "unknown split 'training'"),
        (("show", "nca", "--fps", "0"), "fps 0: must"),
        (("transfr",), "No such command 'transfr'"),
        (("doctor", "missing"), "checkpoint missing does not exist"),
        (("doctor", "existing.txt"), "existing.txt is no folder"),
        (("doctor", "folder"), "checkpoint folder is empty"),
        (("doctor", "."), "is no checkpoint: it holds"),
        (("doctor", "--data", "nca://web"), "--data is compared with a checkpoint: name a checkpoint"),
        (("doctor", "a", "--data", "0.9 nca://web 0.1"), "is malformed: 0.1 is no path"),
        (
            ("doctor", "a", "--data", "nca://web 0.5"),
            "--data: 'nca://web 0.5' is malformed: 0.5 is no path; the weight comes before its path: '0.5 nca://web'",
        ),
        (
            ("doctor", "a", "--data", "nca://web 0.5 a 1"),
            "is malformed: 1 is no path; the weight comes before its path: '0.5 nca://web 1 a'",
        ),
        (("doctor", "a", "--data", "0.5 nca://web a 1"), "is malformed: 1 is no path; write each path after"),
        (("doctor", "a", "--data", "0.5 0.5"), "is malformed: 0.5 is no path; write each path after"),
        (("doctor", "a", "--data", "0.5 a b c"), "is malformed: 0.5 is no path; write each path after"),
        (("generate", "ncaa", "--tokens", "1M", "--out", "c"), "unknown source 'ncaa': did you mean 'nca'?"),
        (("generate", "nca", "--out", "c"), "Missing option '--tokens'"),
        (("generate", "nca", "--tokens", "1M"), "Missing option '--out'"),
        (
            ("generate", "nca", "--tokens", "164X", "--out", "c"),
            "--tokens '164X': must be a whole number, such as 164000000",
        ),
        (("generate", "nca", "--tokens", "0", "--out", "c"), "--tokens 0: must be at least 1"),
        (("generate", "nca", "--tokens", "1e30", "--out", "c"), "must be at most 9,223,372,036,854,775,807"),
        (("generate", "nca", "--tokens", "1M", "--out", "c", "--seq-length", "1e12"), "must be at most 16,777,216"),
        (
            ("generate", "nca", "--tokens", "1M", "--out", "c", "--workers", "1e6"),
            "--workers 1e6: must be at most 4,096",
        ),
        (("generate", "nca", "--tokens", "1M", "--out", "folder"), "folder is a folder: name the files to write in it"),
        (("generate", "nca", "--tokens", "1M", "--out", ""), "--out is empty: give it a value"),
        (("generate", "nca", "--tokens", "1M", "--out", "c", "--shard", "3/2"), "shard 3/2: must be i/N"),
        (("generate", "nca", "--tokens", "1M", "--out", "c", "--shard", "0/0"), "shard 0/0: must be i/N"),
        (("merge", "--out", "c", "a", "a"), "part a is named twice"),
        (("merge", "--out", "c", "a", "./a"), "part ./a is named as a too"),
        (
            ("transfer", "--from", "a", "--to", "b", "--vocab-size", "1,00"),
            "--vocab-size '1,00': must be a whole number",
        ),
        (("transfer", "--from", "a", "--to", "b", "--seed", "-1"), "--seed -1: must not be below 0"),
        (("chain", "a", "--ranks", "0"), "--ranks 0: must be at least 1"),
        (("eval", "a", "--batch-size", "many"), "--batch-size 'many': must be a whole number"),
        (("eval", "a", "--samples", "1.5"), "--samples '1.5': must be a whole number"),
        (("generate", "nca", "--tokens", "1P", "--out", "c"), "--tokens '1P': must be a whole number"),
        (("generate", "nca", "--tokens", "9999T", "--out", "c"), "must be 1 .. 2^31 - 1, which Megatron can count"),
        (("generate", "nca", "--tokens", "1M", "--out", "c", "--seq-length", "9"), "too short for two frames"),
        (("generate", "nca", "--tokens", "1M", "--out", "c", "--workers", "0"), "--workers 0: must be at least 1"),
        (("generate", "nca", "--tokens", "9M", "--out", "c", "--shard", "8/7"), "shard 8/7: must be i/N with i in 1"),
        (("generate", "nca", "--tokens", "9M", "--out", "c", "--shard", "8"), "shard '8': must be i/N, such as 1/8"),
        (("generate", "nca", "--tokens", "1M", "--out", "c", "--shard", "1/7"), "1 blocks of 1,024 documents, so at"),
        (("generate", "nca", "--tokens", "1M", "--out", "existing.txt/c"), "cannot write to existing.txt"),
        (("generate", "nca", "--tokens", "1M", "--out", "folder/"), "'folder/' is not a prefix for files"),
        (("generate", "nca", "--tokens", "1M", "--out", "."), "'.' is not a prefix for files"),
        (("generate", "nca", "--tokens", "9" * 5000, "--out", "c"), "9...': must be a whole number"),
        (
            ("generate", "iid", "--tokens", "1M", "--out", "c", "--seq-length", "3000000000"),
            "--seq-length 3000000000: must be at most 16,777,216",
        ),
        (("generate", "nca", "--tokens", "1M", "--out", 300 * "x"), "File name too long"),
        (("generate", "nca", "--tokens", "1T", "--out", "c"), "TB more"),
        (("generate", "nca", "--tokens", "1M", "--out", "nothing://c"), "cannot open nothing://c"),
        (("merge", "--out", "c"), "no parts to merge"),
        (("merge", "--out", "c", "c"), "c is also named as a part"),
        (("merge", "--out", "c", "a", "b"), "a.json does not exist"),
        (("verify", "c"), "c.json does not exist, nor c.idx"),
        (("verify", "existing.txt"), "existing.txt.json does not exist"),
        (("verify", "c", "--documents", "-1"), "--documents -1: must not be below 0"),
        (("verify", "nothing://c"), "cannot open nothing://c"),
    ],
)
def test_errors_of_commands_are_one_line_and_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    reason: str,
) -> None:
    (tmp_path / "existing.txt").write_text("mine")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "broken.yaml").write_text("outptu: somewhere\n")
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nca-plugin", *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    shown = capsys.readouterr().err
    errors = [line for line in shown.splitlines() if line.startswith("nca-plugin: error:")]
    assert len(errors) == 1 and reason in errors[0], shown
    assert "Traceback" not in shown
    assert sorted(tmp_path.iterdir()) == before


def empty_values() -> Iterator[Any]:
    """Yield a call of every command for each of its values, that one empty and every other that it needs as x."""
    for name, parameters in commands().items():
        for empty in parameters:
            if empty.kind is bool or empty.is_empty_by_default:
                continue
            call = [name]
            for parameter in parameters:
                if parameter is empty or parameter.is_required:
                    call += [*parameter.options[:1], "" if parameter is empty else "1" if parameter.options else "x"]
            shown = empty.options[0] if empty.options else empty.name.upper()
            yield pytest.param(call, shown, id=f"{name}-{empty.name}")


@pytest.mark.parametrize(("call", "shown"), list(empty_values()))
def test_an_empty_value_is_refused_wherever_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: list[str], shown: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nca-plugin", *call])
    with pytest.raises(SystemExit) as exit_:
        main()
    check_refusal(int(str(exit_.value.code)), capsys.readouterr().err, f"error: {shown} is empty: give it a", tmp_path)


@pytest.mark.parametrize(
    ("schema", "values", "shown"),
    [
        (StudyConfig, {"output": ""}, "output"),
        (StudyConfig, {"domains": {"a": {"corpus": {"path": ""}}}}, "domains.a.corpus.path"),
        (StudyConfig, {"domains": {"a": {"corpus": {"inputs": ["x", ""]}}}}, "domains.a.corpus.inputs"),
        (StudyConfig, {"tasks": {"a": {"train": ""}}}, "tasks.a.train"),
        (ChainConfig, {"folder": ""}, "folder"),
        (ChainConfig, {"stages": {"a": {"config_dir": ""}}}, "stages.a.config_dir"),
        (ChainConfig, {"stages": {"a": {"transition": {"row_map": ""}}}}, "stages.a.transition.row_map"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_empty_value_of_a_file_is_refused(schema: type, values: dict[str, Any], shown: str) -> None:
    whole: dict[type, dict[str, Any]] = {
        StudyConfig: {"output": "x", "seeds": [1], "arguments": {}, "domains": {}, "arms": {}, "baseline": "x"}
        | {"stage1": {"tokens": 1}, "language": {"tokens": 1, "validation_tokens": 1}},
        ChainConfig: {"folder": "x", "stages": {}},
    }
    with pytest.raises(NCAPluginError, match=f"^{re.escape(shown)} is empty: give it a value"):
        checked_by(schema, OmegaConf.create(whole[schema] | values))
    # An empty label is no label.
    checked_by(StudyConfig, OmegaConf.create(whole[StudyConfig] | {"arms": {"a": {"label": ""}}}))


@pytest.mark.parametrize(
    ("parse", "arguments"),
    [
        pytest.param(hydra._parser().parse_args, ["--config-dir", "", "--config-name", "x"], id="hydra"),
        pytest.param(chain._parser().parse_args, [""], id="chain"),
        pytest.param(evaluate._parser().parse_args, ["--evaluation-out", ""], id="evaluate"),
        pytest.param(bridge.parse_command_line, ["--config-file", ""], id="bridge"),
    ],
)
def test_an_empty_path_of_a_launcher_is_refused(parse: Callable[[list[str]], Any], arguments: list[str]) -> None:
    with pytest.raises(NCAPluginError, match=r"^argument [a-z-]+: the value is empty: name a path"):
        parse(arguments)


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(("prepare", "existing.txt", "--out"), id="prepare"),
        pytest.param(("generate", "iid", "--tokens", "2000", "--workers", "1", "--out"), id="generate"),
        pytest.param(("merge", "a-1-of-2", "--out"), id="merge"),
        pytest.param(("transfer", "--from", "checkpoint", "--to"), id="transfer"),
        pytest.param(("export", "--from", "hf", "checkpoint"), id="import"),
        pytest.param(("export", "--to", "hf", "checkpoint"), id="export"),
        pytest.param(("bench", "iid", "--seconds", "0.01", "--json"), id="bench"),
        pytest.param(("inspect", "iid", "--count", "1", "--out"), id="inspect"),
        pytest.param(("eval", "checkpoint", "--perplexity", "a", "--out"), id="eval"),
        pytest.param(("tokenizer",), id="tokenizer"),
    ],
)
@pytest.mark.parametrize("target", ["nope/../x", "nope/../x/y", "nope/.."])
def test_no_folder_is_made_to_go_back_from(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: tuple[str, ...],
    target: str,
) -> None:
    (tmp_path / "existing.txt").write_text("mine")
    shutil.copytree(CHECKPOINTS / "core016", tmp_path / "checkpoint")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nca-plugin", *call, target])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("nca-plugin: error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_source_takes_the_place_of_every_other_data_argument() -> None:
    argv = ["--data-path", "0.3", "a", "0.7", "b", "--lr", "1", "--mock-data", "--valid-data-path", "c"]
    resolved = resolve_data_source([*argv, "--data-source", "nca", "--nca-seed", "7", "--nca-band", "0.2:0.4"])
    assert resolved[:2] == ["--lr", "1"]
    assert resolved[2] == "--data-path" and resolved[3].startswith("nca://web?seed=7&")
    assert "band=0.2:0.4" in resolved[3]
    assert resolved[4:] == ["--tokenizer-type", "NullTokenizer", "--vocab-size", "10002"]
    own = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "x"]
    assert resolve_data_source([*own, "--data-source=dyck"])[:4] == own
    assert "--vocab-size" not in resolve_data_source([*own, "--data-source=dyck"])


def test_without_a_source_nothing_changes() -> None:
    argv = ["--data-path", "a", "--lr", "1", "--unknown-to-us", "x"]
    assert resolve_data_source(argv) == argv


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["--data-source", "nca://web", "--nca-preset", "code"], "contradicts"),
        (["--data-source", "nca://web?seed=1", "--nca-seed", "2"], "give it once"),
        (["--data-source", "dyck", "--nca-seed", "2"], "do not apply to source 'dyck'"),
    ],
)
def test_contradictions_are_refused(argv: list[str], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason):
        resolve_data_source(argv)


@pytest.mark.parametrize(
    ("missing", "installed", "extra"),
    [
        ("torch", (), "megatron"),
        ("megatron", (), "megatron"),
        # megatron-energon has a part of the namespace.
        ("megatron.core", ("megatron",), "megatron"),
        ("megatron.core.extensions", ("megatron",), "megatron"),
        ("transformers.utils", (), "text"),
        ("scipy", (), "study"),
        ("jinja2", (), "study"),
        ("lm_eval", (), "eval"),
        # What is missing of a package that is there, and what is none of an extra's, is shown as it is.
        ("megatron.core.extensions", ("megatron", "megatron.core"), None),
        ("megatron.training", ("megatron", "megatron.core"), None),
        ("nca_plugin.nothing", (), None),
    ],
)
def test_a_package_that_is_missing_is_one_line_with_its_extra(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    missing: str,
    installed: tuple[str, ...],
    extra: str | None,
) -> None:
    spec = ModuleSpec("found", None, origin="__init__.py")
    monkeypatch.setattr(errors, "find_spec", lambda name: spec if name in installed else None)
    with pytest.raises(BaseException) as caught, errors.one_line_errors(of_every_rank=True):
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)
    if extra is None:
        assert isinstance(caught.value, ModuleNotFoundError)
        return
    assert isinstance(caught.value, SystemExit) and caught.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith(f"pip install 'nca-plugin[{extra}]' brings it\n")


@pytest.mark.parametrize(
    ("kind", "rank", "is_printed"),
    [(errors.NCAPluginError, "1", True), (errors.RepeatedError, "0", True), (errors.RepeatedError, "1", False)],
)
def test_what_all_ranks_hear_from_the_first_is_printed_by_it_alone(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[errors.NCAPluginError],
    rank: str,
    is_printed: bool,
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(errors, "SECONDS_FOR_RANK_0", 0)
    with pytest.raises(SystemExit, match="2"), errors.one_line_errors(of_every_rank=True):
        raise kind("other data")
    assert capsys.readouterr().err == ("nca-plugin: error: other data\n" if is_printed else "")


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(("export", "--from", "hf", "circle", "x"), id="import"),
        pytest.param(("export", "--to", "hf", "circle", "x"), id="export"),
        pytest.param(("transfer", "--from", "circle", "--to", "x"), id="transfer"),
        pytest.param(("transfer", "--from", "x", "--to", "circle/x"), id="to"),
        pytest.param(("doctor", "circle"), id="doctor"),
        pytest.param(("prepare", "circle", "--out", "x"), id="prepare"),
        pytest.param(("generate", "iid", "--tokens", "2000", "--workers", "1", "--out", "circle/x"), id="generate"),
    ],
)
def test_a_link_that_leads_to_itself_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: tuple[str, ...]
) -> None:
    (tmp_path / "circle").symlink_to("circle")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["nca-plugin", *call])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err.startswith("nca-plugin: error: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "circle"]
