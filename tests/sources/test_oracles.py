"""What predictors that know the law of a source lose, against sums over everything that could have been drawn."""

import itertools
import math

import numpy as np
import pytest

from nca_plugin.sources import parse
from nca_plugin.sources.details import oracle_losses

URIS = (
    "dyck://?k=3&p=0.3&max_depth=4",
    "dyck://?k=1&max_depth=1",
    "shuffle_dyck://?k=3&p=0.6&max_depth=4",
    "copy://?vocab_size=3&min_length=1&max_length=4",
    "copy://?vocab_size=30&min_length=2&max_length=9",
    "iid://?vocab_size=7&exponent=1.5",
    "linear_rnn://?vocab_size=6&hidden_size=4&temperature=0.3",
)


def conditional_losses(tokens: list[int], probability_of_prefix: dict[tuple[int, ...], float]) -> list[float]:
    prefixes = [tuple(tokens[:length]) for length in range(1, len(tokens) + 1)]
    return [
        math.log(probability_of_prefix[before] / probability_of_prefix[after])
        for before, after in itertools.pairwise(prefixes)
    ]


def prefixes_of(sequences: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """Return the probability of every prefix, for those of whole sequences of one length."""
    result: dict[tuple[int, ...], float] = {}
    for sequence, probability in sequences.items():
        for length in range(len(sequence) + 1):
            result[sequence[:length]] = result.get(sequence[:length], 0.0) + probability
    return result


def all_brackets(k: int, p: float, max_depth: int, length: int, is_nested: bool) -> dict[tuple[int, ...], float]:
    """Return the probability of each sequence of brackets, by drawing it step by step."""
    drawn: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {((), ()): 1.0}
    for _ in range(length):
        after: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
        for (tokens, opened), probability in drawn.items():
            open_share = 1.0 if not opened else 0.0 if len(opened) == max_depth else p
            kinds = (opened[-1],) if is_nested and opened else tuple(sorted(set(opened)))
            choices = [(kind, (*opened, kind), open_share / k) for kind in range(k)]
            for kind in kinds:
                place = len(opened) - 1 - opened[::-1].index(kind)
                rest = (*opened[:place], *opened[place + 1 :])
                choices.append((k + kind, rest, (1 - open_share) / len(kinds)))
            for token, stack, share in choices:
                key = ((*tokens, token), stack)
                after[key] = after.get(key, 0.0) + probability * share
        drawn = {key: probability for key, probability in after.items() if probability}
    result: dict[tuple[int, ...], float] = {}
    for (tokens, _), probability in drawn.items():
        result[tokens] = result.get(tokens, 0.0) + probability
    return result


@pytest.mark.parametrize("scheme", ["dyck", "shuffle_dyck"])
@pytest.mark.parametrize(("k", "p", "max_depth"), [(2, 0.3, 3), (3, 0.5, 2), (1, 0.7, 4)])
def test_brackets(scheme: str, k: int, p: float, max_depth: int) -> None:
    prefixes = prefixes_of(all_brackets(k, p, max_depth, 7, scheme == "dyck"))
    source = parse(f"{scheme}://?k={k}&p={p}&max_depth={max_depth}")
    for index in range(20):
        expected = conditional_losses(source.sample(index, 6).tokens.tolist(), prefixes)
        np.testing.assert_allclose(oracle_losses(source, index, 6), expected, atol=1e-12)


def all_copies(vocab_size: int, lengths: range, length: int) -> dict[tuple[int, ...], float]:
    """Return the probability of each sequence of `length` tokens of pairs ww, the last of which is cut."""
    result: dict[tuple[int, ...], float] = {}

    def extend(tokens: tuple[int, ...], probability: float) -> None:
        if len(tokens) >= length:
            result[tokens[:length]] = result.get(tokens[:length], 0.0) + probability
            return
        for size in lengths:
            share = probability / len(lengths) / vocab_size**size
            for word in itertools.product(range(vocab_size), repeat=size):
                extend((*tokens, *word, *word), share)

    extend((), 1.0)
    return result


@pytest.mark.parametrize(("vocab_size", "shortest", "longest"), [(2, 1, 3), (3, 2, 3), (2, 3, 5), (1, 1, 2)])
def test_copies_whose_lengths_are_inferred(vocab_size: int, shortest: int, longest: int) -> None:
    prefixes = prefixes_of(all_copies(vocab_size, range(shortest, longest + 1), 8))
    source = parse(f"copy://?vocab_size={vocab_size}&min_length={shortest}&max_length={longest}")
    for index in range(40):
        expected = conditional_losses(source.sample(index, 7).tokens.tolist(), prefixes)
        np.testing.assert_allclose(oracle_losses(source, index, 7), expected, atol=1e-9)


def test_long_words_of_many_symbols_are_free_once_recognised() -> None:
    source = parse("copy://?vocab_size=1000000&min_length=20&max_length=20")
    losses = oracle_losses(source, 0, 199)
    assert losses is not None
    # Target i is token i + 1, and tokens 20 .. 39 repeat the first ones.
    second = (np.arange(1, 200) // 20) % 2 == 1
    np.testing.assert_allclose(losses, np.where(second, 0, math.log(1e6)), atol=1e-6)


def test_independent_tokens_lose_their_entropy() -> None:
    weights = np.arange(1, 21.0) ** -1.2
    weights /= weights.sum()
    source = parse("iid://?vocab_size=20&exponent=1.2")
    losses = np.concatenate([oracle_losses(source, index, 1000) for index in range(100)])
    tokens = np.concatenate([source.sample(index, 1000).tokens[1:] for index in range(100)])
    np.testing.assert_allclose(losses, -np.log(weights[tokens]), rtol=1e-9)
    entropy = -(weights * np.log(weights)).sum()
    assert losses.mean() == pytest.approx(entropy, abs=4 * losses.std() / math.sqrt(losses.size))


@pytest.mark.parametrize("uri", URIS)
def test_no_loss_is_below_that_of_certainty_and_an_offset_changes_none(uri: str) -> None:
    source = parse(uri).for_split("test")
    losses = oracle_losses(source, 5, 100)
    assert losses is not None and losses.shape == (100,) and losses.min() >= -1e-9
    np.testing.assert_array_equal(oracle_losses(parse(f"{uri}&vocab_offset=9").for_split("test"), 5, 100), losses)
    np.testing.assert_allclose(oracle_losses(source, 5, 60), losses[:60], atol=1e-12)


@pytest.mark.parametrize(
    "uri", ["nca://toy", "shuffled://toy", "eca", "nca://web:0.5,code:0.5", "nca://toy?vocab_offset=3"]
)
def test_sources_whose_law_is_not_computed_have_no_oracle(uri: str) -> None:
    assert oracle_losses(parse(uri), 0, 100) is None
