"""Pickles that name PyTorch's and Megatron's types, read and written without importing these.

What is read is of untrusted origin: types on a list are built, what Megatron, Transformer Engine and numpy put
beside them becomes a `Foreign` that holds nothing, and any other name is refused. So nothing that a pickle names is
ever run, and a process that only moves tensors needs no PyTorch: half a gigabyte, and seconds.
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
    """What a pickle names: a class or a function of a module."""

    module: str
    name: str

    def __call__(self, *_: object) -> NoReturn:
        raise TypeError(f"{self.module}.{self.name} is not run")


class Foreign:
    """Stands for an object of a type that is known to occur and is of no use here: enumerations, random states."""

    #: Whether items that a pickle adds to it are left out.
    takes_items: Final = True

    def __new__(cls, *_: object, **__: object) -> "Foreign":
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


#: PyTorch's limit.
_MOST_AXES: Final = 64


class Size(tuple[int, ...]):
    """PyTorch's class of shapes."""

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
    """A function that a pickle may call, and cannot change."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *arguments: Any) -> Any:
        return self._make(*arguments)

    def __setstate__(self, _: object) -> None:
        raise TypeError("a function has no state")


class _Namespace(argparse.Namespace):
    """A namespace whose class a pickle cannot change: what has `__setstate__` is not written to otherwise."""

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
    """A mapping whose own attributes are left out, such as the versions of modules in the state of a model."""

    def __setstate__(self, _: object) -> None:
        pass


def _encode(text: str, encoding: str) -> bytes:
    """What protocol 2 stores bytes as."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1", "utf-8"):
        raise pickle.UnpicklingError("bytes that no pickle has")
    return text.encode(encoding)


def _member(enumeration: object, _: str) -> Foreign:
    """What some Python versions store a member of an enumeration as."""
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
    """Return what `data` holds.

    Args:
        data: a pickle.
        origin: of the pickle, for messages.
        extra: by module and name, more types and what is built in their place.
        storage: what a persistent identity of the pickle becomes.

    Raises:
        NCAPluginError: the pickle is damaged, or names anything else.
    """
    return read_pickle(data, origin, extra, lambda nodes, find: build(nodes, find, storage))


def read_pickle[T](data: bytes, origin: str, extra: Globals | None, read: Callable[[Nodes, Find], T]) -> T:
    """Return what `read` makes of a pickle's nodes, and of a function that returns what stands for a name.

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
    # A damaged pickle can fail in any operation: every type of error says the same of it.
    except Exception as error:
        raise NCAPluginError(f"{origin} cannot be read: {one_line(error)}") from error


def dump_pickle(value: object, storage: Callable[[object], Any] = lambda value: None) -> bytes:
    """Return the pickle of a value of plain types, `Size`, `DType` and `Reference`.

    Args:
        storage: returns the persistent identity of what is stored outside the pickle, None for all else.
    """
    out = io.BytesIO()
    _Pickler(out, storage).dump(value)
    return out.getvalue()


# The one in C cannot name what is not imported.
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
