"""Lets the first rank of a job read something for all ranks."""

from collections.abc import Callable
from typing import Any

from torch import distributed

from nca_plugin.errors import NCAPluginError, RepeatedError, one_line


def told_by_rank_0[T](read: Callable[[], T]) -> T:
    """Return on every rank what `read` returns on the first rank, so that a job reads a shared file system only once.

    Every rank has to call this at the same place. Without a process group each process reads for itself.

    Raises:
        NCAPluginError: if `read` raises one. If it raises any error on the first rank, the others raise a
            `RepeatedError`.
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
        raise RepeatedError(refusal)
    result: T = value
    return result
