"""Our generator computes what the released one computes, on rules and states taken from it."""

import itertools

import numpy as np
import pytest

from nca_plugin.automata import NCAConfig, Rule, decode, encode, gzip_score
from nca_plugin.automata.complexity import scored_size
from nca_plugin.sources import parse

RULES = range(4)


def golden_rule(golden: dict[str, np.ndarray], i: int) -> Rule:
    return Rule(*(golden[f"rule{i}/params/Conv_{layer}/kernel"] for layer in range(3)))


@pytest.mark.parametrize("i", RULES)
def test_logits(golden: dict[str, np.ndarray], i: int) -> None:
    rule = golden_rule(golden, i)
    states = [golden["init_state"][i], *golden["argmax_next"][i]]
    for state, expected in zip(states, golden["logits_first3"][i], strict=False):
        np.testing.assert_allclose(rule.logits(state), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("i", RULES)
def test_every_argmax_step_with_a_clear_winner(golden: dict[str, np.ndarray], i: int) -> None:
    rule = golden_rule(golden, i)
    states = [golden["init_state"][i], *golden["argmax_next"][i]]
    for step in range(20):
        is_clear = golden["argmax_top2_gap"][i, step] > 1e-3
        assert is_clear.mean() > 0.9
        np.testing.assert_array_equal(rule.rollout(states[step], 1)[0][is_clear], states[step + 1][is_clear])


@pytest.mark.parametrize("i", RULES)
def test_sampled_steps_follow_the_rule_where_noise_cannot_reach(golden: dict[str, np.ndarray], i: int) -> None:
    rule = golden_rule(golden, i)
    states = golden["rollout_T1e-4_full37"][i]
    for now, after in itertools.pairwise(states):
        logits = np.sort(rule.logits(now), axis=-1)
        is_clear = logits[..., -1] - logits[..., -2] > 1e-3
        np.testing.assert_array_equal(rule.rollout(now, 1)[0][is_clear], after[is_clear])


@pytest.mark.parametrize("i", RULES)
def test_tokens(golden: dict[str, np.ndarray], i: int) -> None:
    frames = golden["rollout_training27"][i]
    np.testing.assert_array_equal(encode(frames), golden["tokens"][i])
    np.testing.assert_array_equal(decode(golden["tokens"][i]), frames)


@pytest.mark.parametrize("i", RULES)
def test_gzip_size(golden: dict[str, np.ndarray], i: int) -> None:
    size = golden["gzip_compressed_bytes"][i]
    assert scored_size(golden["gzip_input_tokens"][i]) == size
    assert gzip_score(golden["gzip_frames"][i]) * 1440 == pytest.approx(size, abs=1e-9)
    assert gzip_score(golden["rollout_training27"][i][:10]) == pytest.approx(golden["gzip_score_of_training_window"][i])


@pytest.mark.parametrize("i", RULES)
def test_targets_and_loss_mask(golden: dict[str, np.ndarray], i: int) -> None:
    """The released data set's inputs and targets, cut from its own tokens as a sample of ours is cut."""
    tokens = encode(golden["rollout_training27"][i])[:1025]
    loss_mask = parse("nca://web").sample(0, 1024).loss_mask
    np.testing.assert_array_equal(tokens[:-1], golden["dataset_inputs"][i])
    np.testing.assert_array_equal(np.where(loss_mask, tokens[1:], -100), golden["dataset_targets"][i])
    assert loss_mask.sum() == 987


def test_dimensions_are_the_released_ones() -> None:
    config = NCAConfig.preset("release")
    assert (config.vocab_size, config.grid_start, config.grid_end, config.frame_length) == (10_002, 10_000, 10_001, 38)
