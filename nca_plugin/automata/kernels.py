"""The compiled inner loop, which rolls an automaton out.

The trajectory is computed in float32 in a fixed order. numba compiles without fast-math, so LLVM may neither reorder
sums nor contract a multiplication and an addition: every machine gets the same bits.

The order of the sums is part of the definition of every sample. Let t(dy, dx) be the 16 numbers that a neighbour's
colour adds to the hidden units (see `fuse`). The hidden units of a cell are

    relu((((t(0,0) + t(0,1)) + (t(1,0) + t(1,1))) + (t(2,0) + t(2,1))) + (t(0,2) + t(1,2))) + t(2,2))

and the logit of colour c is h0 W(0,c) + h1 W(1,c) + ... + h15 W(15,c), summed from the left. The sums of two depend
only on two colours, so a rule's table holds them: five rows per cell instead of nine.
"""

from typing import Final

import numpy as np

from nca_plugin.automata.drawing import CONV_CHANNELS, HIDDEN, NEIGHBOURS
from nca_plugin.automata.rng import exp, philox, unit
from nca_plugin.automata.simd import LANES, bits, broadcast, load, select, store, transpose
from nca_plugin.compiled import compiled

#: Colours less likely than e^-23 times the most likely one are never drawn, because a draw has 32 bits.
_REACH: Final = 23.0

# The pairs of neighbours whose summed rows a table holds, as positions of the 3 x 3 neighbourhood in raster order.
# Neighbour 8 has no partner.
_PAIRS: Final = ((0, 1), (3, 4), (6, 7), (2, 5))

_ZERO: Final = np.float32(0.0)
_MINUS_INFINITY: Final = np.float32(-np.inf)


@compiled
def fuse(conv: np.ndarray, hidden: np.ndarray, output: np.ndarray):  # type: ignore[no-untyped-def]
    """Return the rule as (table, weights), float32, which `rollout` takes.

    There is no nonlinearity between the first two convolutions, so both become one table: what the colour of a
    neighbour adds to the hidden units. The convolution also wraps on the channel axis (release): its inputs are
    [c(n-1), c0 .. c(n-1), c0].

    Returns:
        table: [(4 n^2 + n) * 16]; a row of 16 for each of `_PAIRS` and its two colours, then for neighbour 8.
        weights: the last convolution transposed, [n rounded up to even, 16], flattened.
    """
    n = output.shape[3]
    rows = np.empty(NEIGHBOURS * n * HIDDEN, np.float32)
    hidden_rows = hidden.reshape(-1)
    for k in range(NEIGHBOURS):
        for color in range(n):
            row = broadcast(_ZERO)
            for i in range(CONV_CHANNELS):
                channel = conv[k // 3, k % 3, color + 1, i]
                if color == n - 1:
                    channel += conv[k // 3, k % 3, 0, i]
                if color == 0:
                    channel += conv[k // 3, k % 3, n + 1, i]
                row = row + broadcast(channel) * load(hidden_rows, i * HIDDEN)
            store(rows, (k * n + color) * HIDDEN, row)
    table = np.empty((len(_PAIRS) * n * n + n) * HIDDEN, np.float32)
    at = 0
    for a, b in _PAIRS:
        for color_a in range(n):
            row = load(rows, (a * n + color_a) * HIDDEN)
            for color_b in range(n):
                store(table, at, row + load(rows, (b * n + color_b) * HIDDEN))
                at += HIDDEN
    for color in range(n):
        store(table, at + color * HIDDEN, load(rows, (8 * n + color) * HIDDEN))
    weights = np.zeros((n + 1) // 2 * 2 * HIDDEN, np.float32)
    for c in range(n):
        for j in range(HIDDEN):
            weights[c * HIDDEN + j] = output[0, 0, j, c]
    return table, weights


@compiled
def _new_scratch(height, width, num_colors):  # type: ignore[no-untyped-def]
    """Return the work memory of `_logits`. The padded state has a border of one cell from the opposite edge.

    corners: uint64 [cells rounded up to whole vectors], where the 3 x 3 neighbourhood of a cell begins in the padded
        state; surplus entries are 0.
    origins: uint64 [(height + 2) * (width + 2)], the cell that each padded cell repeats.
    beside, below, single: int32 [(height + 2) * (width + 2)], start of a padded cell's row in its part of the table:
        for the pair with the right neighbour, for the pair with the neighbour below, and alone.
    rows, hidden: float32 [16 * 16], hidden units of a vector of cells, by cell and by unit.
    logits: float32 [num_colors rounded up to even, 16].
    words: uint32 [64], random numbers.
    """
    corners = np.zeros((height * width + LANES - 1) // LANES * LANES, np.uint64)
    origins = np.empty((height + 2) * (width + 2), np.uint64)
    for y in range(height + 2):
        for x in range(width + 2):
            at = y * (width + 2) + x
            origins[at] = (y + height - 1) % height * width + (x + width - 1) % width
            if y < height and x < width:
                corners[y * width + x] = at
    size = origins.size
    beside, below, single = np.zeros(size, np.int32), np.zeros(size, np.int32), np.zeros(size, np.int32)
    rows, hidden = np.empty(LANES * HIDDEN, np.float32), np.empty(LANES * HIDDEN, np.float32)
    logits = np.empty((num_colors + 1) // 2 * 2 * LANES, np.float32)
    words = np.empty(4 * LANES, np.uint32)
    return corners, origins, beside, below, single, rows, hidden, logits, words


@compiled
def _place(state, width, num_colors, scratch):  # type: ignore[no-untyped-def]
    """Compute `beside`, `below` and `single` of the scratch for `state`, int32 [cells or more]."""
    _, origins, beside, below, single, _, _, _, _ = scratch
    for i in range(origins.size):
        single[i] = state[origins[np.uint64(i)]] * HIDDEN
    for i in range(origins.size - 1):
        beside[i] = single[i] * num_colors + single[i + 1]
    for i in range(origins.size - (width + 2)):
        below[i] = single[i] * num_colors + single[i + width + 2]


@compiled
def _logits(table, weights, width, num_colors, first, scratch):  # type: ignore[no-untyped-def]
    """Write the logits of 16 cells from cell `first` on to the scratch. `_place` must have been called."""
    corners, _, beside, below, single, rows, hidden, logits, _ = scratch
    part = num_colors * num_colors * HIDDEN
    # Unsigned, because numba checks signed indices for negative ones.
    right, second_row, third_row = np.uint64(2), np.uint64(width + 2), np.uint64(2 * (width + 2))
    for lane in range(LANES):
        corner = corners[np.uint64(first + lane)]
        row = load(table, beside[corner]) + load(table, part + beside[corner + second_row])
        row = row + load(table, 2 * part + beside[corner + third_row])
        row = row + load(table, 3 * part + below[corner + right])
        row = row + load(table, 4 * part + single[corner + third_row + right])
        store(rows, lane * HIDDEN, select(row > broadcast(_ZERO), row, broadcast(_ZERO)))
    transpose(rows, hidden)
    # Two colours at a time, because a single one would wait for memory.
    for c in range(0, num_colors, 2):
        at = np.uint64(c * HIDDEN)
        next_at = np.uint64((c + 1) * HIDDEN)
        units = load(hidden, 0)
        a, b = broadcast(weights[at]) * units, broadcast(weights[next_at]) * units
        for j in range(1, HIDDEN):
            units = load(hidden, j * LANES)
            a = a + broadcast(weights[at + np.uint64(j)]) * units
            b = b + broadcast(weights[next_at + np.uint64(j)]) * units
        store(logits, at, a)
        store(logits, next_at, b)


@compiled
def all_logits(table: np.ndarray, weights: np.ndarray, num_colors: int, state: np.ndarray) -> np.ndarray:
    """Return the logits of every cell of `state`, uint8 [height, width]: float32 [height, width, num_colors]."""
    height, width = state.shape
    scratch = _new_scratch(height, width, num_colors)
    logits = scratch[-2]
    _place(state.reshape(-1).astype(np.int32), width, num_colors, scratch)
    result = np.empty((height * width, num_colors), np.float32)
    for first in range(0, height * width, LANES):
        _logits(table, weights, width, num_colors, first, scratch)
        for lane in range(min(LANES, height * width - first)):
            for c in range(num_colors):
                result[first + lane, c] = logits[c * LANES + lane]
    return result.reshape(height, width, num_colors)


@compiled
def _draw(logits, lane, num_colors, best, temperature, u):  # type: ignore[no-untyped-def]
    """Draw a cell's colour from softmax(logits / T) by inversion: first `best`, then the other likely colours in
    order."""
    top = float(logits[best * LANES + lane])
    reach = temperature * _REACH
    total = 1.0
    for c in range(num_colors):
        gap = top - float(logits[c * LANES + lane])
        if c != best and gap < reach:
            total += exp(-gap / temperature)
    rest = u * total - 1.0
    color = best
    for c in range(num_colors):
        if rest < 0.0:
            break
        gap = top - float(logits[c * LANES + lane])
        if c != best and gap < reach:
            rest -= exp(-gap / temperature)
            color = c
    return color


@compiled
def _step(  # type: ignore[no-untyped-def]
    table, weights, height, width, num_colors, now, after, step, temperature, bias, key, index, attempt, scratch
):
    """Write the state after `now` to `after`, int32 [cells rounded up to whole vectors]. Return whether both are equal
    and will stay so: no cell changed, and none was so near to a change that a draw mattered."""
    logits, words = scratch[-2:]
    cells = height * width
    reach = broadcast(np.float32(temperature * _REACH))
    is_settled = True
    _place(now, width, num_colors, scratch)
    for first in range(0, cells, LANES):
        _logits(table, weights, width, num_colors, first, scratch)
        present = load(now, first)
        if bias != _ZERO:
            for c in range(num_colors):
                logit = load(logits, c * LANES)
                is_present = present == broadcast(np.int32(c))
                store(logits, c * LANES, select(is_present, logit + broadcast(bias), logit))
        best, second, winner = load(logits, 0), broadcast(_MINUS_INFINITY), broadcast(np.int32(0))
        for c in range(1, num_colors):
            logit = load(logits, c * LANES)
            is_better = logit > best
            loser = select(is_better, best, logit)
            second = select(loser > second, loser, second)
            best = select(is_better, logit, best)
            winner = select(is_better, broadcast(np.int32(c)), winner)
        store(after, first, winner)
        in_grid = (np.uint64(1) << np.uint64(min(LANES, cells - first))) - np.uint64(1)
        close = bits(reach > best - second) & in_grid
        if close != 0 or (bits(winner != present) & in_grid) != 0:
            is_settled = False
        if close != 0:
            philox(key, index, attempt, step * cells + first, words)
            for lane in range(LANES):
                if close >> np.uint64(lane) & np.uint64(1):
                    cell = first + lane
                    after[cell] = _draw(logits, lane, num_colors, after[cell], temperature, unit(words[lane]))
    return is_settled


@compiled
def rollout(  # type: ignore[no-untyped-def]
    table,
    weights,
    num_colors,
    state,
    step,
    first_steps,
    steps_per_frame,
    temperature,
    identity_bias,
    key,
    index,
    attempt,
    frames,
):
    """Advance `state` in place and write it to each of `frames`, uint8 [num_frames, height, width].

    The first frame is taken after `first_steps` steps, each later one after `steps_per_frame` more. The next state of a
    cell is a draw from softmax(logits / T), or the argmax if T = 0. The random number of (step, cell) has a
    fixed place in the stream (key, index, attempt). It is only computed where the gap between the best
    two logits is small enough.

    Args:
        table, weights: see `fuse`.
        state: uint8 [height, width].
        step: number of steps already taken.

    Returns:
        the number of steps computed, which is smaller than that of steps taken if the state stops changing.
    """
    height, width = state.shape
    scratch = _new_scratch(height, width, num_colors)
    now, after = np.zeros(scratch[0].size, np.int32), np.zeros(scratch[0].size, np.int32)
    cells = state.reshape(-1)
    for i in range(cells.size):
        now[i] = cells[i]
    bias = np.float32(identity_bias)
    is_settled = False
    num_computed = 0
    for f in range(frames.shape[0]):
        for _ in range(first_steps if f == 0 else steps_per_frame):
            if not is_settled:
                is_settled = _step(
                    table,
                    weights,
                    height,
                    width,
                    num_colors,
                    now,
                    after,
                    step,
                    temperature,
                    bias,
                    key,
                    index,
                    attempt,
                    scratch,
                )
                now, after = after, now
                num_computed += 1
            step += 1
        frame = frames[f].reshape(-1)
        for i in range(cells.size):
            frame[i] = now[i]
    for i in range(cells.size):
        cells[i] = now[i]
    return num_computed
