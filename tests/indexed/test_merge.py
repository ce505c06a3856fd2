"""Parts of a dataset are joined, or refused with what is wrong."""

import itertools
import shutil
from pathlib import Path

import pytest
from corpora import BLOCK, SUFFIXES, write

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.merge import merge


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ([], "no parts to merge"),
        ([0, 1], r"documents 2,048 \.\. 3,071 of 3,072 are in no part"),
        ([1, 2], r"documents 0 \.\. 1,023 of 3,072 are in no part"),
        ([0, 2], r"documents 1,024 \.\. 2,047 of 3,072 are in no part"),
    ],
)
def test_a_missing_part_is_named(tmp_path: Path, three_parts: list[str], chosen: list[int], reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason):
        merge([three_parts[i] for i in chosen], str(tmp_path / "merged"))
    assert not list(tmp_path.iterdir())


def test_overlapping_parts_are_named(tmp_path: Path, three_parts: list[str]) -> None:
    write(tmp_path / "half", documents=3 * BLOCK, shard=(2, 2))
    with pytest.raises(NCAPluginError, match=r"documents 1,024 \.\. 2,047 of 3,072 are in both .*part-2 and .*half: l"):
        merge([*three_parts, str(tmp_path / "half")], str(tmp_path / "merged"))


def test_a_part_that_is_named_twice_is_refused_however_it_is_spelt(
    tmp_path: Path, three_parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = Path(three_parts[0]).parent, Path(three_parts[0]).name
    monkeypatch.chdir(folder)
    (tmp_path / "folder").symlink_to(folder)
    for suffix in SUFFIXES:
        (tmp_path / f"link{suffix}").symlink_to(f"{three_parts[0]}{suffix}")
        shutil.copyfile(f"{three_parts[0]}{suffix}", tmp_path / f"copy{suffix}")
    for again in (three_parts[0], name, f"./{name}", f"{tmp_path}/folder/{name}", f"{tmp_path}/link"):
        with pytest.raises(NCAPluginError, match=r"^part .* is named (twice|as .* too): name each part once"):
            merge([*three_parts, again], str(tmp_path / "merged"))
        # One dataset as a part of itself, whole, and twice.
        with pytest.raises(NCAPluginError, match="is also named as a part"):
            merge([again], three_parts[0])
    with pytest.raises(NCAPluginError, match="are in both"):
        merge([*three_parts, str(tmp_path / "copy")], str(tmp_path / "merged"))
    assert not list(tmp_path.glob("merged*"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"uri": "copy://?seed=2"}, "uri .*seed=2 and copy://"),
        ({"documents": 4 * BLOCK}, "num_documents 4096 and 3072"),
        ({"documents": 6 * BLOCK, "seq_length": 512}, "seq_length 512 and 1024"),
    ],
)
def test_a_part_of_another_dataset_is_refused(
    tmp_path: Path, three_parts: list[str], arguments: dict, reason: str
) -> None:
    write(tmp_path / "other", **{"documents": 3 * BLOCK, **arguments}, shard=(2, 3))
    with pytest.raises(NCAPluginError, match=f"parts of different datasets.*{reason}"):
        merge([three_parts[0], str(tmp_path / "other"), three_parts[2]], str(tmp_path / "merged"))


@pytest.mark.parametrize("suffix", [".bin", ".next"])
def test_a_damaged_part_is_refused(tmp_path: Path, three_parts: list[str], suffix: str) -> None:
    for part, other in itertools.product(map(Path, three_parts), SUFFIXES):
        (tmp_path / (part.name + other)).hardlink_to(f"{part}{other}")
    path = tmp_path / f"part-2{suffix}"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(NCAPluginError, match=r"part-2 is damaged in documents 0 \.\. 1,023"):
        merge([str(tmp_path / f"part-{number}") for number in (1, 2, 3)], str(tmp_path / "merged"))
    assert not any((tmp_path / f"merged{s}").exists() for s in SUFFIXES)
