"""The `nca-plugin` command: one thin command per capability."""

import logging
import math
import os
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nca_plugin import cli_tasks
from nca_plugin.checkpoint.names import SELECTORS
from nca_plugin.checkpoint.plan import PRESETS
from nca_plugin.errors import NCAPluginError, one_line, one_line_errors, require
from nca_plugin.terminal import (
    MAX_PROCESSES,
    MAX_SEQ_LENGTH,
    Command,
    StudyProgress,
    at_work,
    num_cores,
    number_option,
    parse_shard,
    short,
    stages,
)

_SELECTORS = ", ".join(SELECTORS)

#: The exit code for work that is left: EX_TEMPFAIL, "try again later".
_INCOMPLETE = 75
#: Of tables where no terminal tells its own.
_WIDTH_OF_FILES = 120

#: Options of the commands that read text.
_Inputs = Annotated[
    list[str],
    typer.Argument(help="Files of text or JSON rows, compressed or not, directories, or Hugging Face data sets."),
]
_Pattern = Annotated[str, typer.Option(help="Files to take from a directory, such as '*.py'.")]
_Exclude = Annotated[list[str] | None, typer.Option(help="Names of files and directories to leave out.")]
_TextKey = Annotated[str, typer.Option(help="Field of a row that holds the text.")]
_Split = Annotated[str, typer.Option(help="Split of a Hugging Face data set.")]

app = typer.Typer(
    help="Neural cellular automata as pre-pre-training data for Megatron.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command of this process's arguments. Errors are one line and exit code 2."""
    # What Megatron's import says of packages that are not installed concerns training, which no command does in this
    # process.
    warnings.filterwarnings("ignore", module=r"(megatron|torch)\.")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    with one_line_errors(of_every_rank=True):
        try:
            code = app(standalone_mode=False)
        except OSError as error:
            raise NCAPluginError(_of_the_system(error)) from error
        except MemoryError as error:
            raise NCAPluginError(f"out of memory{one_line(error) and ': '}{one_line(error)}") from error
        except Exception as error:
            # Usage errors are classes of the click that typer carries within, which it does not export.
            if not hasattr(error, "format_message"):
                raise
            raise NCAPluginError(_of_usage(error, sys.argv)) from error
        sys.exit(code)


def _of_the_system(error: OSError) -> str:
    """Return the line of an error that may come from any use of a file, such as that of a full disk."""
    if error.strerror is None:
        return one_line(error) or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    if not names and isinstance(error, FileNotFoundError) and not _has_folder():
        return "the folder that the command was started in does not exist any more: change to another"
    return ": ".join([*names, error.strerror])


def _has_folder() -> bool:
    try:
        return bool(Path.cwd())
    except FileNotFoundError:
        return False


def _of_usage(error: Any, arguments: list[str]) -> str:
    """Return the line of an error of usage, with the value that is wrong and what would be right."""
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


@app.command(cls=Command)
def prepare(
    inputs: _Inputs,
    out: Annotated[str, typer.Option(help="Prefix of the .bin and .idx to write.")],
    tokenizer: Annotated[str, typer.Option(help="`bytes`, or what transformers.AutoTokenizer loads.")] = "bytes",
    pattern: _Pattern = "*",
    exclude: _Exclude = None,
    text_key: _TextKey = "text",
    split: _Split = "train",
) -> None:
    """Turn text into Megatron's .bin and .idx."""
    from nca_plugin.prepare import BYTES, Corpus, input_bytes
    from nca_plugin.prepare import prepare as prepare_corpus

    require("torch", "megatron.core", *(() if tokenizer == BYTES else ("transformers",)))
    corpus = Corpus(
        inputs=tuple(inputs),
        tokenizer=tokenizer,
        pattern=pattern,
        exclude=tuple(exclude or ()),
        text_key=text_key,
        split=split,
    )
    with stages("B") as start_stage:
        result = prepare_corpus(corpus, out, start_stage("tokenising", input_bytes(corpus) or 0))
    print(
        f"{result.documents:,} documents, {result.tokens:,} tokens: {result.prefix}.bin, {result.prefix}.idx. "
        f"Train with --data-path {result.prefix} and a vocabulary of {result.vocab_size}."
    )
    for note in result.notes:
        print(f"Note: {note}.")


@app.command(cls=Command)
def generate(
    uri: Annotated[str, typer.Argument(help="A source, such as nca://web or 'dyck://?k=8'.")],
    tokens: Annotated[
        int, number_option("--tokens", "How many tokens, such as 164M or 2.5B; rounded up to whole documents.")
    ],
    out: Annotated[str, typer.Option(help="Prefix of the files to write: a path, or a URL that fsspec knows.")],
    seq_length: Annotated[
        int, number_option("--seq-length", "Tokens of a document: Megatron's --seq-length.", most=MAX_SEQ_LENGTH)
    ] = 1024,
    workers: Annotated[
        int | None, number_option("--workers", "Processes (default: one a core).", most=MAX_PROCESSES)
    ] = None,
    shard: Annotated[str | None, typer.Option(help="Write part i of N, as i/N; `merge` joins them.")] = None,
) -> None:
    """Write a source as Megatron's .bin and .idx. Interrupted, the same command continues."""
    from nca_plugin.indexed.generate import generate as generate_corpus
    from nca_plugin.indexed.merge import part_name
    from nca_plugin.indexed.storage import prefix_of

    start = time.monotonic()
    whole = prefix_of(out)
    number, count = (1, 1) if shard is None else parse_shard(shard)
    prefix = whole if shard is None else part_name(whole, number, count)
    with stages("tokens") as start_stage:
        manifest = generate_corpus(
            uri,
            prefix,
            num_tokens=tokens,
            seq_length=seq_length,
            num_workers=num_cores() if workers is None else workers,
            shard=(number, count),
            start_stage=start_stage,
        )
    print(f"{prefix}: {manifest.summary} ({time.monotonic() - start:.1f} s)")
    if shard is not None:
        print(f"When all {count} parts are there: nca-plugin merge --out {whole}")


@app.command(cls=Command)
def merge(
    out: Annotated[str, typer.Option(help="Prefix of the corpus to write.")],
    parts: Annotated[
        list[str] | None, typer.Argument(help="Prefixes of the parts, or a file of each; OUT-*-of-* if none is named.")
    ] = None,
) -> None:
    """Join the parts that `generate --shard` wrote. Interrupted, the same command continues."""
    from nca_plugin.indexed.merge import find_parts
    from nca_plugin.indexed.merge import merge as merge_parts
    from nca_plugin.indexed.storage import prefix_of

    start = time.monotonic()
    prefix = prefix_of(out)
    with stages("tokens") as start_stage:
        manifest = merge_parts(list(map(prefix_of, parts or [])) or find_parts(prefix), prefix, start_stage)
    print(f"{prefix}: {manifest.summary} ({time.monotonic() - start:.1f} s)")
    print(f"Before you remove the parts: nca-plugin verify {prefix}")


@app.command(cls=Command)
def verify(
    prefix: Annotated[str, typer.Argument(help="Prefix of a corpus that `generate` wrote, or one of its files.")],
    documents: Annotated[int, number_option("--documents", "Documents to generate anew and compare.", least=0)] = 16,
) -> None:
    """Check every byte of a corpus against its manifest, and some documents against their source."""
    from nca_plugin.indexed.storage import prefix_of
    from nca_plugin.indexed.verify import verify as verify_corpus

    start = time.monotonic()
    with stages("tokens") as start_stage:
        faults = verify_corpus(prefix_of(prefix), documents, start_stage)
    for fault in faults:
        print(fault)
    if faults:
        raise NCAPluginError(f"{prefix} is not right: see the lines above ({len(faults)})")
    generated = ", and the documents that were generated anew are equal" if documents else ""
    print(f"{prefix} is right: every byte is as it was written{generated} ({time.monotonic() - start:.1f} s)")


@app.command(cls=Command)
def transfer(
    origin: Annotated[
        Path, typer.Option("--from", help="A checkpoint: a save folder, one iteration's, or NeMo 2's folder.")
    ],
    target: Annotated[Path, typer.Option("--to", help="The folder to write; it must not exist.")],
    preset: Annotated[str, typer.Option(help=f"What is kept: {', '.join(PRESETS)}.")] = "default",
    keep: Annotated[list[str] | None, typer.Option(help=f"Keep this too: {_SELECTORS}.")] = None,
    reinit: Annotated[list[str] | None, typer.Option(help="Draw this anew too.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Leave this out.")] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(help="List this in freeze.txt, for the next stage's --freeze-list.")
    ] = None,
    vocab_size: Annotated[
        int | None, number_option("--vocab-size", "Ids of the next stage's tokenizer: one more than the highest.")
    ] = None,
    keep_rows: Annotated[str | None, typer.Option(help="Rows of embedding and output to keep, such as 0:256.")] = None,
    row_map: Annotated[Path | None, typer.Option(help="File of rows to keep elsewhere: 'new old' lines.")] = None,
    make_vocab_size_divisible_by: Annotated[
        int | None,
        number_option("--make-vocab-size-divisible-by", "Megatron's padding of the vocabulary in the next stage."),
    ] = None,
    tensor_model_parallel_size: Annotated[
        int | None,
        number_option(
            "--tensor-model-parallel-size", "Of the next stage; the vocabulary is padded to a multiple of it."
        ),
    ] = None,
    seed: Annotated[int, number_option("--seed", "Seed of the new values.", least=0)] = 1234,
    layout: Annotated[
        str, typer.Option(help="link: refer to the old bytes; copy: an independent checkpoint.")
    ] = "link",
    verify: Annotated[bool, typer.Option(help="Read all that is linked and check its checksums.")] = False,
    workers: Annotated[
        int | None, number_option("--workers", "Threads (default: one a core, at most 8).", most=MAX_PROCESSES)
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and write nothing.")] = False,
) -> None:
    """Turn a checkpoint into the start of the next stage: new vocabulary, no optimizer state, iteration 0."""
    from nca_plugin.checkpoint.changes import Transition
    from nca_plugin.checkpoint.report import next_steps, plan_table, summary
    from nca_plugin.checkpoint.transfer import transfer as transfer_checkpoint

    start = time.monotonic()
    transition = Transition(
        preset=preset,
        keep=keep or (),
        reinit=reinit or (),
        drop=drop or (),
        freeze=freeze or (),
        vocab_size=vocab_size,
        make_vocab_size_divisible_by=make_vocab_size_divisible_by,
        tensor_model_parallel_size=tensor_model_parallel_size,
        keep_rows=keep_rows,
        row_map=row_map,
        seed=seed,
        layout=layout,
        verify=verify,
    )
    with stages("B") as start_stage:
        report = transfer_checkpoint(
            origin,
            target,
            transition,
            dry_run=dry_run,
            command=sys.argv,
            num_workers=min(num_cores(), 8) if workers is None else workers,
            start_stage=start_stage,
        )
    table = plan_table(report)
    # A name that is cut, or folded, is of no use: a line may be longer than the terminal.
    Console(width=Console(width=1000).measure(table).maximum).print(table)
    print(summary(report))
    if dry_run:
        print("Dry run: nothing was written.")
        return
    print(f"Written in {time.monotonic() - start:.1f} s; every tensor is listed in {target}/transfer_report.json.")
    for line in next_steps(report, target):
        print(line)


@app.command(cls=Command)
def export(
    source: Annotated[Path, typer.Argument(help="A checkpoint of a Llama, or its Hugging Face folder.")],
    target: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    to: Annotated[str | None, typer.Option("--to", help="hf: write a Hugging Face folder.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="hf: read one, write a Megatron-LM checkpoint.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="To hf: the tokenizer's folder, which is copied.")] = None,
    vocab_size: Annotated[
        int | None, number_option("--vocab-size", "To hf: ids of the tokenizer, whose rows are written.")
    ] = None,
    make_vocab_size_divisible_by: Annotated[
        int | None,
        number_option("--make-vocab-size-divisible-by", "From hf: Megatron's padding of the vocabulary (128)."),
    ] = None,
    tensor_model_parallel_size: Annotated[
        int | None,
        number_option(
            "--tensor-model-parallel-size",
            "From hf: of the next stage; the vocabulary is padded to a multiple of it (1).",
        ),
    ] = None,
    seed: Annotated[
        int | None, number_option("--seed", "From hf: seed of the rows that pad it (1234).", least=0)
    ] = None,
) -> None:
    """Turn a Megatron checkpoint of a Llama into a Hugging Face folder, or the other way."""
    from nca_plugin.checkpoint.from_huggingface import import_hf
    from nca_plugin.checkpoint.report import start_arguments
    from nca_plugin.checkpoint.to_huggingface import export_hf

    if (to, from_) not in (("hf", None), (None, "hf")):
        raise NCAPluginError("say which way: --to hf, or --from hf; there is no other format")
    of_export = {"tokenizer": tokenizer, "vocab_size": vocab_size}
    of_import = {
        "make_vocab_size_divisible_by": make_vocab_size_divisible_by,
        "tensor_model_parallel_size": tensor_model_parallel_size,
        "seed": seed,
    }
    ours, others = (of_export, of_import) if to else (of_import, of_export)
    for name, value in others.items():
        if value is not None:
            raise NCAPluginError(f"--{name.replace('_', '-')} has no meaning with {'--to' if to else '--from'} hf")
    options: dict[str, Any] = {name: value for name, value in ours.items() if value is not None}
    require("transformers")
    start = time.monotonic()
    with stages("B") as start_stage:
        if to:
            exported = export_hf(source, target, **options, start_stage=start_stage)
        else:
            imported = import_hf(source, target, **options, num_workers=min(num_cores(), 8), start_stage=start_stage)
    done = exported if to else imported
    llama = done.llama
    print(
        f"{target}: a Llama of {llama.num_layers} layers, {short(done.num_values)} values in {short(done.num_bytes)}B "
        f"({time.monotonic() - start:.1f} s)."
    )
    for note in done.notes:
        print(f"Note: {note}.")
    if to:
        print(f"Vocabulary: {llama.vocab_size:,} ids. Load it with AutoModelForCausalLM.from_pretrained('{target}').")
        return
    print(f"Vocabulary: {llama.vocab_size:,} ids in {imported.rows:,} rows.")
    print(f"Start a run with {start_arguments('megatron', target)} {' '.join(imported.arguments)}")


@app.command(cls=Command)
def study(
    config: Annotated[Path, typer.Argument(help="A study file, such as conf/study/laptop.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hydra overrides, such as seeds=[1,2,3].")] = None,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it takes, and start nothing.")] = False,
    teraflops: Annotated[float | None, typer.Option(help="With --estimate: what a device reaches in training.")] = None,
    power: Annotated[bool, typer.Option("--power", help="Say how many seeds it needs, and start nothing.")] = False,
) -> None:
    """Train from several starts on the same text and compare. Interrupted, the same command continues."""
    from nca_plugin.study.file import load_study

    loaded = load_study(config, overrides or [])
    require("torch", "megatron.core", "matplotlib", "scipy")
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES)
    if teraflops is not None and not (estimate and 0 < teraflops < math.inf):
        raise NCAPluginError(f"--teraflops {teraflops:g}: must be a finite number above 0, beside --estimate")
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
    from nca_plugin.study.report.tables import tables
    from nca_plugin.study.report.words import verdict
    from nca_plugin.study.report.write import write_report
    from nca_plugin.study.results import results
    from nca_plugin.study.study import run_study

    with StudyProgress(console) as progress:
        found = run_study(loaded, progress)
    values = results(loaded, found)
    for table in tables(values):
        console.print(table)
    console.print(verdict(values), markup=False, highlight=False)
    paths = write_report(values, loaded.output)
    console.print(f"Written: {', '.join(map(str, paths))}", soft_wrap=True, highlight=False, markup=False, emoji=False)


@app.command(cls=Command)
def match(
    inputs: _Inputs,
    source: Annotated[str, typer.Option(help="The automata, such as 'nca://web?num_colors=15'.")] = "nca://web",
    pattern: _Pattern = "*",
    exclude: _Exclude = None,
    text_key: _TextKey = "text",
    split: _Split = "train",
) -> None:
    """Measure the gzip ratio of a text and propose a band of gzip scores for automata to train on before it."""
    from nca_plugin.matching.match import match as match_corpus
    from nca_plugin.matching.report import summary
    from nca_plugin.prepare import Corpus

    corpus = Corpus(inputs=tuple(inputs), pattern=pattern, exclude=tuple(exclude or ()), text_key=text_key, split=split)
    with stages() as start_stage:
        found = match_corpus(corpus, source, start_stage)
    print(summary(found))


@app.command(cls=Command)
def doctor(
    checkpoint: Annotated[Path | None, typer.Argument(help="A checkpoint, to say what it was trained on.")] = None,
    data: Annotated[
        str | None, typer.Option(help="As --data-path of a run, to say whether the checkpoint resumes with it.")
    ] = None,
) -> None:
    """Say what works on this machine, and what to do about what does not. Exit code 2 if something is broken."""
    if checkpoint is None:
        from nca_plugin.doctor.screen import run

        if data is not None:
            raise NCAPluginError("--data is compared with a checkpoint: name one")
        if run():
            raise NCAPluginError("something is broken here: see the lines above")
        return
    from nca_plugin.checkpoint.diagnosis import diagnose

    blend: tuple[list[str], list[float] | None] | None = None
    if data is not None and len(data.split()) == 1:
        blend = [data], None
    elif data is not None:
        # Only here, because importing Megatron takes seconds.
        from nca_plugin.megatron.blend import read_blend

        blend = read_blend(data, "--data")
    diagnosis = diagnose(checkpoint, blend)
    print("\n".join(diagnosis.lines))
    if not diagnosis.is_right:
        raise NCAPluginError(
            f"checkpoint {checkpoint} is not what this machine or these data make: see the lines above"
        )


@app.command(cls=Command)
def chain(
    config: Annotated[Path, typer.Argument(help="A chain file, such as conf/chain/demo.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Hydra overrides, as the launcher gets.")] = None,
    ranks: Annotated[int, number_option("--ranks", "Processes that torchrun will start in all.")] = 1,
    is_complete: Annotated[
        bool, typer.Option("--is-complete", help="For scripts: exit code 0 if it is, else 75; nothing is checked.")
    ] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Have the job that trains it save and end in order.")] = False,
) -> None:
    """Show how far the stages of a chain are, and check all of its file before anything is trained."""
    from nca_plugin.chain.config import load_chain
    from nca_plugin.chain.files import survey
    from nca_plugin.chain.report import commands, state_table

    settings = load_chain(config, overrides or [])
    if stop:
        if not settings.folder.is_dir():
            raise NCAPluginError(f"folder {settings.folder} does not exist: no job has begun this chain")
        settings.stop_file.touch()
        print(f"Asked to stop, by {settings.stop_file}: the job saves, removes that file, and ends.")
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


@app.command(cls=Command)
def bench(
    uris: Annotated[
        list[str] | None, typer.Argument(help="Sources; nca://web and nca://code if none is named.")
    ] = None,
    seq_length: Annotated[int, number_option("--seq-length", "Tokens of a sample.", most=MAX_SEQ_LENGTH)] = 1024,
    processes: Annotated[
        int | None, number_option("--processes", "Most processes at once (default: one a core).", most=MAX_PROCESSES)
    ] = None,
    seconds: Annotated[float, typer.Option(help="Seconds to measure for each number of processes.")] = 5.0,
    json: Annotated[Path, typer.Option(help="File to write all figures to.")] = Path("runs/bench.json"),
) -> None:
    """Measure how fast this machine makes tokens, where the time goes, and the least that it could take."""
    from nca_plugin.benchmark.report import run_benchmark, table, to_json
    from nca_plugin.files import check_target, complete_files
    from nca_plugin.sources import parse

    check_target(json)
    sources = uris or ["nca://web", "nca://code"]
    for uri in sources:
        # All of them, before the first is measured.
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


@app.command(cls=Command)
def inspect(
    uri: Annotated[str, typer.Argument(help="A source, such as nca://web or 'dyck://?k=8'.")],
    out: Annotated[Path | None, typer.Option(help="Folder to write; runs/inspect/<uri> if absent.")] = None,
    count: Annotated[int, number_option("--count", "Sequences to draw.")] = 500,
    seq_length: Annotated[int, number_option("--seq-length", "Inputs of a sequence.", most=MAX_SEQ_LENGTH)] = 1024,
) -> None:
    """Draw sequences of a source as a page of pictures and figures."""
    from nca_plugin.inspection.report import default_folder
    from nca_plugin.inspection.report import inspect as inspect_source
    from nca_plugin.sources import parse

    require("matplotlib")
    with stages() as start_stage:
        page, *_ = inspect_source(
            parse(uri), out or default_folder(uri), count=count, seq_length=seq_length, start_stage=start_stage
        )
    print(f"Written: {page}, and its pictures beside it. Open it in a browser.")


@app.command(cls=Command)
def show(
    uri: Annotated[str, typer.Argument(help="A source, such as nca://web or 'dyck://?k=8'.")],
    index: Annotated[int, number_option("--index", "Which sample, 0 or more.", least=0)] = 0,
    split: Annotated[str | None, typer.Option(help="train, valid or test; the URI's own if absent.")] = None,
    seq_length: Annotated[int, number_option("--seq-length", "Inputs of the sample.", most=MAX_SEQ_LENGTH)] = 1024,
    fps: Annotated[float, typer.Option(help="Frames a second in a terminal.")] = 6.0,
) -> None:
    """Play a sample in the terminal: an automaton frame by frame, or a stream of tokens."""
    from nca_plugin.inspection.show import show as show_sample
    from nca_plugin.sources import parse

    source = parse(uri)
    show_sample(source if split is None else source.for_split(split), index, seq_length, fps, Console(highlight=False))


app.command("eval", cls=Command)(cli_tasks.evaluate)
app.command(cls=Command)(cli_tasks.examples)
app.command(cls=Command)(cli_tasks.tokenizer)
