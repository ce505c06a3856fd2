"""The random start of a rollout: a rule's weights and a first state."""

from typing import Final

import numpy as np

from nca_plugin.automata.rng import exp, normal_quantile, truncated_normals, uniforms
from nca_plugin.compiled import compiled

NEIGHBOURS: Final = 9
CONV_CHANNELS: Final = 4
HIDDEN: Final = 16


@compiled
def draw_kernels(key: np.uint64, index: int, attempt: int, num_colors: int):  # type: ignore[no-untyped-def]
    """Return a random rule: conv [3, 3, n+2, 4], hidden [1, 1, 4, 16], output [1, 1, 16, n], float32, HWIO."""
    conv = np.empty((3, 3, num_colors + 2, CONV_CHANNELS), np.float32)
    hidden = np.empty((1, 1, CONV_CHANNELS, HIDDEN), np.float32)
    output = np.empty((1, 1, HIDDEN, num_colors), np.float32)
    z = truncated_normals(key, index, attempt, conv.size + hidden.size + output.size)
    at = 0
    for kernel, fan_in in ((conv, NEIGHBOURS * (num_colors + 2)), (hidden, CONV_CHANNELS), (output, HIDDEN)):
        std = np.sqrt(1.0 / fan_in)
        flat = kernel.reshape(-1)
        for i in range(flat.size):
            flat[i] = np.float32(z[at + i] * std)
        at += flat.size
    return conv, hidden, output


@compiled
def draw_first_state(
    key: np.uint64, index: int, attempt: int, num_colors: int, is_uniform: bool, state: np.ndarray
) -> None:
    """Fill `state`, uint8 [height, width], with independent cells. Their colours are uniform, or drawn from the softmax
    of one N(0, 1) logit per colour."""
    cells = state.reshape(-1)
    u = uniforms(key, index, attempt, num_colors + cells.size)
    cumulative = np.empty(num_colors, np.float64)
    total = 0.0
    for c in range(num_colors):
        total += 1.0 if is_uniform else exp(normal_quantile(u[c]))
        cumulative[c] = total
    for i in range(cells.size):
        threshold = u[num_colors + i] * total
        color = 0
        for c in range(num_colors - 1):
            color += cumulative[c] <= threshold
        cells[i] = color
