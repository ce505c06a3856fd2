"""How the processes that torchrun has started together agree on what to do, several times in one start.

torchrun's own store serves one process group. A second one on it, or one after torchrun has restarted its processes,
would find the addresses of the first. So rank 0 serves a store of its own, which ends with it, and the others find it
through that of torchrun.
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
#: For all ranks to have started: imports from a busy file system take minutes.
_SECONDS_TO_MEET: Final = 600.0
#: For an answer of a store that is there.
_SECONDS_TO_ANSWER: Final = 30.0


class LostRankError(NCAPluginError):
    """A rank of the round is gone, so that those that are left have to start again."""


class Round:
    """The ranks of one start of torchrun. Each makes one, at the same time; a rank that is alone needs no others."""

    def __init__(self) -> None:
        """Meet the other ranks. Raises `NCAPluginError` if they do not come."""
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
        """Return counts of `count`, 0 where there is none. Raises `LostRankError` if rank 0 is gone."""
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
        # Only here, because importing torch takes seconds.
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=_SECONDS_TO_MEET)
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            # The port is of this start only, and nobody serves it yet.
            return TCPStore(host, port, is_master=self.rank == 0, timeout=patience)
        of_torchrun = TCPStore(host, port, is_master=False, timeout=patience)
        if self.rank == 0:
            store, name = TCPStore(host, 0, is_master=True, timeout=patience), uuid.uuid4().hex
            store.set(name, "")
            of_torchrun.set(_ADDRESS, json.dumps([store.port, name]))
            return store
        deadline = time.monotonic() + _SECONDS_TO_MEET
        while True:
            # It may still be that of a start before this one, whose rank 0 is gone.
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
    """Give a port of this machine that processes started within the context may serve, and that nobody else is given.

    A port that was free a moment ago is taken by others in the seconds until a rank has imported torch. A socket that
    is bound to it and does not listen keeps the kernel from giving it away, while torch's store, which sets
    SO_REUSEADDR too, may still listen to it.
    """
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("", 0))
        yield reserved.getsockname()[1]


def rank_environment(port: int) -> dict[str, str]:
    """Return the variables that make a process this rank in a process group of its own.

    Args:
        port: where rank 0 is to serve it, the same for all ranks.
    """
    if "WORLD_SIZE" not in os.environ:
        return {}
    return {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "False"}


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
