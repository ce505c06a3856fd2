"""Writes the folder of a report: the page, its pictures and the numbers."""

import json
from pathlib import Path

from nca_plugin.display.drawing import drawn
from nca_plugin.display.page import write_files
from nca_plugin.study.report.page import page
from nca_plugin.study.report.parts import Values
from nca_plugin.study.report.pictures import sections


def write_report(values: Values, folder: Path) -> list[Path]:
    """Write `results.json`, `report.html` and a PNG of each of its pictures to `folder`, and return their paths.

    Existing files of these names are replaced, either all or, after an error, none.

    Args:
        values: the values of `nca_plugin.study.results.results`, which are those of `results.json`.

    Raises:
        NCAPluginError: if the folder cannot be written to.
    """
    found = sections(values)
    by_name = {picture.name: drawn(picture) for section in found for picture in section.pictures}
    contents = {
        "results.json": json.dumps(values, indent=1).encode(),
        "report.html": page(values, found, by_name).encode(),
    }
    return write_files(folder, contents | {f"{name}.png": item.png for name, item in by_name.items()})
