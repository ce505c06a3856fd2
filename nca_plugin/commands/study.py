"""The command that runs a study."""

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nca_plugin.display.terminal import StudyProgress, at_work
from nca_plugin.errors import NCAPluginError, require

#: Width of the tables in characters where standard output is not a terminal.
_WIDTH_OF_FILES = 120


def study(
    config: Annotated[Path, typer.Argument(help="A study file, such as conf/study/laptop.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hydra overrides, such as seeds=[1,2,3].")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print the time, disk and tokens it needs, and start nothing.")
    ] = False,
    teraflops: Annotated[
        float | None, typer.Option(help="With --estimate: teraflop/s that one device reaches in training.")
    ] = None,
    find_stage1: Annotated[
        bool, typer.Option("--find-stage1", help="End after stage 1, and print how much of it each arm has learned.")
    ] = False,
    power: Annotated[bool, typer.Option("--power", help="Print how many seeds it needs, and start nothing.")] = False,
) -> None:
    """Train from several starts on the same text and compare. If interrupted, run the same command again."""
    from nca_plugin.study.file import load_study

    loaded = load_study(config, overrides or [])
    require("torch", "megatron.core", "matplotlib", "scipy", "jinja2")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES)
    if teraflops is not None and not (estimate and 0 < teraflops < math.inf):
        raise NCAPluginError(f"--teraflops {teraflops:g}: must be a finite number above 0, beside --estimate")
    if find_stage1 and (estimate or power):
        raise NCAPluginError("--find-stage1 trains, --estimate and --power do not: give one of them")
    if estimate:
        from nca_plugin.study.devices import cuda_devices
        from nca_plugin.study.estimate import cpu_teraflops, needs
        from nca_plugin.study.estimate import tables as needs_tables

        with at_work("checking the runs' arguments"):
            needed = needs_tables(needs(loaded), teraflops, None if cuda_devices() else cpu_teraflops())
        for table in needed:
            console.print(table)
    if power:
        from nca_plugin.study.power import power_tables

        for table in power_tables(loaded.output):
            console.print(table)
    if estimate or power:
        return
    from nca_plugin.study.report.tables import stage1_tables, tables
    from nca_plugin.study.report.words import verdict
    from nca_plugin.study.report.write import write_report, write_stage1
    from nca_plugin.study.results import results
    from nca_plugin.study.study import run_study

    with StudyProgress(console) as progress:
        found = run_study(loaded, progress, only_stage1=find_stage1)
    values = results(loaded, found)
    if find_stage1:
        for table in stage1_tables(values):
            console.print(table)
        console.print(f"Written: {write_stage1(values, loaded.output)}", soft_wrap=True, highlight=False, markup=False)
        return
    for table in tables(values):
        console.print(table)
    console.print(verdict(values), markup=False, highlight=False)
    paths = write_report(values, loaded.output)
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True, highlight=False, markup=False, emoji=False)
