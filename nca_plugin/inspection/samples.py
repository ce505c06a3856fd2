"""Samples of a source, and their frames if the source has a grid."""

import dataclasses
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import NCAConfig, decode, generate, gzip_score
from nca_plugin.automata.complexity import SCORED_FRAMES
from nca_plugin.automata.config import Band
from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.inspection.statistics import gzip_scores
from nca_plugin.sources import FrameLayout, Source
from nca_plugin.sources.details import automaton, band, generator_of, generators

#: Samples are held in memory, where the measurements take about 50 bytes per token.
_MAX_TOKENS: Final = 1 << 26


@dataclass(frozen=True, eq=False, slots=True)
class Grid:
    """The frames of samples.

    Attributes:
        config: the automaton's configuration. For a mixture, it is what the presets share, without a band.
        frames: uint8 [count, num_frames, grid, grid], all frames that are completely in the sample.
        patches: int32 [count, num_frames, patches_per_frame], the patch tokens of these frames.
        scores: float64 [count], gzip score of each rollout's first ten frames, even if the sample does not have them.
        bands: the band that selected each sample; None if every rule was accepted.
    """

    config: NCAConfig
    frames: NDArray[np.uint8]
    patches: NDArray[np.int32]
    scores: NDArray[np.float64]
    bands: tuple[Band | None, ...]

    @property
    def distinct_bands(self) -> list[Band]:
        """The bands that occur, lowest first. A mixture or a curriculum has several."""
        return sorted({band for band in self.bands if band is not None})


@dataclass(frozen=True, eq=False, slots=True)
class Samples:
    """Consecutive samples of a source.

    Attributes:
        tokens: int32 [count, S + 1].
        loss_mask: bool [count, S].
        grid: the frames; None for a source of plain tokens.
    """

    source: Source
    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    grid: Grid | None

    @property
    def count(self) -> int:
        return self.tokens.shape[0]


def draw_samples(
    source: Source,
    count: int,
    seq_length: int,
    first_index: int = 0,
    start_stage: StartStage = silent_stage,
) -> Samples:
    """Return samples first_index .. first_index + count - 1 with `seq_length` input tokens each.

    Raises:
        NCAPluginError: if the count is below 1, an index is out of range, the tokens do not fit in memory, or the
            source refuses the length.
    """
    if count < 1:
        raise NCAPluginError(f"count {count}: must be at least 1")
    if not 0 <= first_index <= (1 << 63) - count:
        raise NCAPluginError(f"sample index {first_index}: must lie in 0 .. 2^63 - 1")
    source.check_seq_length(seq_length)
    if count * (seq_length + 1) > _MAX_TOKENS:
        raise NCAPluginError(
            f"{count} sequences of {seq_length} tokens are more than the {_MAX_TOKENS} tokens that fit in memory: take "
            "fewer or shorter ones"
        )
    config = _grid_config(source)
    # Samples are drawn long enough to hold the scored frames, and then cut: a longer sample begins with a shorter one.
    length = seq_length if config is None else max(seq_length, SCORED_FRAMES * config.frame_length - 1)
    tokens = np.empty((count, length + 1), np.int32)
    loss_mask = np.empty((count, seq_length), np.bool_)
    advance = start_stage("sequences", count)
    for i in range(count):
        sample = source.sample(first_index + i, length)
        tokens[i], loss_mask[i] = sample.tokens, sample.loss_mask[:seq_length]
        advance(1)
    if config is None:
        return Samples(source, tokens, loss_mask, None)
    indices = range(first_index, first_index + count)
    bands = tuple(band(source, index) for index in indices)
    assert source.frames is not None
    grid = _grid(config, source.frames, tokens, seq_length, bands)
    return Samples(source, tokens[:, : seq_length + 1], loss_mask, grid)


def random_scores(source: Source, count: int, start_stage: StartStage = silent_stage) -> NDArray[np.float64]:
    """Return the gzip scores of `count` rules that are drawn without a band, float64 [count]. `source` has a grid.

    In a mixture, rule i is drawn from the preset of sample i.
    """
    scores = np.empty(count)
    advance = start_stage("rules without the band", count)
    for i in range(count):
        config = dataclasses.replace(
            _config_of(source, i), band=None, curriculum=None, num_rules=None, sequences_per_rule=1
        )
        tokens, _ = generate(config, i, SCORED_FRAMES * config.frame_length - 1)
        frames = decode(tokens, config.num_colors, config.patch_size, config.grid_size)
        scores[i] = gzip_score(frames, config.num_colors, config.patch_size)
        advance(1)
    return scores


def _config_of(source: Source, index: int) -> NCAConfig:
    """Return the automaton of sample `index`. `source` has a grid."""
    config = automaton(generator_of(source, index))
    assert config is not None
    return config


def _grid_config(source: Source) -> NCAConfig | None:
    """Return the automaton of the samples; None without a grid. For a mixture, it is what the presets share."""
    first, *others = (automaton(generator) for generator in generators(source))
    if first is None or source.frames is None:
        return None
    return dataclasses.replace(first, band=None, curriculum=None) if others else first


def _grid(
    config: NCAConfig,
    layout: FrameLayout,
    tokens: NDArray[np.int32],
    seq_length: int,
    bands: tuple[Band | None, ...],
) -> Grid:
    """Return the frames in the first `seq_length` + 1 tokens. `tokens` also hold the scored frames."""
    frames, patches = layout.frames(tokens), layout.patches(tokens[:, : seq_length + 1])
    scores = gzip_scores(frames, config.num_colors, config.patch_size)
    return Grid(config, frames[:, : patches.shape[1]], patches, scores, bands)
