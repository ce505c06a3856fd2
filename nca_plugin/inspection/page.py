"""The page of `inspect`: its words, pictures and figures."""

import math
from collections.abc import Mapping
from html import escape

from nca_plugin.display.page import Rendered, document, figure, table
from nca_plugin.inspection.measures import DEPENDS_ON_COUNT, TITLES
from nca_plugin.inspection.reference import NUM_SEQUENCES
from nca_plugin.inspection.statistics import Measured


def page(
    uri: str,
    facts: str,
    command: str,
    rendered: list[Rendered],
    measures: Mapping[str, Measured],
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
    return document(
        title,
        (
            f"<p>{escape(facts)}</p>\n<p><code>{escape(uri)}</code></p>",
            f'<div class="sheet">{figure(contact_sheet)}</div>',
            "<h2>What the sequences have in common</h2>",
            f'<div class="charts">{"".join(map(figure, rest))}</div>',
            f"<h2>Figures</h2>\n{_figures(measures, count, reference)}",
            f"<p>Made by <code>{escape(command)}</code></p>",
        ),
    )


def _figures(measures: Mapping[str, Measured], count: int, reference: Mapping[str, float] | None) -> str:
    heads = ["", "value ± standard error"]
    if reference is not None:
        heads += ["released code", "errors apart"]
    rows = []
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
        rows.append(cells)
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
    return table(heads, rows) + notes


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "unknown"
    if unit == "%":
        return f"{100 * value:.2f}"
    if unit == "tokens":
        return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
    return f"{value:.3f}"


def _difference(estimate: Measured, published: float, count: int) -> str:
    error = estimate.standard_error * math.sqrt(1 + count / NUM_SEQUENCES)
    if math.isnan(error) or error == 0:
        return ""
    return f"{(estimate.value - published) / error:+.1f}"
