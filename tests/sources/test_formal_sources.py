"""Brackets, copies, independent tokens and elementary automata, by their published recipes."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import assert_refused_in_one_line

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse
from nca_plugin.sources.eca import ECASource, evolve, rules_of_class

URIS = (
    "dyck://?k=5",
    "shuffle_dyck://?k=5&max_depth=4",
    "copy://?min_length=3&max_length=9",
    "iid://?vocab_size=50&exponent=1",
    "eca://?width=12&patch=4",
    "linear_rnn://?vocab_size=20&hidden_size=8",
)
INDICES = st.integers(0, 2**63 - 1)


@pytest.mark.parametrize("uri", URIS)
@given(index=INDICES, length=st.integers(7, 300), split=st.sampled_from(["train", "valid", "test"]))
def test_a_longer_sample_begins_with_the_shorter_one(uri: str, index: int, length: int, split: str) -> None:
    source = parse(uri).for_split(split)
    short, long = source.sample(index, length), source.sample(index, 300)
    np.testing.assert_array_equal(short.tokens, long.tokens[: length + 1])
    np.testing.assert_array_equal(short.loss_mask, long.loss_mask[:length])
    assert short.tokens.dtype == np.int32 and short.loss_mask.dtype == np.bool_
    assert short.tokens.min() >= 0 and short.tokens.max() < source.vocab_size


@pytest.mark.parametrize("uri", URIS)
def test_splits_seeds_and_indices_are_streams_of_their_own(uri: str) -> None:
    source = parse(uri)
    separator = "&" if "?" in uri else "?"
    streams = [source, source.for_split("valid"), source.for_split("test"), parse(f"{uri}{separator}seed=5")]
    samples = [stream.sample(i, 200).tokens.tobytes() for stream in streams for i in (0, 1, 2**32, 2**62)]
    assert len(set(samples)) == len(samples)
    assert all(parse(stream.uri) == stream for stream in streams)


@pytest.mark.parametrize("uri", URIS)
def test_what_no_sample_can_be_is_refused(uri: str) -> None:
    for index in (-1, 2**63):
        with pytest.raises(NCAPluginError, match="sample index"):
            parse(uri).sample(index, 100)
    with pytest.raises(NCAPluginError, match="sequence length"):
        parse(uri).sample(0, 0)


@given(k=st.integers(1, 100), max_depth=st.integers(1, 20), p=st.floats(0.05, 0.95), index=INDICES)
def test_dyck_closes_what_was_opened_last(k: int, max_depth: int, p: float, index: int) -> None:
    sample = parse(f"dyck://?k={k}&max_depth={max_depth}&p={p}").sample(index, 200)
    stack: list[int] = []
    for token in sample.tokens:
        if token < k:
            stack.append(token)
        else:
            assert stack.pop() == token - k
        assert len(stack) <= max_depth
    assert sample.loss_mask.all() and sample.tokens.shape == (201,)


@given(k=st.integers(1, 100), max_depth=st.integers(1, 20), p=st.floats(0.05, 0.95), index=INDICES)
def test_shuffle_dyck_balances_each_kind(k: int, max_depth: int, p: float, index: int) -> None:
    sample = parse(f"shuffle_dyck://?k={k}&max_depth={max_depth}&p={p}").sample(index, 200)
    counts: Counter[int] = Counter()
    for token in sample.tokens.tolist():
        counts[token % k] += 1 if token < k else -1
        assert counts[token % k] >= 0 and counts.total() <= max_depth
    assert sample.loss_mask.all()


def test_shuffle_dyck_closes_a_kind_drawn_uniformly_from_the_open_ones() -> None:
    source = parse("shuffle_dyck://?k=6&max_depth=6")
    chosen, expected, variance = 0, 0.0, 0.0
    crossings = 0
    for index in range(200):
        counts: Counter[int] = Counter()
        last = -1
        for token in source.sample(index, 500).tokens.tolist():
            if token < 6:
                counts[token] += 1
                last = token
            else:
                kinds = [kind for kind in range(6) if counts[kind]]
                if len(kinds) > 1:
                    # How often the smallest of the open kinds is chosen.
                    p = 1 / len(kinds)
                    chosen += token - 6 == kinds[0]
                    expected += p
                    variance += p * (1 - p)
                crossings += token - 6 != last
                counts[token - 6] -= 1
    assert abs(chosen - expected) < 4 * math.sqrt(variance)
    assert crossings > 1000


@pytest.mark.parametrize("scheme", ["dyck", "shuffle_dyck"])
def test_brackets_open_with_probability_p_where_they_may(scheme: str) -> None:
    opened = trials = 0
    for index in range(100):
        depth = 0
        for token in parse(f"{scheme}://?k=3&p=0.3&max_depth=5").sample(index, 500).tokens:
            if 0 < depth < 5:
                trials += 1
                opened += token < 3
            depth += 1 if token < 3 else -1
    assert opened / trials == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / trials))


@given(
    vocab_size=st.integers(2, 1000), min_length=st.integers(1, 20), more=st.integers(0, 30), index=st.integers(0, 2**62)
)
def test_copy_repeats_each_word(vocab_size: int, min_length: int, more: int, index: int) -> None:
    uri = f"copy://?vocab_size={vocab_size}&min_length={min_length}&max_length={min_length + more}"
    tokens = parse(uri).sample(index, 400).tokens.tolist()
    # Some division into ww with allowed lengths exists; the last pair is cut.
    ends = {0}
    for start in range(len(tokens)):
        if start in ends:
            for length in range(min_length, min_length + more + 1):
                first, second = tokens[start : start + length], tokens[start + length : start + 2 * length]
                if second == first[: len(second)]:
                    ends.add(min(start + 2 * length, len(tokens)))
    assert len(tokens) in ends


def test_copy_draws_lengths_uniformly() -> None:
    """The first word's length, told by where a sequence of many symbols begins again."""
    lengths = []
    for index in range(600):
        tokens = parse("copy://?vocab_size=1000000&min_length=10&max_length=29").sample(index, 100).tokens
        lengths.append(int(np.flatnonzero(tokens[1:] == tokens[0])[0]) + 1)
    assert (min(lengths), max(lengths)) == (10, 29)
    # The mean of a uniform length, four standard errors.
    assert np.mean(lengths) == pytest.approx(19.5, abs=4 * np.std(lengths) / math.sqrt(600))


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_iid_frequencies(exponent: float) -> None:
    source = parse(f"iid://?vocab_size=20&exponent={exponent}")
    tokens = np.concatenate([source.sample(i, 999).tokens for i in range(100)])
    weights = np.arange(1, 21.0) ** -exponent
    expected = weights / weights.sum() * tokens.size
    chi_square = np.sum((np.bincount(tokens, minlength=20) - expected) ** 2 / expected)
    # 19 degrees of freedom: mean 19, standard deviation 6.2.
    assert chi_square < 19 + 4 * 6.2
    pairs = np.corrcoef(tokens[:-1], tokens[1:])[0, 1]
    assert abs(pairs) < 4 / math.sqrt(tokens.size)


@given(rule=st.integers(0, 255), width=st.integers(3, 40), seed=st.integers(0, 99))
def test_elementary_automata_against_plain_numpy(rule: int, width: int, seed: int) -> None:
    first = np.random.default_rng(seed).integers(0, 2, width).astype(np.uint8)
    rows = evolve(first, rule, 20)
    table = np.array([rule >> i & 1 for i in range(8)])
    for now, after in itertools.pairwise(rows.astype(int)):
        np.testing.assert_array_equal(after, table[4 * np.roll(now, 1) + 2 * now + np.roll(now, -1)])


def single_cell(rule: int, steps: int) -> np.ndarray:
    first = np.zeros(2 * steps + 3, np.uint8)
    first[steps + 1] = 1
    return evolve(first, rule, steps)


def test_known_automata() -> None:
    # The centre column of rule 30 (OEIS A051023).
    assert "".join(map(str, single_cell(30, 30)[:, 31])) == "1101110011000101100100111010111"
    # Rule 90 is Pascal's triangle modulo 2.
    rows = single_cell(90, 15)
    for t in range(16):
        assert rows[t, 16 - t : 17 + t : 2].tolist() == [math.comb(t, i) % 2 for i in range(t + 1)]
    # Rule 110 grows to the left only; its first rows (OEIS A075437 as bits).
    rows = single_cell(110, 4)
    assert ["".join(map(str, row[5 - t : 6])) for t, row in enumerate(rows)] == ["1", "11", "111", "1101", "11111"]


def test_wolfram_classes() -> None:
    sizes = [len(rules_of_class(number)) for number in (1, 2, 3, 4)]
    assert sum(sizes) == 256
    assert rules_of_class(4) == (41, 54, 97, 106, 107, 110, 120, 121, 124, 137, 147, 169, 193, 225)
    assert {30, 86, 135, 149, 90, 165, 150} <= set(rules_of_class(3))
    assert {0, 255, 8, 64, 239, 253} <= set(rules_of_class(1))
    # Equivalent rules do the same to reflected and exchanged rows, and are in one class.
    first = np.random.default_rng(0).integers(0, 2, 30).astype(np.uint8)
    np.testing.assert_array_equal(evolve(first, 110, 9), evolve(first[::-1], 124, 9)[:, ::-1])
    np.testing.assert_array_equal(evolve(first, 110, 9), 1 - evolve(1 - first, 137, 9))


def test_class_1_becomes_uniform() -> None:
    for rule in rules_of_class(1):
        rows = evolve(np.random.default_rng(rule).integers(0, 2, 20).astype(np.uint8), rule, 300)
        assert len(set(rows[-1].tolist())) == 1


@given(
    patch=st.integers(1, 8),
    patches=st.integers(3, 8),
    burn_in=st.integers(0, 5),
    index=INDICES,
    rule=st.integers(0, 255),
)
def test_rows_of_an_elementary_automaton(patch: int, patches: int, burn_in: int, index: int, rule: int) -> None:
    source = parse(f"eca://?rule={rule}&patch={patch}&width={patch * patches}&burn_in={burn_in}")
    assert isinstance(source, ECASource) and source.vocab_size == 2**patch + 1
    sample = source.sample(index, 10 * (patches + 1) - 1)
    rows = sample.tokens.reshape(10, patches + 1)
    assert (rows[:, 0] == 2**patch).all()
    cells = (rows[:, 1:, None] >> np.arange(patch) & 1).reshape(10, -1).astype(np.uint8)
    np.testing.assert_array_equal(evolve(cells[0], rule, 9), cells)
    np.testing.assert_array_equal(source.frames.frames(sample.tokens)[:, 0], cells)
    assert not sample.loss_mask[:patches].any() and sample.loss_mask[patches:].all()


def test_rules_are_drawn_from_the_class() -> None:
    for uri, rules in (("eca", range(256)), ("eca://?wolfram_class=3", rules_of_class(3)), ("eca://?rule=7", (7,))):
        source = parse(uri)
        assert isinstance(source, ECASource)
        drawn = {source.rule_of(i) for i in range(4000)}
        assert drawn == set(rules)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("dyck://?max_depth=100000000000", "must lie in 1 .. 65,536"),
        ("dyck://?p=1", "between 0 and 1"),
        ("shuffle_dyck://?k=0", "dyck option k=0: must lie in"),
        ("copy://?min_length=5&max_length=4", "min_length .. 2\\^20"),
        ("copy://?vocab_size=0", "must lie in"),
        ("iid://?exponent=3", "must lie in 0 .. 2.5"),
        ("iid://?vocab_size=none", "must be a whole number"),
        ("eca://?rule=256", "must lie in 0 .. 255"),
        ("eca://?wolfram_class=5", "must be 1, 2, 3 or 4"),
        ("eca://?wolfram_class=4&rule=110", "has no effect"),
        ("eca://?width=10&patch=4", "multiple of patch=4"),
        ("eca://web", "no presets"),
        ("linear_rnn://?vocab_size=65537", "must lie in 1 .. 2\\^16"),
        ("linear_rnn://?hidden_size=0", "must lie in 1 .. 256"),
        ("linear_rnn://?spectral_radius=1", "must lie between 0 and 1"),
        ("linear_rnn://?temperature=0", "must lie in 1e-6 .. 1e6"),
        ("linear_rnn://?num_systems=0", "num_systems=0: must be at least 1"),
    ],
)
def test_bad_options_are_refused_in_one_line(uri: str, reason: str) -> None:
    assert_refused_in_one_line(uri, reason)


def test_a_sequence_too_short_for_two_rows_is_refused() -> None:
    with pytest.raises(NCAPluginError, match="use at least 17"):
        parse("eca").sample(0, 16)
