"""Runs Megatron-LM's pretraining with sources as data:

    torchrun ... -m nca_plugin.launch.megatron <Megatron-LM arguments> --data-source nca --nca-preset code

Arguments, model, loop, parallelism, checkpoints and logging are Megatron's. On a machine without a GPU the run uses
CPU mode and says so.
"""

import os
import re
import sys
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from nca_plugin.checkpoint.embedding_rows import check_embedding_rows
from nca_plugin.display.progress import lines_now_and_then
from nca_plugin.errors import NCAPluginError, empty_value, one_line_errors
from nca_plugin.launch.process import (
    check_training_loop,
    die_with_spawning_process,
    die_with_torchrun,
    lost_worker_errors,
    use_shipped_dataset_helper,
)
from nca_plugin.launch.quiet import quiet, quiet_about_split
from nca_plugin.launch.ranks import take_rank
from nca_plugin.megatron import cpu_mode
from nca_plugin.megatron.arguments import add_arguments, data_paths, resolve_data_source, resolve_epochs
from nca_plugin.megatron.connections import limit_connections
from nca_plugin.megatron.fused_kernels import OPTION, added_arguments, check_kernels, described_needs, installed
from nca_plugin.megatron.held_output import held_output
from nca_plugin.sources import is_source
from nca_plugin.suggestions import unknown_names
from nca_plugin.this_rank import is_rank_0, must_check, print_rank_0
from nca_plugin.typed_numbers import UnderflowError, number

if TYPE_CHECKING:
    from nca_plugin.megatron.option_names import OptionNames

#: Shows the help of Megatron's parser, which has a thousand lines and our options at the end.
HELP: Final = "--help-megatron"
#: Defaults of arguments, as in Megatron-LM's pretrain_gpt.py.
DEFAULTS: Final = {"tokenizer_type": "GPT2BPETokenizer"}

#: Tells users where to find all options.
_WHERE: Final = f"python -m nca_plugin.launch.megatron {HELP} shows all"


def main() -> None:
    """Run `megatron.training.pretrain` with the arguments of this process."""
    die_with_torchrun()
    quiet()
    with one_line_errors(of_every_rank=False):
        if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
            if is_rank_0():
                _help().print_help()
            return
        take_rank()
        launch(["--help" if argument == HELP else argument for argument in sys.argv[1:]], str)


def _help() -> ArgumentParser:
    parser = ArgumentParser(
        prog="torchrun ... -m nca_plugin.launch.megatron",
        usage="%(prog)s [Megatron-LM arguments] [--data-source SOURCE] ...",
        description="Megatron-LM's pretraining, with sources as data.",
        add_help=False,
    )
    other = parser.add_argument_group("help")
    other.add_argument("-h", "--help", action="help", help="show this, and end")
    other.add_argument(HELP, action="help", help="show all arguments, Megatron-LM's among them, and end")
    return add_arguments(parser)


def launch(arguments: list[str], spelling: Callable[[str], str], unset: Collection[str] = ()) -> None:
    """Run `megatron.training.pretrain` with Megatron-LM arguments, `--data-source` among them.

    Args:
        spelling: returns how the user writes an option such as `--lr`.
        unset: options that the user names to leave them out. Unknown ones are refused too.

    Raises:
        NCAPluginError: if the run is impossible with these arguments.
    """
    _pretrain(parsed(arguments, spelling, unset), spelling)


def _pretrain(args: Namespace, spelling: Callable[[str], str]) -> None:
    from nca_plugin.megatron.assertions import set_up_errors
    from nca_plugin.megatron.freeze import freeze, read_freeze_list
    from nca_plugin.megatron.pretraining import pretrain

    hooks = []
    if args.freeze_list is not None:
        selectors = read_freeze_list(Path(args.freeze_list))
        check_frozen_layers(args, selectors)
        hooks.append(partial(freeze, selectors=selectors, num_layers=args.num_layers))
    # From here on a single rank may have an error, such as one in its own samples.
    with one_line_errors(of_every_rank=True), lost_worker_errors(), set_up_errors(partial(option_names, spelling)):
        pretrain(args, hooks)


def parsed(
    arguments: list[str], spelling: Callable[[str], str], unset: Collection[str] = (), *, is_run: bool = True
) -> Namespace:
    """Return Megatron's own arguments for those of `launch`, after checking them. CPU mode is on afterwards if needed.

    Args:
        is_run: whether the run follows. If not, files that earlier runs will write may be missing, nothing is written,
            and this process must not do anything else with Megatron.

    Raises:
        NCAPluginError: if the run is impossible with these arguments.
    """
    pass_to_megatron(arguments, is_announced=is_run)
    from megatron.training.arguments import parse_and_validate_args, parse_args, validate_args
    from megatron.training.global_vars import set_global_variables

    from nca_plugin.megatron.assertions import argument_errors
    from nca_plugin.megatron.option_names import OptionNames
    from nca_plugin.megatron.unvalidated import check_unvalidated

    def completed(parser: ArgumentParser) -> ArgumentParser:
        parser = complete_parser(parser, spelling, unset)
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        unvalidated, options = parser.parse_known_args()[0], OptionNames.of(parser, spelling)
        check_unvalidated(unvalidated, options, is_run=is_run, world_size=world_size)
        return parser

    with _sign_of_life(), held_output(), argument_errors(partial(option_names, spelling)):
        if is_run:
            args = parse_and_validate_args(completed, args_defaults=DEFAULTS)
        else:
            args = parse_args(completed)
            args.tensorboard_dir, args.wandb_project = None, ""
            validate_args(args, DEFAULTS)
            set_global_variables(args)
        _check_validated(args, is_run=is_run)
    return args


def _sign_of_life() -> AbstractContextManager[None]:
    if not is_rank_0():
        return nullcontext()
    line = "nca-plugin: still checking the arguments; a tokenizer of the Hugging Face hub may take a minute to find"
    return lines_now_and_then(lambda: line)


def option_names(spelling: Callable[[str], str]) -> "OptionNames":
    """Return how the user writes Megatron's arguments and ours."""
    from megatron.training.arguments import add_megatron_arguments

    from nca_plugin.megatron.option_names import OptionNames

    return OptionNames.of(add_arguments(add_megatron_arguments(ArgumentParser(allow_abbrev=False))), spelling)


def _check_validated(args: Namespace, *, is_run: bool) -> None:
    """Refuse mistakes that Megatron would notice only after it has built the model, or not at all."""
    from megatron.training import get_tokenizer

    from nca_plugin.megatron.cpu_limits import check_memory
    from nca_plugin.megatron.dataset_provider import check_arguments
    from nca_plugin.megatron.gaps import check_gaps
    from nca_plugin.megatron.lineage import store_lineage
    from nca_plugin.megatron.loaded import check_loaded
    from nca_plugin.megatron.pretraining import check_configurations
    from nca_plugin.megatron.resumed import loaded_checkpoint

    if cpu_mode.prepare() and args.hybrid_layer_pattern is None and args.yaml_cfg is None:
        check_memory(args)
    check_arguments(args)
    check_configurations(args)
    check_gaps(args)
    if is_run and must_check():
        # A rank that does not check hears of the result once there is a process group.
        loaded = loaded_checkpoint(args)
        store_lineage(args, loaded)
        if loaded is not None:
            # For a tokenizer of text, the arguments do not have the vocabulary size.
            vocab_size = get_tokenizer().vocab_size
            check_embedding_rows(loaded.checkpoint, args.padded_vocab_size, vocab_size, args.tensor_model_parallel_size)
            check_loaded(args, loaded)


def pass_to_megatron(arguments: list[str], *, is_announced: bool) -> None:
    """Resolve our `--data-source` and `--sft-epochs`, and put `arguments` into `sys.argv`, which Megatron parses.

    CPU mode is on afterwards if it is needed.

    Args:
        is_announced: whether the log says that CPU mode is on.

    Raises:
        NCAPluginError: if our arguments are wrong, or megatron-core has no training loop.
    """
    arguments = resolve_epochs(resolve_data_source(arguments))
    if all(map(is_source, data_paths(arguments))):
        quiet_about_split()
    check_training_loop()
    # This takes seconds, so arguments are checked first.
    if cpu_mode.prepare():
        from nca_plugin.megatron.cuda_on_cpu import CPU_ARGUMENTS

        if is_announced:
            print_rank_0(f"nca-plugin: no CUDA device: CPU mode, which adds {' '.join(CPU_ARGUMENTS)}")
        arguments = [*arguments, *CPU_ARGUMENTS]
    sys.argv[1:] = arguments
    use_shipped_dataset_helper()


def complete_parser(
    parser: ArgumentParser, spelling: Callable[[str], str], unset: Collection[str] = ()
) -> ArgumentParser:
    """Add our arguments to Megatron's parser, refuse unknown ones, and fit those of this process to its device.

    For an unknown option, Megatron itself would print its usage of a thousand lines. `spelling` and `unset` are those
    of `launch`.

    Raises:
        NCAPluginError: if an option is unknown, or something is missing for a run on this device. The returned parser
            raises it for any other mistake.
    """
    from nca_plugin.megatron.option_names import unreadable

    parser = add_arguments(parser)
    # one_logger is internal to NVIDIA. Megatron would ask the user to install it.
    parser.set_defaults(enable_one_logger=find_spec("one_logger") is not None)
    known = parser._option_string_actions
    given = (argument.partition("=")[0] for argument in (*unset, *sys.argv[1:]))
    unknown = [spelling(option) for option in given if option.startswith("--") and option not in known]
    if unknown:
        raise NCAPluginError(unknown_names("option", unknown, map(spelling, known), _WHERE))

    _check_values(known, spelling)

    def error(message: str) -> NoReturn:
        words = message.removeprefix("unrecognized arguments: ").split(" ")
        if words[0] in sys.argv and message.startswith("unrecognized"):
            before = [argument for argument in sys.argv[: sys.argv.index(words[0])] if argument.startswith("--")]
            after = f" after {spelling(before[-1])}" if before else ""
            message = f"{' '.join(words)}{after} belongs to no option: quote a value that has spaces"
        # For some arguments argparse's message would name a function of Megatron instead of a type.
        unread = re.fullmatch(r"argument (\S+): invalid (?!int |float |str )\w+ value: (.*)", message)
        if unread is not None:
            message = unreadable(spelling(unread[1]), unread[2])
        raise NCAPluginError(message)

    parser.error = error  # type: ignore[method-assign]
    _fit_to_device(parser)
    return parser


def _check_values(known: Mapping[str, Action], spelling: Callable[[str], str]) -> None:
    """Refuse values that argparse would accept: an empty one, which is no path, and a number that underflows to 0."""
    option = ""
    for argument in sys.argv[1:]:
        name, has_value, value = argument.partition("=")
        if name in known:
            option = name
        if option not in known or (name in known and not has_value):
            continue
        value = value if name in known else argument
        # Empty values of these options switch Weights & Biases off.
        if value == "" and known[option].default != "" and not option.startswith("--wandb-"):
            raise NCAPluginError(empty_value(spelling(option)))
        if known[option].type is float:
            try:
                number(float, value)
            except UnderflowError as error:
                raise NCAPluginError(f"{spelling(option)}: {error}") from None
            except ValueError:
                # argparse has its own message for this value, or accepts it.
                pass


def _fit_to_device(parser: ArgumentParser) -> None:
    """Add the arguments and environment variables that Megatron needs on the device of this process."""
    if cpu_mode.prepare():
        # `pass_to_megatron` has added the arguments of CPU mode.
        return
    args, _ = parser.parse_known_args()
    kernels = installed()
    if args.yaml_cfg is not None:
        # This file has all arguments.
        if args.local_kernels:
            needs = described_needs(kernels)
            raise NCAPluginError(f"{OPTION} does not reach the file of --yaml-cfg: write there what runs need: {needs}")
        return
    check_kernels(args, kernels)
    added = added_arguments(args, kernels)
    if added:
        sys.argv += added
        print_rank_0(f"nca-plugin: {OPTION} adds {' '.join(added)}")
    variable = limit_connections(args)
    if variable is not None:
        print_rank_0(f"nca-plugin: {variable}, which Megatron insists on for this parallelism, is set")


def check_frozen_layers(args: Namespace, selectors: list[str]) -> None:
    """Refuse to freeze some layers of a stack with an optimizer that Megatron could not save.

    Megatron stores the optimizer state of all layers as one tensor, which would have gaps. The distributed optimizer's
    own format can have gaps.
    """
    has_gaps = not args.use_distributed_optimizer or args.dist_ckpt_optim_fully_reshardable
    if has_gaps and args.save is not None and not args.no_save_optim:
        for selector in selectors:
            if "[" in selector or selector.startswith("re:"):
                raise NCAPluginError(
                    f"--freeze-list: '{selector}' freezes some layers and not others, and Megatron cannot save such an "
                    "optimizer: add --use-distributed-optimizer (without --dist-ckpt-optim-fully-reshardable)"
                )


# The checkpoint writer starts a process that imports this module again.
if __name__ == "__main__":
    main()
elif __name__ == "__mp_main__":
    die_with_spawning_process()
