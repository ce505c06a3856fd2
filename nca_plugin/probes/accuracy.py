"""How often the most likely next token is the true one, over all targets and frame by frame. numpy only.

A model that infers the rule of an automaton from the frames that it has seen gets better from frame to frame. Repeating
the previous frame is the baseline: where few cells change it scores high without any rule.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import FrameLayout


@dataclass(frozen=True, slots=True)
class FrameAccuracy:
    """Accuracies under teacher forcing, one for each frame of a sequence, each in 0 .. 1.

    The first frame is a random state, which no model can know and which is no training target; it is here to compare
    with. A frame that the end of the sequence cuts off counts with the patches that are there.

    Attributes:
        num_frames_seen: complete frames before: 0, 1, 2, ...
        patch: share of the patch tokens that are predicted.
        cell: share of the cells that are right in the patches predicted; all of a patch's are wrong where a delimiter
            or an id that is no patch is predicted.
        grid: share of the frames of which every patch is predicted; None if the frame is cut off.
        copy: `patch` of repeating the same patch of the previous frame; None for the first.
    """

    num_frames_seen: tuple[int, ...]
    patch: tuple[float, ...]
    cell: tuple[float, ...]
    grid: tuple[float | None, ...]
    copy: tuple[float | None, ...]


def supervised_accuracy(
    tokens: NDArray[np.int32], predictions: NDArray[np.int32], loss_mask: NDArray[np.bool_]
) -> float:
    """Return the share of the targets that count which are predicted, 0 .. 1.

    Args:
        tokens: int32 [samples, S + 1].
        predictions: int32 [samples, S]; prediction t is of token t + 1.
        loss_mask: bool [samples, S]; whether target t, token t + 1, counts.

    Raises:
        NCAPluginError: no target counts.
    """
    if not loss_mask.any():
        raise NCAPluginError("no target of these samples is supervised, so there is no accuracy: take longer sequences")
    return float((predictions == tokens[:, 1:])[loss_mask].mean())


def frame_accuracy(tokens: NDArray[np.int32], predictions: NDArray[np.int32], layout: FrameLayout) -> FrameAccuracy:
    """Return the accuracies of predicted frames.

    Args:
        tokens: int32 [samples, S + 1]; each sample begins with a frame.
        predictions: int32 [samples, S]; prediction t is of token t + 1.
        layout: of the tokens in frames.
    """
    num_tokens, length = tokens.shape[1], layout.frame_length
    patch: list[float] = []
    cell: list[float] = []
    grid: list[float | None] = []
    copy: list[float | None] = []
    # A frame counts from its first patch on, which follows its opening delimiter.
    for start in range(1, num_tokens, length):
        end = min(start + layout.patches_per_frame, num_tokens)
        true, predicted = tokens[:, start:end] - layout.offset, predictions[:, start - 1 : end - 1] - layout.offset
        is_right = predicted == true
        is_complete = end - start == layout.patches_per_frame
        patch.append(float(is_right.mean()))
        cell.append(float(_right_cells(true, predicted, layout).mean()))
        grid.append(float(is_right.all(axis=1).mean()) if is_complete else None)
        copy.append(
            float((tokens[:, start - length : end - length] - layout.offset == true).mean()) if start > 1 else None
        )
    return FrameAccuracy(tuple(range(len(patch))), tuple(patch), tuple(cell), tuple(grid), tuple(copy))


def _right_cells(true: NDArray[np.int32], predicted: NDArray[np.int32], layout: FrameLayout) -> NDArray[np.bool_]:
    """Return bool [samples, patches, cells of a patch] for int32 [samples, patches], ids from 0 on."""
    places = layout.num_colors ** np.arange(layout.cells_per_patch)
    is_same = (true[..., None] // places - predicted[..., None] // places) % layout.num_colors == 0
    is_patch = (predicted >= 0) & (predicted < layout.num_patches)
    return is_same & is_patch[..., None]
