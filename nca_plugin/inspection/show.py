"""`nca-plugin show`: one sample in the terminal, as moving frames or as tokens.

Without colour (no terminal, too few colours, or NO_COLOR), cells and tokens are characters. Without a terminal, frames
are printed side by side.
"""

import time
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.color import Color
from rich.console import COLOR_SYSTEMS, Console
from rich.live import Live
from rich.style import Style
from rich.text import Text

from nca_plugin.errors import NCAPluginError
from nca_plugin.inspection.palette import palette, token_colors
from nca_plugin.inspection.samples import Grid, draw_samples
from nca_plugin.inspection.statistics import change_rate, compressed_shares
from nca_plugin.sources import Source
from nca_plugin.sources.details import described, num_brackets

#: The upper half of a character cell. Its colour is the upper pixel, its background the lower one, so that a pixel is
#: about as wide as high.
_HALF_BLOCK: Final = "▀"
_MAX_PIXELS_PER_CELL: Final = 4
#: Number of lines for the title, a frame's caption and the cursor.
_OTHER_LINES: Final = 5
_BRACKETS: Final = ("()", "[]", "{}", "<>")
#: Text on a colour of a higher luminance (0 to 255) is black.
_BRIGHT: Final = 140


def show(source: Source, index: int, seq_length: int, fps: float, console: Console) -> None:
    """Print sample `index` on `console`. In a terminal, frames are played with `fps` frames per second.

    Raises:
        NCAPluginError: if `fps` is out of range, or the source refuses the index or the length.
    """
    if not 0.1 <= fps <= 1000:
        raise NCAPluginError(f"fps {fps:g}: must lie in 0.1 .. 1000")
    samples = draw_samples(source, 1, seq_length, first_index=index)
    name = source.uri.partition("?")[0].removesuffix("://")
    if samples.grid is None:
        share = float(compressed_shares(samples.tokens)[0])
        title = f"{name}, sample {index}: {samples.tokens.shape[1]:,} tokens, {share:.3f} of their size after gzip"
        console.print(Text(title, style="bold"))
        _print_tokens(source, index, samples.tokens[0], console)
        return
    details = described(source, index)
    about = f" ({details})" if details else ""
    console.print(Text(f"{name}, sample {index}{about}: {_score_text(samples.grid)}", style="bold"))
    if console.is_terminal and not console.is_dumb_terminal:
        _play(samples.grid, fps, console)
    else:
        _print_side_by_side(samples.grid, console)


def has_colors(console: Console, num_colors: int) -> bool:
    """Return whether `console` can show all colours of a palette differently, and NO_COLOR is not set."""
    if console.color_system is None or console.no_color:
        return False
    shown = (_color(rgb).downgrade(COLOR_SYSTEMS[console.color_system]) for rgb in palette(num_colors))
    return len({(color.number, color.triplet) for color in shown}) == num_colors


def blocks_text(frame: NDArray[np.uint8], num_colors: int, pixels_per_cell: int) -> Text:
    """Return a frame, uint8 [height, width], as coloured half blocks."""
    pixels = palette(num_colors)[frame].repeat(pixels_per_cell, axis=0).repeat(pixels_per_cell, axis=1)
    text = Text()
    for y in range(0, pixels.shape[0], 2):
        if y:
            text.append("\n")
        for x in range(pixels.shape[1]):
            lower = _color(pixels[y + 1, x]) if y + 1 < pixels.shape[0] else None
            text.append(_HALF_BLOCK, Style(color=_color(pixels[y, x]), bgcolor=lower))
    return text


def characters(frame: NDArray[np.uint8], num_colors: int) -> list[str]:
    """Return a frame as lines of characters: 0-9 and a-z for up to 36 colours, or else two characters for a cell."""
    width = 1 if num_colors <= 36 else 2
    return [" ".join(np.base_repr(cell, 36).lower().rjust(width, "0") for cell in row) for row in frame.tolist()]


def rows_text(rows: NDArray[np.uint8], in_color: bool) -> Text:
    """Return rows of two states, uint8 [num_rows, width], as half blocks or, without colour, as characters."""
    if in_color:
        return blocks_text(rows, 2, 1)
    return Text("\n".join("".join("#" if cell else "." for cell in row) for row in rows.tolist()))


def tokens_text(source: Source, tokens: NDArray[np.int32], in_color: bool) -> Text:
    """Return tokens, int32 [length], as numbers or brackets. More than four kinds of brackets are numbered."""
    text = Text()
    words = [_word(source, token) for token in tokens.tolist()]
    separator = " " if max(map(len, words)) > 1 else ""
    for word, color in zip(words, token_colors(source, tokens), strict=True):
        if in_color:
            luminance = float(color @ np.array([0.299, 0.587, 0.114]))
            ink = "black" if luminance > _BRIGHT else "bright_white"
            text.append(word, Style(color=ink, bgcolor=_color(color)))
        else:
            text.append(word)
        text.append(separator)
    return text


def _word(source: Source, token: int) -> str:
    kinds = num_brackets(source)
    if kinds is None:
        return str(token)
    is_closing, kind = divmod(token, kinds)
    bracket = _BRACKETS[kind % len(_BRACKETS)][is_closing]
    return bracket if kinds <= len(_BRACKETS) else f"{kind}{bracket}"


def _print_tokens(source: Source, index: int, tokens: NDArray[np.int32], console: Console) -> None:
    if source.frames is not None and source.frames.grid[0] == 1:
        console.print(f"{described(source, index)}, time runs downwards")
        rows = source.frames.frames(tokens)[:, 0]
        console.print(rows_text(rows, has_colors(console, 2)), overflow="crop", no_wrap=True)
    else:
        console.print(tokens_text(source, tokens, has_colors(console, 1)))


def _play(grid: Grid, fps: float, console: Console) -> None:
    frames, changes = grid.frames[0], change_rate(grid.frames[0])
    size, num_colors = grid.config.grid_size, grid.config.num_colors
    in_color = has_colors(console, num_colors)
    pixels = max(1, min(_MAX_PIXELS_PER_CELL, console.width // size, 2 * (console.height - _OTHER_LINES) // size))
    width = size * pixels if in_color else len(characters(frames[0], num_colors)[0])
    height = -(-size * pixels // 2) if in_color else size
    if width > console.width or height + _OTHER_LINES > console.height:
        console.print("(this terminal is too small for the whole grid)")
    # Each frame is drawn once, when its time has come.
    with Live(console=console, auto_refresh=False) as live:
        for i, frame in enumerate(frames):
            if in_color:
                picture = blocks_text(frame, num_colors, pixels)
            else:
                picture = Text("\n".join(characters(frame, num_colors)))
            picture.no_wrap, picture.overflow = True, "crop"
            live.update(Text.assemble(picture, "\n", _caption(i, len(frames), changes)), refresh=True)
            time.sleep(1 / fps)


def _print_side_by_side(grid: Grid, console: Console) -> None:
    frames, changes = grid.frames[0], change_rate(grid.frames[0])
    blocks = []
    for i, frame in enumerate(frames):
        change = f", {100 * changes[i - 1]:.0f} % changed" if i else ""
        blocks.append([f"frame {i + 1}{change}", *characters(frame, grid.config.num_colors)])
    width = max(len(line) for block in blocks for line in block) + 3
    per_row = max(1, (console.width + 3) // width)
    for start in range(0, len(blocks), per_row):
        row = blocks[start : start + per_row]
        for lines in zip(*row, strict=True):
            console.print(Text("".join(line.ljust(width) for line in lines).rstrip()), soft_wrap=True)
        console.print()


def _caption(i: int, num_frames: int, changes: NDArray[np.float64]) -> str:
    change = f", {100 * changes[i - 1]:.0f} % changed" if i else ""
    return f"frame {i + 1} of {num_frames}{change}"


def _score_text(grid: Grid) -> str:
    (score,), (band,) = grid.scores, grid.bands
    return f"gzip score {score:.3f}" + (f" (band {band[0]:g} to {band[1]:g})" if band is not None else "")


def _color(rgb: NDArray[np.uint8]) -> Color:
    return Color.from_rgb(*rgb.tolist())
