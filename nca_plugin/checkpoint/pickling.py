"""Reads and writes pickles that name types of PyTorch and Megatron, without importing these packages.

Pickles are not trusted. Types on a list are built, other types of Megatron, Transformer Engine and numpy become a
`Foreign` that holds nothing, and any other name is refused. So no code that a pickle names is ever run, and a process
that only moves tensors saves the half gigabyte and the seconds of importing PyTorch.
"""

import argparse
import collections
import io
import pathlib
import pickle
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from nca_plugin.checkpoint.dtypes import DTYPES, DType
from nca_plugin.checkpoint.opcodes import Nodes, scan
from nca_plugin.checkpoint.unpickling import Find, Storage, build
from nca_plugin.errors import NCAPluginError, one_line

Globals = Mapping[tuple[str, str], Any]


@dataclass(frozen=True, slots=True)
class Reference:
    """A class or function that a pickle names. It cannot be called."""

    module: str
    name: str

    def __call__(self, *_: object) -> NoReturn:
        raise TypeError(f"{self.module}.{self.name} is not run")


class Foreign:
    """Stands for an object that occurs in checkpoints but is not needed, such as an enumeration or a random state."""

    #: Items that a pickle adds to the object are ignored.
    takes_items: Final = True

    def __new__(cls, *_: object, **__: object) -> "Foreign":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


#: PyTorch's limit on the axes of a tensor.
_MOST_AXES: Final = 64


class Size(tuple[int, ...]):
    """Stands for `torch.Size`."""

    __slots__ = ()
    reference = Reference("torch", "Size")

    def __new__(cls, values: Iterable[int] = ()) -> "Size":
        size = super().__new__(cls, values)
        if len(size) > _MOST_AXES or not {int}.issuperset(map(type, size)):
            raise ValueError("a shape that no tensor has")
        return size

    def __setstate__(self, _: object) -> None:
        raise TypeError("a shape has no state")

    def __reduce__(self) -> tuple[Any, ...]:
        return Size, (tuple(self),)


class Maker:
    """A function that a pickle may call but cannot change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, _: object) -> None:
        raise TypeError("a function has no state")


class _Namespace(argparse.Namespace):
    """A namespace whose attributes a pickle sets only through `__setstate__`, so that it cannot change the class."""

    reference = Reference("argparse", "Namespace")

    def __setstate__(self, state: dict[str, Any]) -> None:
        _set_attributes(self, state)


class _SimpleNamespace(types.SimpleNamespace):
    reference = Reference("types", "SimpleNamespace")

    def __setstate__(self, state: dict[str, Any]) -> None:
        _set_attributes(self, state)


def _set_attributes(built: object, state: Any) -> None:
    if not (isinstance(state, dict) and all(isinstance(name, str) for name in state)):
        raise ValueError("attributes without names")
    vars(built).update(state)


class _OrderedDict(collections.OrderedDict[Any, Any]):
    """A mapping without its own attributes, such as the versions of modules in a state dict."""

    def __setstate__(self, _: object) -> None:
        pass


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes from a text, as which protocol 2 stores them."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise pickle.UnpicklingError("bytes that no pickle has")
    return text.encode(encoding)


def _member(enumeration: object, _: str) -> Foreign:
    """Stand for `builtins.getattr`, with which some Python versions store a member of an enumeration."""
    if not (isinstance(enumeration, type) and issubclass(enumeration, Foreign)):
        raise pickle.UnpicklingError("refused to load builtins.getattr")
    return Foreign()


_KNOWN: Final[Globals] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("builtins", "getattr"): Maker(_member),
    ("_codecs", "encode"): Maker(_encode),
    ("collections", "OrderedDict"): _OrderedDict,
    ("argparse", "Namespace"): _Namespace,
    ("types", "SimpleNamespace"): _SimpleNamespace,
    ("pathlib", "PosixPath"): Maker(pathlib.PosixPath),
    ("pathlib._local", "PosixPath"): Maker(pathlib.PosixPath),
    ("torch", "Size"): Size,
    **{("torch", name): dtype for name, dtype in DTYPES.items()},
    **dict.fromkeys(
        (("signal", "Signals"), ("_io", "BytesIO"), ("torch._C", "Generator"), ("torch", "device")), Foreign
    ),
}
#: Packages whose own types become `Foreign`.
_FOREIGN_PACKAGES: Final = ("megatron", "transformer_engine", "numpy", "nvidia_resiliency_ext")


def load_pickle(data: bytes, origin: str, extra: Globals | None = None, storage: Storage | None = None) -> Any:
    """Return the value of a pickle.

    Args:
        data: the pickle.
        origin: where the pickle is from, for messages.
        extra: further types by module and name, with what is built in their place.
        storage: returns the value of a persistent identity; None if the pickle may have none.

    Raises:
        NCAPluginError: if the pickle is damaged, or names a type that is not allowed.
    """
    return read_pickle(data, origin, extra, lambda nodes, find: build(nodes, find, storage))


def read_pickle[T](data: bytes, origin: str, extra: Globals | None, read: Callable[[Nodes, Find], T]) -> T:
    """Return the result of `read`, which gets the nodes of a pickle and a function that looks up a module's name.

    Raises:
        NCAPluginError: see `load_pickle` and `reading`.
    """
    known = {**_KNOWN, **(extra or {})}

    def find(module: str, name: str) -> Any:
        if (module, name) in known:
            return known[module, name]
        if module.split(".")[0] in _FOREIGN_PACKAGES:
            return Foreign
        raise pickle.UnpicklingError(f"refused to load {module}.{name}, which has no place in a checkpoint")

    with reading(origin):
        return read(scan(data), find)


@contextmanager
def reading(origin: str) -> Iterator[None]:
    """Raise what the reading of a pickle from `origin` raises as an `NCAPluginError`."""
    try:
        yield
    except NCAPluginError:
        raise
    # A damaged pickle can fail in any operation and with any type of error.
    except Exception as error:
        raise NCAPluginError(f"{origin} cannot be read: {one_line(error)}") from error


def dump_pickle(value: object, storage: Callable[[object], Any] = lambda value: None) -> bytes:
    """Return the pickle of a value of plain types, `Size`, `DType` and `Reference`.

    Args:
        storage: returns the persistent identity of a value that is stored outside the pickle, None for any other.
    """
    out = io.BytesIO()
    _Pickler(out, storage).dump(value)
    return out.getvalue()


# Python's pickler in C cannot name types that are not imported.
class _Pickler(pickle._Pickler):
    def __init__(self, out: io.BytesIO, storage: Callable[[object], Any]) -> None:
        super().__init__(out, protocol=2)
        self._storage = storage

    def persistent_id(self, value: object) -> Any:
        return self._storage(value)

    def reducer_override(self, value: object) -> Any:
        return value.name if isinstance(value, Reference | DType) else NotImplemented

    def save_global(self, value: Any, name: str | None = None) -> None:
        reference = _reference(value)
        if reference is None:
            super().save_global(value, name)  # type: ignore[misc]
            return
        self.write(f"c{reference.module}\n{reference.name}\n".encode())  # type: ignore[attr-defined]
        self.memoize(value)  # type: ignore[attr-defined]


def _reference(value: Any) -> Reference | None:
    if isinstance(value, DType):
        return Reference("torch", value.name)
    return value if isinstance(value, Reference) else getattr(value, "reference", None)
