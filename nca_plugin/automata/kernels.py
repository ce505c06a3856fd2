"""The compiled inner loops: drawing a rule and a first state, and rolling an automaton out.

Arithmetic in the trajectory is float32 in a fixed order. numba compiles it without fast-math, so LLVM may neither
reorder a sum nor contract a multiplication and an addition: every machine gets the same bits.

Shapes: n colours, HIDDEN = 16 hidden units, LANES(n) = n rounded up to a multiple of 8 so that a row fills vectors.
"""

from typing import Final

import numpy as np
from numba import njit

from nca_plugin.automata.rng import exp, gumbel, normal_quantile, philox, uniforms

NEIGHBOURS: Final = 9
CONV_CHANNELS: Final = 4
HIDDEN: Final = 16

# Flax's `lecun_normal` cuts a normal at two sigma and divides by the standard deviation of what is left.
_PHI_MINUS_2: Final = 0.02275013194817921
_TRUNCATED_STD: Final = 0.87962566103423978
# Widest difference of two Gumbel variables drawn from 32-bit numbers: no noise closes a larger gap (in units of T).
_GUMBEL_SPREAD: Final = 26.1


@njit(cache=True, nogil=True, error_model="numpy")
def draw_kernels(key: np.uint64, index: np.uint64, attempt: np.uint64, num_colors: int):  # type: ignore[no-untyped-def]
    """Return a random rule: conv [3, 3, n+2, 4], hidden [1, 1, 4, 16], output [1, 1, 16, n], float32, HWIO."""
    conv = np.empty((3, 3, num_colors + 2, CONV_CHANNELS), np.float32)
    hidden = np.empty((1, 1, CONV_CHANNELS, HIDDEN), np.float32)
    output = np.empty((1, 1, HIDDEN, num_colors), np.float32)
    u = uniforms(key, index, attempt, conv.size + hidden.size + output.size)
    at = 0
    for kernel, fan_in in ((conv, NEIGHBOURS * (num_colors + 2)), (hidden, CONV_CHANNELS), (output, HIDDEN)):
        scale = np.sqrt(1.0 / fan_in) / _TRUNCATED_STD
        flat = kernel.reshape(-1)
        for i in range(flat.size):
            p = _PHI_MINUS_2 + u[at] * (1.0 - 2.0 * _PHI_MINUS_2)
            flat[i] = np.float32(normal_quantile(p) * scale)
            at += 1
    return conv, hidden, output


@njit(cache=True, nogil=True, error_model="numpy")
def fuse(conv: np.ndarray, hidden: np.ndarray, output: np.ndarray):  # type: ignore[no-untyped-def]
    """Return (table [9, n, 16], padded output [16, LANES(n)]), float32: what a colour in a neighbour's place adds to
    the hidden units. Nothing non-linear stands between the first two convolutions, so they are one table.

    The convolution wraps on the channel axis too (release): its inputs are [c(n-1), c0 .. c(n-1), c0].
    """
    num_colors = output.shape[3]
    table = np.zeros((NEIGHBOURS, num_colors, HIDDEN), np.float32)
    channels = np.empty(CONV_CHANNELS, np.float32)
    for k in range(NEIGHBOURS):
        for color in range(num_colors):
            for i in range(CONV_CHANNELS):
                channels[i] = conv[k // 3, k % 3, color + 1, i]
                if color == num_colors - 1:
                    channels[i] += conv[k // 3, k % 3, 0, i]
                if color == 0:
                    channels[i] += conv[k // 3, k % 3, num_colors + 1, i]
            for i in range(CONV_CHANNELS):
                for j in range(HIDDEN):
                    table[k, color, j] += channels[i] * hidden[0, 0, i, j]
    padded = np.zeros((HIDDEN, (num_colors + 7) // 8 * 8), np.float32)
    padded[:, :num_colors] = output[0, 0]
    return table, padded


@njit(cache=True, nogil=True, error_model="numpy")
def draw_first_state(
    key: np.uint64, index: np.uint64, attempt: np.uint64, num_colors: int, grid_size: int, is_uniform: bool
) -> np.ndarray:
    """Return a first state, uint8 [grid, grid]: independent cells, their colours uniform or drawn from the softmax of
    one N(0, 1) logit per colour."""
    cells = grid_size * grid_size
    u = uniforms(key, index, attempt, num_colors + cells)
    cumulative = np.empty(num_colors, np.float64)
    total = 0.0
    for c in range(num_colors):
        total += 1.0 if is_uniform else exp(normal_quantile(u[c]))
        cumulative[c] = total
    state = np.empty(cells, np.uint8)
    for i in range(cells):
        threshold = u[num_colors + i] * total
        color = 0
        while color < num_colors - 1 and cumulative[color] <= threshold:
            color += 1
        state[i] = color
    return state.reshape(grid_size, grid_size)


@njit(cache=True, nogil=True, error_model="numpy")
def cell_logits(table, output, padded_state, y, x, hidden, logits):  # type: ignore[no-untyped-def]
    """Write the logits of cell (y, x) to `logits`, float32 [LANES(n)]; `padded_state` has a border of one cell."""
    for j in range(HIDDEN):
        hidden[j] = (
            table[0, padded_state[y, x], j]
            + table[1, padded_state[y, x + 1], j]
            + table[2, padded_state[y, x + 2], j]
            + table[3, padded_state[y + 1, x], j]
            + table[4, padded_state[y + 1, x + 1], j]
            + table[5, padded_state[y + 1, x + 2], j]
            + table[6, padded_state[y + 2, x], j]
            + table[7, padded_state[y + 2, x + 1], j]
            + table[8, padded_state[y + 2, x + 2], j]
        )
        hidden[j] = max(hidden[j], np.float32(0.0))
    logits[:] = np.float32(0.0)
    for j in range(HIDDEN):
        for c in range(logits.size):
            logits[c] += hidden[j] * output[j, c]


@njit(cache=True, nogil=True, error_model="numpy")
def pad(state: np.ndarray, padded: np.ndarray) -> None:
    """Write `state` [h, w] with a border of one cell taken from the opposite edge to `padded` [h+2, w+2]."""
    h, w = state.shape
    for y in range(h + 2):
        for x in range(w + 2):
            padded[y, x] = state[(y - 1) % h, (x - 1) % w]


@njit(cache=True, nogil=True, error_model="numpy")
def rollout(  # type: ignore[no-untyped-def]
    table, output, state, step, first_steps, steps_per_frame, temperature, identity_bias, key, index, attempt, frames
):
    """Advance `state` in place and write it to each of `frames`, uint8 [num_frames, grid, grid].

    The first frame is taken after `first_steps` steps, each further one after `steps_per_frame`. The next state of a
    cell is argmax(logits + T * Gumbel noise), a draw from softmax(logits / T); the noise of (step, cell, colour) is a
    fixed number of the stream (key, index, attempt) and is made only where the gap lets it matter.

    Args:
        table, output: see `fuse`.
        state: uint8 [grid, grid].
        step: number of steps already taken, which places the noise in its stream.
    """
    num_colors = table.shape[1]
    h, w = state.shape
    padded = np.empty((h + 2, w + 2), np.uint8)
    hidden = np.empty(HIDDEN, np.float32)
    logits = np.empty(output.shape[1], np.float32)
    block = np.empty(4, np.uint64)
    blocks_per_cell = (num_colors + 3) // 4
    bias = np.float32(identity_bias)
    noise_reach = temperature * _GUMBEL_SPREAD
    for f in range(frames.shape[0]):
        for _ in range(first_steps if f == 0 else steps_per_frame):
            pad(state, padded)
            for y in range(h):
                for x in range(w):
                    cell_logits(table, output, padded, y, x, hidden, logits)
                    logits[state[y, x]] += bias
                    best, second = 0, -1
                    for c in range(1, num_colors):
                        if logits[c] > logits[best]:
                            best, second = c, best
                        elif second < 0 or logits[c] > logits[second]:
                            second = c
                    if temperature > 0.0 and float(logits[best]) - float(logits[second]) < noise_reach:
                        reach = float(logits[best]) - noise_reach
                        top = -np.inf
                        first_block = ((step * h + y) * w + x) * blocks_per_cell
                        for c in range(num_colors):
                            if c % 4 == 0:
                                philox(key, index, attempt, np.uint64(first_block + c // 4), block)
                            if float(logits[c]) >= reach:
                                value = float(logits[c]) + temperature * gumbel((float(block[c % 4]) + 0.5) * 2.0**-32)
                                if value > top:
                                    top = value
                                    best = c
                    state[y, x] = best
            step += 1
        frames[f] = state
