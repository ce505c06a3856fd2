"""Encoding of frames as tokens, and decoding (paper, tokenisation; exact layout as released)."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nca_plugin.compiled import compiled
from nca_plugin.errors import NCAPluginError


def encode(frames: ArrayLike, num_colors: int = 10, patch_size: int = 2) -> NDArray[np.int32]:
    """Return the tokens of `frames`.

    A frame is `<grid>` (id n^(p*p)), its p x p patches in raster order, and `</grid>` (the next id). The id of a patch
    is the number whose base-n digits are its cells in raster order, lowest digit first.

    Args:
        frames: integers [num_frames, height, width] in 0 .. num_colors-1; height and width multiples of the patch.
        num_colors: n, the number of states of a cell, 2 .. 256.
        patch_size: p, cells along an edge of a patch, >= 1; n^(p*p) + 2 ids must fit in int32.

    Returns:
        int32 [num_frames * (patches + 2)].

    Raises:
        NCAPluginError: wrong shape, alphabet or type, or a colour out of range.

    >>> encode([[[1, 0], [0, 2]]], num_colors=10)
    array([10000,  2001, 10001], dtype=int32)
    """
    _check_alphabet(num_colors, patch_size)
    array = np.asarray(frames)
    if not np.issubdtype(array.dtype, np.integer):
        raise NCAPluginError(f"frames of {array.dtype}: must be integers")
    if array.ndim != 3 or not array.size or array.shape[1] % patch_size or array.shape[2] % patch_size:
        raise NCAPluginError(
            f"frames of shape {array.shape}: must be [num_frames, height, width], not empty, with height and "
            f"width multiples of the patch size {patch_size}"
        )
    if array.min() < 0 or array.max() >= num_colors:
        raise NCAPluginError(f"frames hold a colour outside 0 .. {num_colors - 1}")
    tokens = np.empty(array.shape[0] * (array[0].size // patch_size**2 + 2), np.int32)
    encode_into(array.astype(np.uint8), num_colors, patch_size, tokens)
    return tokens


def decode(tokens: ArrayLike, num_colors: int = 10, patch_size: int = 2, grid_size: int = 12) -> NDArray[np.uint8]:
    """Return the frames of `tokens`, the inverse of `encode` on a square grid.

    Args:
        tokens: integers; complete frames, each with its two delimiters.

    Returns:
        uint8 [num_frames, grid_size, grid_size].

    Raises:
        NCAPluginError: the tokens are not complete frames, or have another id where a patch must be.

    >>> decode([10000, 2001, 10001], grid_size=2)
    array([[[1, 0],
            [0, 2]]], dtype=uint8)
    """
    _check_alphabet(num_colors, patch_size)
    if grid_size < 1 or grid_size % patch_size:
        raise NCAPluginError(f"grid size {grid_size}: must be a multiple of the patch size {patch_size}")
    array = np.asarray(tokens, np.int64)
    edge = grid_size // patch_size
    frame_length = edge * edge + 2
    if array.ndim != 1 or array.size % frame_length:
        raise NCAPluginError(f"{array.size} tokens are not whole frames of {frame_length} tokens each")
    rows = array.reshape(-1, frame_length)
    grid_start = num_colors ** (patch_size * patch_size)
    patches = rows[:, 1:-1]
    if np.any(rows[:, 0] != grid_start) or np.any(rows[:, -1] != grid_start + 1):
        raise NCAPluginError(f"frames must begin with id {grid_start} and end with id {grid_start + 1}")
    if patches.size and not (patches.min() >= 0 and patches.max() < grid_start):
        raise NCAPluginError(f"a patch id lies outside 0 .. {grid_start - 1}")
    digits = np.stack([patches // num_colors**k % num_colors for k in range(patch_size**2)], axis=-1)
    cells = digits.reshape(-1, edge, edge, patch_size, patch_size).transpose(0, 1, 3, 2, 4)
    return cells.reshape(-1, grid_size, grid_size).astype(np.uint8)


def _check_alphabet(num_colors: int, patch_size: int) -> None:
    if not 2 <= num_colors <= 256 or patch_size < 1:
        raise NCAPluginError(
            f"{num_colors} colours in patches of {patch_size}: must be 2 .. 256 colours in patches of at least 1"
        )
    if patch_size > 5 or num_colors ** (patch_size * patch_size) > (1 << 31) - 3:
        raise NCAPluginError(
            f"{num_colors} colours in {patch_size}x{patch_size} patches make more ids than int32 holds: take fewer "
            "colours or a smaller patch"
        )


@compiled
def encode_into(frames: np.ndarray, num_colors: int, patch_size: int, out: np.ndarray) -> None:
    """Write the tokens of `frames`, uint8 [num_frames, height, width], to `out`, int32 [num_frames * (patches + 2)]."""
    num_frames, height, width = frames.shape
    cells = frames.reshape(-1)
    grid_start = num_colors ** (patch_size * patch_size)
    at = 0
    for f in range(num_frames):
        out[at] = grid_start
        at += 1
        for y in range(0, height, patch_size):
            for x in range(0, width, patch_size):
                corner = (f * height + y) * width + x
                value = 0
                for dy in range(patch_size - 1, -1, -1):
                    for dx in range(patch_size - 1, -1, -1):
                        # Unsigned, because numba checks signed indices for negative ones.
                        value = value * num_colors + cells[np.uint64(corner + dy * width + dx)]
                out[at] = value
                at += 1
        out[at] = grid_start + 1
        at += 1
