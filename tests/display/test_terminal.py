"""Numbers as people type and read them, and progress where nobody watches."""

import io
import re
import time
from typing import get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nca_plugin.commands.app import app
from nca_plugin.display import progress
from nca_plugin.display.terminal import StudyProgress, at_work, parse_count, parse_shard, short, stages
from nca_plugin.errors import NCAPluginError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        *(("164M", 164_000_000), ("2.5B", 2_500_000_000), ("2.5g", 2_500_000_000), ("1T", 10**12), ("7", 7)),
        *(("0.001K", 1), ("1e6", 10**6), ("1E6", 10**6), ("1.5e+3", 1500), ("1e30", 10**30), ("1000.0", 1000)),
        *(("1_000", 1000), ("1,000", 1000), ("12,345,678", 12_345_678), (" 5 ", 5), ("10.0K", 10_000), ("0", 0)),
    ],
)
def test_counts(text: str, count: int) -> None:
    assert parse_count(text) == count


@given(st.integers(0, 10**15))
def test_a_number_can_be_typed_as_it_is_printed(number: int) -> None:
    for text in (str(number), f"{number:,}", f"{number:_}", str(float(number))):
        assert parse_count(text) == number
    # In short it is rounded.
    assert parse_count(short(number)) == pytest.approx(number, rel=0.006)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "M",
            "1.M",
            "2.5",
            "0.0001K",
            "1 M",
            "1KB",
            "1,00",
            "1,0000",
            ",100",
            "1_00",
            "1__000",
            "1,000_000",
        ),
        *("1e", "e6", "1e-3", "1e999999999", "9" * 5000, "1.5", "nan", "inf", "0x10", "\u0663", "1,5", "+1", "None"),
    ],
)
def test_what_is_no_count_is_refused_with_its_value_and_the_accepted_forms(text: str) -> None:
    with pytest.raises(NCAPluginError, match=r"^--tokens '.*': must be a whole number, such as 164000000, ") as error:
        parse_count(text, "--tokens")
    assert text[:40] in str(error.value) and len(str(error.value)) < 200


def test_every_whole_number_of_a_command_is_read_by_the_same_parser() -> None:
    options = [
        (name, hint.__metadata__[0].parser)
        for command in app.registered_commands
        for name, hint in get_type_hints(command.callback, include_extras=True).items()
        if getattr(hint, "__metadata__", None) and hint.__args__[0] in (int, int | None)
    ]
    assert len(options) > 20
    for name, parser in options:
        assert parser is not None, name
        assert parser("2e3") == parser("2,000") == parser("2K") == parser(2000) == 2000
        with pytest.raises(NCAPluginError, match=f"^--{name.replace('_', '-')} 'x': must be a whole number"):
            parser("x")


def test_shards() -> None:
    assert parse_shard("3/16") == (3, 16)
    for text in ("3", "3/", "/16", "3-16", "-3/16"):
        with pytest.raises(NCAPluginError, match="must be i/N"):
            parse_shard(text)


def test_short_numbers() -> None:
    numbers = (0, 500, 9_765, 10_000, 99_960, 999_499, 999_500, 164e6, 1.02e9, 1e12, 3e15)
    shown = ["0", "500", "9,765", "10.0K", "100K", "999K", "1.00M", "164M", "1.02G", "1.00T", "3000T"]
    assert [short(number) for number in numbers] == shown


def test_a_log_gets_lines_also_while_a_step_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    with stages("tokens") as start_stage:
        time.sleep(0.1)
        advance = start_stage("writing", 2_000_000)
        time.sleep(0.1)
        advance(1_000_000)
        time.sleep(0.1)
        start_stage("reading", 0)(5)
        time.sleep(0.1)
    with at_work("checking") as say:
        time.sleep(0.1)
        say("checking again")
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "starting: at work for 0:00:00" and "writing: at work for 0:00:00" in lines
    assert any(re.fullmatch(r"writing: 1.00M of 2.00M tokens, \S+/s, 0:00:00 left", line) for line in lines)
    assert any(re.fullmatch(r"reading: 5 tokens, \S+/s", line) for line in lines)
    assert "checking: at work for 0:00:00" in lines and lines[-1] == "checking again: at work for 0:00:00"


def test_a_studys_progress_tells_what_is_left_of_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs of 100 updates, of which an earlier start had done 50: these tell nothing of the rate."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.01)
    shown = io.StringIO()
    long = "first, whose name is as long as the console"
    with StudyProgress(Console(file=shown, width=40)) as told:
        time.sleep(0.1)
        told.start("text", 10)
        time.sleep(0.1)
        told.finish("text", "10 bytes")
        told.expect(200)
        told.start(long, 100)
        told.update(long, 50)
        time.sleep(0.1)
        told.update(long, 100)
        told.finish(long, "done")
        told.expect(100)
        told.start("second", 100)
        time.sleep(0.1)
        told.update("second", 100)
    assert shown.getvalue().splitlines()[:2] == ["text: started", "text: 10 bytes"]
    assert f"{long}: done" in shown.getvalue().splitlines()
    # Also before there is anything to count, and before a rate tells anything.
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "starting: at work for 0:00:00" and "text: at work for 0:00:00" in lines
    assert "all: 50 of 200 updates: at work for 0:00:00" in lines
    assert any(re.fullmatch(r"all: 100 of 200 updates, [0-9.]+/s, 0:00:00 left", line) for line in lines)


@pytest.mark.parametrize("text", ["-1", "-5M", "-1e6", "-1,000"])
def test_a_number_below_0_is_refused_as_that(text: str) -> None:
    with pytest.raises(NCAPluginError, match=f"^--tokens {text}: must not be below 0$"):
        parse_count(text, "--tokens")
