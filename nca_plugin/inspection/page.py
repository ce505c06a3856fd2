"""The page of `nca-plugin inspect`."""

import math
from collections.abc import Mapping
from pathlib import Path

from nca_plugin.display.drawing import Drawn
from nca_plugin.display.page import html
from nca_plugin.inspection.measures import DEPENDS_ON_COUNT, TITLES
from nca_plugin.inspection.reference import NUM_SEQUENCES
from nca_plugin.inspection.statistics import Measured


def page(
    uri: str,
    facts: str,
    command: str,
    drawn: list[Drawn],
    measures: Mapping[str, Measured],
    count: int,
    reference: Mapping[str, float] | None,
) -> str:
    """Return the page's HTML.

    Args:
        uri: the canonical URI.
        facts: a sentence about the samples.
        command: the command that makes this page again.
        drawn: the pictures, the contact sheet first.
        count: number of sequences behind `measures`.
        reference: the release's values; None if they are not comparable.
    """
    heads = ["", "value ± standard error"]
    if reference is not None:
        heads += ["released code", "errors apart"]
    names = [name for name in TITLES if name in measures]
    return html(
        Path(__file__).with_name("templates") / "inspect.html.j2",
        title=f"{uri.partition('?')[0].removesuffix('://')}: what the model reads",
        facts=facts,
        uri=uri,
        sheet=drawn[0],
        charts=drawn[1:],
        heads=heads,
        rows=[_row(name, measures[name], count, reference) for name in names],
        num_reference=NUM_SEQUENCES,
        has_reference=reference is not None,
        has_note=any(name.startswith(DEPENDS_ON_COUNT) for name in names if name in (reference or {})),
        command=command,
    )


def _row(name: str, measured: Measured, count: int, reference: Mapping[str, float] | None) -> list[str]:
    title, unit = TITLES[name]
    title = f"{title} ({unit})" if unit in ("%", "bits") else title
    value = f"{_number(measured.value, unit)} ± {_number(measured.standard_error, unit)}"
    if reference is None:
        return [title, value]
    if name not in reference:
        return [title, value, "", ""]
    depends = name.startswith(DEPENDS_ON_COUNT)
    is_comparable = count == NUM_SEQUENCES or not depends
    difference = _difference(measured, reference[name], count) if is_comparable else "*"
    return [f"{title}{'\N{NO-BREAK SPACE}*' if depends else ''}", value, _number(reference[name], unit), difference]


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "unknown"
    if unit == "%":
        return f"{100 * value:.2f}"
    if unit == "tokens":
        return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"
    return f"{value:.3f}"


def _difference(measured: Measured, published: float, count: int) -> str:
    error = measured.standard_error * math.sqrt(1 + count / NUM_SEQUENCES)
    if math.isnan(error) or error == 0:
        return ""
    return f"{(measured.value - published) / error:+.1f}"
