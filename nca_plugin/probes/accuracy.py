"""How often the most likely next token is the true one, over all targets and frame by frame. It needs only numpy.

A model that infers the rule of an automaton from the frames it has seen improves from frame to frame. The baseline is
to repeat the previous frame: where few cells change, it scores high without any rule.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError
from nca_plugin.sources import FrameLayout


@dataclass(frozen=True, slots=True)
class FrameAccuracy:
    """Accuracies under teacher forcing, one for each frame of a sequence, each in 0 .. 1.

    The first frame is a random state that no model can know. It is not a training target, and is here for comparison. A
    frame that the end of the sequence cuts off counts with the patches that are there.

    Attributes:
        num_frames_seen: number of complete frames before: 0, 1, 2, ...
        patch: share of patch tokens that are predicted.
        cell: share of cells that are right in the predicted patches. If a delimiter or an id that is not a patch is
            predicted, all cells of the patch count as wrong.
        grid: share of frames in which every patch is predicted; None if the frame is cut off.
        copy: `patch` if the same patch of the previous frame is repeated; None for the first frame.
    """

    num_frames_seen: tuple[int, ...]
    patch: tuple[float, ...]
    cell: tuple[float, ...]
    grid: tuple[float | None, ...]
    copy: tuple[float | None, ...]


def supervised_accuracy(
    tokens: NDArray[np.int32], predictions: NDArray[np.int32], loss_mask: NDArray[np.bool_]
) -> float:
    """Return the share of supervised targets that are predicted, 0 .. 1.

    Args:
        tokens: int32 [samples, S + 1].
        predictions: int32 [samples, S]; prediction t is for token t + 1.
        loss_mask: bool [samples, S]; whether target t, which is token t + 1, counts.

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
        predictions: int32 [samples, S]; prediction t is for token t + 1.
        layout: how the tokens encode frames.
    """
    num_tokens, length = tokens.shape[1], layout.frame_length
    patch: list[float] = []
    cell: list[float] = []
    grid: list[float | None] = []
    copy: list[float | None] = []
    # A frame starts here at its first patch, after its opening delimiter.
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
    """Return which cells are right, bool [samples, patches, cells], for int32 [samples, patches] without offset."""
    places = layout.num_colors ** np.arange(layout.cells_per_patch)
    is_same = (true[..., None] // places - predicted[..., None] // places) % layout.num_colors == 0
    is_patch = (predicted >= 0) & (predicted < layout.num_patches)
    return is_same & is_patch[..., None]
