"""Random numbers and the functions on them, against published vectors and the standard library."""

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_plugin import arithmetic
from nca_plugin.automata import rng
from nca_plugin.transition import random_numbers as streams

U64 = st.integers(0, 2**64 - 1)


@pytest.mark.parametrize(
    ("key", "index", "attempt", "block", "expected"),
    [
        # Random123's known-answer tests of philox4x32-10.
        (0, 0, 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, 2**64 - 1, 2**32 - 1, 2**32 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0_A4093822,
            0x03707344_13198A2E,
            0x85A308D3,
            0x243F6A88,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox(key: int, index: int, attempt: int, block: int, expected: tuple[int, ...]) -> None:
    out = np.empty(64, np.uint32)
    for lane in (0, 5, 15):
        rng.philox(np.uint64(key), np.uint64(index), np.uint64(attempt), (block - lane) % 2**32, out)
        assert tuple(out[lane::16]) == expected


@given(key=U64, index=U64, count=st.integers(0, 50))
def test_uniforms_do_not_depend_on_how_many_are_drawn(key: int, index: int, count: int) -> None:
    few = rng.uniforms(np.uint64(key), np.uint64(index), np.uint64(1), count)
    many = rng.uniforms(np.uint64(key), np.uint64(index), np.uint64(1), 60)
    np.testing.assert_array_equal(few, many[:count])
    assert np.all((many > 0) & (many < 1))


@given(st.floats(2**-40, 64))
def test_log(x: float) -> None:
    assert rng.log(x) == pytest.approx(math.log(x), rel=1e-14, abs=1e-15)


@given(st.floats(-40, 40))
def test_exp(x: float) -> None:
    assert rng.exp(x) == pytest.approx(math.exp(x), rel=1e-12)


@given(st.floats(2**-33, 1 - 2**-33))
def test_normal_quantile(p: float) -> None:
    assert rng.normal_quantile(p) == pytest.approx(NormalDist().inv_cdf(p), rel=1e-9, abs=1e-9)


def test_truncated_normals() -> None:
    """Against the quantile function of the standard library on the same uniform numbers."""
    key, index, attempt = np.uint64(5), np.uint64(1), np.uint64(0)
    normal = NormalDist()
    half = normal.cdf(2) - 0.5
    # Standard deviation of a normal variable cut at two sigma.
    std = math.sqrt(1 - 4 * normal.pdf(2) / (2 * half))
    expected = [normal.inv_cdf(0.5 + (u - 0.5) * 2 * half) / std for u in rng.uniforms(key, index, attempt, 5000)]
    np.testing.assert_allclose(rng.truncated_normals(key, index, attempt, 5000), expected, rtol=4e-9, atol=1e-12)
    assert np.abs(expected).max() > 2.27  # the whole interval was covered


def test_streams_differ() -> None:
    keys = {
        int(rng.stream_key(seed, split, purpose)) for seed in range(50) for split in rng.SPLITS for purpose in range(9)
    }
    assert len(keys) == 50 * 3 * 9


@given(key=U64, index=U64, layer=st.integers(0, 2**32 - 1), first=st.integers(0, 2**34 - 200), count=st.integers(1, 99))
def test_numbers_of_weights_are_those_of_the_same_generator(
    key: int, index: int, layer: int, first: int, count: int
) -> None:
    """numpy makes them there, compiled code those of automata: word n mod 4 of block n // 4."""
    words = np.empty(64, np.uint32)
    made = streams._philox(key, index, layer, first // 4, count // 4 + 1)
    for block in range(count // 4 + 1):
        rng.philox(np.uint64(key), np.uint64(index), np.uint64(layer), first // 4 + block, words)
        assert np.array_equal(made[4 * block : 4 * block + 4], words[::16])


@pytest.mark.parametrize(
    ("first", "count", "normal", "uniform"),
    [
        (0, 1, "f6c9894eac09345b", "a9d89b9f60375e19"),
        (63, 5, "b93a6a99bf669eb7", "c53b4e7013486543"),
        (12345, 70001, "6be9bbc23d7a08f2", "2c832e9d87d1795b"),
        ((1 << 34) - 1000, 1000, "5a8f98604edd5de0", "be13efb0911ddf6d"),
    ],
)
def test_new_weights_are_those_of_every_release(first: int, count: int, normal: str, uniform: str) -> None:
    stream = (7, 12345678901234567, 31, first, count, 1.0)
    found = [hashlib.sha256(make(*stream).tobytes()).hexdigest()[:16] for make in (streams.normals, streams.uniforms)]
    assert found == [normal, uniform]


@settings(max_examples=30)
@given(first=st.integers(0, 20_000), count=st.integers(1, 5_000), part=st.integers(50, 5_000))
def test_numbers_of_weights_do_not_depend_on_the_pieces(first: int, count: int, part: int) -> None:
    whole = streams.normals(1, 2, 3, first, count, 0.02)
    starts = range(first, first + count, part)
    pieces = [streams.normals(1, 2, 3, at, min(part, first + count - at), 0.02) for at in starts]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert np.abs(whole).max() < 0.02 * 6.5


def test_normals_are_normal() -> None:
    values = streams.normals(5, 6, 7, 0, 200_000, 1.0)
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    shares = [(values < limit).mean() for limit in (-3, -1, 0, 0.5, 2)]
    assert shares == pytest.approx([NormalDist().cdf(limit) for limit in (-3, -1, 0, 0.5, 2)], abs=0.005)


@given(st.floats(2**-40, 64))
def test_compiled_and_plain_functions_agree(x: float) -> None:
    assert rng.log(x) == arithmetic.log(x)
    assert rng.exp(x - 32) == arithmetic.exp(x - 32)
