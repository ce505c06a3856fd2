"""Resolves `--data-source` and its options to Megatron-LM's own `--data-path`, before Megatron parses its arguments.

After that, a source is only a URI in the data path: in the log, in the checkpoint, and in a resumed run.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, NoReturn

from nca_plugin.automata import PRESETS, NCAConfig
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.source import IndexedSource, is_generated
from nca_plugin.megatron import fused_kernels
from nca_plugin.sources import is_source, parse, schemes
from nca_plugin.sources.section import with_options
from nca_plugin.sources.uri import split_uri
from nca_plugin.text.examples import read_examples
from nca_plugin.typed_numbers import is_number, number

_GROUP: Final = "nca-plugin"
_NCA_PREFIX: Final = "nca_"
#: Sources whose options are the fields of `NCAConfig`.
_NCA_SCHEMES: Final = ("nca", "shuffled")
#: Options of Megatron-LM with data paths, and options that name a file with them.
_PATHS: Final = ("--data-path", "--train-data-path", "--valid-data-path", "--test-data-path")
_PATH_FILES: Final = ("--data-args-path", "--per-split-data-args-path")


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the plugin's argument group to a parser. This is an `extra_args_provider` for Megatron's parser."""
    group = parser.add_argument_group(
        _GROUP, "Synthetic pre-pre-training data, which replaces every other data argument, and other additions."
    )
    group.add_argument(
        "--data-source",
        metavar="SOURCE",
        help=f"{', '.join(schemes())}, or a complete URI such as nca://code?seed=7",
    )
    group.add_argument("--nca-preset", metavar="NAME", help=f"one of {', '.join(PRESETS)} (default: web)")
    group.add_argument("--nca-vocab-offset", metavar="N", help="added to every id of the source (default: 0)")
    for field in dataclasses.fields(NCAConfig):
        group.add_argument(
            _spelling(field.name), metavar="VALUE", help=f"NCAConfig.{field.name} (default: the preset's)"
        )
    group.add_argument(
        "--sft-epochs",
        metavar="N",
        help="with --sft: how often to train on each example, in place of --train-iters",
    )
    group.add_argument(
        "--freeze-list",
        metavar="FILE",
        help="file with selectors of what not to train, such as the freeze.txt of nca-plugin transfer --freeze",
    )
    group.add_argument(
        "--allow-other-data",
        action="store_true",
        help="resume a checkpoint with other data than it was trained on",
    )
    group.add_argument(
        fused_kernels.OPTION,
        action="store_true",
        help="on CUDA: add the arguments that the run needs where Transformer Engine or NVIDIA's Apex is missing",
    )
    _repair_help(parser)
    return parser


def _spelling(option: str) -> str:
    """Return how an option of the NCA source is written on the command line."""
    return f"--{_NCA_PREFIX}{option}".replace("_", "-")


def _repair_help(parser: argparse.ArgumentParser) -> None:
    """Escape percent signs that argparse cannot expand. megatron-core 0.19.2 has one, with which its --help fails."""
    for action in parser._actions:
        action.help = re.sub(r"(?<!%)%(?![%(])", "%%", action.help or "")


def resolve_data_source(argv: list[str]) -> list[str]:
    """Return `argv` with `--data-source` and `--nca-...` replaced by `--data-path <URI>`.

    The source replaces other data arguments, as in `with_data_path`. Without `--data-source`, `argv` is returned, with
    a tokenizer added if all data paths are sources or generated datasets.

    Raises:
        NCAPluginError: if a source, preset or option is unknown, or no source has an `--nca-...` option.
    """
    parser = add_arguments(argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False))
    try:
        ours, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise NCAPluginError(f"argument {error.argument_name}: {error.message}") from None
    options = {
        name.removeprefix(_NCA_PREFIX): value
        for name, value in vars(ours).items()
        if name.startswith(_NCA_PREFIX) and value is not None
    }
    if ours.data_source is None:
        if options:
            raise NCAPluginError(f"{_spelling(next(iter(options)))} needs --data-source nca")
        return [*argv, *_vocabulary(argv, data_paths(argv))]
    scheme = split_uri(ours.data_source).scheme
    if options and scheme not in _NCA_SCHEMES:
        raise NCAPluginError(
            f"--nca-... options do not apply to source '{scheme}': write its options in the URI, such as "
            f"{scheme}://?seed=7"
        )
    source = parse(with_options(ours.data_source, options, _spelling))
    if ours.freeze_list is not None:
        rest += ["--freeze-list", ours.freeze_list]
    if ours.allow_other_data:
        rest.append("--allow-other-data")
    if ours.local_kernels:
        rest.append(fused_kernels.OPTION)
    if ours.sft_epochs is not None:
        rest += ["--sft-epochs", ours.sft_epochs]
    return with_data_path(rest, [source.uri])


def resolve_epochs(argv: list[str]) -> list[str]:
    """Return `argv` with `--sft-epochs` replaced by `--train-iters`. The last batch is filled from a further epoch.

    Raises:
        NCAPluginError: if `--sft-epochs` is not above 0, options that it needs are missing, or the examples cannot be
            read.
    """
    parser = _parser()
    parser.add_argument("--sft-epochs")
    ours, rest = parser.parse_known_args(argv)
    if ours.sft_epochs is None:
        return argv
    parser = _parser()
    parser.add_argument("--sft", action="store_true")
    parser.add_argument("--global-batch-size")
    for option in ("--data-path", "--train-data-path"):
        parser.add_argument(option, nargs="*", default=[])
    for option in ("--train-iters", "--train-samples"):
        parser.add_argument(option)
    given = parser.parse_known_args(rest)[0]
    if not given.sft:
        raise NCAPluginError("--sft-epochs needs --sft")
    if given.train_iters is not None or given.train_samples is not None:
        raise NCAPluginError("--sft-epochs stands in place of --train-iters and --train-samples: leave one of them out")
    paths = given.train_data_path or given.data_path
    if len(paths) != 1 or (not given.train_data_path and "--split" in argv):
        raise NCAPluginError("--sft-epochs counts the examples of one file: name it with --train-data-path")
    batch, epochs = (
        _positive(given.global_batch_size, "--global-batch-size"),
        _positive(ours.sft_epochs, "--sft-epochs"),
    )
    iterations = math.ceil(epochs * len(read_examples(Path(paths[0]))) / batch)
    return [*rest, "--train-iters", str(iterations)]


def _positive(value: str | None, option: str) -> Fraction:
    """Return an option's value as an exact fraction. Raises `NCAPluginError` unless it is a number above 0."""
    try:
        # `number` refuses values beyond a float's range, which would take long as a fraction.
        positive = Fraction(value or "") if number(float, value or "") > 0 else None
    except ValueError:
        positive = None
    if positive is None:
        needed_by = "" if option == "--sft-epochs" else "--sft-epochs: "
        raise NCAPluginError(f"{needed_by}{option} {value or 'is missing, and'} must be a finite number above 0")
    return positive


class _Parser(argparse.ArgumentParser):
    """A parser for a few of Megatron's options, which does not print the usage of these few on a mistake."""

    def error(self, message: str) -> NoReturn:
        raise NCAPluginError(message)


def _parser() -> argparse.ArgumentParser:
    return _Parser(add_help=False, allow_abbrev=False)


def megatron_arguments(values: dict[str, Any]) -> list[str]:
    """Return `{"lr": 1e-3, "disable-bias-linear": True}` as Megatron-LM arguments, without false and null values."""
    result: list[str] = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        result.append(f"--{name}")
        if name == "split" and isinstance(value, list):
            # Megatron takes the shares as one argument, but YAML and Hydra read [99,1,0] as a list.
            value = ",".join(map(str, value))
        if value is not True:
            result += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return result


def data_paths(argv: list[str]) -> list[str]:
    """Return the data paths of all splits in Megatron's arguments, without weights.

    Files that cannot be read are ignored here, and refused by a later check.
    """
    parser = _parser()
    for option in _PATHS:
        parser.add_argument(option, nargs="*", default=[])
    for option in _PATH_FILES:
        parser.add_argument(option)
    given = parser.parse_known_args(argv)[0]
    items = [*given.data_path, *given.train_data_path, *given.valid_data_path, *given.test_data_path]
    files = (Path(path or "") for path in (given.data_args_path, given.per_split_data_args_path))
    with contextlib.suppress(OSError, ValueError, RecursionError):
        # Only regular files are read, because a pipe might never end.
        blend_file, splits_file = (file if file.is_file() else None for file in files)
        if blend_file is not None:
            items += blend_file.read_text().split()
        if splits_file is not None:
            of_splits = json.loads(splits_file.read_text())
            for blend in of_splits.values() if isinstance(of_splits, dict) else ():
                items += blend.split() if isinstance(blend, str) else map(str, blend or [])
    return [item for item in items if not is_number(item)]


def with_data_path(argv: list[str], paths: list[str]) -> list[str]:
    """Return `argv` with `--data-path` and `paths` instead of its data arguments.

    If all paths are sources or generated datasets and there is no `--tokenizer-type`, a NullTokenizer with the largest
    of their vocabularies is added.
    """
    data = _parser()
    for option in _PATHS:
        data.add_argument(option, nargs="*")
    for option in _PATH_FILES:
        data.add_argument(option)
    data.add_argument("--mock-data", action="store_true")
    _, rest = data.parse_known_args(argv)
    return [*rest, "--data-path", *paths, *_vocabulary(argv, [path for path in paths if not is_number(path)])]


def _vocabulary(argv: list[str], paths: list[str]) -> list[str]:
    """Return the arguments of a NullTokenizer if all paths are sources or generated, and `argv` has no tokenizer."""
    if not paths or not all(is_source(path) or is_generated(path) for path in paths):
        return []
    parser = _parser()
    parser.add_argument("--tokenizer-type")
    parser.add_argument("--vocab-size")
    given = parser.parse_known_args(argv)[0]
    if given.tokenizer_type is not None:
        return []
    sizes = [(IndexedSource(path) if is_generated(path) else parse(path)).vocab_size for path in paths]
    size = [] if given.vocab_size is not None else ["--vocab-size", str(max(sizes))]
    return ["--tokenizer-type", "NullTokenizer", *size]
