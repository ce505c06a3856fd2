"""The interface of a source, and the types that it uses."""

import math
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One training sequence of S inputs.

    Attributes:
        tokens: int32 [S + 1]; inputs are tokens[:-1], targets tokens[1:].
        loss_mask: bool [S]; whether target i counts towards the loss. It depends on the position, never on the token.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """How the tokens of a source encode frames of cells.

    A sample consists of frames from its first token on; the last one may be cut off. A frame is a delimiter, its
    patches in raster order, and more delimiters up to `frame_length` tokens. The id of a patch minus `offset` is a
    number whose base-`num_colors` digits are the patch's cells in raster order, lowest digit first.

    Attributes:
        num_colors: number of states of a cell.
        grid: height and width of a frame in cells.
        patch: height and width of a patch in cells.
        frame_length: tokens per frame.
        offset: added to every id.
    """

    num_colors: int
    grid: tuple[int, int]
    patch: tuple[int, int]
    frame_length: int
    offset: int = 0

    @property
    def cells_per_patch(self) -> int:
        return math.prod(self.patch)

    @property
    def patches_per_frame(self) -> int:
        return math.prod(self.grid) // self.cells_per_patch

    @property
    def num_patches(self) -> int:
        """Number of different patches: ids minus `offset` below it are patches, all others are delimiters."""
        return int(self.num_colors**self.cells_per_patch)

    def shifted(self, offset: int) -> Self:
        """Return the layout of the same tokens with `offset` added to every id."""
        return replace(self, offset=self.offset + offset)

    def patches(self, tokens: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return the patches of all complete frames, int32 [..., num_frames, patches_per_frame].

        Args:
            tokens: int32 [..., length], the first tokens of samples.
        """
        num_frames = (tokens.shape[-1] + self.frame_length - 1 - self.patches_per_frame) // self.frame_length
        starts = self.frame_length * np.arange(num_frames)[:, None] + 1
        return tokens[..., starts + np.arange(self.patches_per_frame)] - np.int32(self.offset)

    def frames(self, tokens: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return the cells of all complete frames, uint8 [..., num_frames, height, width].

        Args:
            tokens: int32 [..., length], the first tokens of samples.
        """
        patches = self.patches(tokens)
        (height, width), (patch_height, patch_width) = self.grid, self.patch
        digits = np.stack([patches // self.num_colors**k % self.num_colors for k in range(self.cells_per_patch)], -1)
        edges = (height // patch_height, width // patch_width, patch_height, patch_width)
        cells = np.moveaxis(digits.astype(np.uint8).reshape(*patches.shape[:-1], *edges), -2, -3)
        return cells.reshape(*patches.shape[:-1], height, width)


class Source(Protocol):
    """A pure function from an index to a sample. It has no state and does not depend on process, rank or call order."""

    @property
    def vocab_size(self) -> int:
        """Ids are 0 .. vocab_size - 1."""

    @property
    def uri(self) -> str:
        """The canonical URI, which identifies the source: `parse(uri)` returns an equal source."""

    @property
    def frames(self) -> FrameLayout | None:
        """How the tokens of every sample encode frames of cells; None if they do not."""

    def for_split(self, split: str) -> Self:
        """Return the source for a split (train, valid or test), which has random numbers of its own."""

    def check_seq_length(self, seq_length: int) -> None:
        """Raise `NCAPluginError` unless samples of `seq_length` inputs can be made."""

    def sample(self, index: int, seq_length: int) -> Sample:
        """Return sample `index` (0 .. 2^63 - 1) with `seq_length` inputs."""
