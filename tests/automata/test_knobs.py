"""What each option of the paper's studies promises."""

import itertools

import numpy as np
import pytest
from refusals import assert_refused_in_one_line

from nca_plugin.automata import CurriculumStep, NCAConfig, decode, generate, gzip_score, random_rule
from nca_plugin.automata.generator import count_attempts
from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import parse
from nca_plugin.sources.mixture import MixtureSource
from nca_plugin.sources.nca import NCASource


def frames_of(config: NCAConfig, index: int, num_frames: int = 10, split: str = "train") -> np.ndarray:
    tokens, _ = generate(config, index, num_frames * config.frame_length - 1, split)
    return decode(tokens, config.num_colors, config.patch_size, config.grid_size)


def follows(config: NCAConfig, frames: np.ndarray, rule_index: int, attempt: int) -> bool:
    """Whether candidate `attempt` of a rule makes these frames, but for the draws at a small temperature."""
    rule = random_rule(config.num_colors, config.seed, rule_index, attempt)
    return all(np.mean(rule.rollout(a, 1)[0] == b) > 0.95 for a, b in itertools.pairwise(frames))


@pytest.mark.parametrize("num_colors", range(2, 16))
def test_alphabets(num_colors: int) -> None:
    source = parse(f"nca://web?num_colors={num_colors}&band=none")
    assert source.vocab_size == num_colors**4 + 2
    tokens = source.sample(0, 1024).tokens
    assert tokens.min() >= 0 and tokens.max() == num_colors**4 + 1


@pytest.mark.parametrize(
    ("num_colors", "grid_size", "patch_size"), [(4, 12, 1), (4, 12, 3), (4, 6, 2), (4, 24, 2), (2, 8, 4), (4, 3, 3)]
)
def test_grids_and_patches(num_colors: int, grid_size: int, patch_size: int) -> None:
    config = NCAConfig(num_colors=num_colors, grid_size=grid_size, patch_size=patch_size, band=None)
    assert config.vocab_size == config.num_colors ** (patch_size**2) + 2
    assert config.frame_length == (grid_size // patch_size) ** 2 + 2
    frames = frames_of(config, 0, 4)
    assert frames.shape == (4, grid_size, grid_size)
    assert follows(config, frames, 0, 0)


def test_an_identity_bias_keeps_cells_as_they_are() -> None:
    rates = []
    for bias in (0.0, 0.3, 100.0):
        frames = [frames_of(NCAConfig(band=None, identity_bias=bias), i) for i in range(30)]
        rates.append(np.mean([np.mean(f[1:] != f[:-1]) for f in frames]))
    assert rates[0] > rates[1] > rates[2] == 0


def test_temperature_adds_noise() -> None:
    """Agreement with the rule's argmax: complete at 0, high at the default, that of chance when the rule drowns."""
    agreement = []
    for temperature in (0.0, 1e-4, 1e-2, 1000.0):
        config = NCAConfig(band=None, temperature=temperature)
        pairs = []
        for i in range(20):
            rule = random_rule(10, config.seed, i)
            pairs += [np.mean(rule.rollout(a, 1)[0] == b) for a, b in itertools.pairwise(frames_of(config, i))]
        agreement.append(np.mean(pairs))
    assert agreement[0] == 1 > agreement[1] > 0.99 > agreement[2] > agreement[3]
    assert agreement[3] == pytest.approx(0.1, abs=0.01)


def test_burn_in_and_stride_choose_frames_of_one_trajectory() -> None:
    every = frames_of(NCAConfig(band=None, burn_in=0), 3, 40)
    np.testing.assert_array_equal(frames_of(NCAConfig(band=None, burn_in=7), 3, 10), every[7:17])
    np.testing.assert_array_equal(frames_of(NCAConfig(band=None, burn_in=2, steps_per_frame=4), 3, 9), every[2:38:4])


def test_sequences_per_rule() -> None:
    config = NCAConfig(scored_rollout="separate", sequences_per_rule=3, seed=5)
    samples = [frames_of(config, i) for i in range(9)]
    for group in range(3):
        attempt = count_attempts(config, 3 * group) - 1
        for i in range(9):
            assert follows(config, samples[i], group, attempt) == (i // 3 == group)
    assert len({sample[0].tobytes() for sample in samples}) == 9


def test_a_limited_set_of_rules_is_used_again_with_new_first_states() -> None:
    config = NCAConfig.preset("release", num_rules=4, sequences_per_rule=2)
    samples = [frames_of(config, i) for i in range(16)]
    for i, sample in enumerate(samples):
        assert follows(config, sample, i // 2 % 4, count_attempts(config, i) - 1)
    assert len({sample[0].tobytes() for sample in samples}) == 16


def test_a_curriculum_changes_the_band_with_the_index() -> None:
    stages = (CurriculumStep(0, (0.1, 0.3)), CurriculumStep(20, (0.3, 0.5)), CurriculumStep(40, (0.5, 1.0)))
    config = NCAConfig(band=None, curriculum=stages)
    for index in (0, 5, 19, 20, 39, 40, 41, 2**40):
        low, high = next(stage.band for stage in reversed(stages) if stage.start <= index)
        assert low < gzip_score(frames_of(config, index)) < high
    for split in ("valid", "test"):
        assert 0.5 < gzip_score(frames_of(config, 0, split=split)) < 1.0
    # Sample 45 is what it would be without the stages before it.
    np.testing.assert_array_equal(frames_of(config, 45), frames_of(NCAConfig(), 45))


def test_a_curriculum_takes_the_place_of_the_presets_band() -> None:
    source = parse("nca://code?curriculum=0@0.1:0.3,1000@0.3:0.4")
    assert "&band=none&curriculum=0@0.1:0.3,1000@0.3:0.4&" in source.uri
    assert parse(source.uri) == source


def test_a_mixture_takes_each_sample_from_one_preset_by_weight() -> None:
    source = parse("nca://web:0.7,code:0.3?seed=11")
    assert isinstance(source, MixtureSource)
    parts = {part.preset: part for part in source.presets}
    names = [source.generator_of(i).preset for i in range(4000)]
    # Three standard deviations of a binomial share.
    assert names.count("code") / 4000 == pytest.approx(0.3, abs=3 * np.sqrt(0.3 * 0.7 / 4000))
    for i in range(10):
        np.testing.assert_array_equal(source.sample(i, 1024).tokens, parts[names[i]].sample(i, 1024).tokens)
    valid = source.for_split("valid")
    assert [valid.generator_of(i).preset for i in range(100)] != names[:100]
    assert parse(valid.uri) == valid and valid.vocab_size == 10_002


def test_options_of_one_preset_in_a_mixture() -> None:
    source = parse("nca://web:0.5,code:0.5?burn_in=3&code.burn_in=20")
    assert [part.config.burn_in for part in source.presets] == [3, 20]
    assert "web.burn_in=3&code.burn_in=20" in source.uri and "&web.band=0.5:1&code.band=0.3:0.4" in source.uri
    assert parse(source.uri) == source
    shuffled = parse("shuffled://web:0.5,code:0.5")
    np.testing.assert_array_equal(
        np.sort(shuffled.sample(1, 300).tokens), np.sort(parse("nca://web:0.5,code:0.5").sample(1, 300).tokens)
    )


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("nca://web:0.7,code:0.2", "weights sum to 0.9, but must sum to 1"),
        ("nca://web:0,code:1", "0 is the weight of preset web; weights lie above 0"),
        ("nca://web:nan,code:0.5", "'web:nan' must be PRESET:WEIGHT"),
        ("nca://web:0.5,web:0.5", "named twice"),
        ("nca://web:0.5,toy:0.5", "must share num_colors"),
        ("nca://web:0.5,code", "'code' must be PRESET:WEIGHT"),
        ("nca://web:0.5,:0.5", "':0.5' must be PRESET:WEIGHT"),
        ("nca://web:0.5,cod:0.5", "unknown NCA preset 'cod'"),
        ("nca://web:0.5,code:0.5?toy.seed=1", "'toy.seed' names a preset that is not in it"),
        ("nca://web:0.5,code:0.5?code.sed=1", "unknown option 'sed'"),
        ("nca://web:0.5,code:0.5?code.split=valid", "split applies to all presets; write split=valid"),
        ("nca://web?curriculum=", "must be START@LOW:HIGH"),
        ("nca://web?curriculum=0@0.5", "must be START@LOW:HIGH"),
        ("nca://web?curriculum=5@0.1:0.3", "must start at 0"),
        ("nca://web?curriculum=0@0.1:0.3,0@0.3:0.5", "later ones in order"),
        ("nca://web?curriculum=0@0.1:0.3,9@0.7:0.9", "ceiling 0.674"),
        ("nca://web?curriculum=0@0.1:0.3&band=0.5:1", "add band=none"),
        ("nca://web?sequences_per_rule=2", "add scored_rollout=separate"),
        ("nca://web?sequences_per_rule=0", "at least 1"),
        ("nca://web?grid_size=500&patch_size=5", "must lie in"),
        ("nca://web?burn_in=100001", "must lie in 0 .. 10,000"),
        ("nca://web?steps_per_frame=0", "must lie in 1 .. 1,000"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(uri: str, reason: str) -> None:
    assert_refused_in_one_line(uri, reason)


def test_an_empty_curriculum_is_refused() -> None:
    with pytest.raises(NCAPluginError, match="curriculum is empty"):
        NCAConfig(band=None, curriculum=())


@pytest.mark.parametrize(
    "options", [{"seed": "3"}, {"burn_in": 1.5}, {"num_rules": 2.5}, {"temperature": "1"}, {"seed": None}]
)
def test_values_of_the_wrong_type_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(NCAPluginError, match="must be a"):
        NCAConfig.preset("release", **options)


def test_values_of_numpy_and_whole_bands_have_a_uri() -> None:
    config = NCAConfig(temperature=np.float64(1e-3), burn_in=np.int64(3), band=(0, 1))
    assert parse(NCASource(config).uri).config == config
