"""Pickles of untrusted origin, loaded without running anything that they name.

Types on a list are built, what Megatron, Transformer Engine and numpy put beside them becomes a `Foreign` that holds
nothing, and any other name is refused.
"""

import argparse
import collections
import io
import pathlib
import pickle
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from nca_plugin.errors import NCAPluginError

Globals = Mapping[tuple[str, str], Any]


class Foreign:
    """Stands for an object of a type that is known to occur and is of no use here: enumerations, random states."""

    def __new__(cls, *_: object, **__: object) -> "Foreign":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass

    def __setitem__(self, _: object, __: object) -> None:
        pass

    def append(self, _: object) -> None:
        pass

    def extend(self, _: object) -> None:
        pass


def _encode(text: str, encoding: str) -> bytes:
    """What protocol 2 stores bytes as."""
    return str(text).encode(encoding)


def _member(enumeration: object, _: str) -> Foreign:
    """What some Python versions store a member of an enumeration as."""
    if not (isinstance(enumeration, type) and issubclass(enumeration, Foreign)):
        raise pickle.UnpicklingError("refused to load builtins.getattr")
    return Foreign()


_PLAIN: Final[Globals] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytearray"): bytearray,
    ("__builtin__", "set"): set,
    ("builtins", "getattr"): _member,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("argparse", "Namespace"): argparse.Namespace,
    ("types", "SimpleNamespace"): types.SimpleNamespace,
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib._local", "PosixPath"): pathlib.PurePosixPath,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    **{("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
}
#: Packages whose own types become `Foreign`.
_FOREIGN_PACKAGES: Final = ("megatron", "transformer_engine", "numpy", "nvidia_resiliency_ext")
_FOREIGN: Final = (("signal", "Signals"), ("_io", "BytesIO"), ("torch._C", "Generator"), ("random", "Random"))


def load_pickle(
    data: bytes, origin: str, extra: Globals | None = None, storage: Callable[[tuple[Any, ...]], Any] | None = None
) -> Any:
    """Return what `data` holds.

    Args:
        data: a pickle.
        origin: of the pickle, for messages.
        extra: by module and name, more types that are built.
        storage: what a persistent identity of the pickle becomes.

    Raises:
        NCAPluginError: the pickle is damaged, or names anything else.
    """
    try:
        return _Unpickler(data, {**_PLAIN, **(extra or {})}, storage).load()
    # A damaged pickle can fail in any operation: every type of error says the same of it.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise NCAPluginError(f"{origin} cannot be read: {reason}") from error


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, known: Globals, storage: Callable[[tuple[Any, ...]], Any] | None) -> None:
        super().__init__(io.BytesIO(data))
        self._known = known
        self._storage = storage

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        if (module, name) in _FOREIGN or module.split(".")[0] in _FOREIGN_PACKAGES:
            return type(name, (Foreign,), {})
        raise pickle.UnpicklingError(f"refused to load {module}.{name}, which has no place in a checkpoint")

    def persistent_load(self, identity: Any) -> Any:
        if self._storage is None:
            raise pickle.UnpicklingError("it refers to tensors outside it")
        return self._storage(identity)
