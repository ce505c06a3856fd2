"""Checkpoints made of links, as hubs and stores make them; what a transition writes beside them, and what it prints."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import digests
from places import CHECKPOINTS

from nca_plugin.checkpoint.embedding_rows import check_embedding_rows
from nca_plugin.checkpoint.folders import find_checkpoint
from nca_plugin.checkpoint.names import parameter
from nca_plugin.checkpoint.opened import open_checkpoint, read_checkpoint
from nca_plugin.checkpoint.saves import mend_saves, newest_save
from nca_plugin.checkpoint.tracker import RELEASE, TRACKER
from nca_plugin.commands.app import app
from nca_plugin.errors import NCAPluginError
from nca_plugin.transition.changes import Transition
from nca_plugin.transition.start import context_files
from nca_plugin.transition.transfer import transfer

DATA = CHECKPOINTS
EMBEDDING = "embedding.word_embeddings.weight"


def save_folder(kind: str, folder: Path) -> Path:
    """Return a checkpoint as its stack saves it: with a tracker file, or NeMo's two folders."""
    if kind != "core016":
        shutil.copytree(DATA / kind, folder)
        return folder
    shutil.copytree(DATA / kind, folder / "iter_0000004")
    (folder / TRACKER).write_text("4")
    return folder


def each_file(folder: Path) -> None:
    """Put every file into a store of blobs, and a link in its place."""
    store = folder.with_name("store")
    store.mkdir()
    for number, path in enumerate([path for path in folder.rglob("*") if path.is_file()]):
        path.rename(store / f"blob{number}")
        path.symlink_to(os.path.relpath(store / f"blob{number}", path.parent))


def each_folder(folder: Path) -> None:
    store = folder.with_name("store")
    store.mkdir()
    for number, path in enumerate([path for path in folder.iterdir() if path.is_dir()]):
        path.rename(store / f"folder{number}")
        path.symlink_to(store / f"folder{number}")


def the_whole(folder: Path) -> None:
    folder.rename(folder.with_name("store"))
    folder.symlink_to(folder.with_name("store"))


@pytest.mark.parametrize("kind", ["core016", "bridge", "nemo2"])
@pytest.mark.parametrize("link", [each_file, each_folder, the_whole])
@pytest.mark.parametrize("layout", ["link", "copy"])
def test_what_is_made_of_links_is_read_and_never_written(
    tmp_path: Path, kind: str, link: Callable[[Path], None], layout: str
) -> None:
    plain, linked = (save_folder(kind, tmp_path / name / "saved") for name in ("plain", "linked"))
    link(linked)
    before = digests(linked.with_name("store"))
    options = Transition(vocab_size=96, tensor_model_parallel_size=1, layout=layout, reinit=["mlp[0:1]"])
    for source in (plain, linked):
        report = transfer(source, source.with_name("start"), options)
        assert report["layout"] == layout, report["why_copied"]
    assert digests(linked.with_name("store")) == before
    one, other = (read_checkpoint(source.with_name("start")) for source in (plain, linked))
    assert one.names == other.names
    assert all(np.array_equal(one.tensor(name), other.tensor(name)) for name in one.tensors)
    start = linked.with_name("start")
    assert not any(path.is_symlink() for path in start.rglob("*"))
    shared = {path.name for path in start.rglob("*") if path.is_file() and path.stat().st_nlink > 1}
    assert shared == set(report["linked_files"]) and bool(shared) == (layout == "link")


@pytest.mark.parametrize("name", ["model.yaml", "io.json"])
def test_a_link_out_of_a_context_is_not_written_through(tmp_path: Path, name: str) -> None:
    source = save_folder("nemo2", tmp_path / "nemo")
    outside = tmp_path / "outside"
    (source / "context" / name).rename(outside)
    (source / "context" / name).symlink_to(outside)
    outside.chmod(0o444)
    before = outside.read_bytes()
    transfer(source, tmp_path / "start", Transition(vocab_size=96))
    assert outside.read_bytes() == before
    written = tmp_path / "start" / "context" / name
    assert written.read_bytes() != before and os.access(written, os.W_OK)


def dangling(context: Path) -> None:
    (context / "more").symlink_to("nowhere")


def circle(context: Path) -> None:
    (context / "more").symlink_to(".")


def circle_of_two(context: Path) -> None:
    (context / "more").mkdir()
    (context / "more/again").symlink_to("..")


def pipe(context: Path) -> None:
    os.mkfifo(context / "more")


def many(context: Path) -> None:
    """Each folder holds ten links to the next one: more files than there are atoms."""
    for level in range(30):
        (context / f"f{level}").mkdir()
        for number in range(10):
            (context / f"f{level}/{number}").symlink_to(f"../f{level + 1}")
    (context / "f30").mkdir()
    (context / "f30/file").touch()


def many_folders(context: Path) -> None:
    """Without a file: each folder holds two links to the one before it."""
    (context / "f0").mkdir()
    for level in range(1, 31):
        (context / f"f{level}").mkdir()
        for number in range(2):
            (context / f"f{level}/{number}").symlink_to(f"../f{level - 1}")


@pytest.mark.parametrize(
    ("add", "reason"),
    [
        (dangling, "more is a symbolic link to nowhere, which is not there"),
        (circle, "more is a symbolic link to a folder that it lies in"),
        (circle_of_two, "again is a symbolic link to a folder that it lies in"),
        (pipe, "more is no file"),
        (many, "holds more than 10,000 files and folders"),
        (many_folders, "holds more than 10,000 files and folders"),
    ],
)
def test_a_context_that_cannot_be_copied_is_refused(tmp_path: Path, add: Callable[[Path], None], reason: str) -> None:
    source = save_folder("nemo2", tmp_path / "nemo")
    add(source / "context")
    with pytest.raises(NCAPluginError, match=reason):
        transfer(source, tmp_path / "start", Transition(vocab_size=96))
    assert list(tmp_path.iterdir()) == [source]


def test_an_unfinished_save_that_is_a_link_is_taken_away_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    folder = save_folder("core016", tmp_path / "saved")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/precious").write_text("x")
    (folder / "iter_0000009").symlink_to(tmp_path / "other")
    checkpoint, damage = newest_save(folder)
    assert checkpoint is not None and damage is None
    assert "unfinished" in mend_saves(folder, 4, damage)[0]
    assert (tmp_path / "other/precious").exists() and not (folder / "iter_0000009").is_symlink()


@pytest.mark.parametrize("target", ["saved/start", "saved/iter_0000004/start", "link/start", "saved/a/b/start"])
def test_nothing_is_written_into_the_source(tmp_path: Path, target: str) -> None:
    source = save_folder("core016", tmp_path / "saved")
    (tmp_path / "link").symlink_to(source)
    before = digests(source)
    with pytest.raises(NCAPluginError, match=r"lies within .*, which is only read"):
        transfer(source, tmp_path / target)
    assert digests(source) == before


@pytest.mark.parametrize("kind", ["core016", "nemo2"])
@pytest.mark.parametrize("link", [each_folder, the_whole])
@pytest.mark.parametrize("target", ["store/start", "store/below/start", "store/new/start", "nope/../saved/start"])
def test_nothing_is_written_into_what_the_source_only_links(
    tmp_path: Path, kind: str, link: Callable[[Path], None], target: str
) -> None:
    source = save_folder(kind, tmp_path / "saved")
    link(source)
    below = tmp_path / "store/below"
    below.mkdir()
    if link is each_folder:
        # What is linked are the folders of the store, not the store.
        target = target.replace("store/", "store/folder0/")
    before = digests(tmp_path)
    with pytest.raises(NCAPluginError, match=r"lies within .*, which is only read|nope does not exist"):
        transfer(source, tmp_path / target)
    assert digests(tmp_path) == before and not (tmp_path / "nope").exists() and not list(below.iterdir())
    # Beside it, beside a file that it links, and in a folder that holds the source too, there is room.
    (source / "more").symlink_to("../file") if not source.is_symlink() else None
    (tmp_path / "file").touch()
    transfer(source, tmp_path / "start")


def test_no_file_is_kept_for_what_holds_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_folder("bridge", tmp_path / "saved")
    report = transfer(source, tmp_path / "fresh", Transition(preset="scratch"))
    assert report["linked_files"] == [] and report["held_bytes"] == 0
    app(["transfer", "--from", str(source), "--to", str(tmp_path / "start")], standalone_mode=False)
    report = json.loads((tmp_path / "start/transfer_report.json").read_text())
    written = [path.stat() for path in (tmp_path / "start").rglob("*") if path.is_file()]
    linked = sum(status.st_size for status in written if status.st_nlink > 1)
    start = read_checkpoint(tmp_path / "start")
    used = [block.source for tensor in start.tensors.values() for block in tensor.blocks]
    names = set(report["linked_files"])
    assert report["held_bytes"] == linked - sum(item.length for item in used if item.file.name in names) > 0
    assert "on the disk that only the finished run needs" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "  ", "12", "1", "iter"])
def test_a_tracker_that_is_written_at_this_moment_is_asked_again(tmp_path: Path, content: str) -> None:
    folder = save_folder("core016", tmp_path / "saved")
    (folder / TRACKER).write_text(content)

    def save() -> None:
        time.sleep(0.2)
        (folder / TRACKER).write_text("4")

    run = threading.Thread(target=save)
    run.start()
    try:
        assert find_checkpoint(folder).name == "iter_0000004"
    finally:
        run.join()
    checkpoint, damage = newest_save(folder)
    assert checkpoint is not None and damage is None


@pytest.mark.parametrize("around", ["{}\r\n", "{}\t", " {}", "{}\0\0", "{}\n\0\0", "\0 {} \n"])
@pytest.mark.parametrize(("named", "folder"), [("4", "iter_0000004"), (RELEASE, RELEASE)])
def test_a_tracker_may_have_space_around_what_it_names(tmp_path: Path, around: str, named: str, folder: str) -> None:
    (tmp_path / folder).mkdir()
    (tmp_path / TRACKER).write_bytes(around.format(named).encode())
    assert find_checkpoint(tmp_path) == tmp_path / folder


def test_a_folder_that_the_system_cannot_look_up_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(NCAPluginError, match=r"cannot be read: .*name too long"):
        find_checkpoint(tmp_path / ("x" * 300))


@pytest.mark.parametrize(("content", "reason"), [("", "is empty"), ("9", "names iter_0000009"), ("x\ny", "holds 'x")])
def test_a_tracker_that_stays_wrong_is_refused_soon(tmp_path: Path, content: str, reason: str) -> None:
    folder = save_folder("core016", tmp_path / "saved")
    (folder / TRACKER).write_text(content)
    began = time.monotonic()
    with pytest.raises(NCAPluginError, match=reason):
        find_checkpoint(folder)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("options", [["mlp[0]"], ["norm[1:]"], ["attention.qkv[0:1]"], ["mlp", "norm[0]"]])
def test_some_layers_of_a_tensor_that_holds_all_are_not_dropped(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(NCAPluginError, match="holds all layers of the model, of which none can be left out alone"):
        transfer(DATA / "core016", tmp_path / "start", Transition(drop=options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("selector", "lost"),
    [("all", "every layer"), ("re:.*", "the word embedding"), ("embedding", "the word embedding")],
)
def test_a_model_is_left(tmp_path: Path, selector: str, lost: str) -> None:
    with pytest.raises(NCAPluginError, match=f"leaves out {lost}"):
        transfer(DATA / "core016", tmp_path / "start", Transition(drop=[selector]))


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    app(["transfer", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_what_is_printed_does_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a folder"
    lines = printed(
        ["--from", str(DATA / "core016"), "--to", str(target), "--freeze", "mlp", "--drop", "output"], capsys
    ).splitlines()
    command = next(line for line in lines if line.startswith("Start the next stage with "))
    arguments = shlex.split(command.removeprefix("Start the next stage with "))
    assert arguments == ["--pretrained-checkpoint", str(target), "--freeze-list", str(target / "freeze.txt")]
    assert (target / "freeze.txt").read_text() == "mlp\n"
    assert "The next stage's model must do without what was left out: output." in lines
    for kind in ("bridge", "nemo2"):
        out = printed(["--from", str(DATA / kind), "--to", str(tmp_path / kind), "--freeze", "mlp"], capsys)
        assert "Nothing is frozen by that alone" in out


def letters_flipped(name: str) -> list[str]:
    return [f"{name[:at]}{chr(ord(letter) ^ 1)}{name[at + 1 :]}" for at, letter in enumerate(name) if letter.isalpha()]


@pytest.mark.parametrize("kind", ["core016", "bridge", "nemo2"])
def test_a_name_with_a_letter_flipped_is_no_name(kind: str) -> None:
    names = [name for name in read_checkpoint(DATA / kind).names if parameter(name).role != "run"]
    known = [flip for name in names for flip in letters_flipped(name) if parameter(flip).role != "unknown"]
    # What is another word beside the names: a query of its own for the fused one, NeMo's prefix.
    assert known == []


@pytest.mark.parametrize(
    ("ranks", "vocab_size", "way_out"),
    [(1, 50, "set --padded-vocab-size 64 if only the padding"), (3, 50, "make it fit"), (1, 200, "make it fit")],
)
def test_another_padding_has_a_way_out_that_loses_nothing(ranks: int, vocab_size: int, way_out: str) -> None:
    rows = read_checkpoint(DATA / "core016").tensors[EMBEDDING].shape[0]
    assert rows == 64
    with pytest.raises(NCAPluginError, match=f"has 64 embedding rows, the run has 1024: {way_out}"):
        check_embedding_rows(open_checkpoint(DATA / "core016"), 1024, vocab_size, ranks)


_WITHOUT = """
import sys
for name in ("numba", "torch"):
    sys.modules[name] = None
from nca_plugin.commands.app import main
main()
"""


def test_a_transition_needs_neither_numba_nor_torch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WITHOUT, "transfer", "--from", DATA / "core016", "--to", tmp_path / "start"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": "/proc/nowhere"}
    done = subprocess.run(
        list(map(str, [*command, "--preset", "scratch"])), env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert read_checkpoint(tmp_path / "start").names


def test_a_context_is_copied_as_it_is(tmp_path: Path) -> None:
    source = save_folder("nemo2", tmp_path / "nemo")
    (source / "context/nested").mkdir()
    (source / "context/nested/file").write_text("x")
    assert Path("nested/file") in context_files(read_checkpoint(source))
    transfer(source, tmp_path / "start")
    assert (tmp_path / "start/context/nested/file").read_text() == "x"
