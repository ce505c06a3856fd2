"""Lets the processes that torchrun has started together agree on what to do, several times in one start.

torchrun's own store serves only one process group. A second group, or one after torchrun has restarted its processes,
would find the addresses of the first. So rank 0 serves its own store, which ends with it, and the other ranks find it
through torchrun's store.
"""

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, Final

from nca_plugin.errors import NCAPluginError

_ADDRESS: Final = "nca-plugin/round"
#: Time for all ranks to start. Imports from a busy file system take minutes.
_SECONDS_TO_MEET: Final = 600.0
#: Time for a store to answer.
_SECONDS_TO_ANSWER: Final = 30.0


class LostRankError(NCAPluginError):
    """A rank of the round is lost, so that the others have to start again."""


class Round:
    """The ranks of one start of torchrun. Each rank makes a `Round` at the same time."""

    def __init__(self) -> None:
        """Wait for the other ranks. Raises `NCAPluginError` if rank 0 cannot be reached."""
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self._store: Any = None
        if self.size == 1:
            return
        try:
            self._store = self._met()
        except Exception as error:
            raise NCAPluginError(
                f"rank {self.rank} cannot reach rank 0 at {os.environ['MASTER_ADDR']}: {_short(error)}"
            ) from error
        self._store.set_timeout(timedelta(seconds=_SECONDS_TO_ANSWER))

    def tell(self, key: str, value: Any) -> None:
        """Tell all other ranks a value that JSON can hold. Raises `LostRankError` if rank 0 is gone."""
        if self._store is not None:
            self._call("set", key, json.dumps(value))

    def hear(self, key: str) -> Any:
        """Wait until a rank tells the value of `key`. Raises `LostRankError` if rank 0 is gone."""
        while not self._call("check", [key]):
            time.sleep(0.2)
        return json.loads(self._call("get", key))

    def heard(self, keys: list[str]) -> list[int]:
        """Return how often `count` was called with each key. Raises `LostRankError` if rank 0 is gone."""
        return [self._call("add", key, 0) for key in keys] if self._store is not None else [0] * len(keys)

    def count(self, key: str) -> None:
        """Add 1 to a count. Raises `LostRankError` if rank 0 is gone."""
        if self._store is not None:
            self._call("add", key, 1)

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self._store, name)(*arguments)
        except Exception as error:
            raise LostRankError(f"rank {self.rank} has lost rank 0: {_short(error)}") from error

    def _met(self) -> Any:
        # Imported only here, because torch takes seconds.
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=_SECONDS_TO_MEET)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            # Each start has its own port, and nobody serves it yet.
            return TCPStore(host, port, is_master=self.rank == 0, timeout=patience)
        of_torchrun = TCPStore(host, port, is_master=False, timeout=patience)
        if self.rank == 0:
            store, name = TCPStore(host, 0, is_master=True, timeout=patience), uuid.uuid4().hex
            store.set(name, "")
            of_torchrun.set(_ADDRESS, json.dumps([store.port, name]))
            return store
        deadline = time.monotonic() + _SECONDS_TO_MEET
        while True:
            # The address may still be that of an earlier start, whose rank 0 is gone.
            port, name = json.loads(of_torchrun.get(_ADDRESS))
            try:
                store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5))
                if store.check([name]):
                    return store
            except Exception:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.5)


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """Reserve a port of this machine for processes that are started within the context.

    A free port could be taken by others in the seconds until a rank has imported torch. While a socket is bound to the
    port without listening, the kernel gives it to nobody else, but torch's store, which also sets SO_REUSEADDR, can
    listen on it.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("", 0))
        yield reserved.getsockname()[1]


def rank_environment(port: int) -> dict[str, str]:
    """Return the variables that give a child process this rank in a process group of its own.

    Args:
        port: the port on which rank 0 serves the group, the same for all ranks.
    """
    if "WORLD_SIZE" not in os.environ:
        return {}
    return {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
