"""Nothing can be altered without `verify` telling where."""

import dataclasses
import os
import re
from pathlib import Path

import pytest
from corpora import SUFFIXES, contents, write
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.manifest import MANIFEST_START, Manifest, Shard
from nca_plugin.indexed.merge import merge
from nca_plugin.indexed.source import IndexedSource
from nca_plugin.indexed.verify import verify


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    prefix = tmp_path_factory.mktemp("verify") / "corpus"
    write(prefix, "nca://toy", documents=5, seq_length=128)
    return contents(prefix)


def faults_in(folder: Path, files: dict[str, bytes]) -> list[str]:
    for suffix, data in files.items():
        (folder / f"corpus{suffix}").write_bytes(data)
    try:
        return verify(str(folder / "corpus"), 1)
    except NCAPluginError as error:
        return [str(error)]


@settings(max_examples=300)
@given(data=st.data())
def test_any_altered_byte_is_found_in_its_file(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from(SUFFIXES))
    altered = bytearray(files[suffix])
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= data.draw(st.integers(1, 255))
    faults = faults_in(tmp_path_factory.mktemp("altered"), files | {suffix: bytes(altered)})
    assert faults and f"corpus{suffix}" in faults[0]
    assert all("\n" not in fault for fault in faults)


@settings(max_examples=50)
@given(data=st.data())
def test_a_file_that_ends_early_or_late_is_found(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from(SUFFIXES))
    size = data.draw(st.integers(0, len(files[suffix]) + 9).filter(lambda n: n != len(files[suffix])))
    faults = faults_in(tmp_path_factory.mktemp("cut"), files | {suffix: files[suffix][:size].ljust(size, b"\0")})
    assert faults and f"corpus{suffix}" in faults[0]


@pytest.mark.parametrize(
    ("suffix", "offset", "reason"),
    [
        (".bin", 3, r"corpus.bin is not as it was written in documents 0 \.\. 4 \(bytes 0 \.\. 1,279\)"),
        (".next", 3, r"corpus.next is not as it was written in documents 0 \.\. 4 \(bytes 0 \.\. 9\)"),
        (".idx", 0, "corpus.idx is not an index: it begins with b'L"),
        (".idx", 9, "corpus.idx is wrong from byte 9 on: the version"),
        (".idx", 17, "byte 17 on: the type code"),
        (".idx", 18, "byte 18 on: the number of sequences"),
        (".idx", 26, r"byte 26 on: the number of documents \+ 1"),
        (".idx", 34 + 4, "the length of document 1"),
        (".idx", 34 + 4 * 5 + 8 * 2, "the pointer of document 2"),
        (".idx", 34 + 12 * 5 + 8 * 4, "the first sequence of document 4"),
        (".json", 2, "corpus.json is not the manifest of a dataset"),
        (".json", 70, "corpus.json is damaged"),
        (".json", -3, "corpus.json is damaged"),
    ],
)
def test_where_the_fault_is(tmp_path: Path, files: dict[str, bytes], suffix: str, offset: int, reason: str) -> None:
    altered = bytearray(files[suffix])
    altered[offset] ^= 1
    faults = faults_in(tmp_path, files | {suffix: bytes(altered)})
    assert re.search(reason, faults[0]), faults


def test_what_is_damaged_is_told_without_the_source(tmp_path: Path, files: dict[str, bytes]) -> None:
    manifest = Manifest.from_bytes(files[".json"], "")
    spec = dataclasses.replace(manifest.shard.spec, uri="elsewhere://?seed=1")
    unknown = dataclasses.replace(manifest, shard=Shard(spec, 0, 1)).to_bytes()
    damaged = files | {".bin": b"\x7f" + files[".bin"][1:], ".json": unknown}
    faults = faults_in(tmp_path, damaged)
    assert len(faults) == 2 and "corpus.bin is not as it was written" in faults[0]
    assert "corpus cannot be compared with its source: unknown source 'elsewhere'" in faults[1]
    (tmp_path / "corpus.bin").write_bytes(files[".bin"])
    assert verify(str(tmp_path / "corpus"), 0) == []


def test_files_that_are_no_dataset(tmp_path: Path, files: dict[str, bytes]) -> None:
    with pytest.raises(NCAPluginError, match=r"corpus.json does not exist, nor .*corpus.idx"):
        verify(str(tmp_path / "corpus"), 1)
    (tmp_path / "corpus.journal").touch()
    with pytest.raises(NCAPluginError, match=r"but .*corpus.journal does: the dataset is unfinished"):
        verify(str(tmp_path / "corpus"), 1)
    (tmp_path / "corpus.journal").unlink()
    (tmp_path / "corpus.idx").write_text("not an index")
    with pytest.raises(NCAPluginError, match=r"and .*corpus.idx is not an index"):
        verify(str(tmp_path / "corpus"), 1)
    (tmp_path / "corpus.idx").write_bytes(files[".idx"])
    with pytest.raises(NCAPluginError, match=r"and .*corpus.idx is an index of other origin"):
        verify(str(tmp_path / "corpus"), 1)
    (tmp_path / "corpus.json").write_text('{"rows": []}')
    with pytest.raises(NCAPluginError, match="is not the manifest of a dataset"):
        verify(str(tmp_path / "corpus"), 1)


def test_another_source_behind_the_same_files_is_found(tmp_path: Path, files: dict[str, bytes]) -> None:
    """A manifest that was made to fit: only generating anew can tell."""
    manifest = Manifest.from_bytes(files[".json"], "")
    spec = manifest.shard.spec
    forged = dataclasses.replace(spec, uri=spec.uri.replace("seed=1234", "seed=1"))
    data = dataclasses.replace(manifest, shard=Shard(forged, 0, 1))
    faults = faults_in(tmp_path, files | {".json": data.to_bytes()})
    assert len(faults) == 1 and "document 0 is not sample 0 of nca://toy?seed=1" in faults[0]


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"null", MANIFEST_START, MANIFEST_START + b"[" * 10**6, MANIFEST_START + b'"a":' + b"9" * 10**5),
        *(b"\xff" * 99, b"\0" * 10**6, MANIFEST_START + b'"format_version": {}}', MANIFEST_START + b'"uri": 1}'),
    ],
)
def test_what_is_no_manifest_is_told_in_one_line(tmp_path: Path, files: dict[str, bytes], content: bytes) -> None:
    (fault,) = faults_in(tmp_path, files | {".json": content})
    assert "corpus.json is" in fault and "\n" not in fault and len(fault) < 300
    for refused in (merge, lambda parts, _: IndexedSource(parts[0])):
        with pytest.raises(NCAPluginError, match=r"corpus\.json is"):
            refused([str(tmp_path / "corpus")], str(tmp_path / "out"))


def test_a_manifest_larger_than_memory_is_not_read(tmp_path: Path, files: dict[str, bytes]) -> None:
    for suffix, data in files.items():
        (tmp_path / f"corpus{suffix}").write_bytes(data)
    (tmp_path / "corpus.json").write_bytes(b"x")
    os.truncate(tmp_path / "corpus.json", 1 << 40)
    with pytest.raises(NCAPluginError, match="is not the manifest"):
        verify(str(tmp_path / "corpus"), 1)
