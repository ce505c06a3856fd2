"""Checking a dataset: that every byte is as it was written, and that documents are what the source makes."""

import itertools
import random
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.layout import MAGIC, IndexLayout
from nca_plugin.indexed.manifest import Shard, digest
from nca_plugin.indexed.storage import open_file, read_errors, read_manifest, size_faults, size_of
from nca_plugin.sources import parse, short_uri


def verify(prefix: str, num_documents: int, start_stage: StartStage = silent_stage) -> list[str]:
    """Return the faults of a dataset as messages, an empty list if there are none.

    Every file is read and compared with the manifest. In addition `num_documents` documents (the first, the last and
    random ones between) are generated anew and compared.

    Raises:
        NCAPluginError: the manifest is missing, damaged or from a newer version, so that there is nothing to compare
            with.
    """
    if num_documents < 0:
        raise NCAPluginError(f"{num_documents} documents to generate: must be at least 0")
    name = prefix + ".json"
    if size_of(name) is None:
        raise NCAPluginError(f"{name} does not exist{_what_else(prefix)}")
    manifest = read_manifest(prefix)
    shard = manifest.shard
    faults = list(size_faults(prefix, manifest))
    if size_of(prefix + ".idx") is not None:
        faults += _index_faults(prefix, shard.layout)
    advance = start_stage("reading", shard.num_documents * shard.spec.seq_length)
    for suffix, digests in ((".bin", manifest.bin_digests), (".next", manifest.next_digests)):
        if size_of(prefix + suffix) is None:
            continue
        with open_file(prefix + suffix) as file:
            damaged = []
            for block, expected in enumerate(digests):
                if digest(_read(prefix + suffix, file, shard, suffix, shard.documents(block))) != expected:
                    damaged.append(block)
                if suffix == ".bin":
                    advance(shard.num_tokens(block))
        faults += [_damage(prefix, shard, suffix, first, last) for first, last in _runs(damaged)]
    try:
        faults += _generation_faults(prefix, shard, num_documents, start_stage)
    except NCAPluginError as error:
        faults.append(f"{prefix} cannot be compared with its source: {error}")
    return faults


def _index_faults(prefix: str, layout: IndexLayout) -> Iterator[str]:
    """Yield the first difference from the .idx that the manifest determines."""
    name = prefix + ".idx"
    start = 0
    with read_errors(name), open_file(name) as file:
        for expected in layout.chunks():
            found = file.read(len(expected))
            if found != expected:
                if start == 0 and not found.startswith(MAGIC):
                    yield f"{name} is not an index: it begins with {found[: len(MAGIC)]!r}, not with {MAGIC!r}"
                else:
                    pairs = zip(found, expected, strict=False)
                    offset = next((i for i, (a, b) in enumerate(pairs) if a != b), len(found))
                    yield f"{name} is wrong from byte {start + offset:,} on: {layout.describe(start + offset)}"
                return
            start += len(expected)


def _damage(prefix: str, shard: Shard, suffix: str, first: int, last: int) -> str:
    rows = range(shard.documents(first).start, shard.documents(last).stop)
    size = shard.sizes[suffix] // shard.num_documents
    return (
        f"{prefix}{suffix} is not as it was written in documents {rows.start:,} .. {rows.stop - 1:,} (bytes "
        f"{rows.start * size:,} .. {rows.stop * size - 1:,})"
    )


def _runs(blocks: list[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last of each run of consecutive numbers."""
    for _, group in itertools.groupby(enumerate(blocks), lambda pair: pair[1] - pair[0]):
        numbers = [block for _, block in group]
        yield numbers[0], numbers[-1]


def _generation_faults(prefix: str, shard: Shard, count: int, start_stage: StartStage) -> Iterator[str]:
    """Generate `count` documents anew, and yield a message for each that differs from the files."""
    spec = shard.spec
    if not count or any(size_of(prefix + suffix) is None for suffix in (".bin", ".next")):
        return
    last = shard.num_documents - 1
    between = random.sample(range(1, last), min(max(0, count - 2), max(0, last - 1)))
    chosen = sorted({0, last, *between})[:count]
    advance = start_stage("generating", len(chosen) * spec.seq_length)
    source, uri = parse(spec.uri), short_uri(spec.uri)
    with open_file(prefix + ".bin") as tokens, open_file(prefix + ".next") as following:
        for document in chosen:
            index = shard.first_document + document
            rows = range(document, document + 1)
            files = ((tokens, ".bin"), (following, ".next"))
            data = b"".join(_read(prefix + suffix, file, shard, suffix, rows) for file, suffix in files)
            sample = source.sample(index, spec.seq_length)
            expected = sample.tokens.astype(np.dtype(spec.dtype).newbyteorder("<")).tobytes()
            if data != expected:
                yield f"{prefix}: document {document:,} is not sample {index:,} of {uri}"
            elif not np.array_equal(sample.loss_mask, spec.loss_mask):
                yield f"{prefix}: sample {index:,} of {uri} supervises other targets than {prefix}.json says"
            advance(spec.seq_length)


def _read(name: str, file: BinaryIO, shard: Shard, suffix: str, rows: range) -> bytes:
    """Return the bytes of some documents from the file `name`, fewer if the file ends before."""
    size = shard.sizes[suffix] // shard.num_documents
    with read_errors(name):
        file.seek(rows.start * size)
        return file.read(len(rows) * size)


def _what_else(prefix: str) -> str:
    """Return the end of the message for a missing manifest: which other files lie under the prefix, and what to do."""
    if size_of(prefix + ".journal") is not None:
        return f", but {prefix}.journal does: the dataset is unfinished; run the command that writes it again"
    if size_of(prefix + ".idx") is None:
        return f", nor {prefix}.idx: there is nothing to verify"
    with open_file(prefix + ".idx") as file:
        is_index = file.read(len(MAGIC)) == MAGIC
    is_what = "an index of other origin" if is_index else "not an index"
    return f", and {prefix}.idx is {is_what}: there is nothing to compare it with"
