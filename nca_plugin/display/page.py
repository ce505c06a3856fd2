"""Pages of pictures: HTML from templates, and the folder that it is written to with its pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nca_plugin.files import complete_files

_TEMPLATES: Final = Path(__file__).with_name("templates")


def html(template: Path, **values: object) -> str:
    """Return the page that a template makes of values; what is text in them is shown as it is.

    Args:
        template: it extends `page.html.j2` of this folder's templates, which has what all pages share.
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
    """Write files by name to a folder, all of them or, after an error, none, and return their paths.

    Raises:
        NCAPluginError: a folder that cannot be written to.
    """
    targets = [folder / name for name in contents]
    with complete_files(*targets) as partials:
        for partial, content in zip(partials, contents.values(), strict=True):
            partial.write_bytes(content)
    return targets
