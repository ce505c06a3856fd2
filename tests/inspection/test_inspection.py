"""`inspect` writes a page that stands alone; `show` prints a sample's own colours."""

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nca_plugin.automata import NCAConfig, decode, generate
from nca_plugin.display.drawing import PAPER, TEXT
from nca_plugin.inspection.inspect import default_folder, inspect
from nca_plugin.inspection.palette import palette, token_colors
from nca_plugin.inspection.show import blocks_text, has_colors, show
from nca_plugin.sources import parse
from nca_plugin.sources.mixture import MixtureSource
from nca_plugin.sources.uri import split_uri

PNG = b"\x89PNG\r\n\x1a\n"
GRID_PICTURES = {"changes", "frames_information", "mask", "overview", "ranks", "scores", "seen", "sheet"}
TOKEN_PICTURES = {"mask", "overview", "ranks", "sheet", "tokens_information"}


class _Links(HTMLParser):
    """Collects what a page refers to, and its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "xlink:href")]
        assert tag not in ("script", "link", "iframe", "object")


@pytest.mark.parametrize(
    ("uri", "count", "seq_length", "names"),
    [
        ("nca://web", 3, 1024, GRID_PICTURES | {"tokens_information"}),
        ("nca://web?num_colors=15&band=none", 1, 75, GRID_PICTURES | {"tokens_information"}),
        ("shuffled://toy", 3, 100, TOKEN_PICTURES),
        ("dyck://?k=8", 2, 40, TOKEN_PICTURES),
        ("dyck://?k=1", 1, 1, TOKEN_PICTURES),
    ],
)
def test_inspect_writes_a_page_that_stands_alone(
    tmp_path: Path, uri: str, count: int, seq_length: int, names: set[str]
) -> None:
    paths = inspect(parse(uri), tmp_path / "page", count=count, seq_length=seq_length)
    assert set(paths) == set((tmp_path / "page").iterdir())
    assert {path.stem for path in paths[1:]} == names
    assert all(path.read_bytes().startswith(PNG) for path in paths[1:])
    html = paths[0].read_text()
    links = _Links()
    links.feed(html)
    assert html.count("<svg") == len(names) - 1
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links.found)
    assert "url(" not in html.replace("url(#", "") and "@import" not in html
    assert "nan" not in re.sub('base64,[^"]*', "", html)


def test_a_chart_has_the_colours_of_its_page(tmp_path: Path) -> None:
    html = inspect(parse("dyck://?k=2"), tmp_path, count=2, seq_length=20)[0].read_text()
    svg = html[html.index("<svg") :]
    assert "currentColor" in svg and TEXT not in svg and PAPER not in svg


def test_the_page_names_the_source_and_the_reference(tmp_path: Path) -> None:
    source = parse("nca://code")
    html = inspect(source, tmp_path, count=2, seq_length=1024)[0].read_text()
    assert source.uri.replace("&", "&amp;") in html
    assert "released code" in html and "53.70" in html
    other = inspect(parse("nca://toy"), tmp_path, count=2, seq_length=1024)[0].read_text()
    assert "released code" not in other.lower()


def test_an_error_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inspect(parse("dyck://?k=2"), tmp_path, count=2, seq_length=20)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    write, written = Path.write_bytes, []

    def fails_at_the_third(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", fails_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        inspect(parse("dyck://?k=3"), tmp_path, count=2, seq_length=20)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_default_folders_are_plain_names() -> None:
    assert default_folder("nca://web") == Path("runs/inspect/nca-web")
    assert default_folder("dyck://?k=8&p=0.5") == Path("runs/inspect/dyck-k=8-p=0.5")


@pytest.mark.parametrize("num_colors", [1, 2, 8, 10, 11, 15, 64])
def test_palette_colors_are_distinct(num_colors: int) -> None:
    colors = palette(num_colors)
    assert colors.shape == (num_colors, 3)
    assert len(np.unique(colors, axis=0)) == num_colors


@pytest.mark.parametrize("num_colors", [10, 64])
@pytest.mark.parametrize("page", ["ffffff", "14171c"])
def test_no_palette_color_is_lost_on_a_page(page: str, num_colors: int) -> None:
    distance = np.linalg.norm(palette(num_colors) - np.array(list(bytes.fromhex(page))).astype(float), axis=1)
    assert distance.min() > 40


def test_brackets_have_the_color_of_their_kind() -> None:
    colors = token_colors(parse("dyck://?k=3"), [0, 3, 1, 2])
    np.testing.assert_array_equal(colors[[0, 2, 3]], palette(3))
    # A closing one is paler.
    assert np.all(colors[1] >= colors[0]) and colors[1].sum() > colors[0].sum()


def _terminal(**options: object) -> Console:
    return Console(file=StringIO(), force_terminal=True, color_system="truecolor", width=80, height=24, **options)  # type: ignore[arg-type]


def _output(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_half_blocks_have_the_colors_of_the_cells() -> None:
    frame = np.array([[0, 1], [2, 3], [1, 0]], np.uint8)
    console = _terminal()
    console.print(blocks_text(frame, 4, 1))
    red_green_blue = [";".join(map(str, color)) for color in palette(4).tolist()]
    upper, lower, *_ = _output(console).split("\n")
    assert upper == "".join(
        f"\x1b[38;2;{red_green_blue[a]};48;2;{red_green_blue[b]}m▀\x1b[0m" for a, b in ((0, 2), (1, 3))
    )
    # An odd last row stands on the terminal's own background.
    assert lower == "".join(f"\x1b[38;2;{red_green_blue[a]}m▀\x1b[0m" for a in (1, 0))


def test_show_plays_every_frame() -> None:
    console = _terminal()
    show(parse("nca://web"), 5, 379, 1000, console)
    for number in range(1, 11):
        assert f"frame {number} of 10" in _output(console)
    assert "too small" not in _output(console)


@pytest.mark.parametrize(("width", "height"), [(11, 24), (80, 10)])
def test_show_says_when_the_grid_does_not_fit(width: int, height: int) -> None:
    console = Console(
        file=StringIO(), force_terminal=True, color_system="truecolor", width=width, height=height, _environ={}
    )
    show(parse("nca://web"), 5, 80, 1000, console)
    assert "too small" in _output(console).replace("\n", " ")


def test_without_a_terminal_frames_stand_side_by_side_without_control_codes() -> None:
    console = Console(file=StringIO(), width=80)
    show(parse("nca://web"), 5, 379, 1000, console)
    output = _output(console)
    assert "\x1b" not in output and "\r" not in output
    frames = decode(generate(NCAConfig.preset("web"), 5, 379)[0])
    rows = [" ".join(map(str, frame[0])) for frame in frames[:3]]
    assert output.split("\n")[2] == "   ".join(rows)


def test_no_color_is_respected() -> None:
    console = _terminal(no_color=True)
    show(parse("nca://toy"), 0, 379, 1000, console)
    assert "▀" not in _output(console) and not re.search(r"\x1b\[[0-9;]*[34]8;", _output(console))


def test_a_terminal_of_few_colors_shows_no_two_states_alike() -> None:
    sixteen = Console(file=StringIO(), force_terminal=True, color_system="standard", width=80, height=24)
    assert has_colors(sixteen, 2) and not has_colors(sixteen, 10)
    assert has_colors(_terminal(), 64) and not has_colors(_terminal(no_color=True), 2)
    show(parse("nca://web"), 0, 80, 1000, sixteen)
    assert "▀" not in _output(sixteen)


def test_show_says_which_preset_of_a_mixture_a_sample_is_of() -> None:
    source = MixtureSource.from_uri(split_uri("nca://web:0.5,code:0.5"))
    for index in range(6):
        console = Console(file=StringIO(), width=100)
        show(source, index, 80, 1000, console)
        band = {"web": "0.5 to 1", "code": "0.3 to 0.4"}
        preset = source.generator_of(index).preset
        assert re.search(rf"sample {index} \(of {preset}\): .* \(band {band[preset]}\)", _output(console))


@pytest.mark.parametrize("width", [1, 5, 12, 300])
def test_any_width_is_enough(width: int) -> None:
    for is_terminal in (True, False):
        console = Console(file=StringIO(), width=width, height=4, force_terminal=is_terminal)
        show(parse("nca://toy"), 0, 100, 1000, console)
        show(parse("dyck://?k=8"), 0, 100, 1000, console)
        assert _output(console)


@pytest.mark.parametrize(
    ("uri", "pattern"), [("dyck://?k=3", r"[()\[\]{}]+"), ("dyck://?k=8", r"([0-7][()\[\]{}<>] ?)+")]
)
def test_brackets_are_printed_as_brackets(uri: str, pattern: str) -> None:
    console = Console(file=StringIO(), width=200)
    show(parse(uri), 0, 30, 1000, console)
    assert re.fullmatch(pattern, _output(console).split("\n")[1])


def test_show_draws_the_rows_of_an_elementary_automaton() -> None:
    console = Console(file=StringIO(), width=80)
    show(parse("eca://?rule=90&width=12&patch=4"), 3, 39, 6, console)
    title, rule, *rows = _output(console).splitlines()
    assert title.startswith("eca, sample 3") and rule.startswith("rule 90,")
    now = np.array([[cell == "#" for cell in row] for row in rows]).astype(int)
    assert now.shape == (10, 12)
    np.testing.assert_array_equal(now[1:], np.roll(now, 1, axis=1)[:-1] ^ np.roll(now, -1, axis=1)[:-1])
