"""The generator once more in plain Python and numpy, slow and written to be read: what the compiled one must equal.

It shares with it the constants of the normal quantile and nothing else.
"""

import gzip
import math
from statistics import NormalDist

import numpy as np

from nca_plugin.automata import NCAConfig, rng

MASK32 = (1 << 32) - 1


def uniforms(key: int, index: int, attempt: int, count: int, first_block: int = 0) -> np.ndarray:
    """Philox4x32-10 in whole numbers; float64 in (0, 1)."""
    words: list[int] = []
    for block in range(first_block, first_block + (count + 3) // 4):
        counter = [block & MASK32, attempt & MASK32, index & MASK32, index >> 32]
        k0, k1 = key & MASK32, key >> 32
        for _ in range(10):
            p0, p1 = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
            counter = [(p1 >> 32) ^ counter[1] ^ k0, p1 & MASK32, (p0 >> 32) ^ counter[3] ^ k1, p0 & MASK32]
            k0, k1 = (k0 + 0x9E3779B9) & MASK32, (k1 + 0xBB67AE85) & MASK32
        words += counter
    return (np.array(words[:count], np.float64) + 0.5) / 2**32


def draw_rule(config: NCAConfig, split: str, index: int, attempt: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kernels [9, n+2, 4], [4, 16] and [16, n], float32."""
    n = config.num_colors
    shapes = ((9, n + 2, 4), (4, 16), (16, n))
    u = uniforms(int(rng.stream_key(config.seed, split, rng.RULE)), index, attempt, sum(map(math.prod, shapes)))
    q = (u - 0.5) * (2 * rng._TRUNCATED_HALF)
    z = q * np.polyval(rng._TRUNCATED_NUM, q * q) / (np.polyval(rng._TRUNCATED_DEN, q * q) * rng._TRUNCATED_STD)
    kernels, at = [], 0
    for shape, fan_in in zip(shapes, (9 * (n + 2), 4, 16), strict=True):
        size = math.prod(shape)
        kernels.append((z[at : at + size] * math.sqrt(1 / fan_in)).astype(np.float32).reshape(shape))
        at += size
    return kernels[0], kernels[1], kernels[2]


def first_state(config: NCAConfig, key: int, index: int, attempt: int) -> np.ndarray:
    n = config.num_colors
    u = uniforms(key, index, attempt, n + config.grid_size**2)
    weights = [1.0 if config.first_state == "uniform" else math.exp(NormalDist().inv_cdf(x)) for x in u[:n]]
    state = np.searchsorted(np.cumsum(weights), u[n:] * sum(weights), side="right")
    return np.minimum(state, n - 1).reshape(config.grid_size, config.grid_size)


def neighbour_rows(conv: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """What a colour in a neighbour's place adds to the hidden units, float32 [9, n, 16]."""
    channels = conv[:, 1:-1].copy()
    channels[:, -1] += conv[:, 0]
    channels[:, 0] += conv[:, -1]
    rows = np.zeros((9, channels.shape[1], 16), np.float32)
    for i in range(4):
        rows = rows + channels[:, :, i, None] * hidden[i]
    return rows


def next_state(
    config: NCAConfig, rows: np.ndarray, output: np.ndarray, state: np.ndarray, step: int, noise: tuple[int, int, int]
) -> np.ndarray:
    t = [rows[k][np.roll(state, (1 - k // 3, 1 - k % 3), (0, 1))] for k in range(9)]
    hidden = (((t[0] + t[1]) + (t[3] + t[4])) + (t[6] + t[7])) + (t[2] + t[5])
    hidden = np.maximum(hidden + t[8], np.float32(0))
    logits = hidden[..., :1] * output[0]
    for j in range(1, 16):
        logits = logits + hidden[..., j : j + 1] * output[j]
    if config.identity_bias:
        np.put_along_axis(
            logits,
            state[..., None],
            np.take_along_axis(logits, state[..., None], -1) + np.float32(config.identity_bias),
            -1,
        )
    after = logits.argmax(-1)
    if config.temperature == 0:
        return after
    for cell, values in enumerate(logits.reshape(-1, config.num_colors).astype(np.float64)):
        best = after.flat[cell]
        gaps = values[best] - values
        if np.partition(gaps, 1)[1] < 23 * config.temperature:
            shares = [math.exp(-gap / config.temperature) if gap < 23 * config.temperature else 0.0 for gap in gaps]
            rest = uniforms(*noise, 1, step * state.size + cell)[0] * sum(shares) - 1
            for color in (c for c in range(config.num_colors) if c != best and shares[c]):
                if rest < 0:
                    break
                after.flat[cell] = color
                rest -= shares[color]
    return after


def rollout(
    config: NCAConfig,
    split: str,
    rule: tuple[int, int],
    stream: tuple[int, int],
    purposes: tuple[int, int],
    num_frames: int,
) -> np.ndarray:
    """Frames [num_frames, grid, grid] of a rule (index, attempt) with the random numbers of `stream`."""
    conv, hidden, output = draw_rule(config, split, *rule)
    rows = neighbour_rows(conv, hidden)
    state_key, noise_key = (int(rng.stream_key(config.seed, split, purpose)) for purpose in purposes)
    state = first_state(config, state_key, *stream)
    frames = []
    for step in range(config.burn_in + (num_frames - 1) * config.steps_per_frame + 1):
        if step >= config.burn_in and (step - config.burn_in) % config.steps_per_frame == 0:
            frames.append(state)
        state = next_state(config, rows, output, state, step, (noise_key, *stream))
    return np.array(frames)


def patches(config: NCAConfig, frames: np.ndarray) -> np.ndarray:
    """Patch ids, int32 [num_frames, patches]."""
    p, edge = config.patch_size, config.grid_size // config.patch_size
    cells = frames.reshape(-1, edge, p, edge, p).transpose(0, 1, 3, 2, 4).reshape(len(frames), edge * edge, p * p)
    return (cells * config.num_colors ** np.arange(p * p)).sum(-1).astype(np.int32)


def accepted_attempt(config: NCAConfig, split: str, band: tuple[float, float], index: int, purposes: tuple[int, int]):
    for attempt in range(1000):
        scored = patches(config, rollout(config, split, (index, attempt), (index, attempt), purposes, 10))
        if band[0] < len(gzip.compress(scored.tobytes(), 9)) / scored.nbytes < band[1]:
            return attempt
    raise AssertionError("no rule in the band")


def generate(config: NCAConfig, index: int, seq_length: int, split: str = "train") -> tuple[np.ndarray, np.ndarray]:
    """What `nca_plugin.automata.generate` returns."""
    trained, separate = (rng.FIRST_STATE, rng.NOISE), (rng.SCORED_FIRST_STATE, rng.SCORED_NOISE)
    if config.curriculum is None:
        band = config.band
    elif split == "train":
        band = next(stage.band for stage in reversed(config.curriculum) if stage.start <= index)
    else:
        band = config.curriculum[-1].band
    num_frames = -(-(seq_length + 1) // config.frame_length)
    if config.scored_rollout == "trained":
        attempt = 0 if band is None else accepted_attempt(config, split, band, index, trained)
        frames = rollout(config, split, (index, attempt), (index, attempt), trained, num_frames)
    else:
        rule = index // config.sequences_per_rule
        if config.num_rules is not None:
            rule %= config.num_rules
        attempt = 0 if band is None else accepted_attempt(config, split, band, rule, separate)
        frames = rollout(config, split, (rule, attempt), (index, 0), trained, num_frames)
    ids = patches(config, frames)
    start = np.full((num_frames, 1), config.grid_start, np.int32)
    tokens = np.concatenate([start, ids, start + 1], axis=1).reshape(-1)[: seq_length + 1]
    return tokens, np.arange(1, seq_length + 1) >= config.frame_length
