"""Lets the first rank of a job read something for all ranks."""

import os
from collections.abc import Callable
from typing import Any

from torch import distributed

from nca_plugin.errors import NCAPluginError, one_line


def is_rank_0() -> bool:
    """Return whether this process is the first rank of its job, or its only process."""
    return os.environ.get("RANK", "0") == "0"


def told_by_rank_0[T](read: Callable[[], T]) -> T:
    """Return on every rank what `read` returns on the first rank, so that a job reads a shared file system only once.

    Every rank has to call this at the same place. Without a process group each process reads for itself.

    Raises:
        NCAPluginError: on every rank, if `read` raises one on the first rank.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return read()
    told: list[Any] = [None]
    if distributed.get_rank() == 0:
        try:
            told = [(read(), None)]
        except Exception as error:
            # The others wait for it, whatever it is.
            told = [(None, str(error) if isinstance(error, NCAPluginError) else one_line(error))]
            if not isinstance(error, NCAPluginError):
                distributed.broadcast_object_list(told)
                raise
    distributed.broadcast_object_list(told)
    value, refusal = told[0]
    if refusal is not None:
        raise NCAPluginError(refusal)
    result: T = value
    return result
