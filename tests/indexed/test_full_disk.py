"""A disk without room, before the work and in the middle of it."""

import errno
import os
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest
from corpora import BLOCK, GENERATE, SUFFIXES, contents, wait_for_blocks, write
from small_disks import small_disk

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.merge import merge


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    uri, documents = "nca://toy", 12 * BLOCK
    write(tmp_path / "undisturbed", uri, documents=documents, workers=2)
    expected = contents(tmp_path / "undisturbed")
    with small_disk(tmp_path / "disk", 32 << 20) as disk:
        prefix = disk / "corpus"
        command = [*GENERATE, uri, "--tokens", str(documents * 1024), "--out", str(prefix), "--workers", "2"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_for_blocks(prefix)
        (disk / "other").write_bytes(bytes((32 << 20) - (9 << 20)))
        errors = process.communicate()[1]
        assert process.returncode == 2
        lines = [line for line in errors.splitlines() if line]
        assert lines[-1].startswith(f"nca-plugin: error: cannot write {prefix}: No space left on device; put")
        assert "Traceback" not in errors
        assert not any(Path(f"{prefix}{suffix}").exists() for suffix in SUFFIXES)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2 and " MB more" in done.stderr and "make room" in done.stderr
        (disk / "other").unlink()
        subprocess.run(command, check=True)
        assert contents(prefix) == expected


def test_a_merge_on_a_disk_that_fills_up(
    tmp_path: Path, three_blocks: dict[str, bytes], three_parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, writes = os.pwrite, iter(range(100))

    def failing(*arguments: Any) -> int:
        if next(writes) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(NCAPluginError, match=r"cannot write .*merged: No space left on device; put that right"):
            merge(three_parts, str(tmp_path / "merged"))
    merge(three_parts, str(tmp_path / "merged"))
    assert contents(tmp_path / "merged") == three_blocks


def test_what_is_left_without_a_journal_makes_room(tmp_path: Path, three_blocks: dict[str, bytes]) -> None:
    with small_disk(tmp_path / "disk", 9 << 20) as disk:
        (disk / "corpus.bin.partial").write_bytes(bytes(8 << 20))
        write(disk / "corpus", documents=3 * BLOCK)
        assert contents(disk / "corpus") == three_blocks


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        with pytest.raises(NCAPluginError, match=r"needs [\d.]+ MB more, .* has 4.19 MB free: make room"):
            write(disk / "corpus", documents=3 * BLOCK)
        assert not list(disk.iterdir())


def test_a_file_that_may_not_grow(tmp_path: Path, three_blocks: dict[str, bytes]) -> None:
    """A quota, as far as every machine can play one."""
    prefix = tmp_path / "corpus"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(NCAPluginError, match=r"cannot write .*corpus: File too large; put that right"):
            write(prefix, documents=3 * BLOCK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    write(prefix, documents=3 * BLOCK)
    assert contents(prefix) == three_blocks
