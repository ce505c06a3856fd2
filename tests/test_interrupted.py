"""A writer killed at any moment: nothing under a final name is ever incomplete, and the same command ends with the
same bytes."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from corpora import BLOCK, SUFFIXES, contents, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.draft import BlockWriter, Draft, WrittenBlock
from nca_plugin.indexed.generate import generate
from nca_plugin.indexed.manifest import CorpusSpec, Manifest, Origin, Part
from nca_plugin.indexed.merge import merge
from nca_plugin.indexed.verify import verify
from nca_plugin.indexed.workers import block_arrays
from nca_plugin.indexed.write import write_corpus
from nca_plugin.progress import silent_stage
from nca_plugin.sources import parse

COMMAND = (sys.executable, "-c", "from nca_plugin.cli import main; main()", "generate")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    prefix = tmp_path_factory.mktemp("expected") / "corpus"
    write(prefix, documents=3 * BLOCK)
    return contents(prefix)


def assert_complete_or_absent(prefix: Path, expected: dict[str, bytes]) -> None:
    for suffix in SUFFIXES:
        path = Path(f"{prefix}{suffix}")
        assert not path.exists() or path.read_bytes() == expected[suffix]


def wait_for_blocks(prefix: Path) -> None:
    """Return when a process has written two blocks."""
    journal = Path(f"{prefix}.journal")
    end = time.monotonic() + 60
    while not journal.exists() or len(journal.read_text().splitlines()) < 3:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    uri, documents = "nca://toy?seed=5", 12 * BLOCK
    write(tmp_path / "undisturbed", uri, documents=documents, workers=2)
    expected = contents(tmp_path / "undisturbed")
    prefix = tmp_path / "killed" / "corpus"
    command = [*COMMAND, uri, "--tokens", str(documents * 1024), "--out", str(prefix), "--workers", "2"]
    moments = random.Random(1)
    kills = 0
    while kills < 20:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            # A start takes a second, an undisturbed run two more.
            process.wait(timeout=moments.uniform(0.8, 3.2))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        _, errors = process.communicate()
        assert_complete_or_absent(prefix, expected)
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            assert contents(prefix) == expected
            for path in prefix.parent.iterdir():
                path.unlink()
    subprocess.run(command, check=True)
    assert contents(prefix) == expected
    assert verify(str(prefix), 4) == []


#: What changes a disk, by the names that the code calls them by.
DISK_OPERATIONS = ("pwrite", "fdatasync", "fsync", "rename", "unlink", "ftruncate", "mkdir", "replace")


def killed_at(step: int, action: Callable[[], None]) -> bool:
    """Run `action` in a process that dies before disk operation `step`. Returns whether it died."""
    child = os.fork()
    if child == 0:
        count = 0

        def counted(operation: Callable) -> Callable:
            def call(*args, **kwargs):
                nonlocal count
                if count == step:
                    os._exit(9)
                count += 1
                return operation(*args, **kwargs)

            return call

        for name in DISK_OPERATIONS:
            setattr(os, name, counted(getattr(os, name)))
        try:
            action()
        except BaseException as error:
            print(error, file=sys.stderr)
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What merges to the expected corpus."""
    folder = tmp_path_factory.mktemp("parts")
    for number in (1, 2, 3):
        write(folder / f"part-{number}", documents=3 * BLOCK, shard=(number, 3))
    return [str(folder / f"part-{number}") for number in (1, 2, 3)]


def test_killed_before_every_operation_on_the_disk(
    tmp_path: Path, expected: dict[str, bytes], parts: list[str]
) -> None:
    """Merging writes in one process, with the operations of every corpus."""
    for step in range(100):
        prefix = tmp_path / f"killed-{step}" / "corpus"
        died = killed_at(step, lambda prefix=prefix: merge(parts, str(prefix)))
        if prefix.parent.exists():
            assert_complete_or_absent(prefix, expected)
        merge(parts, str(prefix))
        assert contents(prefix) == expected
        if not died:
            break
    assert 20 < step < 99


def test_killed_again_and_again(tmp_path: Path, expected: dict[str, bytes], parts: list[str]) -> None:
    """Each time a few operations further than the last."""
    prefix = tmp_path / "killed" / "corpus"
    step = 3
    while killed_at(step, lambda: merge(parts, str(prefix))):
        assert_complete_or_absent(prefix, expected)
        step += 1
    assert contents(prefix) == expected


def test_a_block_enters_the_journal_when_it_is_on_the_disk(
    tmp_path: Path, expected: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut needs: the data before the journal, every file before its final name."""
    unsynchronised: set[str] = set()
    journalled = renamed = 0
    pwrite, fdatasync, fsync, rename = os.pwrite, os.fdatasync, os.fsync, os.rename

    def name(descriptor: int) -> str:
        return Path(f"/proc/self/fd/{descriptor}").readlink().name

    def checked_pwrite(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal journalled
        if name(descriptor) == "corpus.journal":
            assert not unsynchronised
            journalled += 1
        unsynchronised.add(name(descriptor))
        return pwrite(descriptor, data, offset)

    def checked_sync(sync: Callable[[int], None]) -> Callable[[int], None]:
        return lambda descriptor: (sync(descriptor), unsynchronised.discard(name(descriptor)))[0]

    def checked_rename(source: Path, target: Path) -> None:
        nonlocal renamed
        assert not unsynchronised
        unsynchronised.add(Path(target).parent.name)
        renamed += 1
        rename(source, target)

    monkeypatch.setattr(os, "pwrite", checked_pwrite)
    monkeypatch.setattr(os, "fdatasync", checked_sync(fdatasync))
    monkeypatch.setattr(os, "fsync", checked_sync(fsync))
    monkeypatch.setattr(os, "rename", checked_rename)
    assert write_here(tmp_path / "corpus") is not None
    assert contents(tmp_path / "corpus") == expected
    # The settings and each of three blocks; the four files.
    assert (journalled, renamed) == (4, 4) and not unsynchronised


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up(tmp_path: Path) -> None:
    uri, documents = "nca://toy", 12 * BLOCK
    write(tmp_path / "undisturbed", uri, documents=documents, workers=2)
    expected = contents(tmp_path / "undisturbed")
    with small_disk(tmp_path / "disk", 32 << 20) as disk:
        prefix = disk / "corpus"
        command = [*COMMAND, uri, "--tokens", str(documents * 1024), "--out", str(prefix), "--workers", "2"]
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
        assert done.returncode == 2 and "GB more" in done.stderr and "make room" in done.stderr
        (disk / "other").unlink()
        subprocess.run(command, check=True)
        assert contents(prefix) == expected


def test_a_merge_on_a_disk_that_fills_up(
    tmp_path: Path, expected: dict[str, bytes], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, writes = os.pwrite, iter(range(100))

    def failing(*arguments: Any) -> int:
        if next(writes) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(NCAPluginError, match=r"cannot write .*merged: No space left on device; put that right"):
            merge(parts, str(tmp_path / "merged"))
    merge(parts, str(tmp_path / "merged"))
    assert contents(tmp_path / "merged") == expected


def test_what_is_left_without_a_journal_makes_room(tmp_path: Path, expected: dict[str, bytes]) -> None:
    with small_disk(tmp_path / "disk", 9 << 20) as disk:
        (disk / "corpus.bin.partial").write_bytes(bytes(8 << 20))
        write(disk / "corpus", documents=3 * BLOCK)
        assert contents(disk / "corpus") == expected


def test_a_disk_that_is_too_small_is_refused_before_the_work(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        with pytest.raises(NCAPluginError, match=r"needs 0.\d+ GB more, .* has 0.\d+ GB free: make room"):
            write(disk / "corpus", documents=3 * BLOCK)
        assert not list(disk.iterdir())


def test_a_file_that_may_not_grow(tmp_path: Path, expected: dict[str, bytes]) -> None:
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
    assert contents(prefix) == expected


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """The prefix of a corpus whose writer was killed after the first and the last of its three blocks."""
    prefix = tmp_path / "unfinished" / "corpus"
    source = parse("copy")
    part = Part.shard(CorpusSpec.from_source(source, 3 * BLOCK * 1024, 1024), 1, 1)
    with Draft(prefix, part, Origin.here(), silent_stage) as draft:
        draft.commit([draft.writer.write(block, *block_arrays(source, part, block)) for block in (0, 2)])
    return prefix


def test_only_what_is_missing_is_written(unfinished: Path, expected: dict[str, bytes]) -> None:
    stages: list[tuple[str, int]] = []

    def start_stage(name: str, size: int) -> Callable[[int], None]:
        stages.append((name, size))
        return lambda steps: None

    def again() -> None:
        generate("copy", str(unfinished), num_tokens=3 << 20, seq_length=1024, num_workers=1, start_stage=start_stage)

    again()
    assert stages == [("checking what is there", 2 << 20), ("writing", 1 << 20)]
    assert contents(unfinished) == expected
    again()
    assert len(stages) == 2
    assert contents(unfinished) == expected


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_unfinished_corpus_that_was_altered_is_repaired_or_refused(
    tmp_path_factory: pytest.TempPathFactory, unfinished: Path, expected: dict[str, bytes], data: st.DataObject
) -> None:
    prefix = tmp_path_factory.mktemp("altered") / "corpus"
    for path in unfinished.parent.iterdir():
        shutil.copy(path, prefix.parent)
    path = Path(f"{prefix}{data.draw(st.sampled_from(['.journal', '.bin.partial', '.next.partial']))}")
    content = bytearray(path.read_bytes())
    match data.draw(st.sampled_from(["alter", "cut", "lengthen", "remove"])):
        case "alter":
            content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
            path.write_bytes(content)
        case "cut":
            path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
        case "lengthen":
            path.write_bytes(content + data.draw(st.binary(min_size=1, max_size=9)))
        case "remove":
            path.unlink()
    merged = write_here(prefix)
    assert merged is None or contents(prefix) == expected
    if merged is None:
        assert not any(Path(f"{prefix}{suffix}").exists() for suffix in SUFFIXES)


def write_here(prefix: Path) -> Manifest | None:
    """Write the corpus without other processes. Returns None if that is refused."""
    source = parse("copy")
    part = Part.shard(CorpusSpec.from_source(source, 3 * BLOCK * 1024, 1024), 1, 1)

    def blocks(writer: BlockWriter, missing: list[int]) -> Iterator[list[WrittenBlock]]:
        for block in missing:
            yield [writer.write(block, *block_arrays(source, part, block))]

    try:
        return write_corpus(str(prefix), part, Origin.here(), blocks, silent_stage)
    except NCAPluginError as error:
        assert "\n" not in str(error)
        return None


def test_a_second_writer_is_refused(unfinished: Path, expected: dict[str, bytes]) -> None:
    part = Part.shard(CorpusSpec.from_source(parse("copy"), 3 * BLOCK * 1024, 1024), 1, 1)
    with Draft(unfinished, part, Origin.here(), silent_stage):
        command = [*COMMAND, "copy", "--tokens", str(3 << 20), "--out", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert f"{unfinished} is being written by another process" in done.stderr
    write(unfinished, documents=3 * BLOCK)
    assert contents(unfinished) == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"uri": "copy://?seed=7"}, r"begun with other settings \(uri in .*corpus.journal\)"),
        ({"documents": 2 * BLOCK}, r"\(documents in"),
        ({"documents": 6 * BLOCK, "seq_length": 512}, r"\(seq_length, documents in"),
        ({"shard": (1, 3)}, r"\(documents in"),
    ],
)
def test_other_settings_are_refused(unfinished: Path, arguments: dict, reason: str) -> None:
    before = {path: path.read_bytes() for path in unfinished.parent.iterdir()}
    with pytest.raises(NCAPluginError, match=reason):
        write(unfinished, **{"documents": 3 * BLOCK, **arguments})
    assert {path: path.read_bytes() for path in unfinished.parent.iterdir()} == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_there_is_left_alone(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"corpus{suffix}").write_text("mine")
    with pytest.raises(NCAPluginError, match=r"exists already|is not the manifest of a corpus"):
        write(tmp_path / "corpus")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_complete_corpus_of_other_content_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "corpus")
    before = contents(tmp_path / "corpus")
    with pytest.raises(NCAPluginError, match=r"corpus.json is of another corpus: choose another name"):
        write(tmp_path / "corpus", "iid")
    assert contents(tmp_path / "corpus") == before


def test_a_worker_that_is_killed_ends_the_run_and_the_next_one_continues(tmp_path: Path) -> None:
    prefix = tmp_path / "corpus"
    command = [*COMMAND, "nca://toy", "--tokens", str(12 << 20), "--out", str(prefix), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for_blocks(tmp_path / "corpus")
    workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    workers[0].kill()
    errors = process.communicate()[1]
    assert process.returncode == 2
    assert "ended early (exit code -9" in errors and "Traceback" not in errors
    subprocess.run(command, check=True)
    assert verify(str(prefix), 4) == []


def test_a_worker_that_outlives_its_writer_reaches_no_later_corpus(unfinished: Path) -> None:
    source = parse("copy")
    part = Part.shard(CorpusSpec.from_source(source, 3 * BLOCK * 1024, 1024), 1, 1)
    with Draft(unfinished, part, Origin.here(), silent_stage) as draft:
        orphan = BlockWriter(part, (os.dup(draft.writer.files[0]), os.dup(draft.writer.files[1])))
    Path(f"{unfinished}.journal").unlink()
    write(unfinished, "iid", documents=3 * BLOCK)
    orphan.write(1, *block_arrays(source, part, 1))
    assert verify(str(unfinished), 4) == []


def test_no_worker_outlives_a_killed_writer(tmp_path: Path) -> None:
    command = [*COMMAND, "nca://toy", "--tokens", str(50 << 20), "--out", str(tmp_path / "corpus"), "--workers", "2"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for_blocks(tmp_path / "corpus")
    workers = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert not alive
