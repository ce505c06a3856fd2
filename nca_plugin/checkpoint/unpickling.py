"""Pickles of untrusted origin, read in time and memory that their length bounds.

A few bytes are enough to have Python's own unpickler allocate gigabytes for an index, or hash tuples that hold each
other for ever. So this one builds what protocols 2 to 5 write node by node, see `opcodes`, calls nothing but what it is
given for a name, and has each call and each key pay for the values that it looks at.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

from nca_plugin.checkpoint import opcodes
from nca_plugin.checkpoint.opcodes import Nodes

#: Looks at values that each byte pays for; nothing that torch or Megatron writes comes near.
_LOOKS_PER_BYTE: Final = 16
_FREE_LOOKS: Final = 10_000
_MOST_ARGUMENTS: Final = 64
#: Keys whose hashes a pickle can choose, so that each is compared with all: there are a few for an optimizer's groups.
_MOST_CHOSEN_KEYS: Final = 1000
#: An integer below it is its own hash.
_LEAST_CHOSEN_HASH: Final = 1 << 60
_SIZED: Final = (str, bytes, list, tuple, dict, set, frozenset)
#: A name's or a persistent identity's value.
Find = Callable[[str, str], Any]
Storage = Callable[[tuple[Any, ...]], Any]


def build(nodes: Nodes, find: Find, storage: Storage | None) -> Any:
    """Return the value that a pickle stands for.

    Args:
        find: returns what stands for a module's name.
        storage: returns what a persistent identity stands for; None where there are none.

    Raises:
        Exception: of any type, for what would take more than its length explains, or does not fit together.
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
        # Of an addition, None.
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
        """Return a key after its hash is known to take no longer than its values are long."""
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
        # What has no such method of its own has no state; a class that is named is no object of it.
        set_state = getattr(type(built), "__setstate__", None)
        if set_state is None:
            raise ValueError(f"a state of a {type(built).__name__}")
        set_state(built, state)


_EMPTY: Final[dict[int, Callable[[], Any]]] = {opcodes.LIST: list, opcodes.DICT: dict, opcodes.SET: set}
_OF_MEMBERS: Final = (opcodes.TUPLE, opcodes.SETITEMS, opcodes.APPENDS, opcodes.FROZENSET, opcodes.ADDITEMS)


def _of_no_use(target: Any) -> None:
    """Leave out items of an object that stands for one that nobody needs."""
    if not getattr(type(target), "takes_items", False):
        raise ValueError(f"items for a {type(target).__name__}")
