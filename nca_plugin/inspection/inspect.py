"""`nca-plugin inspect`: writes a page with pictures and figures of a source's samples."""

import hashlib
import io
import re
from pathlib import Path

from nca_plugin.display.drawing import Drawn, drawn
from nca_plugin.display.page import write_files
from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.files import check_folder
from nca_plugin.inspection.measures import measure
from nca_plugin.inspection.page import page
from nca_plugin.inspection.pictures import pictures
from nca_plugin.inspection.reference import reference_for
from nca_plugin.inspection.samples import Samples, draw_samples, random_scores
from nca_plugin.sources import Source

_LONGEST_NAME = 100
#: Pixels between the pictures of the overview.
_GAP = 40


def default_folder(uri: str) -> Path:
    """Return runs/inspect/<the URI as a file name>. A long name is cut, and made unique by a hash."""
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
    """Write `index.html`, a PNG of each picture, and `overview.png` to `folder`, and return their paths in this order.

    Existing files of these names are replaced, either all or, after an error, none.

    Raises:
        NCAPluginError: if the folder cannot be written to, the count is below 1, or the source refuses the length.
    """
    check_folder(folder)
    samples = draw_samples(source, count, seq_length, start_stage=start_stage)
    grid = samples.grid
    unfiltered = None
    if grid is not None and grid.distinct_bands:
        unfiltered = random_scores(source, count, start_stage)
    shown = pictures(samples, unfiltered)
    advance = start_stage("pictures", len(shown))
    all_drawn = []
    for picture in shown:
        all_drawn.append(drawn(picture))
        advance(1)
    reference = reference_for(grid.config, grid.frames.shape[1]) if grid is not None else None
    command = f"nca-plugin inspect '{source.uri}' --count {count} --seq-length {seq_length}"
    html = page(source.uri, _facts(samples), command, all_drawn, measure(samples), count, reference)
    contents = {"index.html": html.encode()}
    contents |= {f"{item.picture.name}.png": item.png for item in all_drawn}
    contents["overview.png"] = _overview(all_drawn)
    return write_files(folder, contents)


def _overview(all_drawn: list[Drawn]) -> bytes:
    """Return a PNG with the contact sheet, and the next two pictures beside it."""
    from PIL import Image

    sheet, upper, lower = (Image.open(io.BytesIO(item.png)).convert("RGB") for item in all_drawn[:3])
    height = upper.height + _GAP + lower.height
    sheet = sheet.resize((sheet.width * height // sheet.height, height))
    whole = Image.new("RGB", (sheet.width + _GAP + upper.width, height), "white")
    whole.paste(sheet, (0, 0))
    whole.paste(upper, (sheet.width + _GAP, 0))
    whole.paste(lower, (sheet.width + _GAP, upper.height + _GAP))
    written = io.BytesIO()
    # 256 colours make the file a third as large.
    whole.quantize().save(written, "png")
    return written.getvalue()


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
