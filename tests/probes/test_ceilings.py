"""What can be predicted of frames: the look-up by a plain reference, and models of which the answer is known."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_plugin.automata import encode
from nca_plugin.automata.generator import rule_of_sample
from nca_plugin.probes.ceilings import Ceilings, ceilings
from nca_plugin.sources import FrameLayout, parse
from nca_plugin.sources.details import likely_successors

#: Frames of 4 patches; five whole ones and half of another in 33 tokens.
URI = "nca://toy?grid_size=4&band=none&split=test"


def tokens_of(uri: str, count: int, seq_length: int) -> np.ndarray:
    return np.stack([parse(uri).sample(index, seq_length).tokens for index in range(count)])


def looked_up(frames: np.ndarray, patch: tuple[int, int]) -> np.ndarray:
    """Return what the look-up predicts, for integers [frames, height, width]."""
    _, height, width = frames.shape
    predicted = frames.copy()
    seen: list[tuple[np.ndarray, int]] = []
    for t in range(1, len(frames)):
        for top in range(0, height, patch[0]):
            for left in range(0, width, patch[1]):
                cells = [(y, x) for y in range(top, top + patch[0]) for x in range(left, left + patch[1])]
                around = [
                    np.array(
                        [frames[t - 1, (y + dy) % height, (x + dx) % width] for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
                    )
                    for y, x in cells
                ]
                for cell, neighbourhood in zip(cells, around, strict=True):
                    predicted[t][cell] = frames[t - 1][cell]
                    if seen:
                        distances = [(other != neighbourhood).sum() for other, _ in seen]
                        successors = [
                            after for d, (_, after) in zip(distances, seen, strict=True) if d == min(distances)
                        ]
                        most = max(Counter(successors).values())
                        # The last one that reached this number.
                        counts: Counter[int] = Counter()
                        for after in successors:
                            counts[after] += 1
                            if counts[after] == most:
                                predicted[t][cell] = after
                seen += [(neighbourhood, frames[t][cell]) for cell, neighbourhood in zip(cells, around, strict=True)]
    return predicted


def in_tokens(frames: np.ndarray, layout: FrameLayout) -> np.ndarray:
    """Return the tokens of frames, integers [samples, frames, height, width], whose delimiters are all one id."""
    (height, width), (patch_height, patch_width) = layout.grid, layout.patch
    edges = (*frames.shape[:2], height // patch_height, patch_height, width // patch_width, patch_width)
    patches = (
        frames.astype(np.int64).reshape(edges).swapaxes(3, 4).reshape(*frames.shape[:2], -1, layout.cells_per_patch)
    )
    ids = (patches * layout.num_colors ** np.arange(layout.cells_per_patch)).sum(axis=-1) + layout.offset
    delimiters = np.full((*ids.shape[:2], layout.frame_length - ids.shape[2]), layout.num_patches + layout.offset)
    parts = (delimiters[..., :1], ids, delimiters[..., 1:])
    return np.concatenate(parts, axis=-1).reshape(len(frames), -1).astype(np.int32)


def found(frames: np.ndarray, predicted: np.ndarray, layout: FrameLayout) -> Ceilings:
    """Return the ceilings of a source with these frames, and of a model with these predictions."""
    source: Any = SimpleNamespace(frames=layout)
    result = ceilings(source, in_tokens(frames, layout), in_tokens(predicted, layout)[:, 1:])
    assert result is not None
    return result


@settings(deadline=None, max_examples=40)
@given(
    colors=st.integers(2, 12),
    patch=st.sampled_from([(1, 1), (2, 2), (1, 3), (2, 1)]),
    edges=st.tuples(st.integers(1, 3), st.integers(2, 3)),
    offset=st.integers(0, 100),
    seed=st.integers(0, 1000),
)
def test_a_model_that_looks_up_reaches_the_look_up(
    colors: int, patch: tuple[int, int], edges: tuple[int, int], offset: int, seed: int
) -> None:
    grid = (edges[0] * patch[0], edges[1] * patch[1])
    layout = FrameLayout(colors, grid, patch, edges[0] * edges[1] + 2).shifted(offset)
    # Noisy periods, so that neighbourhoods occur again and do not always go on alike.
    generator = np.random.default_rng(seed)
    frames = np.tile(generator.integers(colors, size=(2, 3, *grid)), (1, 2, 1, 1))
    noise = generator.random(frames.shape) < 0.1
    frames[noise] = generator.integers(colors, size=noise.sum())
    predicted = np.stack([looked_up(sample, patch) for sample in frames])
    result = found(frames, predicted, layout)
    assert result.every.lookup[1:] == result.every.patch[1:] and result.every.lookup[0] is None
    if result.hard is not None:
        assert result.hard.lookup[1:] == result.hard.patch[1:]
        assert result.learned in (1, None) and set(result.learned_by_frame) <= {1, None}


def test_a_copier_has_learned_nothing_and_half_a_look_up_is_half_learned() -> None:
    uri = "nca://toy?patch_size=1&grid_size=6&band=none&split=test"
    source = parse(uri)
    layout = source.frames
    assert layout is not None
    frames = layout.frames(tokens_of(uri, 40, 38 * 7 - 1))
    back = [np.concatenate([frames[:, :1], frames[:, :1], frames[:, 1:-1]], axis=1), np.roll(frames, 2, axis=1)]
    back[0][:, 1:] = frames[:, :-1]
    right = [(copy == frames)[:, 2:].mean(axis=(1, 2, 3)) for copy in back]
    copies = np.where((right[1] > right[0])[:, None, None, None], back[1], back[0])
    copies[:, 1] = frames[:, 0]
    copied = found(frames, copies, layout)
    assert copied.hard is not None
    assert copied.every.patch[1:] == copied.every.best_copy[1:]
    assert copied.learned == 0 and copied.learned_by_frame == (None, None, 0, 0, 0, 0, 0)
    assert copied.hard_share == np.mean(np.maximum(*right) < 0.95)
    # The look-up in every second sample that counts, and copies in the others.
    hard = np.flatnonzero(np.maximum(*right) < 0.95)
    mixed = copies.copy()
    for index in hard[::2]:
        mixed[index] = looked_up(frames[index], (1, 1))
    half = found(frames, mixed, layout)
    assert half.learned is not None and 0.3 < half.learned < 0.7
    assert copied.hard.lookup[6] > 0.95 > copied.hard.best_copy[6]


def test_samples_that_stand_still_or_alternate_are_easy() -> None:
    layout = FrameLayout(3, (4, 4), (1, 1), 18)
    first = np.random.default_rng(0).integers(3, size=(3, 4, 4))
    still, alternating, three = ([first[i % period] for i in range(7)] for period in (1, 2, 3))
    frames = np.array([still, alternating, three])
    result = found(frames, frames, layout)
    assert result.hard_share == pytest.approx(1 / 3)
    assert result.hard is not None and result.hard.best_copy[2] < 0.95
    alone = found(frames[:2], frames[:2], layout)
    assert (alone.hard, alone.hard_share, alone.learned, alone.learned_by_frame) == (None, 0, None, (None,) * 7)
    assert alone.every.best_copy[2:] == (1,) * 5


@pytest.mark.parametrize("seq_length", [11, 12, 13, 17, 18, 23, 32, 41])
def test_a_frame_that_is_cut_off_counts_with_the_patches_that_are_there(seq_length: int) -> None:
    """A shorter sequence has the same predictions: those of a longer one, up to its end."""
    source = parse(URI)
    tokens, whole = tokens_of(URI, 30, seq_length), tokens_of(URI, 30, 71)
    short, long = ceilings(source, tokens, tokens[:, 1:]), ceilings(source, whole, whole[:, 1:])
    assert short is not None and long is not None
    num_frames = -(-seq_length // 6)
    complete = (seq_length + 1 + 1) // 6
    assert len(short.every.patch) == num_frames
    assert short.every.lookup[:complete] == long.every.lookup[:complete]
    assert short.every.limit is not None and long.every.limit is not None
    assert short.every.limit[:complete] == long.every.limit[:complete]
    assert (short.hard_share is None) == (num_frames <= 2)
    assert short.every.patch == (1,) * num_frames


@pytest.mark.parametrize(
    "uri",
    [
        "nca://toy?temperature=0",
        "nca://toy?temperature=0&identity_bias=0.1&band=none",
        "nca://toy?temperature=0&band=none&steps_per_frame=3&vocab_offset=11",
        "nca://release?temperature=0&num_rules=2&sequences_per_rule=2",
        "nca://web?temperature=0&curriculum=0@0.2:0.4,2@0.4:0.6",
        "nca://toy:0.5,code:0.5?temperature=0&code.num_colors=2&toy.band=none&code.band=none",
        "eca://?width=12&patch=4",
        "eca://?width=30&patch=5&burn_in=3&vocab_offset=9",
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_one_who_knows_a_deterministic_rule_is_always_right(uri: str, split: str) -> None:
    source = parse(uri).for_split(split)
    tokens = np.stack([source.sample(index, 200).tokens for index in range(6)])
    result = ceilings(source, tokens, tokens[:, 1:])
    assert result is not None and result.every.limit is not None
    assert result.every.limit == (None, *(1,) * (len(result.every.patch) - 1))


def test_noise_lowers_the_limit_to_what_the_draws_allow() -> None:
    temperature = 0.05
    source, plain = (parse(f"nca://toy?temperature={t}&band=none") for t in (temperature, 0))
    expected, variance, right, count = 0.0, 0.0, 0, 0
    for index in range(30):
        frames = source.frames.frames(source.sample(index, 379).tokens)
        predicted = likely_successors(source, index, frames[:-1])
        # The rule is the same at any temperature.
        np.testing.assert_array_equal(predicted, likely_successors(plain, index, frames[:-1]))
        right += int((predicted == frames[1:]).sum())
        count += predicted.size
        rule = rule_of_sample(source.automaton, index)
        for frame in frames[:-1]:
            odds = np.exp(rule.logits(frame).astype(float) / temperature)
            largest = (odds / odds.sum(axis=-1, keepdims=True)).max(axis=-1)
            expected += largest.sum()
            variance += (largest * (1 - largest)).sum()
    assert abs(right - expected) < 5 * np.sqrt(variance)
    assert 0.5 < right / count < 0.99


def test_patches_of_random_frames_are_beyond_a_look_up_of_few_frames() -> None:
    """The source whose patches a small model cannot learn: a 4 x 4 neighbourhood from nine tokens (ten colours)."""
    tokens = tokens_of("nca://web?split=test", 4, 300)
    result = ceilings(parse("nca://web?split=test"), tokens, tokens[:, 1:])
    assert result is not None and result.every.limit is not None
    assert result.every.lookup[7] < 0.3 < 0.95 < result.every.limit[7]


def test_tokens_of_these_tests_are_those_of_the_automata() -> None:
    frames = np.random.default_rng(0).integers(3, size=(1, 2, 4, 4))
    tokens = in_tokens(frames, FrameLayout(3, (4, 4), (2, 2), 6)).reshape(2, 6)
    np.testing.assert_array_equal(tokens[:, :5], encode(frames[0], 3, 2).reshape(2, 6)[:, :5])


def test_a_source_without_frames_has_no_ceilings() -> None:
    tokens = tokens_of("copy", 2, 50)
    assert ceilings(parse("copy"), tokens, tokens[:, 1:]) is None
