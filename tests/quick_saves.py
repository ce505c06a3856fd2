"""What makes the first checkpoint of a run quick."""

import queue


def install() -> None:
    """Replace Megatron's queue of what a save has written, once Megatron can be imported.

    It lives in a process of its own, which imports torch for some seconds, and which a save that is not asynchronous
    has no use for.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = queue.Queue()
