"""From a configuration and an index to a training sample: draw rules until one is in the band, roll it out, encode."""

import functools
import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import kernels, rng
from nca_plugin.automata.complexity import SCORED_FRAMES, gzip_score
from nca_plugin.automata.config import NCAConfig
from nca_plugin.automata.rule import Rule, random_rule
from nca_plugin.automata.tokens import encode
from nca_plugin.errors import NCAPluginError

#: Candidates tried before a band counts as unreachable; `code`, the hardest preset, accepts 1 in 11.
MAX_ATTEMPTS: Final = 100_000


def generate(
    config: NCAConfig, index: int, seq_length: int, split: str = "train"
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return sample `index` of a split, a pure function of its arguments.

    Args:
        index: 0 .. 2^63 - 1.
        seq_length: S, the number of inputs; at least two frames must fit in S + 1 tokens.
        split: train, valid or test; each is a stream of its own.

    Returns:
        tokens: int32 [S + 1]; inputs are tokens[:-1], targets tokens[1:].
        loss_mask: bool [S]; the first frame is never a target (release: the first 37 positions of 38-token frames).

    Raises:
        NCAPluginError: an index or a length out of range, or a band that no rule reaches.
    """
    check_seq_length(config, seq_length)
    if not 0 <= index < 1 << 63:
        raise NCAPluginError(f"sample index {index}: must lie in 0 .. 2^63 - 1")
    num_frames = math.ceil((seq_length + 1) / config.frame_length)
    if config.scored_rollout == "trained":
        frames = _search(config, split, index, num_frames, rng.FIRST_STATE, rng.NOISE)[1]
    else:
        rule_index = index if config.num_rules is None else index % config.num_rules
        rule = _separately_scored_rule(config, split, rule_index)
        frames = _Rollout(config, rule, split, index, 0, rng.FIRST_STATE, rng.NOISE).frames(num_frames)
    tokens = encode(frames, config.num_colors, config.patch_size)[: seq_length + 1]
    return tokens, np.arange(1, seq_length + 1) >= config.frame_length


def check_seq_length(config: NCAConfig, seq_length: int) -> None:
    """Raise `NCAPluginError` if a sample of `seq_length` inputs cannot hold two frames."""
    shortest = 2 * config.frame_length - 1
    if seq_length < shortest:
        raise NCAPluginError(
            f"sequence length {seq_length} is too short for two frames of {config.frame_length} tokens, and the first "
            f"is never a target: use at least {shortest}"
        )


def _search(
    config: NCAConfig, split: str, index: int, num_frames: int, state_purpose: int, noise_purpose: int
) -> tuple[Rule, NDArray[np.uint8]]:
    """Return the first rule of stream `index` whose rollout is in the band, and that rollout's first frames."""
    for attempt in range(MAX_ATTEMPTS):
        rule = random_rule(config.num_colors, config.seed, index, attempt, split)
        rollout = _Rollout(config, rule, split, index, attempt, state_purpose, noise_purpose)
        if config.band is None:
            return rule, rollout.frames(num_frames)
        scored = rollout.frames(SCORED_FRAMES)
        low, high = config.band
        if low < gzip_score(scored, config.num_colors, config.patch_size) < high:
            further = rollout.frames(max(0, num_frames - SCORED_FRAMES))
            return rule, np.concatenate([scored, further])[:num_frames]
    raise NCAPluginError(
        f"no rule in the band {low:g}:{high:g} among {MAX_ATTEMPTS} candidates of sample {index}: widen the band"
    )


# A rule of a limited set serves many samples, which need its search only once.
@functools.lru_cache(maxsize=1 << 15)
def _separately_scored_rule(config: NCAConfig, split: str, rule_index: int) -> Rule:
    return _search(config, split, rule_index, 0, rng.SCORED_FIRST_STATE, rng.SCORED_NOISE)[0]


class _Rollout:
    """A trajectory that is computed as far as frames are asked for."""

    def __init__(
        self,
        config: NCAConfig,
        rule: Rule,
        split: str,
        index: int,
        attempt: int,
        state_purpose: int,
        noise_purpose: int,
    ) -> None:
        self._config = config
        self._rule = rule
        self._noise = (rng.stream_key(config.seed, split, noise_purpose), np.uint64(index), np.uint64(attempt))
        self._state = kernels.draw_first_state(
            rng.stream_key(config.seed, split, state_purpose),
            np.uint64(index),
            np.uint64(attempt),
            config.num_colors,
            config.grid_size,
            config.first_state == "uniform",
        )
        self._num_frames = 0

    def frames(self, count: int) -> NDArray[np.uint8]:
        """Return the next `count` frames, uint8 [count, grid, grid]."""
        config = self._config
        frames = np.empty((count, config.grid_size, config.grid_size), np.uint8)
        is_first = self._num_frames == 0
        kernels.rollout(
            *self._rule.fused,
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
