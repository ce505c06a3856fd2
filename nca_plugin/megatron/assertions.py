"""What Megatron asserts about a run's arguments, in one line that names them as the user writes them.

Many of its assertions have no text, and those that have some name fields of its own objects. The line says the text or
what is asserted, and the arguments that the source of the assertion looks at.
"""

import argparse
import ast
import contextlib
import functools
import inspect
import io
import logging
import os
import re
import sys
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, TextIO

import megatron.core
import torch
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.training.argument_utils import core_transformer_config_from_args
from torch.distributed.checkpoint.api import CheckpointException

from nca_plugin.errors import SECONDS_FOR_RANK_0, NCAPluginError, one_line

_MEGATRON: Final = Path(megatron.core.__file__).parents[1]
_OURS: Final = Path(__file__).parents[1]
#: Names of variables that hold arguments, or a configuration with fields of the same names.
_HOLDERS: Final = ("args", "self", "config")
#: Errors whose message says too little without their type.
_TERSE: Final = (KeyError, IndexError, AttributeError, ZeroDivisionError, TypeError)
#: Errors that speak of a value, a file or a package also where no statement of Megatron's raises them, but a library
#: that it calls. Of any other error, such as a lack of memory, the user needs the traceback.
_CHECKS: Final = (AssertionError, ValueError, OverflowError, ImportError, FileNotFoundError)
_LIBRARIES: Final = tuple({Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
#: As options name them.
_DTYPES: Final = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.uint8: "fp8"}
#: Options that are all named where it is not clear which of them an error is about.
_MOST_NAMES: Final = 3
#: Functions of Megatron's loop: an error in them is one of the training, whose traceback the user needs.
_TRAINING: Final = ("train", "train_step", "evaluate", "evaluate_and_print_results", "save_checkpoint")


@dataclass(frozen=True)
class OptionNames:
    """How the user writes each argument, and the values that a run has which does not name it."""

    actions: Mapping[str, argparse.Action]
    spelling: Callable[[str], str]

    @classmethod
    def of(cls, parser: argparse.ArgumentParser, spelling: Callable[[str], str]) -> "OptionNames":
        actions: dict[str, argparse.Action] = {}
        for action in parser._actions:
            if action.option_strings:
                actions.setdefault(action.dest, action)
        return cls(actions, spelling)

    def name(self, dest: str) -> str:
        spellings, plain = self.actions[dest].option_strings, f"--{dest.replace('_', '-')}"
        return self.spelling(plain if plain in spellings else spellings[0])

    def shown(self, dest: str, value: Any) -> str:
        """Return an argument with its value, such as `--lr 0.1`, `no --save` or `--swiglu`."""
        action = self.actions[dest]
        is_flag = action.nargs == 0
        if value is None or (is_flag and value == action.default):
            return f"no {self.name(dest)}"
        if is_flag:
            return self.name(dest)
        if isinstance(value, list | tuple):
            # As it can be typed: several values, or one that Megatron takes apart.
            separate = " " if action.nargs is not None else ","
            joined = separate.join(map(str, value))
            return f"{self.name(dest)} {joined if action.nargs or isinstance(value, tuple) else f'[{joined}]'}"
        text = _DTYPES.get(value, value) if isinstance(value, torch.dtype) else getattr(value, "name", value)
        return f"{self.name(dest)} {text}"

    def is_negation(self, dest: str) -> bool:
        """Whether the user can only write that an argument is not to be, such as `--no-rope-fusion`."""
        return self.actions[dest].nargs == 0 and self.actions[dest].const is False


class _HeldOutput(io.TextIOBase):
    """Stands for a stream and keeps what is written, until it passes on what is written later: a logger that has been
    set up meanwhile goes on writing to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._held: list[str] | None = []

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._held is None:
            return self._stream.write(text)
        self._held.append(text)
        return len(text)

    def flush(self) -> None:
        if self._held is None:
            self._stream.flush()

    def text(self) -> str:
        return "".join(self._held or ())

    def release(self, *, is_printed: bool) -> None:
        text, self._held = self.text(), None
        if is_printed:
            self.write(text)
            self.flush()


@contextlib.contextmanager
def held_output() -> Iterator[None]:
    """Print what is printed in the context only when it ends, and not at all if it ends with an `NCAPluginError`: the
    line that says what is wrong would be lost among hundreds."""
    output, errors = _HeldOutput(sys.stdout), _HeldOutput(sys.stderr)
    # Megatron sets one up as it is imported.
    loggers = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.StreamHandler)]
    held = {sys.stdout: output, sys.stderr: errors}
    before = {handler: handler.stream for handler in loggers if handler.stream in held}
    is_printed = True
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            for handler, stream in before.items():
                handler.setStream(held[stream])
            yield
    except NCAPluginError:
        is_printed = False
        raise
    finally:
        for handler, stream in before.items():
            handler.setStream(stream)
        output.release(is_printed=is_printed)
        errors.release(is_printed=is_printed)


@contextlib.contextmanager
def argument_errors(options: Callable[[], OptionNames]) -> Iterator[None]:
    """Turn any error of Megatron's, while it reads and checks the arguments, into an `NCAPluginError`.

    Args:
        options: asked when there is an error.
    """
    try:
        yield
    except NCAPluginError:
        raise
    except SystemExit as end:
        # Megatron prints some refusals and ends the process, with exit code 0.
        if end.code not in (None, 0) or any(_is_in_argparse(frame) for frame, _ in _frames(end.__traceback__)):
            raise
        printed = sys.stdout.text().split("\n") if isinstance(sys.stdout, _HeldOutput) else []
        said = next((line for line in reversed(printed) if line.strip()), "it ended the process without a word")
        raise NCAPluginError(f"Megatron refuses the arguments: {said.strip()}") from end
    except Exception as error:
        if not _is_megatrons(_frames(error.__traceback__)):
            raise
        raise NCAPluginError(_line(error, options())) from error


@contextlib.contextmanager
def set_up_errors(options: Callable[[], OptionNames]) -> Iterator[None]:
    """The same for errors of Megatron's own checks between its start and the first iteration, once for the job."""
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
            # torchrun ends all ranks as soon as one has ended, the one that is about to say it too.
            time.sleep(SECONDS_FOR_RANK_0)
            sys.exit(2)
        raise NCAPluginError(line or _line(error, options())) from error


def _misfit(error: BaseException, frames: list[tuple[FrameType, int]]) -> str | None:
    """Return how a checkpoint differs from the model that loads it; None for an error that says nothing of it."""
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


def unreadable(option: str, value: str) -> str:
    """Return what to say of a value that an option cannot be read from."""
    return f"{option} {value} cannot be read: --help-megatron shows what it takes"


def _is_first_to_say() -> bool:
    """Whether no other rank has said what is wrong: the same check may fail on all of them, or on some."""
    distributed = torch.distributed
    if not distributed.is_initialized():
        return os.environ.get("RANK", "0") == "0"
    try:
        return bool(distributed.distributed_c10d._get_default_store().add("nca-plugin/refusal", 1) == 1)
    except RuntimeError:
        # The store was that of a rank which is gone.
        return True


def _frames(trace: TracebackType | None) -> list[tuple[FrameType, int]]:
    return list(traceback.walk_tb(trace))


def _is_megatrons(frames: list[tuple[FrameType, int]]) -> bool:
    """Whether an error is one of Megatron's, or of a library that it called. One of this package, or of a user's
    module, keeps its traceback, also where Megatron called them."""
    origin = next((frame for frame, _ in reversed(frames) if not _is_librarys(frame)), None)
    return origin is not None and _is_below(_MEGATRON, origin)


def _is_stated(frames: list[tuple[FrameType, int]]) -> bool:
    """Whether a `raise` or an `assert` of Megatron's own made an error."""
    frame, line = frames[-1]
    statements = _statements(frame.f_code.co_filename, line) if _is_below(_MEGATRON, frame) else []
    return bool(statements) and isinstance(statements[-1], ast.Raise | ast.Assert)


def _is_librarys(frame: FrameType) -> bool:
    """Whether a frame is of the standard library or an installed package, but neither Megatron's nor this one's."""
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
        # A function of Megatron's that reads a value may fail in a way that argparse does not expect.
        return unreadable(options.spelling(unread["action"].option_strings[0]), repr(unread["arg_string"]))
    # An assertion without a text says what it asserts.
    text = _translated(one_line(error), options) if str(error).strip() else ""
    if isinstance(error, KeyError) and error.args:
        text = f"'{error.args[0]}' is unknown"
    elif text and isinstance(error, _TERSE):
        text = f"{type(error).__name__}: {text.removeprefix(f'{type(error).__name__}: ')}"
    args = next((f.f_locals["args"] for f, _ in reversed(frames) if _has_arguments(f.f_locals.get("args"))), None)
    if args is None:
        # An object of Megatron's has no hold of them.
        args = getattr(sys.modules.get("megatron.training.global_vars"), "_GLOBAL_ARGS", None)
    frames = [(frame, line) for frame, line in frames if _is_below(_MEGATRON, frame)]
    frame, line = frames[-1]
    test, around = _failed(frame.f_code.co_filename, line)
    if not text:
        text = type(error).__name__ if test is None else _asserted(test, options)
    if any(frame.f_code.co_name == "build_tokenizer" for frame, _ in frames) and args is not None:
        return f"{_described_tokenizer(args, options)} cannot be loaded: {text.rstrip('.')}{_way_out(args, options)}"
    shown: list[str] = []
    if args is not None:
        # What leads to the check is of interest where the user has said it.
        names = _names(test, options)
        names += [n for condition in around for n in _names(condition, options) if _is_given(args, n, options)]
        # Of a package that is missing, no argument's value is wrong.
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
    """Return what the user has given of the arguments that the function of an error looks at, or else the nearest
    statement that called it; none if they are too many to tell which it is."""
    sources: list[ast.AST] = [] if (function := _function(frames[-1][0])) is None else [function]
    for frame, line in reversed(frames):
        sources += _statements(frame.f_code.co_filename, line)[-1:]
    for source in sources:
        names = [name for name in _names(source, options) if _is_written(name, options)]
        if 0 < len(names) <= _MOST_NAMES:
            return names
    return []


def _function(frame: FrameType) -> ast.AST | None:
    """Return the source of the function that a frame runs."""
    code = frame.f_code
    functions = (n for n in ast.walk(_parsed(code.co_filename)) if isinstance(n, ast.FunctionDef))
    return next((n for n in functions if n.name == code.co_name and _covers(n, code.co_firstlineno)), None)


def _is_written(name: str, options: OptionNames) -> bool:
    """Whether the arguments of this process name an option: Megatron fills in others."""
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
    """Return what to do about a tokenizer that Megatron looks for on the hub, also where the user has its files."""
    if args.tokenizer_type != "GPT2BPETokenizer":
        return ""
    return (
        f": name a folder with {options.name('tokenizer_type')} HuggingFaceTokenizer {options.name('tokenizer_model')}"
    )


def _translated(text: str, options: OptionNames) -> str:
    """Return a text with the names of arguments as the user writes them."""

    def spelled(match: re.Match[str]) -> str:
        dest = _argument(match[1])
        # A negation in place of what it negates would turn the sentence around.
        is_other = dest not in options.actions or options.is_negation(dest)
        return match[0] if is_other else options.name(dest)

    text = re.sub(rf"(?<![\w.])(?:{'|'.join(_HOLDERS)})\.(\w+)", spelled, text)
    # A name without an underscore may be a word of the sentence.
    return re.sub(r"(?<![\w.'/\-])([a-z]\w*_\w+)(?![\w/(])", spelled, text)


def _asserted(test: ast.expr, options: OptionNames) -> str:
    """Return what is asserted: of one argument that has to be there, or must not be, in words."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and isinstance(test.operand, ast.Attribute):
        names = _names(test, options)
        if names:
            return f"{options.name(names[0])} must be left out"
    if isinstance(test, ast.Compare) and isinstance(test.comparators[0], ast.Constant):
        names = _names(test, options)
        if test.comparators[0].value is None and isinstance(test.left, ast.Attribute) and names:
            missing = isinstance(test.ops[0], ast.IsNot)
            return f"{options.name(names[0])} {'is missing' if missing else 'must be left out here'}"
    return f"it requires {_translated(ast.unparse(test), options)}"


def _names(node: ast.AST | None, options: OptionNames) -> list[str]:
    """Return the arguments that a piece of source looks at, in its order."""
    attributes = [] if node is None else [n for n in ast.walk(node) if isinstance(n, ast.Attribute)]
    attributes.sort(key=lambda n: (n.lineno, n.col_offset))
    found = [_argument(n.attr) for n in attributes if isinstance(n.value, ast.Name) and n.value.id in _HOLDERS]
    return list(dict.fromkeys(name for name in found if name in options.actions))


def _failed(file: str, line: int) -> tuple[ast.expr | None, list[ast.expr]]:
    """Return the condition that a statement at a line checks, or its expression, and those around it, innermost
    first."""
    statements = _statements(file, line)
    if not statements:
        return None, []
    inner = statements[-1]
    around = [node.test for node in reversed(statements[:-1]) if isinstance(node, ast.If)]
    if isinstance(inner, ast.Assert):
        return inner.test, around
    if isinstance(inner, ast.Raise):
        return (around[0], around[1:]) if around else (None, [])
    if isinstance(inner, ast.Assign | ast.Expr | ast.Return | ast.AugAssign):
        return inner.value, around
    return (inner.test, around) if isinstance(inner, ast.If) else (None, around)


def _argument(field: str) -> str:
    """Return the argument that a field of Megatron's configuration is set from, by the source that sets it."""
    return _fields().get(field, field)


@functools.cache
def _fields() -> dict[str, str]:
    source = inspect.getsourcefile(core_transformer_config_from_args) or ""
    named = (n for n in _parsed(source).body if getattr(n, "name", None) == core_transformer_config_from_args.__name__)
    found = {}
    for statement in getattr(next(named, None), "body", ()):
        match statement:
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name("kw_args"), slice=ast.Constant(str(field)))],
                value=ast.Attribute(value=ast.Name("args"), attr=dest),
            ):
                found[field] = dest
    return found


def _statements(file: str, line: int) -> list[ast.stmt]:
    """Return the statements around a line, the innermost last."""
    statements = [node for node in ast.walk(_parsed(file)) if isinstance(node, ast.stmt) and _covers(node, line)]
    return sorted(statements, key=lambda node: (node.lineno, -(node.end_lineno or 0)))


def _covers(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


@functools.cache
def _parsed(file: str) -> ast.Module:
    try:
        return ast.parse(Path(file).read_text())
    except (OSError, SyntaxError):
        return ast.Module([], [])
