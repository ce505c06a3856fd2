"""Whether the embedding of a checkpoint has the rows of the run that loads it."""

from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.errors import NCAPluginError


def check_embedding_rows(
    checkpoint: Checkpoint,
    rows: int,
    vocab_size: int,
    tensor_parallel_size: int,
    option: str = "--padded-vocab-size {rows}",
) -> None:
    """Refuse a checkpoint with other embedding rows than the run: Megatron loads it without a word, the rows that are
    missing as zeros and those too many cut off.

    Args:
        rows: of the run's word embedding, padding included.
        vocab_size: ids of the run, without padding.
        option: gives the run's embedding `{rows}` rows, which are `{rows_of_rank}` on a tensor-parallel rank.

    Raises:
        NCAPluginError: they differ.
    """
    stored = checkpoint.embedding_rows
    if stored is None or stored == rows:
        return
    way_out = ""
    rows_of_rank, rest = divmod(stored, tensor_parallel_size)
    if stored >= vocab_size and not rest:
        same = option.format(rows=stored, rows_of_rank=rows_of_rank)
        way_out = f"set {same} if only the padding of the vocabulary differs, which loses nothing; else "
    raise NCAPluginError(
        f"checkpoint {checkpoint.root} has {stored} embedding rows, the run has {rows}: {way_out}make it fit with "
        f"nca-plugin transfer --from {checkpoint.root} --to ... --vocab-size {vocab_size} "
        f"--tensor-model-parallel-size {tensor_parallel_size}"
    )
