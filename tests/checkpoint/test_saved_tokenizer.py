"""Checkpoints that hold the tokenizer of their run, as Megatron-Bridge and Megatron-LM from 0.20 on save it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from places import CHECKPOINTS

from nca_plugin.checkpoint.folders import find_checkpoint
from nca_plugin.checkpoint.opened import open_checkpoint
from nca_plugin.checkpoint.saves import mend_saves, newest_save
from nca_plugin.checkpoint.tracker import TRACKER
from nca_plugin.commands.app import app
from nca_plugin.transition.transfer import transfer

DATA = CHECKPOINTS


def add_tokenizer(iteration: Path) -> Path:
    folder = iteration / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.fixture(params=["core016", "bridge"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A save folder of one iteration, without a tokenizer."""
    shutil.copytree(find_checkpoint(DATA / request.param), tmp_path / "saved" / "iter_0000004")
    (tmp_path / "saved" / TRACKER).write_text("4")
    return tmp_path / "saved"


def test_a_transition_leaves_it_behind_and_says_so(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    tokenizer = add_tokenizer(saved / "iter_0000004")

    def started(name: str, *options: str) -> str:
        app(["transfer", "--from", str(saved), "--to", str(tmp_path / name), *options], standalone_mode=False)
        return str(capsys.readouterr().out)

    line = f"The finished run's tokenizer is left behind: {tokenizer}."
    assert line in started("unwritten", "--dry-run").splitlines()
    for layout in ("link", "copy"):
        assert line in started(layout, "--layout", layout).splitlines()
        report = json.loads((tmp_path / layout / "transfer_report.json").read_text())
        assert report["tokenizer_left_behind"] == str(tokenizer)
        assert not list((tmp_path / layout).rglob("*tokenizer*"))
    assert open_checkpoint(saved).embedding_rows is not None


def test_without_one_nothing_is_said(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    # Megatron's NullTokenizer, which a source has, leaves the folder empty.
    (saved / "iter_0000004" / "tokenizer").mkdir()
    app(["transfer", "--from", str(saved), "--to", str(tmp_path / "start")], standalone_mode=False)
    assert "tokenizer" not in capsys.readouterr().out
    assert json.loads((tmp_path / "start" / "transfer_report.json").read_text())["tokenizer_left_behind"] is None


def test_a_transition_may_begin_before_it_is_saved(saved: Path, tmp_path: Path) -> None:
    """Megatron names the iteration in the tracker file first."""

    def write(name: str, size: int) -> Callable[[int], None]:
        if not (saved / "iter_0000004" / "tokenizer").exists():
            add_tokenizer(saved / "iter_0000004")
        return lambda steps: None

    assert transfer(saved, tmp_path / "start", start_stage=write)["tokenizer_left_behind"] is None
    assert (tmp_path / "start").is_dir()


def test_what_a_killed_run_left_is_mended(saved: Path) -> None:
    kept = add_tokenizer(saved / "iter_0000004")
    unfinished = saved / "iter_0000008"
    shutil.copytree(saved / "iter_0000004", unfinished)
    for name in (".metadata", "metadata.json"):
        (unfinished / name).unlink()
    newest, damage = newest_save(saved)
    assert newest is not None and newest.folder == kept.parent and damage is None
    assert mend_saves(saved, 4, damage) == [f"removed {unfinished}, an unfinished save"]
    assert kept.is_dir() and not unfinished.exists()
