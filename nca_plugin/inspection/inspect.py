"""`inspect`: samples of a source as a page of pictures and figures."""

import hashlib
import re
from pathlib import Path

from nca_plugin.display.page import Picture, render, rendered
from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.files import check_folder, complete_files
from nca_plugin.inspection.measures import measure
from nca_plugin.inspection.page import page
from nca_plugin.inspection.pictures import pictures
from nca_plugin.inspection.reference import reference_for
from nca_plugin.inspection.samples import Samples, draw_samples, random_scores
from nca_plugin.sources import Source

_LONGEST_NAME = 100
_OVERVIEW_SIZE = (13.0, 7.2)


def default_folder(uri: str) -> Path:
    """Return runs/inspect/<the URI as a file name>; a long one is cut, and told apart by its hash."""
    name = re.sub(r"[^\w.=-]+", "-", uri).strip("-")
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}"
    return Path("runs/inspect") / name


def inspect(
    source: Source,
    folder: Path,
    *,
    count: int,
    seq_length: int,
    start_stage: StartStage = silent_stage,
) -> list[Path]:
    """Write `index.html`, a PNG of each picture, and `overview.png` to `folder`; return their paths, the page first.

    Files of these names are replaced, all of them or, after an error, none.

    Raises:
        NCAPluginError: a folder that cannot be written to, a count below 1, or what the source refuses.
    """
    check_folder(folder)
    samples = draw_samples(source, count, seq_length, start_stage=start_stage)
    grid = samples.grid
    unfiltered = None
    if grid is not None and grid.distinct_bands:
        unfiltered = random_scores(source, count, start_stage)
    shown = pictures(samples, unfiltered)
    advance = start_stage("pictures", len(shown))
    drawn = []
    for picture in shown:
        drawn.append(rendered(picture))
        advance(1)
    reference = reference_for(grid.config, grid.frames.shape[1]) if grid is not None else None
    command = f"nca-plugin inspect '{source.uri}' --count {count} --seq-length {seq_length}"
    html = page(source.uri, _facts(samples), command, drawn, measure(samples), count, reference)
    contents = {"index.html": html.encode()}
    contents |= {f"{item.picture.name}.png": item.light for item in drawn}
    contents["overview.png"] = render(_overview(shown), "light", _OVERVIEW_SIZE)
    targets = [folder / name for name in contents]
    with complete_files(*targets) as partials:
        for partial, content in zip(partials, contents.values(), strict=True):
            partial.write_bytes(content)
    return targets


def _overview(shown: list[Picture]) -> list[list[Picture]]:
    """Return the layout of the overview: the contact sheet, and beside it the two pictures that follow it."""
    sheet, upper, lower, *_ = shown
    return [[sheet, upper], [sheet, lower]]


def _facts(samples: Samples) -> str:
    count, length = samples.loss_mask.shape
    text = f"{count:,} sequences of {length:,} tokens out of a vocabulary of {samples.source.vocab_size:,}"
    if samples.grid is None:
        return text + "."
    config = samples.grid.config
    return (
        f"{text}. Each shows {samples.grid.frames.shape[1]} frames of {config.grid_size} x {config.grid_size} cells in "
        f"{config.num_colors} colours; a token is a patch of {config.patch_size} x {config.patch_size} cells."
    )
