"""Colours for the states of an automaton and for token ids, from published lists."""

from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nca_plugin.inspection.statistics import fold
from nca_plugin.sources import Source
from nca_plugin.sources.details import num_brackets

#: Ten colours that colour-blind readers can also distinguish: Petroff, "Accessible color sequences for data
#: visualization" (arXiv 2107.02270, 2021), matplotlib's `petroff10`.
_TEN: Final = "3f90da ffa90e bd1f01 94a4a2 832db6 a96b59 e76300 b9ac70 717581 92dadd"
#: 64 colours for normal vision, the most that an automaton may have: the first of colorcet's `glasbey_bw_minc_20`
#: (CC BY 4.0), made as in Glasbey et al., "Colour displays for categorical images" (Color Research & Application 32,
#: 2007), and far from black and white.
_MANY: Final = """
d70000 8c3cff 028800 00acc7 98ff00 ff7fd1 6c004f ffa530 583b00 005759 0000dd 00fdcf a1756a bcb7ff 95b578 c004b9
645474 790000 0774d8 fef590 004b00 8f7a00 ff7266 eeb9b9 5e7e66 9be4ff ec0077 a67bb9 5a00a4 04c600 9e4b00 9c3b50
cbc400 718298 00af8a 8388ff 5d373b 390000 fdc0ff bee7c0 db6d01 93b8b6 e452ff 2f5382 c46690 556220 c59f72 048287
69e780 802790 6db4ff 4e33ff 86a302 fe03cb c2a6c5 c55746 76583d 016842 00d6d5 dae0ff f9ff00 6a68b0 c39800 e1cd9c
"""

#: Ids of a large vocabulary share this many colours.
MAX_TOKEN_COLORS: Final = 10


def palette(num_colors: int) -> NDArray[np.uint8]:
    """Return 1 to 64 distinct colours, uint8 [num_colors, 3]. Up to ten are distinct for colour-blind readers too."""
    codes = (_TEN if num_colors <= 10 else _MANY).split()[:num_colors]
    return np.array([list(bytes.fromhex(code)) for code in codes], np.uint8)


def token_colors(source: Source, tokens: ArrayLike) -> NDArray[np.uint8]:
    """Return a colour for each token of a source without a grid, [...] -> uint8 [..., 3].

    Brackets have the colour of their kind, which is paler for closing ones. Each id of another source has its own
    colour, or shares one of ten if there are more ids.
    """
    array = np.asarray(tokens)
    kinds = num_brackets(source)
    if kinds is None:
        num_colors = min(source.vocab_size, MAX_TOKEN_COLORS)
        return palette(num_colors)[fold(array, num_colors)]
    colors = palette(min(kinds, MAX_TOKEN_COLORS))[fold(array % kinds, min(kinds, MAX_TOKEN_COLORS))]
    pale = (colors.astype(np.int64) + 2 * 255) // 3
    return np.where(array[..., None] >= kinds, pale, colors).astype(np.uint8)
