"""What a source says of how its tokens are frames."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_plugin.automata import decode, encode
from nca_plugin.sources import FrameLayout, parse


@pytest.mark.parametrize("length", [37, 38, 39, 76, 113, 114])
def test_frames_of_an_automaton_are_what_the_tokens_decode_to(length: int) -> None:
    source = parse("nca://web")
    assert source.frames == FrameLayout(10, (12, 12), (2, 2), 38)
    tokens = source.sample(3, 200).tokens[:length]
    whole = length // 38 + (length % 38 == 37)
    # A frame that lacks only its closing delimiter is whole.
    expected = decode(source.sample(3, 200).tokens[: 38 * whole])
    np.testing.assert_array_equal(source.frames.frames(tokens), expected)
    np.testing.assert_array_equal(source.frames.patches(tokens), encode(expected).reshape(whole, 38)[:, 1:-1])


@settings(deadline=None)
@given(
    colors=st.integers(2, 6),
    patch=st.integers(1, 3),
    edge=st.integers(1, 4),
    count=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_frames_are_what_was_encoded(colors: int, patch: int, edge: int, count: int, seed: int) -> None:
    cells = np.random.default_rng(seed).integers(colors, size=(2, count, edge * patch, edge * patch))
    tokens = np.stack([encode(frames, colors, patch) for frames in cells]) + np.int32(7)
    layout = FrameLayout(colors, cells.shape[2:], (patch, patch), edge**2 + 2).shifted(7)
    np.testing.assert_array_equal(layout.frames(tokens), cells)


def test_the_layout_passes_through_what_is_around_a_source() -> None:
    layout = parse("nca://web").frames
    assert parse("nca://code?vocab_offset=50257").frames == layout.shifted(50257)
    assert parse("nca://web:0.7,code:0.3").frames == layout
    assert parse("nca://web:0.7,code:0.3?vocab_offset=5").frames == layout.shifted(5)
    assert parse("nca://web:0.7,code:0.3?code.grid_size=8&code.band=none").frames is None
    assert parse("eca://?width=32&patch=4").frames == FrameLayout(2, (1, 32), (1, 4), 9)
    for uri in ("dyck://", "shuffled://toy", "copy://", "iid://", "linear_rnn://"):
        assert parse(uri).frames is None
