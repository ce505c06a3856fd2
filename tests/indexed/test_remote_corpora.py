"""Datasets on any file system that fsspec knows: here its own, in memory."""

import tempfile
from pathlib import Path

import fsspec
import pytest
from corpora import BLOCK, SUFFIXES, contents, write

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.draft import locked
from nca_plugin.indexed.merge import find_parts, merge, part_name
from nca_plugin.indexed.storage import staging_prefix
from nca_plugin.indexed.verify import verify


@pytest.fixture(autouse=True)
def empty_memory() -> None:
    fsspec.filesystem("memory").store.clear()


def test_write_verify_and_merge(tmp_path: Path) -> None:
    write(tmp_path / "local", documents=2 * BLOCK)
    write("memory://bucket/whole", documents=2 * BLOCK)
    for number in (2, 1):
        write(part_name("memory://bucket/deep/corpus", number, 2), documents=2 * BLOCK, shard=(number, 2))
    merge(find_parts("memory://bucket/deep/corpus"), "memory://bucket/deep/corpus")
    memory = fsspec.filesystem("memory")
    for suffix, data in contents(tmp_path / "local").items():
        assert memory.cat(f"/bucket/whole{suffix}") == memory.cat(f"/bucket/deep/corpus{suffix}") == data
    assert len(memory.find("/")) == 4 * 4
    assert verify("memory://bucket/whole", 3) == []
    memory.pipe("/bucket/whole.bin", b"altered")
    assert "memory://bucket/whole.bin has 7 bytes, not" in verify("memory://bucket/whole", 0)[0]


def test_what_is_complete_is_left_alone_and_what_is_other_is_refused() -> None:
    write("memory://corpus")
    memory = fsspec.filesystem("memory")
    created = memory.created("/corpus.bin")
    write("memory://corpus")
    assert memory.created("/corpus.bin") == created
    with pytest.raises(NCAPluginError, match=r"memory://corpus.json describes another dataset"):
        write("memory://corpus", "iid")


def test_an_upload_that_fails_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is generated anew, and the manifest appears last."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "staging"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "staging").mkdir()
    memory = fsspec.filesystem("memory")
    open_file = type(memory).open

    def failing(self: object, path: str, *args: object, **kwargs: object) -> object:
        if path.endswith(".idx.partial"):
            raise OSError("connection\nlost")
        return open_file(self, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "open", failing)
        with pytest.raises(NCAPluginError, match="cannot use memory://corpus: connection lost"):
            write("memory://corpus")
    assert sorted(memory.find("/")) == ["/corpus.bin", "/corpus.next"]
    write(tmp_path / "local")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", lambda *_: pytest.fail("written anew"))
        write("memory://corpus")
    assert memory.cat("/corpus.json") == (tmp_path / "local.json").read_bytes()
    assert not list((tmp_path / "staging").rglob("corpus*"))


def test_the_files_of_others_are_left_alone() -> None:
    memory = fsspec.filesystem("memory")
    for suffix in SUFFIXES:
        memory.store.clear()
        memory.pipe(f"/corpus{suffix}", b"mine")
        with pytest.raises(NCAPluginError, match=r"exists already|is not the manifest of a dataset"):
            write("memory://corpus")
        assert memory.find("/") == [f"/corpus{suffix}"] and memory.cat(f"/corpus{suffix}") == b"mine"


def test_a_second_writer_on_this_machine_is_refused() -> None:
    staged = staging_prefix("memory://corpus")
    with (
        locked(staged.parent.with_suffix(".lock"), "memory://corpus"),
        pytest.raises(NCAPluginError, match="memory://corpus is being written by another process"),
    ):
        write("memory://corpus")


def test_megatron_is_not_given_a_dataset_in_object_storage() -> None:
    from nca_plugin.megatron.dataset_provider import _is_dataset_in_object_storage

    assert not _is_dataset_in_object_storage("memory://corpus")
    write("memory://corpus")
    assert _is_dataset_in_object_storage("memory://corpus")


def test_a_driver_that_is_missing_is_named() -> None:
    with pytest.raises(NCAPluginError, match=r"cannot open nothing://bucket/corpus"):
        write("nothing://bucket/corpus")
