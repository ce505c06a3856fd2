"""Parts of a corpus, written on any machines, joined to what one machine would have written."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.draft import BlockWriter, WrittenBlock
from nca_plugin.indexed.manifest import Manifest, Origin, Part
from nca_plugin.indexed.storage import load_manifest, names_after, open_file
from nca_plugin.indexed.write import write_corpus
from nca_plugin.progress import StartStage, silent_stage

# A disk synchronises 64 MiB as quickly as a few.
_BLOCKS_PER_COMMIT: Final = 32


def merge(parts: Sequence[str], prefix: str, start_stage: StartStage = silent_stage) -> Manifest:
    """Join all parts of a corpus, given by their prefixes in any order, under `prefix`.

    Interrupted, the same call continues. Every block is checked against its part's manifest as it is copied.

    Raises:
        NCAPluginError: parts of different corpora, missing, overlapping or damaged ones, or a prefix that cannot be
            written.
    """
    manifests = {name: load_manifest(name) for name in parts}
    names = sorted(manifests, key=lambda name: manifests[name].part.first_block)
    if not names:
        raise NCAPluginError("no parts to merge: name their prefixes, such as corpus-*.json")
    _check_complete(names, manifests)
    spec = manifests[names[0]].part.spec
    whole = Part(spec, 0, spec.num_blocks)
    ordered = {name: manifests[name] for name in names}
    return write_corpus(
        prefix,
        whole,
        _joined_origin(list(ordered.values())),
        lambda local, blocks: _copy_blocks(ordered, whole, local, blocks),
        start_stage,
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
    first = manifests[names[0]]
    spec = first.part.spec
    for name in names[1:]:
        other = manifests[name]
        if other.part.spec != spec or other.origin.deflate != first.origin.deflate:
            raise NCAPluginError(
                f"{name} and {names[0]} are parts of different corpora ({_difference(other, first)}): merge those "
                "of one"
            )
    stop, last = 0, ""
    end = Part(spec, spec.num_blocks, spec.num_blocks)
    for name, part in [*((name, manifests[name].part) for name in names), ("", end)]:
        if part.first_block > stop:
            raise NCAPluginError(
                f"documents {stop * spec.block_documents:,} .. {part.first_document - 1:,} of {spec.num_documents:,} "
                "are in no part: add the missing shard"
            )
        if part.first_block < stop:
            raise NCAPluginError(
                f"documents {part.first_document:,} .. {min(stop, part.stop_block) * spec.block_documents - 1:,} are "
                f"in both {last} and {name}: leave one out"
            )
        stop, last = part.stop_block, name


def _difference(one: Manifest, other: Manifest) -> str:
    a, b = (dataclasses.asdict(m.part.spec) | {"deflate": m.origin.deflate} for m in (one, other))
    return "; ".join(f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key])


def _joined_origin(manifests: Sequence[Manifest]) -> Origin:
    """Return the origin of all parts, with every version of a package that wrote one."""
    packages = manifests[0].origin.versions
    return Origin(
        versions={package: ", ".join(sorted({m.origin.versions[package] for m in manifests})) for package in packages},
        deflate=manifests[0].origin.deflate,
    )


def _copy_blocks(
    manifests: dict[str, Manifest], whole: Part, prefix: Path, blocks: list[int]
) -> Iterator[list[WrittenBlock]]:
    spec = whole.spec
    name_of = {block: name for name, m in manifests.items() for block in range(m.part.first_block, m.part.stop_block)}
    done: list[WrittenBlock] = []
    with BlockWriter(prefix, whole) as writer:
        for name, group in itertools.groupby(blocks, name_of.__getitem__):
            manifest = manifests[name]
            with open_file(name + ".bin") as tokens, open_file(name + ".next") as following:
                for block in group:
                    local = block - manifest.part.first_block
                    rows = manifest.part.documents(local)
                    written = writer.write(
                        block,
                        _read(tokens, rows, spec.seq_length, spec.dtype),
                        _read(following, rows, 1, spec.dtype).reshape(-1),
                    )
                    if written != WrittenBlock(block, manifest.bin_digests[local], manifest.next_digests[local]):
                        raise NCAPluginError(
                            f"part {name} is damaged in its documents {rows.start:,} .. {rows.stop - 1:,}: "
                            "generate it anew"
                        )
                    done.append(written)
                    if len(done) == _BLOCKS_PER_COMMIT:
                        yield done
                        done = []
    if done:
        yield done


def _read(file: BinaryIO, rows: range, width: int, dtype: str) -> NDArray[Any]:
    """Return rows of a file of `width` tokens each, [rows, width]."""
    row_bytes = width * np.dtype(dtype).itemsize
    file.seek(rows.start * row_bytes)
    return np.frombuffer(file.read(len(rows) * row_bytes), dtype).reshape(len(rows), width)
