"""Makes pages of pictures as HTML from templates, and writes them to a folder with their pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nca_plugin.files import complete_files

_TEMPLATES: Final = Path(__file__).with_name("templates")


def html(template: Path, **values: object) -> str:
    """Return the page that a template makes of values. Text in the values is escaped.

    Args:
        template: a template that extends `page.html.j2` in this folder's templates, the common part of all pages.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader((template.parent, _TEMPLATES)),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)


def write_files(folder: Path, contents: Mapping[str, bytes]) -> list[Path]:
    """Write files to a folder, by name, either all or, after an error, none. Returns their paths.

    Raises:
        NCAPluginError: if the folder cannot be written to.
    """
    targets = [folder / name for name in contents]
    with complete_files(*targets) as partials:
        for partial, content in zip(partials, contents.values(), strict=True):
            partial.write_bytes(content)
    return targets
