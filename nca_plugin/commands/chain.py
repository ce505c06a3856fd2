"""The command that shows and checks a chain."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nca_plugin.display.terminal import at_work, number_option
from nca_plugin.errors import NCAPluginError

#: The exit code for a chain that is not complete: EX_TEMPFAIL, "try again later".
_INCOMPLETE = 75


def chain(
    config: Annotated[Path, typer.Argument(help="A chain file, such as conf/chain/demo.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Hydra overrides, the same as for the launcher.")
    ] = None,
    ranks: Annotated[int, number_option("--ranks", "Number of processes that torchrun will start in total.")] = 1,
    is_complete: Annotated[
        bool, typer.Option("--is-complete", help="Only exit, with 0 if the chain is complete, else 75. For scripts.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Ask the job that trains the chain to save and stop.")] = False,
) -> None:
    """Show how far each stage of a chain is, and check the arguments of all stages before anything is trained."""
    from nca_plugin.chain.next_stage import next_stage, survey
    from nca_plugin.chain.stages import load_chain
    from nca_plugin.chain.table import commands, state_table

    settings = load_chain(config, overrides or [])
    if stop:
        if not settings.folder.is_dir():
            raise NCAPluginError(f"folder {settings.folder} does not exist: no job has begun this chain")
        if next_stage(survey(settings)) is None:
            raise NCAPluginError("all stages of this chain are complete: there is no job to stop")
        settings.stop_file.touch()
        print(f"Wrote {settings.stop_file}: the job will save, remove this file and stop.")
        return
    states = survey(settings)
    if is_complete:
        sys.exit(0 if all(state.is_complete for state in states) else _INCOMPLETE)
    table = state_table(states)
    Console(width=max(Console(width=1000).measure(table).maximum, 80)).print(table)
    print("\n" + "\n".join(commands(settings, ranks)))
    from nca_plugin.chain.check import check_stages

    with at_work("checking the stages"):
        check_stages(settings, ranks)
    print(f"\nAll stages can be trained by {ranks} rank{'s' if ranks > 1 else ''}.")
