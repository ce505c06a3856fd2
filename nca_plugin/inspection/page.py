"""The HTML page: one file that needs nothing beside it, neither the network nor scripts."""

import base64
import math
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Final

from nca_plugin.inspection.measures import DEPENDS_ON_COUNT, TITLES
from nca_plugin.inspection.pictures import Picture
from nca_plugin.inspection.reference import NUM_SEQUENCES
from nca_plugin.inspection.statistics import Estimate

_STYLE: Final = """
:root { color-scheme: light dark; --text: #1f2328; --page: #ffffff; --soft: #59636e; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6edf3; --page: #14171c; --soft: #9aa4ae; --line: #3a424b; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
p, figcaption { color: var(--soft); margin: .25rem 0; }
code { overflow-wrap: anywhere; font-size: .85rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; }
.sheet { max-width: 52rem; margin: 1.5rem auto; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 2.5rem 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 11rem; padding-left: 0; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
@media (max-width: 40rem) {
  table { font-size: .8rem; }
  th, td { padding: .35rem .25rem; }
  th:first-child, td:first-child { min-width: 6.5rem; }
}
"""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture's PNG for a light page and for a dark one."""

    picture: Picture
    light: bytes
    dark: bytes


def page(
    uri: str,
    facts: str,
    command: str,
    rendered: list[Rendered],
    measures: Mapping[str, Estimate],
    count: int,
    reference: Mapping[str, float] | None,
) -> str:
    """Return the page's HTML.

    Args:
        uri: the canonical URI.
        facts: one line on the samples.
        command: what makes this page again.
        rendered: the contact sheet first.
        count: sequences behind `measures`.
        reference: the release's values, where they are comparable.
    """
    contact_sheet, *rest = rendered
    title = f"{uri.partition('?')[0].removesuffix('://')}: what the model reads"
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
            f"<h1>{escape(title)}</h1>\n<p>{escape(facts)}</p>\n<p><code>{escape(uri)}</code></p>",
            f'<div class="sheet">{_figure(contact_sheet)}</div>',
            "<h2>What the sequences have in common</h2>",
            f'<div class="charts">{"".join(map(_figure, rest))}</div>',
            f"<h2>Figures</h2>\n{_table(measures, count, reference)}",
            f"<p>Made by <code>{escape(command)}</code></p>\n</body>\n</html>\n",
        )
    )


def _figure(rendered: Rendered) -> str:
    light, dark = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (rendered.light, rendered.dark))
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(rendered.picture.title)}"></picture>'
        f"<figcaption>{escape(rendered.picture.reading)}</figcaption></figure>"
    )


def _table(measures: Mapping[str, Estimate], count: int, reference: Mapping[str, float] | None) -> str:
    heads = ["", "value ± standard error"]
    if reference is not None:
        heads += ["released code", "errors apart"]
    lines = [_row("th", heads)]
    has_note = False
    for name, (title, unit) in TITLES.items():
        if name not in measures:
            continue
        estimate = measures[name]
        value, error = _number(estimate.value, unit), _number(estimate.standard_error, unit)
        cells = [f"{title} ({unit})" if unit in ("%", "bits") else title, f"{value} ± {error}"]
        if reference is not None and name in reference:
            depends = name.startswith(DEPENDS_ON_COUNT)
            has_note |= depends
            cells[0] += "\N{NO-BREAK SPACE}*" if depends else ""
            is_comparable = count == NUM_SEQUENCES or not depends
            difference = _difference(estimate, reference[name], count) if is_comparable else "*"
            cells += [_number(reference[name], unit), difference]
        elif reference is not None:
            cells += ["", ""]
        lines.append(_row("td", cells))
    notes = "<p>Standard errors are over sequences.</p>"
    if reference is not None:
        notes += (
            f"<p>Released code: measured on the authors' own generator, {NUM_SEQUENCES:,} sequences. Errors apart: the "
            "difference in standard errors of both samples together; up to 2 or 3 is chance.</p>"
        )
    if has_note:
        notes += (
            f"<p>* depends on the number of sequences: compare with --count {NUM_SEQUENCES}. Fewer sequences hold "
            "fewer distinct tokens, and their most frequent ones look more frequent than they are.</p>"
        )
    return f'<div class="wide"><table>{"".join(lines)}</table></div>{notes}'


def _row(tag: str, cells: list[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "unknown"
    if unit == "%":
        return f"{100 * value:.2f}"
    if unit == "tokens":
        return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
    return f"{value:.3f}"


def _difference(estimate: Estimate, published: float, count: int) -> str:
    error = estimate.standard_error * math.sqrt(1 + count / NUM_SEQUENCES)
    if math.isnan(error) or error == 0:
        return ""
    return f"{(estimate.value - published) / error:+.1f}"
