"""The folder of a report: the page, its pictures and the numbers."""

import json
from pathlib import Path

from nca_plugin.display.page import render, rendered
from nca_plugin.files import complete_files
from nca_plugin.study.report.charts import ARM_COLORS
from nca_plugin.study.report.page import page
from nca_plugin.study.report.parts import Values
from nca_plugin.study.report.pictures import sections


def write_report(values: Values, folder: Path) -> list[Path]:
    """Write `results.json`, `report.html` and a PNG of each of its sections to `folder`, and return their paths.

    Files of these names are replaced, all of them or, after an error, none.

    Args:
        values: what `nca_plugin.study.results.results` returns, or what `results.json` holds.

    Raises:
        NCAPluginError: a folder that cannot be written to.
    """
    found = sections(values)
    drawn = {picture.name: rendered(picture, ARM_COLORS) for section in found for picture in section.pictures}
    contents = {
        "results.json": json.dumps(values, indent=1).encode(),
        "report.html": page(values, found, drawn).encode(),
    }
    contents |= {f"{section.name}.png": render(section.layout, "light", section.size, ARM_COLORS) for section in found}
    targets = [folder / name for name in contents]
    with complete_files(*targets) as partials:
        for partial, content in zip(partials, contents.values(), strict=True):
            partial.write_bytes(content)
    return targets
