"""The same tokens from the same index: in any process, thread, processor and cache, and by the written definition."""

import os
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import reference_generator
from hypothesis import given, settings
from hypothesis import strategies as st
from places import TESTS
from sample_hashes import SAMPLES, sample_hash

from nca_plugin.automata import CurriculumStep, NCAConfig, complexity, generate
from nca_plugin.errors import NCAPluginError

HASHES = [expected for *_, expected in SAMPLES]


@pytest.mark.parametrize(("uri", "split", "index", "seq_length", "expected"), SAMPLES)
def test_samples_are_what_they_were(uri: str, split: str, index: int, seq_length: int, expected: str) -> None:
    assert sample_hash(uri, split, index, seq_length) == expected


def test_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda sample: sample_hash(*sample[:-1]), SAMPLES * 3)) == HASHES * 3


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},
        pytest.param({"NUMBA_CPU_FEATURES": "-avx512f,-avx2,-fma"}, marks=pytest.mark.slow),
        pytest.param({"NUMBA_CPU_FEATURES": "-avx512f"}, marks=pytest.mark.slow),
    ],
    ids=["this processor", "SSE2", "no AVX2", "no AVX-512"],
)
def test_processors_with_a_cold_and_a_warm_cache(tmp_path: Path, environment: dict[str, str]) -> None:
    script = TESTS / "sample_hashes.py"
    environment = os.environ | environment | {"NUMBA_CACHE_DIR": str(tmp_path)}
    for cache in ("cold", "warm"):
        assert any(tmp_path.iterdir()) == (cache == "warm")
        shown = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
        assert shown.stdout.split() == HASHES


@st.composite
def configurations(draw: st.DrawFn) -> NCAConfig:
    patch_size = draw(st.integers(1, 3))
    num_colors = draw(st.integers(2, 15 if patch_size < 3 else 4))
    shares_rules = draw(st.booleans())
    # A band that leaves out rules that stand still, and nearly nothing else: the search is on, but not for long.
    band = (draw(st.floats(0.03, 0.06)), 2.0)
    has_curriculum = draw(st.booleans())
    return NCAConfig(
        seed=draw(st.integers(0, 2**63 - 1)),
        num_colors=num_colors,
        grid_size=patch_size * draw(st.integers(-(-3 // patch_size), 12 // patch_size)),
        patch_size=patch_size,
        temperature=draw(st.sampled_from([0.0, 1e-4, 1e-3, 0.1, 1.0])),
        identity_bias=draw(st.sampled_from([0.0, 0.2, -0.3])),
        burn_in=draw(st.integers(0, 12)),
        steps_per_frame=draw(st.integers(1, 3)),
        band=None if has_curriculum else draw(st.sampled_from([None, band])),
        curriculum=(CurriculumStep(0, (0.02, 2.0)), CurriculumStep(5, band)) if has_curriculum else None,
        first_state=draw(st.sampled_from(["softmax", "uniform"])),
        scored_rollout="separate" if shares_rules else "trained",
        num_rules=draw(st.none() | st.integers(1, 10)) if shares_rules else None,
        sequences_per_rule=draw(st.integers(1, 4)) if shares_rules else 1,
    )


@settings(max_examples=60, deadline=None)
@given(
    config=configurations(),
    index=st.integers(0, 10) | st.integers(0, 2**63 - 1),
    num_frames=st.integers(2, 14),
    split=st.sampled_from(["train", "valid", "test"]),
)
def test_the_written_definition(config: NCAConfig, index: int, num_frames: int, split: str) -> None:
    seq_length = num_frames * config.frame_length - 1
    tokens, loss_mask = generate(config, index, seq_length, split)
    expected_tokens, expected_mask = reference_generator.generate(config, index, seq_length, split)
    np.testing.assert_array_equal(tokens, expected_tokens)
    np.testing.assert_array_equal(loss_mask, expected_mask)


@pytest.mark.parametrize("preset", ["web", "code", "release", "paper", "toy"])
def test_the_written_definition_of_the_presets(preset: str) -> None:
    for index in (0, 17, 2**40):
        expected = reference_generator.generate(NCAConfig.preset(preset), index, 1024)[0]
        np.testing.assert_array_equal(generate(NCAConfig.preset(preset), index, 1024)[0], expected)


def test_another_deflate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library with other sizes, such as zlib-ng or ISA-L; here zlib at another level."""
    compress = zlib.compress
    complexity._check_deflate.cache_clear()
    monkeypatch.setattr(zlib, "compress", lambda payload, _, wbits: compress(payload, 6, wbits))
    with pytest.raises(NCAPluginError, match=rf"\(zlib {zlib.ZLIB_RUNTIME_VERSION}\).*\d+ bytes, zlib to \d+"):
        generate(NCAConfig(), 0, 1024)
    monkeypatch.undo()
    assert generate(NCAConfig(), 0, 1024)[0].size == 1025
