"""`match` measures the gzip ratio of a corpus by known answers and proposes a band that a source takes."""

import gzip
import json
import random
import re
import string
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from nca_plugin.automata import NCAConfig, score_bounds
from nca_plugin.errors import NCAPluginError
from nca_plugin.inspection import text_pieces as sampling
from nca_plugin.inspection.match import Match, match, nearest_domains, propose_band, rule_scores
from nca_plugin.inspection.match_summary import match_summary
from nca_plugin.inspection.text_pieces import Pieces, sample_pieces
from nca_plugin.sources import parse
from nca_plugin.text.prepare import Corpus

SIZE = 1440


def corpus(path: Path, **options: str) -> Corpus:
    return Corpus(inputs=(str(path),), **options)


def write(path: Path, text: str) -> Corpus:
    # Bytes, so that newlines stay as they are.
    path.write_bytes(text.encode())
    return corpus(path)


def python_gzip(text: bytes) -> float:
    return len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)


def numbered_lines(count: int) -> str:
    return "".join(f"{number:09d}\n" for number in range(count))


def test_constant_text_is_at_the_floor(tmp_path: Path) -> None:
    found = match(write(tmp_path / "a.txt", "a" * 100 * SIZE))
    assert np.unique(found.ratios) == python_gzip(b"a" * SIZE)
    assert found.ratio < 0.03
    assert found.interval == pytest.approx((found.ratio, found.ratio))
    assert found.band == (0.02, 0.12)


def test_random_characters_take_six_of_eight_bits(tmp_path: Path) -> None:
    symbols = string.ascii_letters + string.digits + "+/"
    text = "".join(random.Random(0).choices(symbols, k=100 * SIZE))
    found = match(write(tmp_path / "a.txt", text))
    assert 0.75 < found.ratio < 0.80
    # Above what automata reach: the highest band, and a word about it.
    ceiling = score_bounds(10, 12, 2)[1]
    assert found.band == (round(ceiling - 0.1, 2), round(ceiling, 2))
    assert "the ratio is above what automata of 10 colours reach" in match_summary(found)


def test_the_ratio_is_that_of_python_gzip_over_every_piece(tmp_path: Path) -> None:
    words = random.Random(1).choices(["cell", "state", "rule", "näive", "Übung"], k=20_000)
    text = " ".join(words)
    found = match(write(tmp_path / "a.txt", text))
    raw = text.encode() + b"\n"
    expected = [python_gzip(raw[i : i + SIZE]) for i in range(0, len(raw) - SIZE + 1, SIZE)]
    np.testing.assert_array_equal(found.ratios, expected)
    assert found.ratio == pytest.approx(np.mean(expected))
    parts = [np.mean(part) for part in np.array_split(expected, 20)]
    half = 2.093 * np.std(parts, ddof=1) / 20**0.5
    assert found.interval == pytest.approx((np.mean(expected) - half, np.mean(expected) + half))


def test_documents_follow_each_other_with_a_newline(tmp_path: Path) -> None:
    rows = [{"body": "x" * 500}, {"body": ""}, {"body": "y" * 1000}, {"body": "z" * 2000}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    pieces = sample_pieces(corpus(path, text_key="body"), 1000)
    assert pieces.texts == (b"x" * 500 + b"\n" + b"y" * 499, b"y" * 501 + b"\n" + b"z" * 498, b"z" * 1000)


def test_pieces_are_spread_over_the_corpus_whether_it_is_read_whole_or_at_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = numbered_lines(400_000)
    for number in range(4):
        part = text[number * 1_000_000 : (number + 1) * 1_000_000]
        (tmp_path / f"{number}.txt").write_text(part)
    rows = [json.dumps({"text": text[i : i + 10_000]}) for i in range(0, len(text), 10_000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))

    whole = sample_pieces(corpus(tmp_path, pattern="*.txt"), SIZE)
    monkeypatch.setattr(sampling, "_READ_WHOLE", 2_000_000)
    for pattern in ("*.txt", "*.jsonl"):
        pieces = sample_pieces(corpus(tmp_path, pattern=pattern), SIZE)
        assert pieces == sample_pieces(corpus(tmp_path, pattern=pattern), SIZE)
        for found, count in ((pieces, 2_000_000 // SIZE), (whole, 2_000)):
            assert len(found.texts) in (count, count - 1)
            assert {len(piece) for piece in found.texts} == {SIZE}
            assert not found.is_beginning
            # The first line that is whole: its number is the place of the piece.
            numbers = np.array([int(re.search(rb"\n(\d{9})\n", piece)[1]) for piece in found.texts])
            in_part = numbers / 400_000 * count - np.arange(len(numbers))
            # Read whole, the parts are of pieces, of which there are 1.4 in each.
            assert -1.5 < in_part.min() < in_part.max() < 1.1


def test_the_sample_does_not_keep_time_with_a_corpus_that_repeats_itself(tmp_path: Path) -> None:
    found = sample_pieces(write(tmp_path / "a.txt", numbered_lines(14_400) * 100), SIZE)
    assert len(found.texts) == 2_000
    assert len(set(found.texts)) == 100
    found = sample_pieces(write(tmp_path / "a.txt", numbered_lines(144_000) * 10), SIZE)
    assert len(set(found.texts)) > 800


def test_a_place_within_a_character_or_two_newline_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "é€😀\r\n" * 4_000
    monkeypatch.setattr(sampling, "_READ_WHOLE", 10_000)
    pieces = sample_pieces(write(tmp_path / "a.txt", text), 100)
    assert len(pieces.texts) > 90
    unit = "é€😀\n".encode()
    for piece in pieces.texts:
        assert piece in unit * 12


def test_a_large_file_that_is_not_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_READ_WHOLE", 10_000)
    (tmp_path / "a.txt").write_bytes(b"a" * 30_000 + b"\xff" * 30_000)
    with pytest.raises(NCAPluginError, match=r"a\.txt is not UTF-8 text \(invalid start byte at byte 3\d{4}\)"):
        sample_pieces(corpus(tmp_path / "a.txt"), 100)
    (tmp_path / "rows.jsonl").write_text('{"body": "aaa"}\n' * 10_000)
    with pytest.raises(NCAPluginError, match=r"at byte \d+ has no text in field 'text': name it with --text-key"):
        sample_pieces(corpus(tmp_path / "rows.jsonl"), 100)


def test_a_data_set_is_read_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_READ_WHOLE", 20_000)
    rows = ({"text": "word " * 1_000} for _ in range(10**9))
    monkeypatch.setattr("datasets.load_dataset", lambda name, split, streaming: rows)
    monkeypatch.setattr("nca_plugin.text.hub.is_reachable", lambda name, kind, what: True)
    pieces = sample_pieces(Corpus(inputs=("hub-data-set",)), 100)
    assert pieces.is_beginning
    assert pieces.covered == 20_000
    assert len(pieces.texts) == 200


def test_the_standard_library_is_code() -> None:
    folder = corpus(Path(sysconfig.get_path("stdlib")) / "asyncio", pattern="*.py")
    found = match(folder)
    again = match(folder)
    assert (found.uri, found.scores.tolist()) == (again.uri, again.scores.tolist())
    np.testing.assert_array_equal(found.ratios, again.ratios)
    assert 0.3 < found.ratio < 0.45
    assert nearest_domains(found.ratio)[1] == ("code",)
    low, high = found.band
    assert low < found.ratio < high
    assert high - low == pytest.approx(0.1)
    assert f"\n  {found.uri}\n" in match_summary(found)
    source = parse(found.uri)
    assert source.config.band == found.band
    assert source.sample(0, 1024).tokens.shape == (1025,)


@pytest.mark.parametrize(
    ("ratio", "band", "presets"),
    [
        (0.1, (0.3, 0.4), ("code",)),
        (0.35, (0.3, 0.4), ("code",)),
        (0.44, (0.3, 0.4), ("code",)),
        (0.46, (0.5, 1.0), ("web", "math")),
        (0.7, (0.5, 1.0), ("web", "math")),
    ],
)
def test_nearest_of_the_bands_of_the_paper(ratio: float, band: tuple[float, float], presets: tuple[str, ...]) -> None:
    assert nearest_domains(ratio)[:2] == (band, presets)


@pytest.mark.parametrize("options", [{}, {"num_colors": 2}, {"num_colors": 3}, {"num_colors": 2, "patch_size": 1}])
def test_bands_stay_within_the_alphabet(options: dict[str, int]) -> None:
    config = NCAConfig(band=None, **options)
    floor, ceiling = score_bounds(config.num_colors, config.grid_size, config.patch_size)
    for ratio in np.linspace(0, 1, 101):
        low, high = propose_band(float(ratio), config)
        assert round(floor, 2) <= low < high <= round(ceiling, 2)
        # The source accepts it.
        assert NCAConfig(**{**options, "band": (low, high)}).band == (low, high)


def test_rules_of_the_bands_of_the_paper() -> None:
    scores = rule_scores(NCAConfig())
    # Of 5,000 rules of the release, 46.62 % and 9.24 % (standard errors 0.71 and 0.41).
    for (low, high), share in (((0.5, 1.0), 0.4662), ((0.3, 0.4), 0.0924)):
        error = np.hypot(1, (5_000 / len(scores)) ** 0.5) * (share * (1 - share) / 5_000) ** 0.5
        assert abs(np.mean((low < scores) & (scores < high)) - share) < 4 * error


def test_few_rules_are_a_warning_and_options_are_kept(tmp_path: Path) -> None:
    text = "".join(random.Random(0).choices(string.ascii_letters, k=100 * SIZE))
    found = match(
        write(tmp_path / "a.txt", text), "nca://toy?seed=7&temperature=0&vocab_offset=100&curriculum=0@0.1:0.2"
    )
    assert found.uri == f"nca://toy?seed=7&temperature=0&vocab_offset=100&band={found.band[0]:g}:{found.band[1]:g}"
    assert parse(found.uri).vocab_size == 118
    assert "automata of 2 colours" in match_summary(found)
    few = Match(found.pieces, found.ratios, found.config, np.full(1000, 0.01), found.band, found.uri)
    assert (
        "Warning: few rules are inside the band, which means a search that may find none: widen it."
        in match_summary(few)
    )


def summary_of(ratios: NDArray[np.float64], num_texts: int = 2_000) -> tuple[Match, str]:
    """Return a match, and its summary, of pieces with these ratios."""
    pieces = Pieces((b"",) * num_texts, SIZE, covered=SIZE * num_texts, is_beginning=False)
    band = propose_band(float(ratios.mean()), NCAConfig())
    found = Match(pieces, ratios, NCAConfig(band=None), np.linspace(0, 0.7, 1_000), band, "nca://web")
    return found, match_summary(found)


def test_the_mean_and_the_band_have_an_interval() -> None:
    ratios = np.random.default_rng(0).normal(0.35, 0.1, 200)
    found, summary = summary_of(ratios)
    low, high = found.interval
    # Twenty parts of ten pieces each: about two standard errors to either side.
    assert (high - low) / 2 == pytest.approx(2.1 * 0.1 / 200**0.5, rel=0.4)
    assert f"  mean {ratios.mean():.3f}, 95 % interval {low:.3f} to {high:.3f}; " in summary
    ends = found.bands_of_interval
    assert ends == (propose_band(low, found.config), propose_band(high, found.config))
    assert f"  from {ends[0][0]:g}:{ends[0][1]:g} to {ends[1][0]:g}:{ends[1][1]:g} at the ends" in summary
    inside = np.mean((found.band[0] < ratios) & (ratios < found.band[1]))
    assert f"; {inside * 100:.0f} % of the pieces lie in it" in summary
    assert "Warning" not in summary


def test_too_few_pieces_are_a_warning() -> None:
    ratios = np.random.default_rng(0).normal(0.35, 0.01, 199)
    assert "Warning: 199 pieces are few to tell" in summary_of(ratios, 199)[1]
    assert "Warning" not in summary_of(np.append(ratios, 0.35), 200)[1]


def test_an_interval_as_wide_as_a_band_is_a_warning() -> None:
    """Half of the corpus is prose and half is code."""
    ratios = np.repeat([0.3, 0.6], 1_000)
    found, summary = summary_of(ratios)
    assert found.interval[1] - found.interval[0] > 0.1
    assert "wide, no less than a band, so that this text does not choose a band" in summary
    # Well mixed, the same pieces have a mean that can be trusted.
    mixed = summary_of(np.tile([0.3, 0.6], 1_000))[1]
    assert "no less than a band" not in mixed and "; 0 % of the pieces lie in it" in mixed


def test_an_interval_between_two_bands_of_the_paper_is_a_warning() -> None:
    ratios = np.random.default_rng(0).normal(0.45, 0.1, 400)
    assert "Warning: which of the paper's bands is nearest differs" in summary_of(ratios - ratios.mean() + 0.45)[1]
    assert "Warning" not in summary_of(ratios - ratios.mean() + 0.48)[1]


@pytest.mark.parametrize(
    ("content", "source", "reason"),
    [
        ("", "nca://web", "too small to measure: 0 pieces of 1,440 bytes"),
        ("a" * 39 * SIZE, "nca://web", "too small to measure: 39 pieces of 1,440 bytes of text, at least 40"),
        (None, "nca://web", "does not exist"),
        ("a", "dyck://?k=8", "a band belongs to one NCA preset"),
        ("a", "nca://web:0.5,code:0.5", "a band belongs to one NCA preset"),
        ("a", "nca://wbe", "did you mean 'web'"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, content: str | None, source: str, reason: str) -> None:
    path = tmp_path / "a.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(NCAPluginError, match=reason) as error:
        match(corpus(path), source)
    assert "\n" not in str(error.value)
