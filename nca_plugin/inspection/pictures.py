"""The pictures of a page, with their titles and explanations."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.automata import score_bounds
from nca_plugin.automata.config import Band
from nca_plugin.display.drawing import Picture
from nca_plugin.inspection import charts, sheet
from nca_plugin.inspection.information import NUM_SYMBOLS, Information, frame_information, token_information
from nca_plugin.inspection.palette import MAX_TOKEN_COLORS
from nca_plugin.inspection.reference import ACCEPTANCE, reference_for
from nca_plugin.inspection.samples import Grid, Samples
from nca_plugin.inspection.statistics import compressed_shares, seen_neighbourhoods
from nca_plugin.sources import Source
from nca_plugin.sources.details import num_brackets

_SHEET: Final = (6.4, 6.9)


def pictures(samples: Samples, random_scores: NDArray[np.float64] | None) -> list[Picture]:
    """Return the pictures of samples, the contact sheet first.

    Args:
        random_scores: gzip scores of random rules without the band, float64 [rules]; None if there is no band.
    """
    if samples.grid is None:
        return _token_pictures(samples)
    return _grid_pictures(samples, samples.grid, random_scores)


def _grid_pictures(samples: Samples, grid: Grid, random_scores: NDArray[np.float64] | None) -> list[Picture]:
    config, frames = grid.config, grid.frames
    reference = reference_for(config, frames.shape[1])
    seen = np.stack([seen_neighbourhoods(sequence)[0] for sequence in frames])
    over_frames, over_tokens = frame_information(grid), token_information(samples)
    outline = ""
    if random_scores is not None:
        outline = ": bars are these sequences, the outline is rules drawn without a band, and each adds up to 100 %"
    if reference is not None and config.band is not None:
        outline += f" (the released code keeps {100 * ACCEPTANCE[config.band]:.1f} %)"
    noise = score_bounds(config.num_colors, config.grid_size, config.patch_size)[1]
    rank = min(100, config.grid_start // 2)
    counted = int(samples.loss_mask[0].sum())
    return [
        Picture(
            "sheet",
            "Each row is one automaton over time, simplest on top",
            "Every square is the whole grid at one moment and every colour one state of a cell; the number on the left "
            "is the gzip score, and a wide gap leaves out frames.",
            lambda axes: sheet.draw_frames(axes, grid),
            _SHEET,
        ),
        Picture(
            "scores",
            _score_title(grid.distinct_bands, random_scores),
            f"The score is the size of ten frames after gzip divided by their size before{outline}.",
            lambda axes: charts.draw_scores(axes, grid.scores, random_scores, grid.distinct_bands, noise),
        ),
        Picture(
            "frames_information",
            _reach(over_frames),
            "The higher the blue curve above the grey, the more bits a cell's colour tells about its later one within "
            "a sequence; the grey is the same for shuffled sequences, where only estimation error is left.",
            lambda axes: charts.draw_frame_information(axes, over_frames),
        ),
        Picture(
            "tokens_information",
            "Tokens tell about their neighbours, and about the same place in later frames",
            "The same measure along the token stream, for the colour of each patch's first cell: peaks at multiples of "
            f"{config.frame_length} tokens are the same patch one, two, three frames later.",
            lambda axes: charts.draw_token_information(axes, over_tokens, config.frame_length),
        ),
        Picture(
            "seen",
            "The rule shows itself: more and more of it can be looked up in the context",
            "A cell counts as seen if its 3x3 neighbourhood occurred earlier in the sequence, so that its next colour "
            "could be copied; what is not seen must be inferred from the rule.",
            lambda axes: charts.draw_seen(axes, seen, reference),
        ),
        Picture(
            "changes",
            "How much of the grid changes at each step",
            "0 % is a frozen grid, 100 % a grid in which every cell takes another colour; the shade holds nine "
            "sequences in ten.",
            lambda axes: charts.draw_changes(axes, frames, reference),
        ),
        Picture(
            "ranks",
            "How many different tokens carry the stream",
            f"Read up from {rank}: the share of all patch tokens that are one of the {rank} most frequent; the fewer "
            "sequences are drawn, the higher the curve starts.",
            lambda axes: charts.draw_ranks(axes, grid.patches, config.grid_start, reference),
        ),
        Picture(
            "mask",
            f"{counted:,} of {samples.loss_mask.shape[1]:,} next tokens count in the loss",
            "Each row is a frame in the order of its tokens, delimiters at both ends; masked tokens are read by the "
            "model but not predicted, because nothing before them tells the rule.",
            lambda axes: charts.draw_mask(axes, samples),
        ),
    ]


def _token_pictures(samples: Samples) -> list[Picture]:
    information = token_information(samples)
    scores = compressed_shares(samples.tokens)
    counted = int(samples.loss_mask[0].sum())
    vocab_size = samples.source.vocab_size
    rank = min(10, vocab_size)
    folded = f" Ids are taken modulo {NUM_SYMBOLS}, so that the points are lower bounds." if vocab_size > 16 else ""
    return [
        Picture(
            "sheet",
            "Each row is the start of a sequence, simplest on top",
            f"Every cell is a token{_token_colors_text(samples.source)}; the number on the left is the size of the "
            "whole sequence after gzip divided by its size before.",
            lambda axes: sheet.draw_strips(axes, samples, scores),
            _SHEET,
        ),
        Picture(
            "tokens_information",
            "What a token tells about a later one, by distance",
            "The higher a blue point above the grey ones, the more bits the earlier token tells about the later one; "
            "the grey ones are the same for shuffled sequences, where only the difference between sequences is left."
            f"{folded}",
            lambda axes: charts.draw_token_information(axes, information, None),
        ),
        Picture(
            "ranks",
            "How many different tokens carry the stream",
            f"Read up from {rank}: the share of all tokens that are one of the {rank} most frequent ids.",
            lambda axes: charts.draw_ranks(axes, samples.tokens, vocab_size, None),
        ),
        Picture(
            "mask",
            f"{counted:,} of {samples.loss_mask.shape[1]:,} next tokens count in the loss",
            "The tokens of a sequence from left to right and top to bottom; masked ones are read but not predicted.",
            lambda axes: charts.draw_mask(axes, samples),
        ),
    ]


def _token_colors_text(source: Source) -> str:
    if num_brackets(source) is not None:
        return ", closing brackets a paler tone of their opening ones"
    if source.vocab_size > MAX_TOKEN_COLORS:
        return f"; ids that are equal modulo {MAX_TOKEN_COLORS} share a colour"
    return ", equal ones in equal colours"


def _score_title(bands: Sequence[Band], random_scores: NDArray[np.float64] | None) -> str:
    """Return a title that says what share of random rules each band keeps."""
    if random_scores is None:
        return "Random rules run from frozen to noise"
    shares = (100 * np.mean((low < random_scores) & (random_scores < high)) for low, high in bands)
    kept = " and ".join(f"{share:.0f} %" for share in shares)
    return f"The band keeps {kept} of random rules" if len(bands) == 1 else f"The bands keep {kept} of random rules"


def _reach(information: Information) -> str:
    """Return a title that says how far the information reaches, if it reaches the furthest distance."""
    furthest = information.distances[-1]
    error = np.hypot(information.error[-1], information.baseline_error[-1])
    if information.value[-1] - information.baseline[-1] > 3 * error:
        return f"A cell's colour still tells something about the same cell {furthest} frames later"
    return "What a cell's colour tells about the same cell in later frames"
