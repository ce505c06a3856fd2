"""Colours for the states of an automaton and the ids of a token, chosen for colour-blind readers too."""

import functools
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nca_plugin.display.page import PAGES
from nca_plugin.inspection.statistics import fold
from nca_plugin.sources import Source
from nca_plugin.sources.details import num_brackets

# Okabe and Ito, "Color Universal Design" (2008), with black lightened to show on a dark page; ordered so that the first
# few differ most in lightness.
_FIRST: Final = ("0072B2", "F0E442", "D55E00", "56B4E9", "009E73", "CC79A7", "E69F00", "4A4A4A")

# sRGB to LMS-like cone responses and on to OKLab (Ottosson, "A perceptual color space for image processing", 2020).
_TO_CONES: Final = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB: Final = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Linear RGB as protanopes, deuteranopes and tritanopes see it (Machado, Oliveira and Fernandes, IEEE TVCG 15, 2009,
# severity 1).
_DICHROMACIES: Final = np.array(
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
#: Levels of each channel that further colours are chosen from.
_LEVELS: Final = 12

#: Ids of a large vocabulary share this many colours.
MAX_TOKEN_COLORS: Final = 16


@functools.cache
def palette(num_colors: int) -> NDArray[np.uint8]:
    """Return `num_colors` distinct colours, uint8 [num_colors, 3], 1 .. 1000; a longer palette begins with a shorter.

    The first eight are Okabe and Ito's. Each further one is the colour that is farthest from all before it, and from
    `PAGES`, in OKLab, seen with normal vision or as one of the three dichromats, whichever is nearest.
    """
    first = np.array([list(bytes.fromhex(code)) for code in _FIRST])
    levels = np.linspace(25, 245, _LEVELS).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = _appearances(candidates)
    chosen = list(first[:num_colors])
    pages = np.array([list(bytes.fromhex(code)) for code in PAGES.values()])
    nearest = np.min([_distances(seen, color) for color in (*first, *pages)], axis=0)
    while len(chosen) < num_colors:
        best = int(np.argmax(nearest))
        chosen.append(candidates[best])
        nearest = np.minimum(nearest, _distances(seen, candidates[best]))
    return np.array(chosen).astype(np.uint8)


def _appearances(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return sRGB 0 .. 255, [m, 3], in OKLab to the four kinds of eyes, [4, m, 3]."""
    encoded = rgb / 255.0
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    kinds = np.stack([linear, *(np.clip(linear @ matrix.T, 0, 1) for matrix in _DICHROMACIES)])
    return np.cbrt(kinds @ _TO_CONES.T) @ _TO_OKLAB.T


def _distances(seen: NDArray[np.float64], color: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far `color` is from each of `seen`, [4, m, 3], to the eyes that tell them apart least: [m]."""
    return np.linalg.norm(seen - _appearances(np.asarray(color, np.float64)[None]), axis=-1).min(axis=0)


def token_colors(source: Source, tokens: ArrayLike) -> NDArray[np.uint8]:
    """Return a colour for each token of a source without a grid, [...] -> uint8 [..., 3].

    Brackets have the colour of their kind, closing ones a paler one. Ids of other sources have a colour each, or share
    16 if there are more of them.
    """
    array = np.asarray(tokens)
    kinds = num_brackets(source)
    if kinds is None:
        num_colors = min(source.vocab_size, MAX_TOKEN_COLORS)
        return palette(num_colors)[fold(array, num_colors)]
    colors = palette(min(kinds, MAX_TOKEN_COLORS))[fold(array % kinds, min(kinds, MAX_TOKEN_COLORS))]
    pale = (colors.astype(np.int64) + 2 * 255) // 3
    return np.where(array[..., None] >= kinds, pale, colors).astype(np.uint8)
