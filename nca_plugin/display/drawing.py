"""Draws charts, each as a PNG file and as an SVG for a page that may be light or dark."""

import io
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

#: Size of a chart in inches.
CHART: Final = (6.0, 4.2)
#: The colours C0, C1, ... of every chart: the vibrant scheme of Paul Tol ("Colour schemes", SRON/EPS/TN/09-002, 2021),
#: made for colour-blind readers. C0 is for the subject of a chart, C1 for what it is compared with.
COLORS: Final = ("#0077bb", "#ee7733", "#009988", "#ee3377", "#cc3311", "#33bbee")
#: The colour of baselines.
GREY: Final = "#8c959f"
#: Colours that on a page become those of its text and its background.
TEXT: Final = "#1f2328"
PAPER: Final = "#ffffff"

_ON_A_PAGE: Final = {TEXT: "currentColor", PAPER: "var(--page)"}
_DPI: Final = 160
_LETTERS_PER_INCH: Final = 8.6
#: Distance from the axes down to the legend, past tick labels and axis label, in units of the font size.
_LEGEND_DROP: Final = 3.6


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture.

    Attributes:
        name: the name of the file without its suffix.
        title: what the picture shows.
        reading: how to read the picture; empty if the page says it elsewhere.
        draw: draws the picture on matplotlib axes.
        size: width and height in inches.
    """

    name: str
    title: str
    reading: str
    draw: Callable[[Any], None]
    size: tuple[float, float] = CHART


@dataclass(frozen=True, slots=True)
class Drawn:
    """A picture after drawing.

    Attributes:
        svg: an element for a page, with the page's colours for text and background.
        png: the contents of a file, on white.
    """

    picture: Picture
    svg: str
    png: bytes


def drawn(picture: Picture) -> Drawn:
    """Draw a picture with its title."""
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    style: Any = {
        "font.size": 11,
        "axes.titlesize": 11.5,
        "axes.titleweight": "bold",
        "axes.prop_cycle": cycler(color=COLORS),
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        # With this, ids in the SVG are reproducible, and differ from those of other pictures on a page.
        "svg.hashsalt": picture.name,
    }
    style |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), TEXT)
    with matplotlib.rc_context(style):
        figure = Figure(figsize=picture.size, layout="constrained")
        axes = figure.subplots()
        picture.draw(axes)
        title = textwrap.fill(picture.title, int(_LETTERS_PER_INCH * picture.size[0]))
        axes.set_title(title, loc="left", pad=10)
        png, svg = io.BytesIO(), io.StringIO()
        figure.savefig(png, format="png", dpi=_DPI)
        # The SVG keeps the layout of the PNG.
        figure.set_layout_engine("none")
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(svg, format="svg", dpi=_DPI, metadata=nothing)
    element = svg.getvalue()[svg.getvalue().index("<svg") :]
    for color, on_a_page in _ON_A_PAGE.items():
        element = element.replace(color, on_a_page)
    return Drawn(picture, element, png.getvalue())


def finish_chart(axes: Any, percent: bool = False, num_columns: int = 3, is_in_tokens: bool = False) -> None:
    """Give a chart its grid and legend.

    Args:
        percent: whether the vertical axis shows shares.
        num_columns: largest number of columns of the legend.
        is_in_tokens: whether the horizontal axis counts many tokens.
    """
    from matplotlib.ticker import EngFormatter, FuncFormatter, StrMethodFormatter

    if percent:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    if is_in_tokens:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if axes.get_xscale() == "log":
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    place_legend(axes, num_columns)


def place_legend(axes: Any, num_columns: int = 3, **options: Any) -> None:
    """Place the legend, with at most `num_columns`, below the axis label. `options` are those of matplotlib."""
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


def hide_frame(axes: Any) -> None:
    """Hide the frame of an image and the tick marks."""
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
