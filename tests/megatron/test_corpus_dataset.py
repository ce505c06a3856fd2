"""Training from files: aligned under an unmodified GPTDataset, equal to training online under ours."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import BLOCK, write
from gpt_datasets import datasets
from megatron.core.datasets.gpt_dataset import GPTDataset

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.source import IndexedSource
from nca_plugin.indexed.verify import verify
from nca_plugin.sources import parse


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("corpus") / "toy"
    write(prefix, "nca://toy", documents=40, seq_length=128)
    return prefix


def test_an_unmodified_gpt_dataset_gives_one_document_a_sample(prefix: Path) -> None:
    train = datasets(prefix, (39, 0, 0), dataset_class=GPTDataset, split="100,0,0")[0]
    source = parse("nca://toy")
    documents = {source.sample(i, 128).tokens[:-1].tobytes() for i in range(40)}
    samples = [train[i] for i in range(39)]
    assert len({s["tokens"].numpy().astype(np.int32).tobytes() for s in samples} & documents) == 39
    # All but the last label are the document's own; that one is the start of another.
    assert all(torch.equal(s["tokens"][1:], s["labels"][:-1]) and s["labels"][-1] == 16 for s in samples)


def test_our_dataset_gives_what_training_online_gives(prefix: Path) -> None:
    stored, online = (datasets(path, split="100,0,0")[0] for path in (prefix, "nca://toy"))
    assert len(stored) == len(online)
    for i in range(40):
        for key, value in online[i].items():
            torch.testing.assert_close(stored[i][key], value, rtol=0, atol=0)


def test_splits_are_ranges_and_epochs_begin_again(prefix: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, valid, test = datasets(prefix, (100, 4, 0), split="90,10,0")
    assert test is None
    assert "reads the documents of" in caplog.text and "2.78 times" in caplog.text
    source = parse("nca://toy")
    for i, j in ((0, 0), (35, 35), (36, 0), (99, 27)):
        np.testing.assert_array_equal(train[i]["labels"], source.sample(j, 128).tokens[1:])
    np.testing.assert_array_equal(valid[3]["labels"], source.sample(39, 128).tokens[1:])
    assert [len(d) for d in datasets(prefix, (None, None, None), split="90,10,0")[:2]] == [36, 4]


def test_a_dataloader_worker_gets_no_copy_of_the_file(prefix: Path) -> None:
    source = IndexedSource(str(prefix))
    sent = pickle.dumps(source)
    assert len(sent) < 500
    np.testing.assert_array_equal(pickle.loads(sent).sample(7, 128).tokens, source.sample(7, 128).tokens)


def test_a_shard_is_a_dataset_of_its_own(tmp_path: Path) -> None:
    write(tmp_path / "part", documents=3 * BLOCK, shard=(2, 3))
    source = parse("copy")
    stored = IndexedSource(str(tmp_path / "part"))
    assert stored.num_documents == BLOCK
    np.testing.assert_array_equal(stored.sample(3, 1024).tokens, source.sample(BLOCK + 3, 1024).tokens)
    assert verify(str(tmp_path / "part"), 4) == []


def test_what_does_not_fit_is_refused(prefix: Path, tmp_path: Path) -> None:
    with pytest.raises(NCAPluginError, match="documents of 128 tokens, not 256: use --seq-length 128"):
        datasets(prefix, seq_length=256)
    with pytest.raises(NCAPluginError, match=r"the valid split .* holds none of its 40 documents"):
        datasets(prefix, (36, 4, 0), split="9999,1,0")
    for suffix in (".bin", ".idx", ".next"):
        (tmp_path / f"toy{suffix}").hardlink_to(f"{prefix}{suffix}")
    with pytest.raises(NCAPluginError, match=r"toy.json does not exist"):
        datasets(tmp_path / "toy")
    with pytest.raises(NCAPluginError, match=r"sample 40: dataset .* has 40 documents"):
        IndexedSource(str(prefix)).sample(40, 128)
