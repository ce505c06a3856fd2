"""Merging the parts of a dataset, written on any machines, into the bytes that one machine would have written."""

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
from nca_plugin.indexed.manifest import DatasetSpec, Manifest, Origin, Shard
from nca_plugin.indexed.storage import is_remote, load_manifest, names_after, open_file, read_errors
from nca_plugin.indexed.write import write_dataset
from nca_plugin.sources import short_uri

# Flushing 64 MiB to a disk takes no longer than flushing a few.
_BLOCKS_PER_COMMIT: Final = 32


def merge(parts: Sequence[str], prefix: str, start_stage: StartStage = silent_stage) -> Manifest:
    """Join all parts of a dataset, given by their prefixes in any order, under `prefix`.

    If the call is interrupted, the same call continues. Every block is checked against its part's manifest as it is
    copied.

    Raises:
        NCAPluginError: parts of different datasets, a part that is missing or damaged, parts that overlap, or a prefix
            that cannot be written.
    """
    for number, name in enumerate(parts):
        if _is_same(name, prefix):
            raise NCAPluginError(f"{prefix} is also named as a part: choose another --out")
        if again := next((other for other in parts[:number] if _is_same(name, other)), None):
            what = "twice" if name == again else f"as {again} too"
            raise NCAPluginError(f"part {name} is named {what}: name each part once")
    manifests = {name: load_manifest(name) for name in parts}
    names = sorted(manifests, key=lambda name: manifests[name].shard.first_block)
    if not names:
        raise NCAPluginError("no parts to merge: name their prefixes, such as datasets/web-*.json")
    _check_complete(names, manifests)
    spec = manifests[names[0]].shard.spec
    whole = Shard(spec, 0, spec.num_blocks)
    ordered = {name: manifests[name] for name in names}
    return write_dataset(
        prefix,
        whole,
        _joined_origin([manifest.origin for manifest in ordered.values()]),
        lambda writer, blocks: _copy_blocks(ordered, writer, blocks),
        start_stage,
    )


def _is_same(one: str, other: str) -> bool:
    """Whether two prefixes name one dataset, also through links or another spelling."""
    if one == other:
        return True
    return not (is_remote(one) or is_remote(other)) and os.path.realpath(f"{one}.json") == os.path.realpath(
        f"{other}.json"
    )


def part_name(prefix: str, number: int, count: int) -> str:
    """Return the prefix of part `number` of `count` of a dataset."""
    return f"{prefix}-{number:05}-of-{count:05}"


def find_parts(prefix: str) -> list[str]:
    """Return the prefixes of the finished parts that lie beside the dataset `prefix`."""
    found = (re.fullmatch(r"(-\d{5,}-of-\d{5,})\.json", rest) for rest in names_after(prefix))
    return [prefix + match[1] for match in found if match]


def _check_complete(names: Sequence[str], manifests: dict[str, Manifest]) -> None:
    """Raise `NCAPluginError` unless the parts, sorted as in `names`, make up one dataset without gap or overlap."""
    spec = manifests[names[0]].shard.spec
    for name in names[1:]:
        other = manifests[name]
        if other.shard.spec != spec:
            raise NCAPluginError(
                f"{name} and {names[0]} are parts of different datasets ({_difference(other.shard.spec, spec)}): "
                "merge parts of one dataset only"
            )
    stop, last = 0, ""

    def span(first: int, stop: int) -> str:
        last = min(stop * spec.block_documents, spec.num_documents) - 1
        return f"documents {first * spec.block_documents:,} .. {last:,} of {spec.num_documents:,}"

    end = Shard(spec, spec.num_blocks, spec.num_blocks)
    for name, shard in [*((name, manifests[name].shard) for name in names), ("", end)]:
        if shard.first_block > stop:
            raise NCAPluginError(f"{span(stop, shard.first_block)} are in no part: add the missing shard")
        if shard.first_block < stop:
            common = span(shard.first_block, min(stop, shard.stop_block))
            raise NCAPluginError(f"{common} are in both {last} and {name}: leave one out")
        stop, last = shard.stop_block, name


def _difference(one: DatasetSpec, other: DatasetSpec) -> str:
    a, b = ({**dataclasses.asdict(spec), "uri": short_uri(spec.uri)} for spec in (one, other))
    return "; ".join(f"{key} {a[key]} and {b[key]}" for key in a if a[key] != b[key])


def _joined_origin(origins: Sequence[Origin]) -> Origin:
    """Return an origin with all versions and deflate libraries of the parts."""

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
    name_of = {block: name for name, m in manifests.items() for block in range(m.shard.first_block, m.shard.stop_block)}
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
    shard, spec = manifest.shard, manifest.shard.spec
    local = block - shard.first_block
    rows = shard.documents(local)
    with read_errors(name):
        arrays = _read(tokens, rows, spec.seq_length, spec.dtype), _read(following, rows, 1, spec.dtype).reshape(-1)
    written = writer.write(block, *arrays)
    if written != WrittenBlock(block, manifest.bin_digests[local], manifest.next_digests[local]):
        raise NCAPluginError(
            f"part {name} is damaged in documents {rows.start:,} .. {rows.stop - 1:,}: generate it again"
        )
    return written


def _read(file: BinaryIO, rows: range, width: int, dtype: str) -> NDArray[Any]:
    """Return `rows` of a file whose rows have `width` tokens, as [rows, width]."""
    row_bytes = width * np.dtype(dtype).itemsize
    file.seek(rows.start * row_bytes)
    return np.frombuffer(file.read(len(rows) * row_bytes), dtype).reshape(len(rows), width)
