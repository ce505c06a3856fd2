"""Parts of a corpus, written on any machines, joined to what one machine would have written."""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.draft import BlockWriter, WrittenBlock
from nca_plugin.indexed.manifest import CorpusSpec, Manifest, Origin, Shard
from nca_plugin.indexed.storage import is_remote, load_manifest, names_after, open_file, read_errors
from nca_plugin.indexed.write import write_corpus
from nca_plugin.sources import short_uri

# A disk synchronises 64 MiB as quickly as a few.
_BLOCKS_PER_COMMIT: Final = 32


def merge(parts: Sequence[str], prefix: str, start_stage: StartStage = silent_stage) -> Manifest:
    """Join all parts of a corpus, given by their prefixes in any order, under `prefix`.

    Interrupted, the same call continues. Every block is checked against its part's manifest as it is copied.

    Raises:
        NCAPluginError: parts of different corpora, missing, overlapping or damaged ones, or a prefix that cannot be
            written.
    """
    for number, name in enumerate(parts):
        if _is_same(name, prefix):
            raise NCAPluginError(f"{prefix} is one of its own parts: choose another --out")
        if again := next((other for other in parts[:number] if _is_same(name, other)), None):
            what = "twice" if name == again else f"as {again} too"
            raise NCAPluginError(f"part {name} is named {what}: name each part once")
    manifests = {name: load_manifest(name) for name in parts}
    names = sorted(manifests, key=lambda name: manifests[name].part.first_block)
    if not names:
        raise NCAPluginError("no parts to merge: name their prefixes, such as corpus-*.json")
    _check_complete(names, manifests)
    spec = manifests[names[0]].part.spec
    whole = Shard(spec, 0, spec.num_blocks)
    ordered = {name: manifests[name] for name in names}
    return write_corpus(
        prefix,
        whole,
        _joined_origin([manifest.origin for manifest in ordered.values()]),
        lambda writer, blocks: _copy_blocks(ordered, writer, blocks),
        start_stage,
    )


def _is_same(one: str, other: str) -> bool:
    """Whether two prefixes stand for one corpus, however they are spelt and through whatever links."""
    if one == other:
        return True
    return not (is_remote(one) or is_remote(other)) and os.path.realpath(f"{one}.json") == os.path.realpath(
        f"{other}.json"
    )


def part_name(prefix: str, number: int, count: int) -> str:
    """Return the prefix of part `number` of `count` of a corpus."""
    return f"{prefix}-{number:05}-of-{count:05}"


def find_parts(prefix: str) -> list[str]:
    """Return the prefixes of the finished parts that lie beside the corpus they are to make."""
    found = (re.fullmatch(r"(-\d{5,}-of-\d{5,})\.json", rest) for rest in names_after(prefix))
    return [prefix + match[1] for match in found if match]


def _check_complete(names: Sequence[str], manifests: dict[str, Manifest]) -> None:
    """Raise `NCAPluginError` unless the parts, in the order of `names`, are those of one corpus, each once."""
    spec = manifests[names[0]].part.spec
    for name in names[1:]:
        other = manifests[name]
        if other.part.spec != spec:
            raise NCAPluginError(
                f"{name} and {names[0]} are parts of different corpora ({_difference(other.part.spec, spec)}): merge "
                "those of one"
            )
    stop, last = 0, ""

    def span(first: int, stop: int) -> str:
        last = min(stop * spec.block_documents, spec.num_documents) - 1
        return f"documents {first * spec.block_documents:,} .. {last:,} of {spec.num_documents:,}"

    end = Shard(spec, spec.num_blocks, spec.num_blocks)
    for name, part in [*((name, manifests[name].part) for name in names), ("", end)]:
        if part.first_block > stop:
            raise NCAPluginError(f"{span(stop, part.first_block)} are in no part: add the missing shard")
        if part.first_block < stop:
            common = span(part.first_block, min(stop, part.stop_block))
            raise NCAPluginError(f"{common} are in both {last} and {name}: leave one out")
        stop, last = part.stop_block, name


def _difference(one: CorpusSpec, other: CorpusSpec) -> str:
    a, b = ({**dataclasses.asdict(spec), "uri": short_uri(spec.uri)} for spec in (one, other))
    return "; ".join(f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key])


def _joined_origin(origins: Sequence[Origin]) -> Origin:
    """Return the origin of all parts: every version of a package that wrote one, every deflate library."""

    def joined(values: Iterable[str]) -> str:
        return " and ".join(sorted(set(values)))

    packages = origins[0].versions
    return Origin(
        versions={package: joined(origin.versions[package] for origin in origins) for package in packages},
        deflate=joined(origin.deflate for origin in origins),
    )


def _copy_blocks(
    manifests: dict[str, Manifest], writer: BlockWriter, blocks: list[int]
) -> Iterator[list[WrittenBlock]]:
    name_of = {block: name for name, m in manifests.items() for block in range(m.part.first_block, m.part.stop_block)}
    done: list[WrittenBlock] = []
    for name, group in itertools.groupby(blocks, name_of.__getitem__):
        with open_file(name + ".bin") as tokens, open_file(name + ".next") as following:
            for block in group:
                done.append(_copy_block(name, manifests[name], tokens, following, writer, block))
                if len(done) == _BLOCKS_PER_COMMIT:
                    yield done
                    done = []
    if done:
        yield done


def _copy_block(
    name: str, manifest: Manifest, tokens: BinaryIO, following: BinaryIO, writer: BlockWriter, block: int
) -> WrittenBlock:
    part, spec = manifest.part, manifest.part.spec
    local = block - part.first_block
    rows = part.documents(local)
    with read_errors(name):
        arrays = _read(tokens, rows, spec.seq_length, spec.dtype), _read(following, rows, 1, spec.dtype).reshape(-1)
    written = writer.write(block, *arrays)
    if written != WrittenBlock(block, manifest.bin_digests[local], manifest.next_digests[local]):
        raise NCAPluginError(
            f"part {name} is damaged in its documents {rows.start:,} .. {rows.stop - 1:,}: generate it anew"
        )
    return written


def _read(file: BinaryIO, rows: range, width: int, dtype: str) -> NDArray[Any]:
    """Return rows of a file of `width` tokens each, [rows, width]."""
    row_bytes = width * np.dtype(dtype).itemsize
    file.seek(rows.start * row_bytes)
    return np.frombuffer(file.read(len(rows) * row_bytes), dtype).reshape(len(rows), width)
