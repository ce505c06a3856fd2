"""A sample is a pure function of source and index, in Megatron's dataset and in DataLoader workers too."""

import subprocess
import sys
from itertools import batched

import numpy as np
import pytest
import torch
from gpt_datasets import datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse

URIS = (
    "nca://web",
    "nca://code?seed=7",
    "nca://toy",
    "nca://release?num_rules=5",
    "shuffled://toy",
    "dyck://?k=8",
    "shuffle_dyck://?k=8",
    "copy",
    "iid",
    "eca",
    "nca://web:0.5,code:0.5",
    "copy://?vocab_offset=300",
)


@pytest.mark.parametrize("uri", URIS)
def test_samples_are_the_same_in_any_order_and_after_any_other(uri: str) -> None:
    source = parse(uri)
    forward = {i: source.sample(i, 256) for i in range(12)}
    for i in reversed(range(12)):
        again = parse(source.uri).sample(i, 256)
        np.testing.assert_array_equal(again.tokens, forward[i].tokens)
        np.testing.assert_array_equal(again.loss_mask, forward[i].loss_mask)
    assert len({sample.tokens.tobytes() for sample in forward.values()}) == 12


def test_samples_are_the_same_in_another_process() -> None:
    code = (
        "import sys; from nca_plugin.sources import parse; sources = list(map(parse, sys.argv[1:]));"
        "print(*[s.sample(i, 200).tokens.tobytes().hex() for i in (5, 2**40, 0) for s in sources])"
    )
    shown = subprocess.run([sys.executable, "-c", code, *URIS], capture_output=True, text=True, check=True).stdout
    sources = list(map(parse, URIS))
    expected = [source.sample(i, 200).tokens.tobytes().hex() for i in (5, 2**40, 0) for source in sources]
    assert shown.split() == expected


@settings(max_examples=30)
@given(index=st.integers(0, 2**63 - 1), length=st.integers(75, 400))
def test_a_longer_sample_begins_with_the_shorter_one(index: int, length: int) -> None:
    source = parse("nca://toy")
    short, long = source.sample(index, length), source.sample(index, 500)
    np.testing.assert_array_equal(short.tokens, long.tokens[: length + 1])
    np.testing.assert_array_equal(short.loss_mask, long.loss_mask[:length])
    assert short.tokens.dtype == np.int32 and short.loss_mask.dtype == np.bool_
    assert short.tokens.min() >= 0 and short.tokens.max() < source.vocab_size


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_samples_are_the_same_with_any_number_of_workers(num_workers: int) -> None:
    train = datasets("nca://toy")[0]
    loader = torch.utils.data.DataLoader(train, batch_sampler=batched(range(40), 4), num_workers=num_workers)
    batches = list(loader)
    source = parse("nca://toy")
    expected = np.stack([source.sample(i, 128).tokens for i in range(40)])
    np.testing.assert_array_equal(torch.cat([b["tokens"] for b in batches]), expected[:, :-1])
    np.testing.assert_array_equal(torch.cat([b["labels"] for b in batches]), expected[:, 1:])


def test_splits_are_streams_of_their_own() -> None:
    train, valid, test = datasets("nca://toy")
    assert len({d[0]["tokens"].numpy().tobytes() for d in (train, valid, test)}) == 3


def test_a_source_has_no_end() -> None:
    """Megatron's samplers stop at the length, and a resumed run with smaller batches reads on beyond what was asked."""
    for dataset, asked in zip(datasets("nca://toy", (40, 8, 0)), (40, 8, 0), strict=True):
        assert len(dataset) > 10**18
        expected = parse("nca://toy").for_split(dataset.index_split.name).sample(asked + 10**12, 128)
        np.testing.assert_array_equal(dataset[asked + 10**12]["labels"], expected.tokens[1:])


def test_a_sample_has_what_megatron_needs() -> None:
    sample = datasets("nca://web", seq_length=1024)[0][3]
    assert sample["tokens"].dtype == sample["labels"].dtype == sample["position_ids"].dtype == torch.int64
    assert sample["loss_mask"].dtype == torch.float32
    assert sample["loss_mask"].sum() == 987
    torch.testing.assert_close(sample["tokens"][1:], sample["labels"][:-1])
    torch.testing.assert_close(sample["position_ids"], torch.arange(1024))


def test_a_batch_filler_does_not_count() -> None:
    assert datasets("nca://toy")[0][None]["loss_mask"].sum() == 0


def test_the_loss_mask_does_not_look_at_ids() -> None:
    """NullTokenizer's end-of-document id may be a token of the source: it is a target all the same."""
    train = datasets("nca://toy", tokenizer_size=18)[0]
    sample = train[0]
    assert sample["loss_mask"][sample["labels"] == 17].sum() == (sample["labels"][37:] == 17).sum() > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"path": "nca://web", "tokenizer_size": 10_001}, "smaller than the 10002 ids of source nca://web: "),
        ({"path": "nca://web", "seq_length": 74}, "too short for two frames"),
        ({"path": "nca://toy", "sizes": (None, None, None)}, "source nca://toy has no end"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason):
        datasets(**arguments)


def test_ids_beyond_the_tokenizer_need_rows_of_the_model() -> None:
    sample = datasets("nca://toy?vocab_offset=494", tokenizer_size=257, vocab_size=512)[0][0]
    assert 494 <= sample["tokens"].min() <= sample["labels"].max() < 512
    with pytest.raises(NCAPluginError, match=r"vocabulary of 512 is smaller than the 513 ids .*--padded-vocab-size"):
        datasets("nca://toy?vocab_offset=495", tokenizer_size=257, vocab_size=512)


def test_the_shortest_sequence_holds_two_frames() -> None:
    assert datasets("nca://web", seq_length=75)[0][0]["loss_mask"].sum() == 38
