"""The commands `generate`, `merge` and `verify` for generated datasets."""

import time
from typing import Annotated

import typer

from nca_plugin.display.terminal import MAX_PROCESSES, MAX_SEQ_LENGTH, num_cores, number_option, parse_shard, stages
from nca_plugin.errors import NCAPluginError


def generate(
    uri: Annotated[str, typer.Argument(help="A source, such as nca://web or 'dyck://?k=8'.")],
    tokens: Annotated[
        int, number_option("--tokens", "Number of tokens, such as 164M or 2.5B, rounded up to whole documents.")
    ],
    out: Annotated[str, typer.Option(help="Prefix of the files to write: a path, or a URL that fsspec knows.")],
    seq_length: Annotated[
        int,
        number_option("--seq-length", "Tokens per document: the --seq-length of your run.", most=MAX_SEQ_LENGTH),
    ] = 1024,
    workers: Annotated[
        int | None, number_option("--workers", "Number of processes (default: one per core).", most=MAX_PROCESSES)
    ] = None,
    shard: Annotated[
        str | None, typer.Option(help="Write only part i of N, given as i/N; `merge` joins the parts.")
    ] = None,
) -> None:
    """Write a source as a dataset (.bin and .idx) for Megatron. If interrupted, run the same command again."""
    from nca_plugin.indexed.generate import generate as generate_dataset
    from nca_plugin.indexed.merge import part_name
    from nca_plugin.indexed.storage import prefix_of

    start = time.monotonic()
    whole = prefix_of(out)
    number, count = (1, 1) if shard is None else parse_shard(shard)
    prefix = whole if shard is None else part_name(whole, number, count)
    with stages("tokens") as start_stage:
        manifest = generate_dataset(
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


def merge(
    out: Annotated[str, typer.Option(help="Prefix of the dataset to write.")],
    parts: Annotated[
        list[str] | None,
        typer.Argument(help="Parts, each given by its prefix or one of its files (default: all OUT-*-of-*)."),
    ] = None,
) -> None:
    """Join the parts that `generate --shard` wrote. If interrupted, run the same command again."""
    from nca_plugin.indexed.merge import find_parts
    from nca_plugin.indexed.merge import merge as merge_parts
    from nca_plugin.indexed.storage import prefix_of

    start = time.monotonic()
    prefix = prefix_of(out)
    with stages("tokens") as start_stage:
        manifest = merge_parts(list(map(prefix_of, parts or [])) or find_parts(prefix), prefix, start_stage)
    print(f"{prefix}: {manifest.summary} ({time.monotonic() - start:.1f} s)")
    print(f"Before you remove the parts: nca-plugin verify {prefix}")


def verify(
    prefix: Annotated[str, typer.Argument(help="Prefix of a dataset that `generate` wrote, or one of its files.")],
    documents: Annotated[
        int, number_option("--documents", "Number of documents to generate anew and compare.", least=0)
    ] = 16,
) -> None:
    """Check every byte of a dataset against its manifest, and some documents against their source."""
    from nca_plugin.indexed.storage import prefix_of
    from nca_plugin.indexed.verify import verify as verify_dataset

    start = time.monotonic()
    with stages("tokens") as start_stage:
        faults = verify_dataset(prefix_of(prefix), documents, start_stage)
    for fault in faults:
        print(fault)
    if faults:
        raise NCAPluginError(f"{prefix} is not right: see the lines above ({len(faults)})")
    generated = ", and the documents that were generated anew are equal" if documents else ""
    print(f"{prefix} is right: every byte is as it was written{generated} ({time.monotonic() - start:.1f} s)")
