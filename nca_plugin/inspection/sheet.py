"""The contact sheet: sequences as pictures, from the simplest to the most complex."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.display.drawing import hide_frame
from nca_plugin.inspection.palette import palette, token_colors
from nca_plugin.inspection.samples import Grid, Samples

_ROWS: Final = 10
_COLUMNS: Final = 9
#: Number of consecutive frames at the start of a row. The other frames are spread over the rest of the sequence.
_CONSECUTIVE: Final = 5
_STRIP_LENGTH: Final = 96
#: Pixels of a cell in the canvas, more than one so that gaps can be thinner than a cell.
_SCALE: Final = 4


def draw_frames(axes: Any, grid: Grid) -> None:
    """Draw a row for each sequence, with its frames from left to right."""
    scores, num_frames = grid.scores, grid.frames.shape[1]
    columns = _shown_frames(num_frames)
    rows = _shown_sequences(scores)
    colors = palette(grid.config.num_colors)[grid.frames[rows][:, columns]]
    size, gap = grid.config.grid_size * _SCALE, 2 * _SCALE
    pitch = size + gap
    # A wide gap shows that frames are left out.
    is_jump = np.diff(columns, prepend=columns[0] - 1) > 1
    left = np.arange(len(columns)) * pitch + np.cumsum(is_jump) * gap
    canvas = np.zeros((len(rows) * pitch - gap, left[-1] + size, 4), np.uint8)
    for y, x in np.ndindex(len(rows), len(columns)):
        cells = colors[y, x].repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
        canvas[y * pitch : y * pitch + size, left[x] : left[x] + size, :3] = cells
        canvas[y * pitch : y * pitch + size, left[x] : left[x] + size, 3] = 255
    axes.imshow(canvas, interpolation="nearest")
    axes.set_xticks(left + size / 2, [str(column + 1) for column in columns])
    axes.set_yticks(np.arange(len(rows)) * pitch + size / 2, [f"{scores[row]:.3f}" for row in rows])
    axes.set(xlabel="frame", ylabel="gzip score")
    hide_frame(axes)


def draw_strips(axes: Any, samples: Samples, scores: NDArray[np.float64]) -> None:
    """Draw a row for each sequence, with its first tokens from left to right."""
    rows = _shown_sequences(scores, 2 * _ROWS)
    colors = token_colors(samples.source, samples.tokens[rows, :_STRIP_LENGTH])
    canvas = np.zeros((2 * len(rows) - 1, colors.shape[1], 4), np.uint8)
    canvas[::2, :, :3], canvas[::2, :, 3] = colors, 255
    axes.imshow(canvas, interpolation="nearest", aspect="auto", extent=(0.5, colors.shape[1] + 0.5, len(canvas), 0))
    axes.set_yticks(2 * np.arange(len(rows)) + 0.5, [f"{scores[row]:.3f}" for row in rows])
    axes.set(xlabel="token", ylabel="size after gzip, share")
    hide_frame(axes)


def _shown_frames(num_frames: int) -> list[int]:
    if num_frames <= _COLUMNS:
        return list(range(num_frames))
    spread = np.linspace(_CONSECUTIVE - 1, num_frames - 1, _COLUMNS - _CONSECUTIVE + 1)[1:]
    return [*range(_CONSECUTIVE), *spread.round().astype(int).tolist()]


def _shown_sequences(scores: NDArray[np.float64], rows: int = _ROWS) -> NDArray[np.intp]:
    """Return sequences at equal steps in the order of scores, lowest first."""
    order = np.argsort(scores, kind="stable")
    return order[np.linspace(0, len(order) - 1, min(rows, len(order))).round().astype(int)]
