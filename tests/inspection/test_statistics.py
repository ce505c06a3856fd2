"""Statistics of samples: small cases with known answers, and the release's published values."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nca_plugin.automata import NCAConfig, gzip_score
from nca_plugin.errors import NCAPluginError
from nca_plugin.inspection import statistics as s
from nca_plugin.inspection.measures import measure
from nca_plugin.inspection.reference import ACCEPTANCE, NUM_SEQUENCES, REFERENCE, SCORE_QUANTILES, reference_for
from nca_plugin.inspection.samples import draw_samples, random_scores
from nca_plugin.sources import parse

SEEDS = st.integers(0, 2**32 - 1)


def test_top_shares() -> None:
    np.testing.assert_allclose(s.top_shares([1, 0, 6, 3], [1, 2, 3, 100]), [0.6, 0.9, 1.0, 1.0])


def test_entropy_of_known_distributions() -> None:
    np.testing.assert_allclose(s.entropy([[4, 4, 4, 4], [8, 0, 0, 0], [2, 1, 1, 0], [0, 0, 0, 0]]), [2, 0, 1.5, 0])


def test_entropy_bias_corrects_a_small_sample() -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(200, np.full(16, 1 / 16), size=2000)
    plug_in = s.entropy(counts).mean()
    assert plug_in < 3.96
    assert plug_in + s.entropy_bias(counts).mean() == pytest.approx(4.0, abs=0.003)


@given(SEEDS, st.integers(1, 40), st.integers(1, 9))
def test_distinct_counts_the_set(seed: int, length: int, vocab_size: int) -> None:
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (3, length))
    assert s.distinct(tokens).tolist() == [len(set(row)) for row in tokens.tolist()]


def test_repeat_rate() -> None:
    np.testing.assert_allclose(s.repeat_rate([[1, 1, 2, 1], [3, 4, 3, 4]], lag=1), [1 / 3, 0])
    np.testing.assert_allclose(s.repeat_rate([[1, 1, 2, 1], [3, 4, 3, 4]], lag=2), [0.5, 1])
    patches = [[[1, 2], [1, 5], [1, 2]]]
    np.testing.assert_allclose(s.repeat_rate(patches, lag=1), [0.5])
    np.testing.assert_allclose(s.repeat_rate(patches, lag=2), [1.0])


def test_change_rate_and_neighbours() -> None:
    frames = np.array([[[[0, 0], [1, 2]], [[0, 1], [1, 2]], [[1, 0], [2, 1]]]])
    np.testing.assert_allclose(s.change_rate(frames), [[0.25, 1.0]])
    # On the torus the right neighbour of the last column is the first.
    np.testing.assert_allclose(s.right_neighbour_rate(frames[:, :1]), [0.5])
    np.testing.assert_allclose(s.color_entropy(frames[:, :1], 3), [1.5])


def test_scores_are_those_of_the_first_ten_frames() -> None:
    frames = np.random.default_rng(0).integers(0, 10, (2, 12, 12, 12))
    np.testing.assert_allclose(s.gzip_scores(frames, 10, 2), [gzip_score(f[:10]) for f in frames])


@pytest.mark.parametrize("uri", ["nca://web", "nca://release", "nca://web:0.5,code:0.5"])
def test_samples_are_scored_alike_however_few_frames_they_show(uri: str) -> None:
    whole, short = (draw_samples(parse(uri), 4, seq_length).grid for seq_length in (1024, 100))
    assert whole is not None and short is not None and short.frames.shape[1] == 2
    np.testing.assert_array_equal(short.scores, whole.scores)


def test_every_sample_has_the_band_that_chose_it() -> None:
    mixture = draw_samples(parse("nca://web:0.5,code:0.5"), 20, 80)
    curriculum = draw_samples(parse("nca://web?curriculum=0@0.3:0.4,7@0.5:1"), 9, 80)
    for samples in (mixture, curriculum):
        assert samples.grid is not None and samples.grid.distinct_bands == [(0.3, 0.4), (0.5, 1.0)]
        assert measure(samples)["in_band"].value == 1.0
    assert curriculum.grid is not None and curriculum.grid.bands.index((0.5, 1.0)) == 7
    assert "in_band" not in measure(draw_samples(parse("nca://web?band=none"), 3, 80))


@given(SEEDS, st.integers(2, 3), st.integers(2, 5), st.integers(3, 6))
def test_seen_neighbourhoods_against_a_dictionary(seed: int, num_colors: int, num_frames: int, size: int) -> None:
    # Few colours in blocks, so that neighbourhoods recur.
    rng = np.random.default_rng(seed)
    frames = (rng.random((num_frames, size, size)) < 0.15).astype(np.uint8) * (num_colors - 1)
    known: dict[bytes, int] = {}
    expected_seen, expected_right = [], []
    for now, after in itertools.pairwise(frames):
        padded = np.pad(now, 1, mode="wrap")
        keys = [padded[y : y + 3, x : x + 3].tobytes() for y, x in np.ndindex(size, size)]
        expected_seen.append([key in known for key in keys])
        expected_right.append([known.get(key) == cell for key, cell in zip(keys, after.ravel().tolist(), strict=True)])
        for key, cell in zip(keys, after.ravel().tolist(), strict=True):
            known.setdefault(key, cell)
    seen, right = s.seen_neighbourhoods(frames)
    np.testing.assert_array_equal(seen, expected_seen)
    np.testing.assert_array_equal(right, expected_right)


def test_a_deterministic_rule_is_always_right_once_seen() -> None:
    frames = np.stack([np.roll(np.arange(256).reshape(16, 16) % 251, t, axis=1) for t in range(4)])
    seen, right = s.seen_neighbourhoods(frames)
    assert not seen[0].any() and seen[1:].all()
    np.testing.assert_array_equal(seen, right)


def test_pair_counts_leave_out_missing_symbols() -> None:
    counts = s.pair_counts([[0, 1, -1, 1]], [1, 2, 9], num_symbols=2)
    assert counts.shape == (1, 3, 2, 2)
    assert counts[0].tolist() == [[[0, 1], [0, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]]


def test_mutual_information_of_known_tables() -> None:
    np.testing.assert_allclose(s.mutual_information(np.eye(4) * 10_000), 2.0, atol=1e-3)
    np.testing.assert_allclose(s.mutual_information(np.full((4, 4), 10_000)), 0.0, atol=1e-4)


def test_mutual_information_is_corrected_for_a_small_sample() -> None:
    tokens = np.random.default_rng(1).integers(0, 8, (300, 1000))
    values = s.mutual_information(s.pair_counts(tokens, [1], 8)[:, 0])
    # Uncorrected, the mean would be 7 * 7 / (2 * 999 ln 2) = 0.035 bits.
    assert abs(values.mean()) < 0.004


def test_mutual_information_finds_a_copy_at_its_distance() -> None:
    half = np.random.default_rng(0).integers(0, 4, (200, 16))
    copies = np.concatenate([half, half], axis=1)
    values = s.mutual_information(s.pair_counts(copies, [15, 16, 17], 4).sum(axis=0))
    assert values[1] == pytest.approx(2.0, abs=0.02)
    assert np.all(np.abs(values[[0, 2]]) < 0.02)
    baseline = s.mutual_information(s.pair_counts(s.permuted(copies), [16], 4).sum(axis=0))
    assert abs(float(baseline[0])) < 0.1


def test_folding_and_permuting_keep_what_they_say() -> None:
    tokens = np.arange(40).reshape(2, 20)
    assert s.fold(tokens, 16).max() == 15
    shuffled = s.permuted(tokens)
    np.testing.assert_array_equal(np.sort(shuffled, axis=1), tokens)
    assert not np.array_equal(shuffled, tokens)


def test_jackknife_of_a_mean_is_the_textbook_error() -> None:
    values = np.random.default_rng(0).normal(size=400)
    value, error = s.jackknife(lambda kept: values[kept].mean(), 400, groups=400)
    estimate = s.estimate_mean(values)
    assert float(value) == pytest.approx(estimate.value)
    assert float(error) == pytest.approx(estimate.standard_error)
    assert float(s.jackknife(lambda kept: values[kept].mean(), 400)[1]) == pytest.approx(float(error), rel=0.6)


def test_the_interval_of_a_series_holds_its_mean_although_neighbours_are_alike() -> None:
    rng = np.random.default_rng(0)
    # Documents of ten pieces: 40 values are drawn, not 400.
    series = np.repeat(rng.normal(size=(2_000, 40)), 10, axis=1)
    intervals = np.array([s.batch_interval(values) for values in series])
    holds = np.mean((intervals[:, 0] < 0) & (intervals[:, 1] > 0))
    assert holds == pytest.approx(0.95, abs=0.015)
    assert intervals.mean(axis=1) == pytest.approx(series.mean(axis=1))


@pytest.mark.parametrize("q", [0.05, 0.5, 0.95])
def test_the_error_of_a_quantile_is_its_spread_over_samples(q: float) -> None:
    samples = np.random.default_rng(0).normal(size=(1000, 300))
    spread = np.std(np.quantile(samples, q, axis=1))
    estimates = [s.estimate_quantile(values, q) for values in samples[:200]]
    errors = np.array([estimate.standard_error for estimate in estimates])
    assert errors.mean() == pytest.approx(spread, rel=0.15)
    assert errors.std() < 0.35 * spread


def test_one_sequence_has_no_standard_error() -> None:
    measures = measure(draw_samples(parse("nca://toy"), 1, 200))
    assert measures["change_rate"].value >= 0
    assert np.isnan([measures[name].standard_error for name in ("change_rate", "change_rate_q5")]).all()
    assert np.isnan(measures["token_entropy"].standard_error)


@pytest.mark.parametrize(("uri", "seq_length"), [("dyck://?k=8", 1), ("shuffled://toy", 100), ("dyck://?k=1", 50)])
def test_sources_without_a_grid(uri: str, seq_length: int) -> None:
    samples = draw_samples(parse(uri), 4, seq_length)
    assert samples.grid is None
    measures = measure(samples)
    assert {"distinct_tokens", "token_entropy", "distinct_per_sequence", "token_repeat_1"} <= set(measures)
    assert "change_rate" not in measures


@pytest.mark.parametrize(("seq_length", "num_frames"), [(1024, 27), (1023, 26), (1025, 27), (1062, 28), (75, 2)])
def test_frames_are_those_whose_patches_are_all_there(seq_length: int, num_frames: int) -> None:
    samples = draw_samples(parse("nca://web?band=none"), 2, seq_length)
    assert samples.grid is not None and samples.grid.frames.shape == (2, num_frames, 12, 12)
    assert samples.grid.patches.shape == (2, num_frames, 36)


@pytest.mark.parametrize(("count", "reason"), [(0, "must be at least 1"), (10**9, "fit in memory")])
def test_counts_out_of_range(count: int, reason: str) -> None:
    with pytest.raises(NCAPluginError, match=reason):
        draw_samples(parse("nca"), count, 1024)


def test_random_scores_are_those_of_the_released_code() -> None:
    scores = random_scores(parse("nca://release"), 800)
    for quantile, published in SCORE_QUANTILES.items():
        # Constant rules share a score, so that a quantile lies between the shares below it and up to it.
        error = 4 * np.sqrt(quantile * (1 - quantile) / scores.size)
        assert np.mean(scores < published - 5e-4) - error < quantile < np.mean(scores < published + 5e-4) + error
    for (low, high), accepted in ACCEPTANCE.items():
        error = 4 * np.sqrt(accepted * (1 - accepted) / scores.size)
        assert np.mean((low < scores) & (scores < high)) == pytest.approx(accepted, abs=error)


def test_reference_applies_only_to_comparable_samples() -> None:
    assert reference_for(NCAConfig.preset("release"), 27) == REFERENCE[0.5, 1.0]
    code = reference_for(NCAConfig.preset("code"), 27)
    assert code is not None and set(REFERENCE[0.3, 0.4]) - set(code) == {"in_band"}
    for config in (NCAConfig.preset("toy"), NCAConfig(band=None), NCAConfig(burn_in=0), NCAConfig(band=(0.5, 0.9))):
        assert reference_for(config, 27) is None
    assert reference_for(NCAConfig.preset("release"), 26) is None


@pytest.mark.parametrize("band", REFERENCE)
def test_the_release_preset_measures_what_the_released_code_does(band: tuple[float, float]) -> None:
    """As many sequences as are published: every statistic within four standard errors of the difference of both
    samples, plus what its publication rounds."""
    measures = measure(draw_samples(parse(f"nca://release?band={band[0]}:{band[1]}"), NUM_SEQUENCES, 1024))
    for name, published in REFERENCE[band].items():
        rounding = 0.5 * 10.0 ** (math.floor(math.log10(published)) - 2)  # of the third digit
        tolerance = 4 * math.sqrt(2) * measures[name].standard_error + rounding
        assert measures[name].value == pytest.approx(published, abs=tolerance), name


@pytest.mark.parametrize("preset", ["web", "code"])
def test_our_defaults_are_always_in_the_band(preset: str) -> None:
    assert measure(draw_samples(parse(f"nca://{preset}"), 500, 1024))["in_band"].value == 1.0


def test_a_mixture_has_the_grid_that_its_presets_share() -> None:
    samples = draw_samples(parse("nca://web:0.5,code:0.5"), 3, 200)
    assert samples.grid is not None and samples.grid.config.band is None
    assert draw_samples(parse("nca://web:0.5,code:0.5?code.grid_size=24"), 3, 600).grid is None
