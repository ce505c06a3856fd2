"""A source written to disk: as documents that Megatron reads, by any number of processes on any number of machines."""

from typing import Final

from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.manifest import CorpusSpec, Manifest, Origin, Shard
from nca_plugin.indexed.storage import output_prefix
from nca_plugin.indexed.workers import generate_blocks
from nca_plugin.indexed.write import write_corpus
from nca_plugin.sources import parse

#: No machine has more cores.
_MAX_WORKERS: Final = 4096


def generate(
    uri: str,
    prefix: str,
    *,
    num_tokens: int,
    seq_length: int,
    num_workers: int,
    shard: tuple[int, int] = (1, 1),
    start_stage: StartStage = silent_stage,
) -> Manifest:
    """Write the first samples of a source, at least `num_tokens` tokens, as PREFIX.bin, .idx, .next and .json.

    Interrupted, the same call continues; what is complete already is left as it is. The files depend on the source, the
    number of tokens, the sequence length and the shard alone.

    Args:
        prefix: a local path, or one that fsspec has a driver for.
        shard: (i, N) writes part i of 1 .. N, for `merge` to join.
        start_stage: called as each stage of the work begins, with its tokens.

    Raises:
        NCAPluginError: a wrong source, size or shard, a prefix that cannot be written, or a disk that fails.
    """
    if not 1 <= num_workers <= _MAX_WORKERS:
        raise NCAPluginError(f"{num_workers:,} workers: must be 1 to {_MAX_WORKERS:,}")
    prefix = output_prefix(prefix)
    part = Shard.numbered(CorpusSpec.from_source(parse(uri), num_tokens, seq_length), *shard)
    return write_corpus(
        prefix,
        part,
        Origin.here(),
        lambda writer, blocks: generate_blocks(writer, blocks, num_workers),
        start_stage,
    )
