"""The gzip score of a rollout, the paper's measure of complexity."""

import functools
import zlib
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nca_plugin import deflate
from nca_plugin.automata import rng
from nca_plugin.automata.tokens import encode
from nca_plugin.errors import NCAPluginError

#: Number of frames that are scored (release).
SCORED_FRAMES: Final = 10

_CEILING_DRAWS: Final = 64


def gzip_score(frames: ArrayLike, num_colors: int = 10, patch_size: int = 2) -> float:
    """Return compressed size / size of the frames' patch tokens: near 0 if all is constant, .67 for noise (n = 10).

    The tokens without delimiters, as little-endian int32, are compressed by gzip at level 9 (release). The int32 layout
    is part of the definition.

    Args:
        frames: integers [num_frames, height, width]; the release scores 10 frames of 12 x 12 cells.
        num_colors: n, the number of states of a cell.
        patch_size: cells along an edge of a patch.

    Raises:
        NCAPluginError: see `encode`; or the deflate library in use gives other sizes than zlib.
    """
    array = np.asarray(frames)
    return tokens_score(encode(array, num_colors, patch_size).reshape(array.shape[0], -1))


def tokens_score(tokens: NDArray[np.int32]) -> float:
    """Return the gzip score of encoded frames, int32 [num_frames, patches + 2]."""
    patches = np.ascontiguousarray(tokens[:, 1:-1], "<i4")
    return scored_size(patches) / patches.nbytes


def scored_size(patch_tokens: NDArray[np.int32]) -> int:
    """Return the size in bytes of `patch_tokens` (little-endian, contiguous) after gzip at level 9.

    Raises:
        NCAPluginError: the deflate library in use gives other sizes than zlib.
    """
    _check_deflate()
    return deflate.gzip_size(patch_tokens)


def deflate_fingerprint() -> str:
    """Return the sizes that the deflate library gives to known payloads, as text. Equal texts mean equal scores."""
    return "gzip -9 of known payloads: " + ", ".join(map(str, deflate.sizes_of_known_payloads()))


@functools.cache
def _check_deflate() -> None:
    for size, expected in zip(deflate.sizes_of_known_payloads(), deflate.SIZES_OF_ZLIB, strict=True):
        if size != expected:
            raise NCAPluginError(
                f"the deflate library in use (zlib {zlib.ZLIB_RUNTIME_VERSION}) compresses a known payload to {size} "
                f"bytes, zlib to {expected}: its samples would differ from everyone else's; run Python with "
                "the original zlib (zlib-ng and ISA-L replacements do not qualify)"
            )


@functools.cache
def score_bounds(num_colors: int, grid_size: int, patch_size: int) -> tuple[float, float]:
    """Return (floor, ceiling) of the gzip score for an alphabet: the scores of constant and of uniformly random frames.

    The ceiling is the largest score of 64 random rollouts on the released grid. A search would not find a rule that
    scores above it. Larger grids use fewer rollouts, because their scores vary less.
    """
    shape = (SCORED_FRAMES, grid_size, grid_size)
    floor = gzip_score(np.zeros(shape, np.uint8), num_colors, patch_size)
    num_draws = min(_CEILING_DRAWS, max(4, _CEILING_DRAWS * 144 // grid_size**2))
    key = rng.stream_key(0, "train", rng.CEILING)
    noise = (rng.uniforms(key, i, 0, np.prod(shape)) for i in range(num_draws))
    ceiling = max(gzip_score((u * num_colors).astype(np.uint8).reshape(shape), num_colors, patch_size) for u in noise)
    return floor, ceiling
