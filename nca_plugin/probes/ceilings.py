"""What can be predicted of the frames of an automaton, and how much of it a model predicts. It needs only numpy.

Four predictors of the patches of a frame, from the true tokens before each:

- The copy repeats the frame before, or the one before that, whichever suits the sample better.
- The look-up infers the rule from the sequence itself. It predicts each cell from the 3 x 3 neighbourhood in the frame
  before, on a torus: as the most similar neighbourhoods that occurred earlier went on most often. Most similar are
  those that differ in the fewest cells, ideally in none. Earlier is in the frames before, and in those patches of this
  frame that come first. Of successors that are equally frequent it takes the one that became so last, and as long as
  there is no earlier neighbourhood, the cell itself. With more than one step from frame to frame, larger neighbourhoods
  say more, and the look-up is no ceiling.
- The limit is one who knows the rule. It is below 1 only where the next state is drawn at random.
- The model.

A model that does as well as the copy has learned nothing of rules. Many automata soon stand still or alternate between
two states, where the copy is always right. So what a model has learned is measured on hard samples: those of which
either copy predicts a smaller share of the patches than `EASY_SHARE`.
"""

from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from nca_plugin.compiled import compiled
from nca_plugin.sources import FrameLayout, Source
from nca_plugin.sources.details import likely_successors

#: A sample is easy if one of the two copies predicts at least this share of its patches from the third frame on.
EASY_SHARE: Final = 0.95
#: The third frame, the first one that has two before it.
_THIRD: Final = 2

#: A share for each frame; None where a predictor has nothing to go by, as in the first frame.
ByFrame = tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class FrameShares:
    """Shares of the patches of each frame that are predicted, over some samples.

    A frame that the end of the sequence cuts off counts with the patches that are there.

    Attributes:
        patch: by the model.
        best_copy: by the copy.
        lookup: by the look-up.
        limit: by one who knows the rule; None if the source does not say.
    """

    patch: ByFrame
    best_copy: ByFrame
    lookup: ByFrame
    limit: ByFrame | None


@dataclass(frozen=True, slots=True)
class Ceilings:
    """A model's predictions beside those of the other predictors.

    Attributes:
        every: shares over all samples.
        hard: shares over the hard samples; None if there are none.
        hard_share: share of the samples that are hard; None if no sequence reaches a third frame.
        learned_by_frame: (model - best copy) / (look-up - best copy) on the hard samples, from the third frame on; None
            where the look-up is not better than the copy.
        learned: the same of the means over all patches from the third frame on.
    """

    every: FrameShares
    hard: FrameShares | None
    hard_share: float | None
    learned_by_frame: ByFrame
    learned: float | None


def ceilings(source: Source, tokens: NDArray[np.int32], predictions: NDArray[np.int32]) -> Ceilings | None:
    """Return how a model's predictions compare with what can be predicted; None for a source without frames.

    Args:
        tokens: int32 [samples, S + 1]; row i is sample i of the source.
        predictions: int32 [samples, S]; prediction t is for token t + 1.
    """
    layout = source.frames
    if layout is None:
        return None
    hits = _Hits.of(source, layout, tokens, predictions)
    num_frames = len(hits.is_there)
    if num_frames <= _THIRD:
        return Ceilings(hits.shares(), None, None, (None,) * num_frames, None)
    hard = hits.hard().shares() if hits.is_hard.any() else None
    by_frame, mean = ((None,) * num_frames, None) if hard is None else _learned(hard, hits.is_there.sum(axis=1))
    return Ceilings(hits.shares(), hard, float(hits.is_hard.mean()), by_frame, mean)


@dataclass(frozen=True, eq=False, slots=True)
class _Hits:
    """Which patches are predicted. False where a predictor has nothing to go by.

    Attributes:
        is_there: bool [frames, patches]; False for patches that the end of the sequence cuts off.
        is_hard: bool [samples].
        model, copy, lookup, limit: bool [samples, frames, patches].
    """

    is_there: NDArray[np.bool_]
    is_hard: NDArray[np.bool_]
    model: NDArray[np.bool_]
    copy: NDArray[np.bool_]
    lookup: NDArray[np.bool_]
    limit: NDArray[np.bool_] | None

    @classmethod
    def of(cls, source: Source, layout: FrameLayout, tokens: NDArray[np.int32], predictions: NDArray[np.int32]) -> Self:
        num_tokens, length = tokens.shape[1], layout.frame_length
        num_frames = -(-(num_tokens - 1) // length)
        positions = length * np.arange(num_frames)[:, None] + 1 + np.arange(layout.patches_per_frame)
        # Any patch stands for those that are cut off.
        filling = ((0, 0), (0, max(0, num_frames * length - num_tokens)))
        whole = np.pad(tokens, filling, constant_values=layout.offset)
        predicted = np.pad(np.concatenate([tokens[:, :1], predictions], axis=1), filling)
        patches, frames = layout.patches(whole), layout.frames(whole)
        is_there = positions < num_tokens
        one_back, two_back = _copied(patches, 1), _copied(patches, 2)
        is_late = (np.arange(num_frames) >= _THIRD)[:, None]
        compared = is_there & is_late
        # Without a third frame there are no patches to compare.
        share_of_one, share_of_two = (
            hits[:, compared].sum(axis=1) / max(compared.sum(), 1) for hits in (one_back, two_back)
        )
        repeats_two = (share_of_two > share_of_one)[:, None, None] & is_late
        return cls(
            is_there=is_there,
            is_hard=np.maximum(share_of_one, share_of_two) < EASY_SHARE,
            model=layout.patches(predicted) == patches,
            copy=np.where(repeats_two, two_back, one_back),
            lookup=_looked_up(frames, layout),
            limit=_of_rule(source, frames, layout),
        )

    def hard(self) -> Self:
        """Return the hard samples only."""
        chosen = self.is_hard
        return replace(
            self,
            is_hard=chosen[chosen],
            model=self.model[chosen],
            copy=self.copy[chosen],
            lookup=self.lookup[chosen],
            limit=None if self.limit is None else self.limit[chosen],
        )

    def shares(self) -> FrameShares:
        return FrameShares(
            patch=self._by_frame(self.model, 0),
            best_copy=self._by_frame(self.copy, 1),
            lookup=self._by_frame(self.lookup, 1),
            limit=None if self.limit is None else self._by_frame(self.limit, 1),
        )

    def _by_frame(self, hits: NDArray[np.bool_], first: int) -> ByFrame:
        means = [float(hits[:, frame, is_there].mean()) for frame, is_there in enumerate(self.is_there)]
        return (*(None,) * first, *means[first:])


def _copied(patches: NDArray[np.int32], distance: int) -> NDArray[np.bool_]:
    hits = np.zeros(patches.shape, np.bool_)
    hits[:, distance:] = patches[:, distance:] == patches[:, :-distance]
    return hits


def _of_rule(source: Source, frames: NDArray[np.uint8], layout: FrameLayout) -> NDArray[np.bool_] | None:
    hits = np.zeros((*frames.shape[:2], layout.patches_per_frame), np.bool_)
    places = _cells_of_patches(layout)
    for index, sample in enumerate(frames):
        predicted = likely_successors(source, index, sample[:-1])
        if predicted is None:
            return None
        is_right = (predicted == sample[1:]).reshape(len(predicted), -1)
        hits[index, 1:] = is_right[:, places].all(axis=-1)
    return hits


def _looked_up(frames: NDArray[np.uint8], layout: FrameLayout) -> NDArray[np.bool_]:
    hits = np.zeros((*frames.shape[:2], layout.patches_per_frame), np.bool_)
    shifts = [(dy, dx) for dy in (1, 0, -1) for dx in (1, 0, -1)]
    for sample, of_sample in zip(frames, hits, strict=True):
        around = np.stack([np.roll(sample, shift, axis=(1, 2)) for shift in shifts], axis=1)
        cells, neighbourhoods = sample.reshape(len(sample), -1), around.reshape(*around.shape[:2], -1)
        _look_up(cells, neighbourhoods, _cells_of_patches(layout), layout.num_colors, of_sample)
    return hits


def _cells_of_patches(layout: FrameLayout) -> NDArray[np.int64]:
    """Return the numbers of the cells of each patch, int64 [patches, cells]. Cells are counted in raster order."""
    (height, width), (patch_height, patch_width) = layout.grid, layout.patch
    cells = np.arange(height * width).reshape(height // patch_height, patch_height, width // patch_width, patch_width)
    return cells.swapaxes(1, 2).reshape(layout.patches_per_frame, layout.cells_per_patch)


@compiled
def _look_up(
    cells: np.ndarray, neighbourhoods: np.ndarray, places: np.ndarray, num_colors: int, hits: np.ndarray
) -> None:
    """Write whether the look-up predicts each patch to `hits`, bool [frames, patches].

    Args:
        cells: uint8 [frames, cells].
        neighbourhoods: uint8 [frames, 9, cells].
        places: integers [patches, cells per patch].
    """
    num_frames, num_cells = cells.shape
    num_neighbours = neighbourhoods.shape[1]
    # Neighbour by neighbour, so that the distances to all earlier neighbourhoods are computed as vectors.
    seen = np.empty((num_neighbours, (num_frames - 1) * num_cells), np.uint8)
    successors = np.empty(seen.shape[1], np.uint8)
    distances = np.empty(seen.shape[1], np.uint8)
    counts = np.empty(num_colors, np.int64)
    num_seen = 0
    for frame in range(1, num_frames):
        around = neighbourhoods[frame - 1]
        for patch in range(places.shape[0]):
            is_right = True
            for cell in places[patch]:
                guess = cells[frame - 1, cell]
                if num_seen:
                    _measure(seen, num_seen, around, cell, distances)
                    guess = _most_frequent(successors, num_seen, distances, counts)
                is_right = is_right and guess == cells[frame, cell]
            hits[frame, patch] = is_right
            for cell in places[patch]:
                for k in range(num_neighbours):
                    seen[k, num_seen] = around[k, cell]
                successors[num_seen] = cells[frame, cell]
                num_seen += 1


@compiled
def _measure(seen, num_seen, around, cell, distances):  # type: ignore[no-untyped-def]
    """Write to `distances` in how many cells each earlier neighbourhood differs from that of `cell`."""
    for i in range(num_seen):
        distances[i] = 0
    for k in range(around.shape[0]):
        row, color = seen[k], around[k, cell]
        for i in range(num_seen):
            distances[i] += row[i] != color


@compiled
def _most_frequent(successors, num_seen, distances, counts):  # type: ignore[no-untyped-def]
    """Return the most frequent successor among those at the smallest distance."""
    nearest = distances[0]
    for i in range(num_seen):
        nearest = min(nearest, distances[i])
    for color in range(counts.size):
        counts[color] = 0
    best = successors[0]
    for i in range(num_seen):
        if distances[i] == nearest:
            color = successors[i]
            counts[color] += 1
            if counts[color] >= counts[best]:
                best = color
    return best


def _learned(shares: FrameShares, num_patches: NDArray[np.int64]) -> tuple[ByFrame, float | None]:
    """Return what was learned by frame, and of the means over all patches from the third frame on.

    Args:
        num_patches: number of patches that are there in each frame.
    """
    columns = [np.array(column[_THIRD:], np.float64) for column in (shares.patch, shares.best_copy, shares.lookup)]
    by_frame = [_part(*row) for row in zip(*columns, strict=True)]
    means = (float(np.average(column, weights=num_patches[_THIRD:])) for column in columns)
    return (*(None,) * _THIRD, *by_frame), _part(*means)


def _part(model: float, copy: float, lookup: float) -> float | None:
    return float((model - copy) / (lookup - copy)) if lookup > copy else None
