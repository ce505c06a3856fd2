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
from nca_plugin.transition.presets import PRESETS
from nca_plugin.transition.summary import next_steps, plan_table, start_arguments, summary

_SELECTORS = ", ".join(SELECTORS)


def transfer(
    origin: Annotated[
        Path,
        typer.Option("--from", help="Checkpoint to read: a save folder, one iteration's folder, or a NeMo 2 folder."),
    ],
    target: Annotated[Path, typer.Option("--to", help="Folder to write; it must not exist.")],
    preset: Annotated[str, typer.Option(help=f"Which parts to keep: {', '.join(PRESETS)}.")] = "default",
    keep: Annotated[list[str] | None, typer.Option(help=f"Also keep these parts: {_SELECTORS}.")] = None,
    reinit: Annotated[list[str] | None, typer.Option(help="Also draw these parts anew.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Leave these parts out.")] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(help="Parts to list in freeze.txt, the --freeze-list of the next stage.")
    ] = None,
    vocab_size: Annotated[
        int | None, number_option("--vocab-size", "Vocabulary size of the next stage: its highest id plus one.")
    ] = None,
    keep_rows: Annotated[
        str | None, typer.Option(help="Rows of embedding and output to keep in place, such as 0:256.")
    ] = None,
    row_map: Annotated[Path | None, typer.Option(help="File of rows to move, with a line 'new old' for each.")] = None,
    make_vocab_size_divisible_by: Annotated[
        int | None,
        number_option("--make-vocab-size-divisible-by", "This Megatron argument of the next stage."),
    ] = None,
    tensor_model_parallel_size: Annotated[
        int | None,
        number_option("--tensor-model-parallel-size", "Tensor-parallel size of the next stage, for the padding."),
    ] = None,
    seed: Annotated[int, number_option("--seed", "Seed of the new values.", least=0)] = 1234,
    layout: Annotated[
        str, typer.Option(help="`link` links to the old files; `copy` makes an independent checkpoint.")
    ] = "link",
    verify: Annotated[bool, typer.Option(help="Also check the checksums of what is linked.")] = False,
    workers: Annotated[
        int | None,
        number_option("--workers", "Number of threads (default: one per core, at most 8).", most=MAX_PROCESSES),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan and write nothing.")] = False,
) -> None:
    """Write the start checkpoint of the next stage: new vocabulary, no optimizer state, iteration 0."""
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
    # A cut or folded name could not be copied, so lines may be wider than the terminal.
    Console(width=Console(width=1000).measure(table).maximum).print(table)
    print(summary(report))
    if dry_run:
        print("Dry run: nothing was written.")
        return
    print(f"Written in {time.monotonic() - start:.1f} s; every tensor is listed in {target}/transfer_report.json.")
    for line in next_steps(report, target):
        print(line)


def export(
    source: Annotated[Path, typer.Argument(help="Checkpoint of a Llama, or its Hugging Face folder.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; it must not exist.")],
    to: Annotated[str | None, typer.Option("--to", help="`hf` writes a Hugging Face folder.")] = None,
    from_: Annotated[
        str | None, typer.Option("--from", help="`hf` reads a Hugging Face folder and writes a Megatron-LM checkpoint.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="With --to hf: folder of the tokenizer to copy.")] = None,
    vocab_size: Annotated[
        int | None,
        number_option("--vocab-size", "With --to hf: vocabulary size of the tokenizer; other rows are left out."),
    ] = None,
    make_vocab_size_divisible_by: Annotated[
        int | None,
        number_option("--make-vocab-size-divisible-by", "With --from hf: this argument of the run (default: 128)."),
    ] = None,
    tensor_model_parallel_size: Annotated[
        int | None,
        number_option(
            "--tensor-model-parallel-size",
            "With --from hf: tensor-parallel size of the run, for the padding (default: 1).",
        ),
    ] = None,
    seed: Annotated[
        int | None, number_option("--seed", "With --from hf: seed of the padding rows (default: 1234).", least=0)
    ] = None,
) -> None:
    """Turn a Megatron checkpoint of a Llama into a Hugging Face folder, or the other way."""
    from nca_plugin.huggingface.export import export_hf
    from nca_plugin.huggingface.importing import import_hf

    if (to, from_) not in (("hf", None), (None, "hf")):
        raise NCAPluginError("the direction is missing: give --to hf or --from hf; there is no other format")
    export_options = {"tokenizer": tokenizer, "vocab_size": vocab_size}
    import_options = {
        "make_vocab_size_divisible_by": make_vocab_size_divisible_by,
        "tensor_model_parallel_size": tensor_model_parallel_size,
        "seed": seed,
    }
    ours, others = (export_options, import_options) if to else (import_options, export_options)
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
    checkpoint: Annotated[Path | None, typer.Argument(help="Checkpoint whose training data to report.")] = None,
    data: Annotated[
        str | None, typer.Option(help="A run's --data-path: report whether the checkpoint can resume with it.")
    ] = None,
) -> None:
    """Report what works on this machine and how to fix the rest. The exit code is 2 if something is broken."""
    if checkpoint is None:
        from nca_plugin.doctor.screen import run

        if data is not None:
            raise NCAPluginError("--data is compared with a checkpoint: name a checkpoint")
        if run():
            raise NCAPluginError("something is broken here: see the lines above")
        return
    from nca_plugin.lineage.diagnosis import diagnose

    blend: tuple[list[str], list[float] | None] | None = None
    if data is not None and len(data.split()) == 1:
        blend = [data], None
    elif data is not None:
        # Imported here, because importing Megatron takes seconds.
        from nca_plugin.megatron.blend import read_blend

        blend = read_blend(data, "--data")
    diagnosis = diagnose(checkpoint, blend)
    print("\n".join(diagnosis.lines))
    if not diagnosis.is_right:
        raise NCAPluginError(f"checkpoint {checkpoint} does not fit this machine or these data: see the lines above")
