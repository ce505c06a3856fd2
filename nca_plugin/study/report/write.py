"""Writes the folder of a report: the page, its pictures and the numbers."""

import csv
import io
import json
from pathlib import Path

from nca_plugin.display.drawing import drawn
from nca_plugin.display.page import write_files
from nca_plugin.study.report.page import page
from nca_plugin.study.report.parts import Values
from nca_plugin.study.report.pictures import sections


def write_report(values: Values, folder: Path) -> list[Path]:
    """Write `results.json`, `results.csv`, `report.html` and its pictures as PNG to `folder`, and return their paths.

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
        "results.csv": _csv(values).encode(),
        "report.html": page(values, found, by_name).encode(),
    }
    return write_files(folder, contents | {f"{name}.png": item.png for name, item in by_name.items()})


def write_stage1(values: Values, folder: Path) -> Path:
    """Write `stage1.json`, the values of a study that ended after stage 1, and return its path.

    Raises:
        NCAPluginError: if the folder cannot be written to.
    """
    return write_files(folder, {"stage1.json": json.dumps(values, indent=1).encode()})[0]


def _csv(values: Values) -> str:
    """Return a table with a row for each language run."""
    names = [name for name, value in values["language"][0].items() if isinstance(value, str | int | float)]
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(values["language"])
    return out.getvalue()
