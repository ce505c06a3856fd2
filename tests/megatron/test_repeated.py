"""Data of a blend that give the same samples as others of it are named, with the way out."""

from pathlib import Path

import pytest
from corpora import BLOCK, write

from nca_plugin.lineage.training_data import TrainingData
from nca_plugin.megatron.repeated import repeated

SEQ_LENGTH = 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repeated")
    write(folder / "corpus", "copy", documents=8)
    for number in (1, 2):
        write(folder / f"part-{number}", "copy", documents=2 * BLOCK, shard=(number, 2))
    for suffix in (".bin", ".idx"):
        (folder / f"text{suffix}").write_bytes(b"1234")
        (folder / f"other{suffix}").write_bytes(b"1234")
        (folder / f"link{suffix}").symlink_to(folder / f"text{suffix}")
    (folder / "sub").mkdir()
    return folder


def warnings(folder: Path, *paths: str) -> list[str]:
    whole = [str(folder / path) if "://" not in path else path for path in paths]
    return repeated(TrainingData.of(whole, [1.0] * len(paths), SEQ_LENGTH))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("nca://toy", "nca://toy"),
        ("nca://toy", "NCA://toy?seed=1234"),
        ("nca://toy?seed=7", "nca://toy?temperature=0.0001&seed=7&split=valid"),
        ("nca://toy", "nca://toy?vocab_offset=100"),
        ("nca://toy?vocab_offset=1", "nca://toy?vocab_offset=100"),
        ("nca://web", "nca://web:0.5,code:0.5"),
        ("nca://web:0.9,math:0.1?vocab_offset=5", "nca://code:0.5,math:0.5"),
        ("nca://web?band=0.3:0.4", "nca://code"),
        ("dyck://?k=8", "dyck://?seed=1234&k=8"),
        ("copy://", "copy://?vocab_offset=9"),
        ("copy://", "corpus"),
        ("copy://", "part-1"),
        ("corpus", "part-1"),
        ("corpus", "corpus"),
        ("text", "text"),
        ("text", "sub/../text"),
        ("text", "link"),
    ],
)
def test_the_same_samples_twice_are_named(folder: Path, first: str, second: str) -> None:
    for paths in ((first, second), (second, first), (first, "iid://", second)):
        (warning,) = warnings(folder, *paths)
        assert "the same samples are trained on twice: " in warning and "\n" not in warning and len(warning) < 400
    assert len(warnings(folder, first, second, first)) == 2


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("nca://toy", "nca://toy?seed=7"),
        ("nca://toy", "nca://web"),
        ("nca://web:0.5,code:0.5", "nca://web:0.5,code:0.5?seed=7"),
        ("nca://web", "shuffled://web"),
        ("dyck://?k=8", "dyck://?k=9"),
        ("copy://?seed=7", "corpus"),
        ("part-1", "part-2"),
        ("copy://", "part-2"),
        ("nca://toy", "text"),
        ("corpus", "text"),
        ("text", "other"),
        ("nowhere", "text"),
    ],
)
def test_other_samples_are_not(folder: Path, first: str, second: str) -> None:
    assert warnings(folder, first, second) == []
