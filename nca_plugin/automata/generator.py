"""From a configuration and an index to a sample: draw rules until one is in the band, roll it out, encode it."""

import functools
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import kernels, rng
from nca_plugin.automata.complexity import SCORED_FRAMES, tokens_score
from nca_plugin.automata.config import Band, NCAConfig
from nca_plugin.automata.drawing import draw_first_state, draw_kernels
from nca_plugin.automata.loss_mask import check_two_frames, loss_mask
from nca_plugin.automata.rule import Rule, random_rule
from nca_plugin.automata.tokens import encode_into
from nca_plugin.compiled import compiled
from nca_plugin.errors import NCAPluginError, check_index

# Number of candidates after which a band counts as unreachable. `code`, the hardest preset, accepts 1 in 11. Large
# grids and long rollouts try fewer, so that the error comes within minutes.
_MAX_ATTEMPTS: Final = 100_000
_MIN_ATTEMPTS: Final = 1_000
_RELEASED_WORK: Final = 144 * 19


def generate(
    config: NCAConfig, index: int, seq_length: int, split: str = "train"
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return sample `index` of a split, a pure function of its arguments.

    Args:
        index: 0 .. 2^63 - 1.
        seq_length: S, the number of inputs; at least two frames must fit in S + 1 tokens.
        split: train, valid or test, each with random numbers of its own.

    Returns:
        tokens: int32 [S + 1]; inputs are tokens[:-1], targets tokens[1:].
        loss_mask: bool [S], see `nca_plugin.automata.loss_mask`.

    Raises:
        NCAPluginError: an index or length that is out of range, or a band that no rule reaches.
    """
    check_two_frames(config.frame_length, seq_length)
    check_index(index)
    num_frames = math.ceil((seq_length + 1) / config.frame_length)
    tokens = _tokens(config, index, num_frames, split).reshape(-1)[: seq_length + 1]
    return tokens, loss_mask(config.frame_length, seq_length)


def count_attempts(config: NCAConfig, index: int, split: str = "train") -> int:
    """Return the number of candidates that the search for the rule of sample `index` tries."""
    band = config.band_of(index, split)
    if band is None:
        return 1
    if config.scored_rollout == "separate":
        return _separately_scored_attempt(config, band, split, config.rule_of(index)) + 1
    scored = np.empty((SCORED_FRAMES, config.frame_length), np.int32)
    return _search(config, band, split, index, rng.FIRST_STATE, rng.NOISE, scored)[0] + 1


def rule_of_sample(config: NCAConfig, index: int, split: str = "train") -> Rule:
    """Return the rule that sample `index` follows."""
    attempt = count_attempts(config, index, split) - 1
    return random_rule(config.num_colors, config.seed, config.rule_of(index), attempt, split)


def _tokens(config: NCAConfig, index: int, num_frames: int, split: str) -> NDArray[np.int32]:
    """Return at least the first `num_frames` frames as int32 [frames, frame_length]."""
    tokens = np.empty((max(num_frames, SCORED_FRAMES), config.frame_length), np.int32)
    band = config.band_of(index, split)
    if config.scored_rollout == "separate":
        rule_index = config.rule_of(index)
        rule_attempt = 0 if band is None else _separately_scored_attempt(config, band, split, rule_index)
        Rollout(config, split, rule_index, rule_attempt, index, 0).write_tokens(tokens[:num_frames])
    elif band is None:
        Rollout(config, split, index, 0, index, 0).write_tokens(tokens[:num_frames])
    else:
        scored = tokens[:SCORED_FRAMES]
        _, rollout = _search(config, band, split, index, rng.FIRST_STATE, rng.NOISE, scored)
        rollout.write_tokens(tokens[SCORED_FRAMES:num_frames])
    return tokens


def _search(
    config: NCAConfig,
    band: Band,
    split: str,
    index: int,
    state_purpose: int,
    noise_purpose: int,
    scored: NDArray[np.int32],
) -> tuple[int, "Rollout"]:
    """Return the number of the first candidate of stream `index` whose rollout is in the band, and that rollout, whose
    first frames are written to `scored`, int32 [SCORED_FRAMES, frame_length]."""
    low, high = band
    work = config.grid_size**2 * (config.burn_in + (SCORED_FRAMES - 1) * config.steps_per_frame)
    max_attempts = min(_MAX_ATTEMPTS, max(_MIN_ATTEMPTS, _MAX_ATTEMPTS * _RELEASED_WORK // work))
    for attempt in range(max_attempts):
        rollout = Rollout(config, split, index, attempt, index, attempt, state_purpose, noise_purpose)
        rollout.write_tokens(scored)
        if low < tokens_score(scored) < high:
            return attempt, rollout
    raise NCAPluginError(
        f"no rule in the band {low:g}:{high:g} among {max_attempts:,} candidates of sample {index}: widen the band"
    )


# Cached, because many samples share a rule.
@functools.lru_cache(maxsize=1 << 15)
def _separately_scored_attempt(config: NCAConfig, band: Band, split: str, rule_index: int) -> int:
    scored = np.empty((SCORED_FRAMES, config.frame_length), np.int32)
    return _search(config, band, split, rule_index, rng.SCORED_FIRST_STATE, rng.SCORED_NOISE, scored)[0]


class Rollout:
    """A rollout of candidate `rule_attempt` of rule `rule_index`, computed only as far as frames are requested.

    Attributes:
        steps_computed: number of steps computed; smaller than the number of steps taken if the state stops changing.
    """

    def __init__(
        self,
        config: NCAConfig,
        split: str,
        rule_index: int,
        rule_attempt: int,
        index: int,
        attempt: int,
        state_purpose: int = rng.FIRST_STATE,
        noise_purpose: int = rng.NOISE,
    ) -> None:
        self._config = config
        self._noise = (rng.stream_key(config.seed, split, noise_purpose), index, attempt)
        self._state = np.empty((config.grid_size, config.grid_size), np.uint8)
        self._rule = _draw(
            rng.stream_key(config.seed, split, rng.RULE),
            rule_index,
            rule_attempt,
            config.num_colors,
            rng.stream_key(config.seed, split, state_purpose),
            index,
            attempt,
            config.first_state == "uniform",
            self._state,
        )
        self._num_frames = 0
        self.steps_computed = 0

    def frames(self, count: int) -> NDArray[np.uint8]:
        """Return the next `count` frames, uint8 [count, grid, grid]."""
        config = self._config
        frames = np.empty((count, config.grid_size, config.grid_size), np.uint8)
        is_first = self._num_frames == 0
        self.steps_computed += kernels.rollout(
            *self._rule,
            config.num_colors,
            self._state,
            0 if is_first else config.burn_in + (self._num_frames - 1) * config.steps_per_frame,
            config.burn_in if is_first else config.steps_per_frame,
            config.steps_per_frame,
            config.temperature,
            config.identity_bias,
            *self._noise,
            frames,
        )
        self._num_frames += count
        return frames

    def write_tokens(self, tokens: NDArray[np.int32]) -> None:
        """Write the tokens of the next frames to `tokens`, int32 [frames, frame_length]."""
        frames = self.frames(tokens.shape[0])
        encode_into(frames, self._config.num_colors, self._config.patch_size, tokens.reshape(-1))


@compiled
def _draw(rule_key, rule_index, rule_attempt, num_colors, state_key, index, attempt, is_uniform, state):  # type: ignore[no-untyped-def]
    """Fill `state` with a first state, and return a rule in the form that `kernels.rollout` takes."""
    draw_first_state(state_key, index, attempt, num_colors, is_uniform, state)
    conv, hidden, output = draw_kernels(rule_key, rule_index, rule_attempt, num_colors)
    return kernels.fuse(conv, hidden, output)
