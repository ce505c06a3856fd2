"""What an unfinished dataset is continued from, and what is refused in its place."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from corpora import BLOCK, GENERATE, SUFFIXES, contents, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nca_plugin.display.progress import silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.draft import BlockWriter, Draft, WrittenBlock
from nca_plugin.indexed.generate import generate
from nca_plugin.indexed.manifest import DatasetSpec, Manifest, Origin, Shard
from nca_plugin.indexed.verify import verify
from nca_plugin.indexed.workers import block_arrays
from nca_plugin.indexed.write import write_dataset
from nca_plugin.sources import Source, parse


def three_blocks_of(source: Source) -> Shard:
    return Shard.numbered(DatasetSpec.from_source(source, 3 * BLOCK * 1024, 1024), 1, 1)


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """The prefix of a dataset whose writer was killed after the first and the last of its three blocks."""
    prefix = tmp_path / "unfinished" / "corpus"
    source = parse("copy")
    part = three_blocks_of(source)
    with Draft(prefix, part, Origin.here(), silent_stage) as draft:
        draft.commit([draft.writer.write(block, *block_arrays(source, part, block)) for block in (0, 2)])
    return prefix


def write_here(prefix: Path) -> Manifest | None:
    """Write the dataset without other processes. Returns None if that is refused."""
    source = parse("copy")
    part = three_blocks_of(source)

    def blocks(writer: BlockWriter, missing: list[int]) -> Iterator[list[WrittenBlock]]:
        for block in missing:
            yield [writer.write(block, *block_arrays(source, part, block))]

    try:
        return write_dataset(str(prefix), part, Origin.here(), blocks, silent_stage)
    except NCAPluginError as error:
        assert "\n" not in str(error)
        return None


def test_only_what_is_missing_is_written(unfinished: Path, three_blocks: dict[str, bytes]) -> None:
    stages: list[tuple[str, int]] = []

    def start_stage(name: str, size: int) -> Callable[[int], None]:
        stages.append((name, size))
        return lambda steps: None

    def again() -> None:
        generate("copy", str(unfinished), num_tokens=3 << 20, seq_length=1024, num_workers=1, start_stage=start_stage)

    again()
    assert stages == [("checking what is there", 2 << 20), ("writing", 1 << 20)]
    assert contents(unfinished) == three_blocks
    again()
    assert len(stages) == 2
    assert contents(unfinished) == three_blocks


def test_a_block_enters_the_journal_when_it_is_on_the_disk(
    tmp_path: Path, three_blocks: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
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
    assert contents(tmp_path / "corpus") == three_blocks
    # The settings and each of three blocks; the four files.
    assert (journalled, renamed) == (4, 4) and not unsynchronised


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_unfinished_dataset_that_was_altered_is_repaired_or_refused(
    tmp_path_factory: pytest.TempPathFactory, unfinished: Path, three_blocks: dict[str, bytes], data: st.DataObject
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
    assert merged is None or contents(prefix) == three_blocks
    if merged is None:
        assert not any(Path(f"{prefix}{suffix}").exists() for suffix in SUFFIXES)


def test_a_second_writer_is_refused(unfinished: Path, three_blocks: dict[str, bytes]) -> None:
    part = three_blocks_of(parse("copy"))
    with Draft(unfinished, part, Origin.here(), silent_stage):
        command = [*GENERATE, "copy", "--tokens", str(3 << 20), "--out", str(unfinished)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert f"{unfinished} is being written by another process" in done.stderr
    write(unfinished, documents=3 * BLOCK)
    assert contents(unfinished) == three_blocks


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
    with pytest.raises(NCAPluginError, match=r"exists already|is not the manifest of a dataset"):
        write(tmp_path / "corpus")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_complete_dataset_of_other_content_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "corpus")
    before = contents(tmp_path / "corpus")
    with pytest.raises(NCAPluginError, match=r"corpus.json describes another dataset: choose another name"):
        write(tmp_path / "corpus", "iid")
    assert contents(tmp_path / "corpus") == before


def test_a_worker_that_outlives_its_writer_reaches_no_later_dataset(unfinished: Path) -> None:
    source = parse("copy")
    part = three_blocks_of(source)
    with Draft(unfinished, part, Origin.here(), silent_stage) as draft:
        orphan = BlockWriter(part, (os.dup(draft.writer.files[0]), os.dup(draft.writer.files[1])))
    Path(f"{unfinished}.journal").unlink()
    write(unfinished, "iid", documents=3 * BLOCK)
    orphan.write(1, *block_arrays(source, part, 1))
    assert verify(str(unfinished), 4) == []
