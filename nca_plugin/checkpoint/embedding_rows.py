"""Checks that the embedding of a checkpoint has the rows of the run that loads it."""

from nca_plugin.checkpoint.opened import Checkpoint
from nca_plugin.errors import NCAPluginError


def check_embedding_rows(
    checkpoint: Checkpoint,
    rows: int,
    vocab_size: int,
    tensor_parallel_size: int,
    option: str = "--padded-vocab-size {rows}",
) -> None:
    """Refuse a checkpoint whose embedding has another number of rows than the run's.

    Megatron would load it without a message: missing rows would become zeros, surplus rows would be cut off.

    Args:
        rows: rows of the run's word embedding, with padding.
        vocab_size: number of ids of the run's vocabulary, without padding.
        option: the option that gives the run's embedding `{rows}` rows, or a tensor-parallel rank `{rows_of_rank}`.

    Raises:
        NCAPluginError: if the numbers differ.
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
