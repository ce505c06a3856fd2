"""From blocks to a corpus under its final name, wherever that is."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from nca_plugin.display.progress import StartStage
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.draft import BlockWriter, Draft, WrittenBlock, disk_errors, locked
from nca_plugin.indexed.manifest import SUFFIXES, Manifest, Origin, Shard
from nca_plugin.indexed.storage import check_same, is_remote, load_manifest, size_of, staging_prefix, upload

#: Writes the blocks that it is given, and yields them as they are done.
WriteBlocks = Callable[[BlockWriter, list[int]], Iterator[list[WrittenBlock]]]


def write_corpus(
    prefix: str, part: Shard, origin: Origin, write_blocks: WriteBlocks, start_stage: StartStage
) -> Manifest:
    """Write the files of `part` under `prefix`, or leave them as they are if they are complete.

    Raises:
        NCAPluginError: a prefix that holds something else or cannot be written, or whatever `write_blocks` raises.
    """
    if not is_remote(prefix):
        return _write_here(Path(prefix), part, origin, write_blocks, start_stage)
    staged = staging_prefix(prefix)
    # The journal's own lock ends before the copying. This empty file stays: to remove it would be a race.
    with locked(staged.parent.with_suffix(".lock"), prefix):
        if size_of(prefix + ".json") is not None:
            manifest = load_manifest(prefix)
            check_same(manifest, part, prefix)
        else:
            # With a corpus that waits to be copied, what is there is of an earlier attempt.
            found = next((prefix + suffix for suffix in SUFFIXES if size_of(prefix + suffix) is not None), None)
            if found is not None and size_of(f"{staged}.json") is None:
                raise NCAPluginError(f"output {found} exists already: choose another name, or remove it")
            manifest = _write_here(staged, part, origin, write_blocks, start_stage)
            tokens_per_byte = part.spec.seq_length / part.layout.document_bytes
            advance = start_stage(f"copying from {staged.parent}", part.num_documents * part.spec.seq_length)
            upload(staged, prefix, lambda num_bytes: advance(round(num_bytes * tokens_per_byte)))
        # There is none if an earlier process removed it.
        shutil.rmtree(staged.parent, ignore_errors=True)
    return manifest


def _write_here(
    prefix: Path, part: Shard, origin: Origin, write_blocks: WriteBlocks, start_stage: StartStage
) -> Manifest:
    with Draft(prefix, part, origin, start_stage) as draft:
        if draft.manifest is not None:
            return draft.manifest
        if missing := draft.missing:
            advance = start_stage("writing", sum(part.num_tokens(block) for block in missing))
            with disk_errors(prefix):
                for blocks in write_blocks(draft.writer, missing):
                    draft.commit(blocks)
                    advance(sum(part.num_tokens(block.block) for block in blocks))
        return draft.finish()
