"""Measures how the time of an NCA sample is spent, and the least time that this machine's arithmetic and memory allow.

The roofline (Williams et al., CACM 2009) of a rollout is the longer of two times: its float32 operations divided by the
machine's measured peak, and the bytes that it moves between the registers and the first cache divided by that cache's
measured bandwidth. Everything that a rollout reads, including its rule's table, fits into the first two caches, so that
main memory does not matter. The peak is that of separate multiplications and additions, because the definition of a
sample forbids contracted ones.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from nca_plugin.automata import NCAConfig
from nca_plugin.automata.complexity import SCORED_FRAMES, tokens_score
from nca_plugin.automata.drawing import HIDDEN
from nca_plugin.automata.generator import Rollout, count_attempts
from nca_plugin.automata.simd import LANES, broadcast, load, store
from nca_plugin.automata.tokens import encode_into
from nca_plugin.compiled import compiled

_ROW_BYTES: Final = HIDDEN * 4
_REPEATS: Final = 200


@dataclass(frozen=True)
class Shares:
    """The parts of a sample's mean time in microseconds, and two counts.

    Attributes:
        attempts: candidates tried for a sample, the inverse of the acceptance rate.
        steps: steps of an automaton computed for a sample. Steps after a trajectory has become constant do not count.
        random_numbers: time to draw weights and first states, and to make the rule's table of them.
        rollout: time of the automaton's steps.
        gzip: time of scoring, nearly all of it in zlib.
        encoding: time to turn frames into tokens.
    """

    attempts: float
    steps: float
    random_numbers: float
    rollout: float
    gzip: float
    encoding: float


@dataclass(frozen=True)
class Roofline:
    """The least time of a sample's rollouts on this machine.

    Attributes:
        cells: cell states computed for a sample.
        operations: float32 operations for a sample.
        bytes: bytes loaded from and stored to the first cache for a sample.
        peak_gflops: measured peak in 10^9 multiplications and additions per second.
        peak_gbytes: measured bandwidth in 10^9 bytes per second loaded from the first cache.
        least_us: least time in microseconds for a sample, by the slower of both.
        measured_us: measured time of the rollouts in microseconds for a sample.
    """

    cells: float
    operations: float
    bytes: float
    peak_gflops: float
    peak_gbytes: float
    least_us: float
    measured_us: float


def measure_shares(config: NCAConfig, seq_length: int, samples: int) -> Shares:
    """Make `samples` samples and measure the time of each step.

    If samples share rules, the search is left out, because a run does it only once for each rule.
    """
    num_frames = -(-(seq_length + 1) // config.frame_length)
    clock = _Clock()
    attempts = steps = 0
    is_searched = _is_searched(config)
    for index in range(samples):
        tried = count_attempts(config, index)
        attempts += tried
        clock.start()
        for attempt in range(tried) if is_searched else (tried - 1,):
            rollout = Rollout(config, "train", config.rule_of(index), attempt, index, attempt if is_searched else 0)
            clock.lap("random_numbers")
            frames = rollout.frames(SCORED_FRAMES if is_searched else num_frames)
            clock.lap("rollout")
            steps += rollout.steps_computed
            tokens = _encode(config, frames)
            clock.lap("encoding")
            if is_searched:
                tokens_score(tokens)
                clock.lap("gzip")
        if is_searched:
            scored_steps = rollout.steps_computed
            frames = rollout.frames(max(0, num_frames - SCORED_FRAMES))
            clock.lap("rollout")
            steps += rollout.steps_computed - scored_steps
            _encode(config, frames)
            clock.lap("encoding")
    mean = {name: seconds / samples * 1e6 for name, seconds in clock.seconds.items()}
    return Shares(attempts=attempts / samples, steps=steps / samples, **mean)


def measure_roofline(config: NCAConfig, shares: Shares) -> Roofline:
    """Compare the rollouts of `shares` with this machine's measured peaks."""
    n = config.num_colors
    columns = (n + 1) // 2 * 2
    cells = shares.steps * config.grid_size**2
    # Each cell takes four additions and a maximum of rows, a multiplication and an addition per unit and colour, and
    # five comparisons and choices per colour.
    operations = cells * (5 * HIDDEN + 2 * HIDDEN * columns + 5 * n)
    # Loads are five rows, the row again to transpose it, all units once per two colours, the weights once per vector of
    # cells, and the logits. Stores are the row twice, and the logits.
    loaded = 6 * _ROW_BYTES + _ROW_BYTES * columns // 2 + _ROW_BYTES * columns // LANES + 4 * n
    stored = 2 * _ROW_BYTES + 4 * columns
    num_bytes = cells * (loaded + stored)
    peak_gflops, peak_gbytes = _peak_gflops(), _peak_gbytes()
    return Roofline(
        cells=cells,
        operations=operations,
        bytes=num_bytes,
        peak_gflops=peak_gflops,
        peak_gbytes=peak_gbytes,
        least_us=max(operations / peak_gflops, num_bytes / peak_gbytes) / 1e3,
        measured_us=shares.rollout,
    )


def _is_searched(config: NCAConfig) -> bool:
    """Return whether every sample has its own search for a rule."""
    return config.scored_rollout == "trained" and (config.band is not None or config.curriculum is not None)


def _encode(config: NCAConfig, frames: np.ndarray) -> np.ndarray:
    tokens = np.empty((frames.shape[0], config.frame_length), np.int32)
    encode_into(frames, config.num_colors, config.patch_size, tokens.reshape(-1))
    return tokens


class _Clock:
    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("random_numbers", "rollout", "gzip", "encoding"), 0.0)
        self._last = 0.0

    def start(self) -> None:
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now


def _peak_gflops() -> float:
    """Measure with six chains of multiplications and additions.

    They are enough to hide the latency of both, and few enough for AVX2's sixteen registers.
    """
    rounds = 20_000
    out = np.ones(6 * LANES, np.float32)
    return rounds * 6 * LANES * 2 / _shortest(lambda: _multiply_and_add(rounds, out)) / 1e9


def _peak_gbytes() -> float:
    rounds, values = 20, np.ones(4096, np.float32)
    out = np.empty(6 * LANES, np.float32)
    return (
        rounds * values[: 4096 // (6 * LANES) * 6 * LANES].nbytes / _shortest(lambda: _sum(rounds, values, out)) / 1e9
    )


def _shortest(call: Callable[[], None]) -> float:
    call()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


@compiled
def _multiply_and_add(rounds, out):  # type: ignore[no-untyped-def]
    factor, term = broadcast(np.float32(0.999)), broadcast(np.float32(0.001))
    a, b, c = load(out, 0), load(out, LANES), load(out, 2 * LANES)
    d, e, f = load(out, 3 * LANES), load(out, 4 * LANES), load(out, 5 * LANES)
    for _ in range(rounds):
        a, b, c = a * factor + term, b * factor + term, c * factor + term
        d, e, f = d * factor + term, e * factor + term, f * factor + term
    store(out, 0, a + b + c + d + e + f)


@compiled
def _sum(rounds, values, out):  # type: ignore[no-untyped-def]
    a = b = c = d = e = f = broadcast(np.float32(0.0))
    for _ in range(rounds):
        for i in range(0, values.size - 6 * LANES + 1, 6 * LANES):
            a, b, c = a + load(values, i), b + load(values, i + LANES), c + load(values, i + 2 * LANES)
            d, e = d + load(values, i + 3 * LANES), e + load(values, i + 4 * LANES)
            f = f + load(values, i + 5 * LANES)
    store(out, 0, a + b + c + d + e + f)
