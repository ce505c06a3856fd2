"""Turns Megatron's errors about a run's arguments into one line that names the arguments as the user writes them.

Many of Megatron's assertions have no text, and others name fields of its own objects. The line has the text or the
asserted condition, and the arguments that the source code of the assertion looks at.
"""

import argparse
import ast
import contextlib
import re
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final

import megatron.core
import torch
from megatron.core.dist_checkpointing.core import CheckpointingException
from torch.distributed.checkpoint.api import CheckpointException

from nca_plugin.errors import SECONDS_FOR_RANK_0, NCAPluginError, one_line
from nca_plugin.megatron.held_output import HeldOutput
from nca_plugin.megatron.option_names import OptionNames, unreadable
from nca_plugin.megatron.source_code import (
    HOLDERS,
    argument_of,
    arguments_in,
    failed_condition,
    function_of,
    statements_around,
)
from nca_plugin.this_rank import is_rank_0

_MEGATRON: Final = Path(megatron.core.__file__).parents[1]
_OURS: Final = Path(__file__).parents[1]
#: Errors whose message says too little without their type.
_TERSE: Final = (KeyError, IndexError, AttributeError, ZeroDivisionError, TypeError)
#: Errors that are about a value, a file or a package even if a library that Megatron calls raises them. For any other
#: error, such as a lack of memory, the user needs the traceback.
_CHECKS: Final = (AssertionError, ValueError, OverflowError, ImportError, FileNotFoundError)
_LIBRARIES: Final = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
#: If it is unclear which option an error is about, up to this number of options are all named.
_MOST_NAMES: Final = 3
#: Functions of Megatron's loop. An error in them is one of the training, and the user needs its traceback.
_TRAINING: Final = ("train", "train_step", "evaluate", "evaluate_and_print_results", "save_checkpoint")


@contextlib.contextmanager
def argument_errors(options: Callable[[], OptionNames]) -> Iterator[None]:
    """Turn any error of Megatron, while it reads and checks the arguments, into an `NCAPluginError`.

    Args:
        options: returns the options. It is called only if there is an error.
    """
    try:
        yield
    except NCAPluginError:
        raise
    except SystemExit as end:
        # Megatron prints some refusals and ends the process, with exit code 0.
        if end.code not in (None, 0) or any(_is_in_argparse(frame) for frame, _ in _frames(end.__traceback__)):
            raise
        printed = sys.stdout.text().split("\n") if isinstance(sys.stdout, HeldOutput) else []
        said = next((line for line in reversed(printed) if line.strip()), "it ended the process without a word")
        raise NCAPluginError(f"Megatron refuses the arguments: {said.strip()}") from end
    except Exception as error:
        if not _is_megatrons(_frames(error.__traceback__)):
            raise
        raise NCAPluginError(_line(error, options())) from error


@contextlib.contextmanager
def set_up_errors(options: Callable[[], OptionNames]) -> Iterator[None]:
    """Do the same for Megatron's checks between its start and the first iteration. Only one rank reports an error."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        frames = _frames(error.__traceback__)
        is_training = any(frame.f_code.co_name in _TRAINING for frame, _ in frames)
        is_check = _is_stated(frames) or (isinstance(error, _CHECKS) and _is_megatrons(frames))
        line = _misfit(error, frames)
        if line is None and (is_training or not is_check):
            raise
        if not _is_first_to_say():
            # torchrun ends all ranks as soon as one has ended, so the reporting rank needs time to print its line.
            time.sleep(SECONDS_FOR_RANK_0)
            sys.exit(2)
        raise NCAPluginError(line or _line(error, options())) from error


def _misfit(error: BaseException, frames: list[tuple[FrameType, int]]) -> str | None:
    """Return how a checkpoint differs from the model that loads it; None if the error is about something else."""
    loading = next((frame for frame, _ in frames if frame.f_code.co_name == "load_checkpoint"), None)
    if loading is None or not _is_below(_MEGATRON, loading):
        return None
    # PyTorch gathers the errors of all ranks, each with its traceback.
    cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
    missing = re.search(r"([\w.]+) from model not in state dict", one_line(cause))
    folder = loading.f_locals.get("load_dir")
    if missing is not None and missing[1].startswith("optimizer."):
        return (
            f"checkpoint {folder} does not fit the optimizer of the run: it holds no {missing[1]}; add --no-load-optim "
            "to go on with a new one, or --finetune to begin at iteration 0"
        )
    if missing is not None:
        text = f"it holds no {missing[1]}"
    elif isinstance(cause, CheckpointingException) or "loading state_dict" in str(cause):
        text = one_line(cause).rstrip(".")
    else:
        return None
    return f"checkpoint {folder} does not fit the run: {text}"


def _is_first_to_say() -> bool:
    """Return whether no other rank has reported an error yet. The same check may fail on some ranks or on all."""
    distributed = torch.distributed
    if not distributed.is_initialized():
        return is_rank_0()
    try:
        return bool(distributed.distributed_c10d._get_default_store().add("nca-plugin/refusal", 1) == 1)
    except RuntimeError:
        # The rank that served the store is gone.
        return True


def _frames(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    return list(traceback.walk_tb(trace))


def _is_megatrons(frames: list[tuple[FrameType, int]]) -> bool:
    """Return whether an error is Megatron's or of a library that it called.

    An error of this package or of a user's module keeps its traceback, even if Megatron called it.
    """
    origin = next((frame for frame, _ in reversed(frames) if not _is_librarys(frame)), None)
    return origin is not None and _is_below(_MEGATRON, origin)


def _is_stated(frames: list[tuple[FrameType, int]]) -> bool:
    """Return whether a `raise` or `assert` in Megatron itself raised an error."""
    frame, line = frames[-1]
    statements = statements_around(frame.f_code.co_filename, line) if _is_below(_MEGATRON, frame) else []
    return bool(statements) and isinstance(statements[-1], ast.Raise | ast.Assert)


def _is_librarys(frame: FrameType) -> bool:
    """Return whether a frame is in the standard library or an installed package, except Megatron and this package."""
    if _is_below(_MEGATRON, frame) or _is_below(_OURS, frame):
        return False
    return frame.f_code.co_filename.startswith("<") or any(_is_below(folder, frame) for folder in _LIBRARIES)


def _is_in_argparse(frame: FrameType) -> bool:
    return frame.f_code.co_filename == argparse.__file__


def _is_below(folder: Path, frame: FrameType) -> bool:
    return Path(frame.f_code.co_filename).is_relative_to(folder)


def _line(error: BaseException, options: OptionNames) -> str:
    frames = _frames(error.__traceback__)
    unread = next((f.f_locals for f, _ in frames if _is_in_argparse(f) and f.f_code.co_name == "_get_value"), None)
    if unread is not None:
        # Megatron's function that reads a value may raise an error that argparse does not expect.
        return unreadable(options.spelling(unread["action"].option_strings[0]), repr(unread["arg_string"]))
    # An assertion without a text is described by its condition below.
    text = _translated(one_line(error), options) if str(error).strip() else ""
    if isinstance(error, KeyError) and error.args:
        text = f"'{error.args[0]}' is unknown"
    elif text and isinstance(error, _TERSE):
        text = f"{type(error).__name__}: {text.removeprefix(f'{type(error).__name__}: ')}"
    args = next((f.f_locals["args"] for f, _ in reversed(frames) if _has_arguments(f.f_locals.get("args"))), None)
    if args is None:
        # No frame has the arguments, but they may be global already.
        args = getattr(sys.modules.get("megatron.training.global_vars"), "_GLOBAL_ARGS", None)
    frames = [(frame, line) for frame, line in frames if _is_below(_MEGATRON, frame)]
    frame, line = frames[-1]
    test, around = failed_condition(frame.f_code.co_filename, line)
    if not text:
        text = type(error).__name__ if test is None else _asserted(test, options)
    if any(frame.f_code.co_name == "build_tokenizer" for frame, _ in frames) and args is not None:
        return f"{_described_tokenizer(args, options)} cannot be loaded: {text.rstrip('.')}{_way_out(args, options)}"
    shown: list[str] = []
    if args is not None:
        # Conditions around the check are shown only if the user has set their arguments.
        names = arguments_in(test, options)
        names += [n for condition in around for n in arguments_in(condition, options) if _is_given(args, n, options)]
        # If a package is missing, no argument is wrong.
        if not names and not isinstance(error, ImportError):
            names = _names_nearby(frames, options)
        shown = [options.shown(name, getattr(args, name)) for name in dict.fromkeys(names) if hasattr(args, name)]
    shown = [part for part in shown if part not in text and not text.startswith(part.removeprefix("no "))]
    return f"Megatron refuses the arguments: {text}" + (f" (the run has {', '.join(shown)})" if shown else "")


def _has_arguments(value: Any) -> bool:
    return isinstance(value, argparse.Namespace) and hasattr(value, "micro_batch_size")


def _is_given(args: argparse.Namespace, name: str, options: OptionNames) -> bool:
    return hasattr(args, name) and getattr(args, name) not in (None, options.actions[name].default)


def _names_nearby(frames: list[tuple[FrameType, int]], options: OptionNames) -> list[str]:
    """Return the user's arguments that the failing function looks at, or else the nearest statement that called it.

    Returns an empty list if these are too many to tell which one is wrong.
    """
    sources: list[ast.AST] = [] if (function := function_of(frames[-1][0])) is None else [function]
    for frame, line in reversed(frames):
        sources += statements_around(frame.f_code.co_filename, line)[-1:]
    for source in sources:
        names = [name for name in arguments_in(source, options) if _is_written(name, options)]
        if 0 < len(names) <= _MOST_NAMES:
            return names
    return []


def _is_written(name: str, options: OptionNames) -> bool:
    """Return whether the arguments of this process name an option. Megatron fills in others itself."""
    written = {argument.partition("=")[0] for argument in sys.argv[1:]}
    return not written.isdisjoint(options.actions[name].option_strings)


def _described_tokenizer(args: argparse.Namespace, options: OptionNames) -> str:
    if not _is_written("tokenizer_type", options):
        return (
            f"{options.name('tokenizer_type')} is missing (name the tokenizer that the text was prepared with), and "
            f"{args.tokenizer_type}, which Megatron takes without it,"
        )
    names = ("tokenizer_type", "tokenizer_model", "vocab_file", "merge_file", "vocab_size")
    given = [options.shown(name, getattr(args, name)) for name in names if getattr(args, name, None) is not None]
    return f"the tokenizer of {' '.join(given)}"


def _way_out(args: argparse.Namespace, options: OptionNames) -> str:
    """Return what to do about a tokenizer that Megatron looks for on the hub, even if the user has its files."""
    if args.tokenizer_type != "GPT2BPETokenizer":
        return ""
    return (
        f": name a folder with {options.name('tokenizer_type')} HuggingFaceTokenizer {options.name('tokenizer_model')}"
    )


def _translated(text: str, options: OptionNames) -> str:
    """Return a text with the names of arguments as the user writes them."""

    def spelled(match: re.Match[str]) -> str:
        dest = argument_of(match[1])
        # Replacing an argument by its negated option would reverse the meaning of the sentence.
        is_other = dest not in options.actions or options.is_negation(dest)
        return match[0] if is_other else options.name(dest)

    text = re.sub(rf"(?<![\w.])(?:{'|'.join(HOLDERS)})\.(\w+)", spelled, text)
    # A name without an underscore may be an ordinary word.
    return re.sub(r"(?<![\w.'/\-])([a-z]\w*_\w+)(?![\w/(])", spelled, text)


def _asserted(test: ast.expr, options: OptionNames) -> str:
    """Return a condition in words if it is about the presence of one argument, or else as code."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and isinstance(test.operand, ast.Attribute):
        names = arguments_in(test, options)
        if names:
            return f"{options.name(names[0])} must be left out"
    if isinstance(test, ast.Compare) and isinstance(test.comparators[0], ast.Constant):
        names = arguments_in(test, options)
        if test.comparators[0].value is None and isinstance(test.left, ast.Attribute) and names:
            missing = isinstance(test.ops[0], ast.IsNot)
            return f"{options.name(names[0])} {'is missing' if missing else 'must be left out here'}"
    return f"it requires {_translated(ast.unparse(test), options)}"
