"""Functions that numba compiles, and keeps for later processes where it can."""

import atexit
import functools
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from typing import Any

from numba import config, njit
from numba.core.caching import FunctionCache, NullCache

from nca_plugin.errors import NCAPluginError


def compiled(function: Any) -> Any:
    """Return a function that numba compiles when it is first called, and that runs without Python's lock.

    It is compiled without fast-math, so that every machine gets the same bits. What is compiled is kept in
    NUMBA_CACHE_DIR, beside the source, or in the user's cache; where none of them can be written to, in a folder of
    this process and of those that it starts.

    Raises:
        NCAPluginError: numba is told not to compile.
    """
    if config.DISABLE_JIT:
        raise NCAPluginError("NUMBA_DISABLE_JIT is set, and nothing can be computed without numba's compiler: unset it")
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    # What cache=True sets, to one that gives way.
    dispatcher._cache = _cache_of(function)
    return dispatcher


def is_kept() -> bool:
    """Whether later processes find what this one has compiled so far."""
    return not _use_private_folder.cache_info().currsize


class _Cache(FunctionCache):  # type: ignore[misc]
    """A cache whose failures cost time and nothing else."""

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        except Exception:
            # A file that a full disk, or another release, left: what is compiled anew takes its place.
            with suppress(Exception):
                self.flush()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            super().save_overload(signature, data)
        except Exception:
            if _use_private_folder():
                with suppress(Exception):
                    FunctionCache(self._py_func).save_overload(signature, data)


def _cache_of(function: Any) -> Any:
    # numba's error, where it finds no folder.
    with suppress(RuntimeError):
        return _Cache(function)
    with suppress(RuntimeError):
        return _Cache(function) if _use_private_folder() else NullCache()
    return NullCache()


@functools.cache
def _use_private_folder() -> bool:
    """Have this process, and those that it starts, keep what is compiled in a new folder; tell whether there is one."""
    folder = None
    with suppress(OSError):
        folder = tempfile.mkdtemp(prefix="nca-plugin-numba-")
        atexit.register(_remove, folder, os.getpid())
        config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = folder
    if os.environ.get("RANK", "0") == "0":
        print(
            "nca-plugin: what numba compiles cannot be kept, so that it is compiled anew in about ten seconds: "
            "set NUMBA_CACHE_DIR to a folder with space that can be written to",
            file=sys.stderr,
            flush=True,
        )
    return folder is not None


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
