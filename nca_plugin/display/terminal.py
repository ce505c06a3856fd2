"""What the commands show while they work, and how they parse numbers that users type."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final

import typer
import typer.core
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from nca_plugin.display.progress import StartStage, lines_now_and_then
from nca_plugin.errors import NCAPluginError, empty_value
from nca_plugin.typed_numbers import whole_number

#: The rate is shown only after this share of the work is done.
_SHARE_THAT_TELLS: Final = 0.01
_MAX_SHOWN: Final = 40
#: More processes than any machine has cores.
MAX_PROCESSES: Final = 4096
#: A sequence is held in memory as a whole.
MAX_SEQ_LENGTH: Final = 1 << 24


class Command(typer.core.TyperCommand):
    """A command that refuses empty values, which a shell passes for a variable that is not set.

    As a path, an empty value would mean the current folder. Options whose default is empty accept it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # typer's own parsing would make an empty path equal to ".".
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.params:
            value = given.get(parameter.name or "")
            if parameter.default != "" and "" in (value if isinstance(value, list | tuple) else (value,)):
                # The help shows the names of arguments in capitals.
                name = parameter.opts[0] if parameter.param_type_name == "option" else str(parameter.name).upper()
                raise NCAPluginError(empty_value(name))
        return super().parse_args(ctx, args)


def parse_count(text: str, name: str = "") -> int:
    """Return the whole number that a text stands for, in any of the ways in which this package prints numbers.

    >>> [parse_count(text) for text in ("164M", "2.5B", "1e6", "1_000", "1,000", "164000000")]
    [164000000, 2500000000, 1000000, 1000, 1000, 164000000]

    Args:
        name: name of the option for the message, such as `--tokens`.

    Raises:
        NCAPluginError: the text is anything else, such as a fraction or a negative number.
    """
    count = whole_number(text.strip())
    if count is None:
        shown = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
        if whole_number(text.strip().removeprefix("-")) is not None and "-" in text:
            raise NCAPluginError(f"{name}{name and ' '}{shown}: must not be below 0")
        raise NCAPluginError(
            f"{name}{name and ' '}'{shown}': must be a whole number, such as 164000000, 164,000,000, 164_000_000, "
            "1.64e8, 164M or 2.5B"
        )
    return count


def number_option(option: str, help: str, *, least: int = 1, most: int = (1 << 63) - 1, word: str | None = None) -> Any:
    """Return a typer option for a whole number, which accepts what `parse_count` accepts.

    Args:
        option: name of the option, such as `--tokens`.
        least: smallest valid number.
        most: largest valid number.
        word: a word that is also accepted, and passed on unchanged.
    """

    def read(text: str | int) -> int | str:
        # typer calls this for the default too.
        if text == word:
            return word
        count = parse_count(str(text), option)
        if not least <= count <= most:
            limits = f"at least {least:,}" if count < least else f"at most {most:,}"
            raise NCAPluginError(f"{option} {str(text)[:_MAX_SHOWN]}: must be {limits}")
        return count

    return typer.Option(option, parser=read, metavar="NUMBER", help=help)


def short(number: float) -> str:
    """Return a number with at most four digits: 500, 9,765, 164M, 1.02G."""
    if number < 10_000:
        return f"{number:,.0f}"
    suffixes = iter("KMGT")
    suffix = ""
    while number >= 999.5 and (larger := next(suffixes, None)):
        number, suffix = number / 1000, larger
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}{suffix}"


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, N) for `i/N`. Raises `NCAPluginError` for any other text."""
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not match:
        raise NCAPluginError(f"shard '{text}': must be i/N, such as 1/8 for the first of eight parts")
    return int(match[1]), int(match[2])


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    # sched_getaffinity does not exist on every system.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def stages(unit: str = "") -> Iterator[StartStage]:
    """Show a bar with rate and time left for each stage of the work; without a terminal, print a line every 30 s.

    A stage of size 0 has an unknown size.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        newest = _Stage("starting", unit, 0)

        def start_counting(name: str, size: int) -> Callable[[int], None]:
            nonlocal newest
            newest = _Stage(name, unit, size)
            return newest.advance

        with lines_now_and_then(lambda: newest.line()):
            yield start_counting
        return
    columns = (TextColumn("{task.description}"), BarColumn(), _StepsColumn(unit), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:

        def start_stage(name: str, size: int) -> Callable[[int], None]:
            return partial(progress.advance, progress.add_task(name, total=size or None))

        yield start_stage


@contextmanager
def at_work(what: str) -> Iterator[Callable[[str], None]]:
    """Show that the block is working, if its steps cannot be counted; without a terminal, print a line every 30 s.

    Args:
        what: the work, such as "checking the stages". The yielded function changes it.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(escape(what)) as status:
            yield lambda now: status.update(escape(now))
        return
    began = time.monotonic()

    def say(now: str) -> None:
        nonlocal what
        what = now

    with lines_now_and_then(lambda: f"{what}: at work for {_passed(began)}"):
        yield say


class _Stage:
    """A stage of the work, as the lines of a log show it."""

    def __init__(self, name: str, unit: str, size: int) -> None:
        self._name, self._unit, self._size = name, f" {unit}" if unit else "", size
        self._done, self._began = 0, time.monotonic()

    def advance(self, steps: int) -> None:
        self._done += steps

    def line(self) -> str:
        if not self._done:
            return f"{self._name}: at work for {_passed(self._began)}"
        rate = self._done / (time.monotonic() - self._began + 1e-9)
        of_size = f" of {short(self._size)}" if self._size else ""
        left = f", {timedelta(seconds=round((self._size - self._done) / rate))} left" if self._size else ""
        return f"{self._name}: {short(self._done)}{of_size}{self._unit}, {short(rate)}/s{left}"


def _passed(began: float) -> timedelta:
    return timedelta(seconds=round(time.monotonic() - began))


class _StepsColumn(ProgressColumn):
    """Shows the steps done, the steps in total and the steps per second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = f" {unit}" if unit else ""

    def render(self, task: Task) -> Text:
        rate = "" if task.speed is None else f"  {short(task.speed)}/s"
        of_all = f"/{short(task.total)}" if task.total else ""
        return Text(f"{short(task.completed)}{of_all}{self._unit}{rate}")


class StudyProgress:
    """A bar for the whole study and one for each running task, and a line for each task that has ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[left]}"), console=console)
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._total: TaskID | None = None
        self._size = 0
        self._began = self._begun = time.monotonic()
        self._left = ""
        # Holds the bars and the thread that prints lines.
        self._shown = ExitStack()

    def __enter__(self) -> "StudyProgress":
        self._shown.enter_context(self._progress)
        if not self._console.is_terminal:
            self._shown.enter_context(lines_now_and_then(self._line))
        return self

    def __exit__(self, *_: object) -> None:
        self._shown.close()

    def expect(self, total: int) -> None:
        """Set the number of steps of all tasks that have not ended. The first call adds the bar for the whole study."""
        if self._total is None:
            self._done, self._first = {}, {}
            self._begun = time.monotonic()
            self._total = self._progress.add_task("all", left="")
        self._size = sum(self._done.values()) + total
        self._progress.update(self._total, total=self._size)

    def start(self, name: str, total: int) -> None:
        self._tasks[name] = self._progress.add_task(name, total=total or None, left="")
        if not self._console.is_terminal:
            self._console.print(f"{name}: started", highlight=False, soft_wrap=True)

    def update(self, name: str, done: int) -> None:
        self._progress.update(self._tasks[name], completed=done)
        self._done[name] = done
        # Steps of an earlier start of the study do not count towards the rate.
        self._first.setdefault(name, done)
        if self._total is not None:
            self._tell_all(self._total)

    def finish(self, name: str, message: str) -> None:
        self._progress.remove_task(self._tasks.pop(name))
        self._console.print(f"{name}: {message}", highlight=False, soft_wrap=True)

    def note(self, message: str) -> None:
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def _tell_all(self, total: TaskID) -> None:
        now = time.monotonic()
        done = sum(self._done.values())
        advanced = done - sum(self._first.values())
        rate = advanced / (now - self._begun + 1e-9)
        # Earlier than this, the rate would measure how long processes take to start.
        is_telling = advanced > 0 and advanced >= _SHARE_THAT_TELLS * self._size
        left = f"{timedelta(seconds=round(max(self._size - done, 0) / rate))} left" if is_telling else ""
        self._left = left and f", {rate:.1f}/s, {left}"
        self._progress.update(total, completed=done, left=left)

    def _line(self) -> str:
        """Return a log line about the progress of the whole study."""
        if self._total is None:
            return f"{', '.join(self._tasks) or 'starting'}: at work for {_passed(self._began)}"
        done = f"all: {sum(self._done.values()):,} of {self._size:,} updates"
        return done + (self._left or f": at work for {_passed(self._began)}")
