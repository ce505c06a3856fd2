"""Worker processes that generate blocks and write them to their places."""

import multiprocessing
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from nca_plugin.display.ending import without_interrupts
from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.draft import BlockWriter, WrittenBlock
from nca_plugin.indexed.manifest import Shard
from nca_plugin.sources import Source, parse, short_uri

# The next block waits in the pipe, so that no worker is idle while the disk is flushed.
_BLOCKS_AHEAD: Final = 2
_EXIT_SECONDS: Final = 5.0


def generate_blocks(writer: BlockWriter, blocks: list[int], num_workers: int) -> Iterator[list[WrittenBlock]]:
    """Generate `blocks` of a draft in worker processes, which write them. Yields the blocks that are done, in batches.

    Raises:
        NCAPluginError: the source cannot make a sample, or a worker was killed or could not be started.
        OSError: the disk fails.
    """
    # Spawned, because a fork would copy locks that other threads of this process hold.
    context = multiprocessing.get_context("spawn")
    queue = iter(blocks)
    workers: dict[Connection, BaseProcess] = {}
    pending: dict[Connection, int] = {}
    try:
        for _ in range(min(num_workers, len(blocks))):
            ours, theirs = context.Pipe()
            worker: BaseProcess = context.Process(target=_work, args=(theirs, writer.shard), daemon=True)
            with without_interrupts():
                worker.start()
            workers[ours] = worker
            # With this copy closed, a worker that dies closes the last one, and recv() ends with EOFError.
            theirs.close()
            with suppress(BrokenPipeError):
                for file in writer.files:
                    send_handle(ours, file, worker.pid)
        for connection in workers:
            pending[connection] = sum(_send_next(connection, queue) for _ in range(_BLOCKS_AHEAD))
        while any(pending.values()):
            done = []
            ready = wait([connection for connection, count in pending.items() if count])
            for connection in cast(list[Connection], ready):
                done.append(_receive(connection, workers[connection]))
                pending[connection] += _send_next(connection, queue) - 1
            yield done
    finally:
        for worker in workers.values():
            worker.terminate()
        for connection, worker in workers.items():
            connection.close()
            worker.join()


def block_arrays(source: Source, shard: Shard, block: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the documents of a block, [documents, seq_length], and the token after each, [documents].

    Raises:
        NCAPluginError: a sample has another loss mask than the dataset, or an id outside its vocabulary.
    """
    spec = shard.spec
    documents = shard.documents(block)
    loss_mask = spec.loss_mask
    tokens = np.empty((len(documents), spec.seq_length + 1), np.int32)
    for row, document in enumerate(documents):
        index = shard.first_document + document
        sample = source.sample(index, spec.seq_length)
        if not np.array_equal(sample.loss_mask, loss_mask):
            raise NCAPluginError(
                f"sample {index} of {short_uri(spec.uri)} has another loss mask than sample 0: a dataset has one mask "
                "for all documents; train on this source online"
            )
        tokens[row] = sample.tokens
    if tokens.min() < 0 or tokens.max() >= spec.vocab_size:
        raise NCAPluginError(
            f"source {short_uri(spec.uri)} made an id outside 0 .. {spec.vocab_size - 1}: this is a bug of the source"
        )
    typed = tokens.astype(spec.dtype)
    return typed[:, :-1], typed[:, -1]


def _send_next(connection: Connection, blocks: Iterator[int]) -> int:
    """Send the next block, if there is one. Returns the number of blocks sent, 0 or 1."""
    block = next(blocks, None)
    if block is None:
        return 0
    # _receive reports a worker that has died.
    with suppress(BrokenPipeError):
        connection.send(block)
    return 1


def _receive(connection: Connection, worker: BaseProcess) -> WrittenBlock:
    try:
        result = connection.recv()
    except (EOFError, ConnectionResetError):
        worker.join(_EXIT_SECONDS)
        raise NCAPluginError(
            f"a process that generated samples ended early (exit code {worker.exitcode}; -9 may be a lack of memory): "
            "run the same command again to continue"
        ) from None
    if isinstance(result, Exception):
        raise result
    return cast(WrittenBlock, result)


def _work(connection: Connection, shard: Shard) -> None:
    """Write the blocks that arrive until the parent closes the connection."""
    try:
        try:
            writer = BlockWriter(shard, (recv_handle(connection), recv_handle(connection)))
            source = parse(shard.spec.uri)
            while True:
                block = connection.recv()
                connection.send(writer.write(block, *block_arrays(source, shard, block)))
        except (NCAPluginError, OSError) as error:
            connection.send(error)
    except (EOFError, ConnectionError):
        return
