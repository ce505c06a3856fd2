"""Numbers as people type and read them, and progress where nobody watches."""

import pytest

from nca_plugin import terminal
from nca_plugin.errors import NCAPluginError
from nca_plugin.terminal import parse_count, parse_shard, short, stages


@pytest.mark.parametrize(
    ("text", "count"),
    [("164M", 164_000_000), ("2.5B", 2_500_000_000), ("2.5g", 2_500_000_000), ("1T", 10**12), ("7", 7), ("0.001K", 1)],
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "1.M", "-1", "1e9", "2.5", "0.0001K", "1 M", "1KB", "1,000"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(NCAPluginError, match="is no number of tokens"):
        parse_count(text)


def test_shards() -> None:
    assert parse_shard("3/16") == (3, 16)
    for text in ("3", "3/", "/16", "3-16", "-3/16"):
        with pytest.raises(NCAPluginError, match="must be i/N"):
            parse_shard(text)


def test_short_numbers() -> None:
    numbers = (0, 500, 9_765, 10_000, 99_960, 999_499, 999_500, 164e6, 1.02e9, 1e12, 3e15)
    shown = ["0", "500", "9,765", "10.0K", "100K", "999K", "1.00M", "164M", "1.02G", "1.00T", "3000T"]
    assert [short(number) for number in numbers] == shown


def test_a_log_gets_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0.0)
    with stages("tokens") as start_stage:
        start_stage("writing", 2_000_000)(1_000_000)
    line = capsys.readouterr().err
    assert line.startswith("writing: 1.00M of 2.00M tokens, ") and line.endswith("/s, 0:00:00 left\n")
