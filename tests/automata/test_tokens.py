"""Frames to tokens and back, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nca_plugin.automata import Rule, decode, encode, random_rule
from nca_plugin.errors import NCAPluginError


@st.composite
def frames(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    patch_size = draw(st.integers(1, 3))
    num_colors = draw(st.integers(2, 15 if patch_size < 3 else 3))
    edge = patch_size * draw(st.integers(1, 6))
    shape = (draw(st.integers(1, 4)), edge, edge)
    return draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, num_colors - 1))), num_colors, patch_size


@given(frames())
def test_decode_undoes_encode(case: tuple[np.ndarray, int, int]) -> None:
    array, num_colors, patch_size = case
    tokens = encode(array, num_colors, patch_size)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(decode(tokens, num_colors, patch_size, array.shape[1]), array)


def test_bad_frames_and_tokens_are_refused() -> None:
    for bad in (np.zeros((12, 12)), np.zeros((1, 5, 5)), np.full((1, 4, 4), 10)):
        with pytest.raises(NCAPluginError):
            encode(bad.astype(int))
    good = encode(np.zeros((2, 12, 12), int))
    for bad in (good[:-1], np.roll(good, 1), np.where(good == 0, 10_000, good)):
        with pytest.raises(NCAPluginError):
            decode(bad)


def test_what_ids_cannot_hold_is_refused() -> None:
    for bad in (([[[299]]], 300, 1), ([[[1.7]]], 10, 1), ([[[63] * 4] * 4], 64, 4), ([[[1]]], 10, 0), ([[[]]], 10, 1)):
        with pytest.raises(NCAPluginError):
            encode(*bad)
    with pytest.raises(NCAPluginError, match="multiple of the patch size"):
        decode([10_000, 2001, 10_001], grid_size=3)


def test_rule_refuses_wrong_shapes_and_colours() -> None:
    rule = random_rule(5, seed=1, index=2)
    with pytest.raises(NCAPluginError, match="'hidden'"):
        Rule(rule.conv, rule.hidden[..., :8], rule.output)
    with pytest.raises(NCAPluginError, match="colour"):
        rule.logits(np.full((4, 4), 5))
    with pytest.raises(NCAPluginError, match="height, width"):
        rule.rollout(np.zeros(4), 1)


def test_logits_equal_a_plain_convolution() -> None:
    """The wrap on all three axes, written out with numpy, on a grid that is not square."""
    rule = random_rule(6, seed=3, index=0)
    state = np.random.default_rng(0).integers(0, 6, (5, 7))
    one_hot = np.eye(6)[state]
    padded = np.pad(one_hot, ((1, 1), (1, 1), (1, 1)), mode="wrap")
    conv = np.zeros((5, 7, 4))
    for dy in range(3):
        for dx in range(3):
            conv += padded[dy : dy + 5, dx : dx + 7] @ rule.conv[dy, dx]
    expected = np.maximum(conv @ rule.hidden[0, 0], 0) @ rule.output[0, 0]
    np.testing.assert_allclose(rule.logits(state), expected, atol=1e-6)
