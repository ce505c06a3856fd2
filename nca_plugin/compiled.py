"""Functions that numba compiles, and caches for later processes where it can."""

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
from nca_plugin.this_rank import is_rank_0


def compiled(function: Any) -> Any:
    """Return a function that numba compiles at its first call and that runs without the GIL.

    It is compiled without fast-math, so that every machine gets the same bits. Compiled code is cached in
    NUMBA_CACHE_DIR, beside the source file, or in the user's cache. If none of these is writable, it is cached in a
    temporary folder for this process and the processes that it starts.

    Raises:
        NCAPluginError: numba's compiler is switched off.
    """
    if config.DISABLE_JIT:
        raise NCAPluginError("NUMBA_DISABLE_JIT is set, but nothing can be computed without numba's compiler: unset it")
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    # As cache=True would do, but with a cache whose failures are ignored.
    dispatcher._cache = _cache_of(function)
    return dispatcher


def is_kept() -> bool:
    """Whether later processes can use what this one has compiled."""
    return not _use_private_folder.cache_info().currsize


class _Cache(FunctionCache):  # type: ignore[misc]
    """A cache whose failures only cost time."""

    def load_overload(self, signature: Any, target: Any) -> Any:
        try:
            return super().load_overload(signature, target)
        except Exception:
            # The file may be damaged by a full disk, or from another release. Compiling anew replaces it.
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
    # numba raises RuntimeError if no cache folder is writable.
    with suppress(RuntimeError):
        return _Cache(function)
    with suppress(RuntimeError):
        return _Cache(function) if _use_private_folder() else NullCache()
    return NullCache()


@functools.cache
def _use_private_folder() -> bool:
    """Make this process and its children cache compiled code in a new folder. Return whether that succeeded."""
    folder = None
    with suppress(OSError):
        folder = tempfile.mkdtemp(prefix="nca-plugin-numba-")
        atexit.register(_remove, folder, os.getpid())
        config.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = folder
    if is_rank_0():
        print(
            "nca-plugin: what numba compiles cannot be cached, so it is compiled again in about ten seconds: "
            "set NUMBA_CACHE_DIR to a writable folder with free space",
            file=sys.stderr,
            flush=True,
        )
    return folder is not None


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
