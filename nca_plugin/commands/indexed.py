"""Commands for sources written to disk."""

import time
from typing import Annotated

import typer

from nca_plugin.display.terminal import MAX_PROCESSES, MAX_SEQ_LENGTH, num_cores, number_option, parse_shard, stages
from nca_plugin.errors import NCAPluginError


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
