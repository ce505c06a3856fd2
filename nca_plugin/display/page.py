"""Pages of pictures: one HTML file that needs nothing beside it, neither the network nor scripts, light and dark."""

import base64
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from types import MappingProxyType
from typing import Any, Final, Literal

Theme = Literal["light", "dark"]

#: Theme to the colour of a page.
PAGES: Final = MappingProxyType({"light": "FFFFFF", "dark": "14171C"})
#: Size of a chart in inches.
CHART: Final = (6.0, 4.2)
#: Theme to the three colours of a chart: what it is about, what that is compared with, baselines. Blue or sky blue and
#: vermillion of Okabe and Ito (2008).
COLORS: Final[Mapping[Theme, Sequence[str]]] = MappingProxyType(
    {"light": ("#0072B2", "#D55E00", "#8c959f"), "dark": ("#56B4E9", "#E8793A", "#8c959f")}
)

_TEXT: Final = MappingProxyType({"light": "#1f2328", "dark": "#e6edf3"})
_DPI: Final = 160
_LETTERS_PER_INCH: Final = 8.6
#: From the axes down to the legend, past tick labels and axis label, in units of the font size.
_LEGEND_DROP: Final = 3.6
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
class Picture:
    """A picture.

    Attributes:
        name: its file's stem.
        title: what one sees.
        reading: how to read it; empty where the page says it elsewhere.
        draw: draws it on matplotlib axes.
        size: in inches.
        alt: what it shows, for those who do not see it, where the title is not enough.
    """

    name: str
    title: str
    reading: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = CHART
    alt: str = ""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A picture's PNG for a light page and for a dark one."""

    picture: Picture
    light: bytes
    dark: bytes


def render(
    layout: Sequence[Sequence[Picture | None]],
    theme: Theme,
    size: tuple[float, float],
    colors: Mapping[Theme, Sequence[str]] = COLORS,
) -> bytes:
    """Return a PNG of pictures with their titles.

    Args:
        layout: rows of pictures; one that stands in several places fills them all, and None leaves a place empty.
        size: inches.
        colors: C0, C1, ... of the pictures.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    page, text = f"#{PAGES[theme]}", _TEXT[theme]
    style: Any = {
        "font.size": 11,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.prop_cycle": cycler(color=colors[theme]),
        "figure.facecolor": page,
        "axes.facecolor": page,
    }
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), text)
    by_name = {picture.name: picture for row in layout for picture in row if picture is not None}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        places: Any = [["." if picture is None else picture.name for picture in row] for row in layout]
        for name, axes in figure.subplot_mosaic(places).items():
            by_name[name].draw(axes)
            width = size[0] / len(layout[0])
            axes.set_title(textwrap.fill(by_name[name].title, int(_LETTERS_PER_INCH * width)), loc="left", pad=10)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def rendered(picture: Picture, colors: Mapping[Theme, Sequence[str]] = COLORS) -> Rendered:
    """Return a picture drawn for both themes."""
    light, dark = (render([[picture]], theme, picture.size, colors) for theme in ("light", "dark"))
    return Rendered(picture, light, dark)


def finish_chart(axes: Any, percent: bool = False, num_columns: int = 3) -> None:
    """Give a chart its grid and legend; `percent` is for a vertical axis of shares."""
    from matplotlib.ticker import FuncFormatter, StrMethodFormatter

    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    if axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    place_legend(axes, num_columns)


def place_legend(axes: Any, num_columns: int = 3, **options: Any) -> None:
    """Place the legend, of columns at most, below the axis label; `options` are matplotlib's."""
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=_LEGEND_DROP,
        ncols=num_columns,
        columnspacing=1.2,
        fontsize=10,
        frameon=False,
        **options,
    )


def document(title: str, body: Sequence[str], style: str = "") -> str:
    """Return a page's HTML.

    Args:
        title: plain text.
        body: HTML of its parts, below the title.
        style: CSS beside that of every page.
    """
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>",
            *body,
            "</body>\n</html>\n",
        )
    )


def figure(shown: Rendered) -> str:
    """Return the HTML of a picture with how to read it."""
    light, dark = (f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (shown.light, shown.dark))
    picture = shown.picture
    caption = f"<figcaption>{escape(picture.reading)}</figcaption>" if picture.reading else ""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(picture.alt or picture.title)}"></picture>{caption}</figure>'
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the HTML of a table of plain text, which scrolls in its box where the page is too narrow for it.

    What follows a line break in a cell is set smaller below.
    """
    lines = [_row("th", heads), *(_row("td", row) for row in rows)]
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_cell(cell)}</{tag}>" for cell in cells) + "</tr>"


def _cell(text: str) -> str:
    first, *rest = map(escape, text.split("\n"))
    return first + "".join(f"<br><small>{line}</small>" for line in rest)
