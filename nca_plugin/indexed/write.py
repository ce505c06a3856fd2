"""Writing a dataset under its final name, on this machine or in object storage."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from nca_plugin.display.progress import StartStage
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.draft import BlockWriter, Draft, WrittenBlock, disk_errors, locked
from nca_plugin.indexed.manifest import SUFFIXES, Manifest, Origin, Shard
from nca_plugin.indexed.storage import check_same, is_remote, load_manifest, size_of, staging_prefix, upload

#: Writes the given blocks, and yields them as they are done.
WriteBlocks = Callable[[BlockWriter, list[int]], Iterator[list[WrittenBlock]]]


def write_dataset(
    prefix: str, shard: Shard, origin: Origin, write_blocks: WriteBlocks, start_stage: StartStage
) -> Manifest:
    """Write the files of `shard` under `prefix`. If they are complete already, nothing is done.

    Raises:
        NCAPluginError: the prefix holds something else or cannot be written, or an error of `write_blocks`.
    """
    if not is_remote(prefix):
        return _write_here(Path(prefix), shard, origin, write_blocks, start_stage)
    staged = staging_prefix(prefix)
    # The journal's lock does not cover the copying. The lock file stays, because removing it would be a race.
    with locked(staged.parent.with_suffix(".lock"), prefix):
        if size_of(prefix + ".json") is not None:
            manifest = load_manifest(prefix)
            check_same(manifest, shard, prefix)
        else:
            # A file there is from an earlier attempt only if a complete dataset waits here to be copied.
            found = next((prefix + suffix for suffix in SUFFIXES if size_of(prefix + suffix) is not None), None)
            if found is not None and size_of(f"{staged}.json") is None:
                raise NCAPluginError(f"output {found} exists already: choose another name, or remove it")
            manifest = _write_here(staged, shard, origin, write_blocks, start_stage)
            tokens_per_byte = shard.spec.seq_length / shard.layout.document_bytes
            advance = start_stage(f"copying from {staged.parent}", shard.num_documents * shard.spec.seq_length)
            upload(staged, prefix, lambda num_bytes: advance(round(num_bytes * tokens_per_byte)))
        # The folder is missing if an earlier process removed it.
        shutil.rmtree(staged.parent, ignore_errors=True)
    return manifest


def _write_here(
    prefix: Path, shard: Shard, origin: Origin, write_blocks: WriteBlocks, start_stage: StartStage
) -> Manifest:
    with Draft(prefix, shard, origin, start_stage) as draft:
        if draft.manifest is not None:
            return draft.manifest
        if missing := draft.missing:
            advance = start_stage("writing", sum(shard.num_tokens(block) for block in missing))
            with disk_errors(prefix):
                for blocks in write_blocks(draft.writer, missing):
                    draft.commit(blocks)
                    advance(sum(shard.num_tokens(block.block) for block in blocks))
        return draft.finish()
