"""Writing a source to disk as documents for Megatron, by any number of processes and machines."""

from typing import Final

from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.manifest import DatasetSpec, Manifest, Origin, Shard
from nca_plugin.indexed.storage import output_prefix
from nca_plugin.indexed.workers import generate_blocks
from nca_plugin.indexed.write import write_dataset
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
    """Write the first samples of a source as PREFIX.bin, .idx, .next and .json.

    If the call is interrupted, the same call continues. Complete files are left as they are. The bytes of the files
    depend only on the source, the number of tokens, the sequence length and the shard.

    Args:
        prefix: a local path, or a URL that fsspec has a driver for.
        num_tokens: rounded up to whole documents.
        shard: (i, N) writes shard i of 1 .. N, which `merge` joins.
        start_stage: called at the start of each stage of the work with its name and its number of tokens.

    Raises:
        NCAPluginError: a wrong source, size or shard, a prefix that cannot be written, or a disk that fails.
    """
    if not 1 <= num_workers <= _MAX_WORKERS:
        raise NCAPluginError(f"{num_workers:,} workers: must be 1 to {_MAX_WORKERS:,}")
    prefix = output_prefix(prefix)
    spec = DatasetSpec.from_source(parse(uri), num_tokens, seq_length)
    return write_dataset(
        prefix,
        Shard.numbered(spec, *shard),
        Origin.here(),
        lambda writer, blocks: generate_blocks(writer, blocks, num_workers),
        start_stage,
    )
