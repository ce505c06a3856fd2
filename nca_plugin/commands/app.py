"""The `nca-plugin` command: it collects the commands and turns their errors into one line."""

import logging
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from nca_plugin.commands import chain, checkpoints, indexed, inspection, study, tasks, text
from nca_plugin.display.terminal import Command
from nca_plugin.errors import NCAPluginError, one_line, one_line_errors

app = typer.Typer(
    help="Neural cellular automata as pre-pre-training data for Megatron.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command that `sys.argv` names. Errors are printed as one line and give exit code 2."""
    # Importing Megatron warns of packages that are not installed. Only training needs them, and no command trains in
    # this process.
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\.")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with one_line_errors(of_every_rank=True):
        try:
            code = app(standalone_mode=False)
        except OSError as error:
            raise NCAPluginError(_system_message(error)) from error
        except MemoryError as error:
            raise NCAPluginError(f"out of memory{one_line(error) and ': '}{one_line(error)}") from error
        except Exception as error:
            # Usage errors are classes of the click inside typer, which typer does not export.
            if not hasattr(error, "format_message"):
                raise
            raise NCAPluginError(_usage_message(error, sys.argv)) from error
        sys.exit(code)


def _system_message(error: OSError) -> str:
    """Return the message for an error of the system, such as a full disk."""
    if error.strerror is None:
        return one_line(error) or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names and isinstance(error, FileNotFoundError) and not _has_folder():
        return "the current folder does not exist any more: change to another one"
    return ": ".join([*names, error.strerror])


def _has_folder() -> bool:
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


def _usage_message(error: Any, arguments: list[str]) -> str:
    """Return the message for a usage error. For a number it names the wrong value and what is expected."""
    message = " ".join(error.format_message().split())
    parameter = getattr(error, "param", None)
    if "Invalid value" not in message or parameter is None:
        return message
    for name in parameter.opts:
        for given, after in zip(arguments, [*arguments[1:], ""], strict=True):
            value = after if given == name else given.removeprefix(f"{name}=") if given.startswith(f"{name}=") else None
            if value is not None:
                rule = "a whole number" if "int" in message else "a number"
                return f"{name} {value}: must be {rule}"
    return message


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"nca-plugin {version('nca-plugin')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _without_command(
    context: typer.Context,
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


for function in (
    *(text.prepare, indexed.generate, indexed.merge, indexed.verify, checkpoints.transfer, checkpoints.export),
    *(study.study, text.match, checkpoints.doctor, chain.chain, inspection.bench, inspection.inspect, inspection.show),
    *(tasks.evaluate, tasks.examples, tasks.tokenizer),
):
    app.command("eval" if function is tasks.evaluate else None, cls=Command)(function)
