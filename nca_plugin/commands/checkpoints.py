"""Commands for checkpoints, and `doctor`."""

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from nca_plugin.checkpoint.names import SELECTORS
from nca_plugin.display.terminal import MAX_PROCESSES, num_cores, number_option, short, stages
from nca_plugin.errors import NCAPluginError, require
from nca_plugin.transition.plan import PRESETS
from nca_plugin.transition.summary import next_steps, plan_table, start_arguments, summary

_SELECTORS = ", ".join(SELECTORS)


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
    from nca_plugin.transition.changes import Transition
    from nca_plugin.transition.transfer import transfer as transfer_checkpoint

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
    from nca_plugin.huggingface.export import export_hf
    from nca_plugin.huggingface.importing import import_hf

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
    from nca_plugin.lineage.diagnosis import diagnose

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
