"""Reads untrusted pickles in time and memory that are bounded by their length.

With a few bytes, Python's own unpickler can be made to allocate gigabytes for an index, or to hash nested tuples for
ever. This one builds the values that protocols 2 to 5 write node by node, see `opcodes`. It calls only what `find`
returns for a name, and charges each call and each key for the values that it looks at.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

from nca_plugin.checkpoint import opcodes
from nca_plugin.checkpoint.opcodes import Nodes

#: Number of values that may be looked at for each byte. Nothing that PyTorch or Megatron writes comes near.
_LOOKS_PER_BYTE: Final = 16
_FREE_LOOKS: Final = 10_000
_MOST_ARGUMENTS: Final = 64
#: Limit on keys whose hashes a pickle can choose, because keys with equal hashes are all compared with each other. The
#: groups of an optimizer have a few such keys.
_MOST_CHOSEN_KEYS: Final = 1000
#: Below this, an integer is its own hash, so that equal hashes are equal keys.
_LEAST_CHOSEN_HASH: Final = 1 << 60
_SIZED: Final = (str, bytes, list, tuple, dict, set, frozenset)
#: These return the value of a module's name, and of a persistent identity.
Find = Callable[[str, str], Any]
Storage = Callable[[tuple[Any, ...]], Any]


def build(nodes: Nodes, find: Find, storage: Storage | None) -> Any:
    """Return the value of a pickle.

    Args:
        find: returns the value of a module's name.
        storage: returns the value of a persistent identity; None if the pickle may have none.

    Raises:
        Exception: of any type, if the pickle is inconsistent or would take more time or memory than its length allows.
    """
    return _Builder(nodes, find, storage).root()


class _Builder:
    def __init__(self, nodes: Nodes, find: Find, storage: Storage | None) -> None:
        self._nodes = nodes
        self._find = find
        self._storage = storage
        self._looks = _LOOKS_PER_BYTE * len(nodes.data) + _FREE_LOOKS
        self._chosen_keys = 0

    def root(self) -> Any:
        nodes, data = self._nodes, self._nodes.data
        # The value of each node; None for an addition.
        values: list[Any] = []
        kinds, firsts, seconds, targets, members = nodes.columns
        for number, (kind, first, second, target) in enumerate(zip(kinds, firsts, seconds, targets, strict=True)):
            value: Any = None
            if kind == opcodes.INT:
                value = first
            elif kind == opcodes.TEXT:
                value = nodes.text(number)
            elif kind in _EMPTY:
                value = _EMPTY[kind]()
            elif kind in _OF_MEMBERS:
                held = [values[member] for member in members[first : first + second]]
                if kind == opcodes.TUPLE:
                    value = tuple(held)
                elif kind == opcodes.FROZENSET:
                    value = frozenset(map(self._checked_key, held))
                elif kind == opcodes.SETITEMS:
                    self._set(values[target], held)
                elif kind == opcodes.APPENDS:
                    self._append(values[target], held)
                else:
                    self._add(values[target], held)
            elif kind == opcodes.REDUCE:
                value = self._call(values[first], values[second])
            elif kind == opcodes.NEWOBJ:
                if not isinstance(values[first], type):
                    raise ValueError("an object of no type")
                value = self._call(values[first].__new__, values[second], (values[first],))
            elif kind == opcodes.BUILD:
                self._build(values[target], values[first])
            elif kind in (opcodes.GLOBAL, opcodes.STACK_GLOBAL):
                value = self._find(*nodes.name(number))
            elif kind == opcodes.FLOAT:
                value = struct.unpack_from(">d", data, first)[0]
            elif kind == opcodes.PERSID:
                if self._storage is None:
                    raise ValueError("it refers to tensors outside it")
                value = self._storage(values[first])
            elif kind in (opcodes.TRUE, opcodes.FALSE):
                value = kind == opcodes.TRUE
            elif kind != opcodes.NONE:
                value = nodes.bytes(number)
                if kind == opcodes.LONG:
                    value = int.from_bytes(value, "little", signed=True)
                elif kind == opcodes.BYTEARRAY:
                    value = bytearray(value)
            values.append(value)
        return values[nodes.root]

    def _look(self, count: int) -> None:
        self._looks -= count
        if self._looks < 0:
            raise ValueError("a few of its bytes stand for more values than memory may hold")

    def _checked_key(self, key: Any) -> Any:
        """Return a key after checking that hashing it takes a bounded time."""
        hashed_by: Any = type(key).__hash__
        is_small = type(key) is int and abs(key) < _LEAST_CHOSEN_HASH
        if type(key) not in (str, bytes) and not is_small and hashed_by is not object.__hash__:
            self._chosen_keys += 1
            if self._chosen_keys > _MOST_CHOSEN_KEYS:
                raise ValueError("more keys than a checkpoint has")
            left = [key]
            while left:
                value = left.pop()
                self._look(1 + (value.bit_length() >> 3 if isinstance(value, int) else 0))
                if isinstance(value, tuple):
                    left += value
        return key

    def _set(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[self._checked_key(key)] = value
        else:
            _of_no_use(target)

    def _append(self, target: Any, items: list[Any]) -> None:
        if type(target) is list:
            target += items
        else:
            _of_no_use(target)

    def _add(self, target: Any, items: list[Any]) -> None:
        if type(target) is not set:
            raise ValueError(f"members for a {type(target).__name__}")
        target.update(map(self._checked_key, items))

    def _call(self, function: Callable[..., Any], arguments: Any, first: tuple[Any, ...] = ()) -> Any:
        if type(arguments) is not tuple or len(arguments) > _MOST_ARGUMENTS:
            raise ValueError("a call without arguments that a checkpoint has")
        self._look(sum(len(value) for value in arguments if isinstance(value, _SIZED)))
        if function in (set, frozenset):
            arguments = tuple(list(map(self._checked_key, value)) for value in arguments)
        return function(*first, *arguments)

    def _build(self, built: Any, state: Any) -> None:
        if isinstance(state, _SIZED):
            self._look(len(state))
        # Only types with a `__setstate__` of their own have state. It is looked up on the type, so that a class that a
        # pickle names does not count as its object.
        set_state = getattr(type(built), "__setstate__", None)
        if set_state is None:
            raise ValueError(f"a state of a {type(built).__name__}")
        set_state(built, state)


_EMPTY: Final[dict[int, Callable[[], Any]]] = {opcodes.LIST: list, opcodes.DICT: dict, opcodes.SET: set}
_OF_MEMBERS: Final = (opcodes.TUPLE, opcodes.SETITEMS, opcodes.APPENDS, opcodes.FROZENSET, opcodes.ADDITEMS)


def _of_no_use(target: Any) -> None:
    """Ignore items for a `Foreign`. Raises `ValueError` for any other object."""
    if not getattr(type(target), "takes_items", False):
        raise ValueError(f"items for a {type(target).__name__}")
