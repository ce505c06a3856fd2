"""Commands that show or measure sources."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nca_plugin.display.terminal import MAX_PROCESSES, MAX_SEQ_LENGTH, at_work, num_cores, number_option, stages
from nca_plugin.errors import require
from nca_plugin.files import check_target, complete_files


def inspect(
    uri: Annotated[str, typer.Argument(help="A source, such as nca://web or 'dyck://?k=8'.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write (default: runs/inspect/<uri>).")] = None,
    count: Annotated[int, number_option("--count", "Number of sequences to draw.")] = 500,
    seq_length: Annotated[int, number_option("--seq-length", "Input tokens per sequence.", most=MAX_SEQ_LENGTH)] = 1024,
) -> None:
    """Draw sequences from a source and write a page of pictures and figures about them."""
    from nca_plugin.inspection.inspect import default_folder
    from nca_plugin.inspection.inspect import inspect as inspect_source
    from nca_plugin.sources import parse

    require("matplotlib", "scipy", "jinja2")
    with stages() as start_stage:
        page, *_ = inspect_source(
            parse(uri), out or default_folder(uri), count=count, seq_length=seq_length, start_stage=start_stage
        )
    print(f"Written: {page}, and its pictures beside it. Open it in a browser.")


def show(
    uri: Annotated[str, typer.Argument(help="A source, such as nca://web or 'dyck://?k=8'.")],
    index: Annotated[int, number_option("--index", "Index of the sample, from 0.", least=0)] = 0,
    split: Annotated[
        str | None, typer.Option(help="Split to show: train, valid or test (default: the split of the URI).")
    ] = None,
    seq_length: Annotated[
        int, number_option("--seq-length", "Input tokens of the sample.", most=MAX_SEQ_LENGTH)
    ] = 1024,
    fps: Annotated[float, typer.Option(help="Frames per second in a terminal.")] = 6.0,
) -> None:
    """Play a sample in the terminal: an automaton frame by frame, or a stream of tokens."""
    from nca_plugin.inspection.show import show as show_sample
    from nca_plugin.sources import parse

    source = parse(uri)
    show_sample(source if split is None else source.for_split(split), index, seq_length, fps, Console(highlight=False))


def bench(
    uris: Annotated[
        list[str] | None, typer.Argument(help="Sources to measure (default: nca://web and nca://code).")
    ] = None,
    seq_length: Annotated[int, number_option("--seq-length", "Tokens per sample.", most=MAX_SEQ_LENGTH)] = 1024,
    processes: Annotated[
        int | None,
        number_option(
            "--processes", "Largest number of processes to measure (default: one per core).", most=MAX_PROCESSES
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds to measure each number of processes for.")] = 5.0,
    json: Annotated[Path, typer.Option(help="JSON file for all figures.")] = Path("runs/bench.json"),
) -> None:
    """Measure how fast this machine makes tokens and where the time goes, beside the least time it could take."""
    from nca_plugin.inspection.benchmark import run_benchmark, table, to_json
    from nca_plugin.sources import parse

    check_target(json)
    sources = uris or ["nca://web", "nca://code"]
    for uri in sources:
        # Check every source before measuring the first.
        parse(uri).check_seq_length(seq_length)
    console = Console()
    results = []
    with at_work("starting") as say:
        for uri in sources:
            results.append(
                run_benchmark(uri, seq_length, num_cores() if processes is None else processes, seconds, say)
            )
            console.print(table(results[-1]))
    with complete_files(json) as (unfinished,):
        unfinished.write_text(to_json(results))
    console.print(f"Written: {json}", soft_wrap=True, highlight=False)
