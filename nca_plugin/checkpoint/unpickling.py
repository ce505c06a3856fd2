"""Pickles of untrusted origin, read in time and memory that their length bounds.

A few bytes are enough to have Python's own unpickler allocate gigabytes for an index, or hash tuples that hold each
other for ever. So this one reads the opcodes that protocols 2 to 5 write, calls nothing but what it is given for a
name, and has each call and each key pay for the values that it looks at.
"""

import struct
from collections.abc import Callable
from typing import Any, Final

#: Looks at values that each byte pays for; nothing that torch or Megatron writes comes near.
_LOOKS_PER_BYTE: Final = 16
_FREE_LOOKS: Final = 10_000
_MOST_ARGUMENTS: Final = 64
#: Keys whose hashes a pickle can choose, so that each is compared with all: there are a few for an optimizer's groups.
_MOST_CHOSEN_KEYS: Final = 1000
#: An integer below it is its own hash.
_LEAST_CHOSEN_HASH: Final = 1 << 60
_SIZED: Final = (str, bytes, list, tuple, dict, set, frozenset)
_CONSTANTS: Final[dict[int, Any]] = {0x4E: None, 0x88: True, 0x89: False}
_STOP: Final = 0x2E
_CUT_OFF: Final = "it is cut off"
#: Bytes of the length before a text, or before bytes.
_TEXTS: Final = {0x8C: 1, 0x58: 4, 0x8D: 8}
_BYTES: Final = {0x43: 1, 0x42: 4, 0x8E: 8}


class Unpickler:
    """Reads one pickle.

    Args:
        find: returns what stands for a module's name.
        storage: returns what a persistent identity stands for.
    """

    def __init__(
        self, data: bytes, find: Callable[[str, str], Any], storage: Callable[[tuple[Any, ...]], Any] | None
    ) -> None:
        self._data = data
        self._at = 0
        self._find = find
        self._storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._looks = _LOOKS_PER_BYTE * len(data) + _FREE_LOOKS
        self._chosen_keys = 0

    def load(self) -> Any:
        """Return the value.

        Raises:
            Exception: of any type, for what is no pickle, or one that would take more than its length explains.
        """
        data, stack, memo, at, stop = self._data, self._stack, self._memo, 0, _STOP
        # What a large table of contents is made of, most frequent first; an index beyond the end raises. See the module
        # pickletools for the numbers.
        try:
            while (code := data[at]) != stop:
                at += 1
                if code == 0x94:
                    memo[len(memo)] = stack[-1]
                elif code == 0x6A:
                    stack.append(memo[int.from_bytes(data[at : at + 4], "little")])
                    at += 4
                elif code == 0x68:
                    stack.append(memo[data[at]])
                    at += 1
                elif code == 0x4B:
                    stack.append(data[at])
                    at += 1
                elif code == 0x4D:
                    stack.append(int.from_bytes(data[at : at + 2], "little"))
                    at += 2
                elif code == 0x4A:
                    stack.append(int.from_bytes(data[at : at + 4], "little", signed=True))
                    at += 4
                elif code == 0x28:
                    self._marks.append(len(stack))
                elif 0x85 <= code <= 0x87:
                    stack[0x84 - code :] = [tuple(stack[0x84 - code :])]
                elif code == 0x71:
                    memo[data[at]] = stack[-1]
                    at += 1
                elif code == 0x72:
                    memo[int.from_bytes(data[at : at + 4], "little")] = stack[-1]
                    at += 4
                else:
                    self._at = at
                    self._do(code)
                    at = self._at
        except (IndexError, KeyError) as error:
            # A whole pickle ends with STOP.
            if max(at, self._at) >= len(data) or data[-1] != stop:
                raise ValueError(_CUT_OFF) from error
            raise
        return stack.pop()

    def _do(self, code: int) -> None:
        """Do what is seldom asked for."""
        stack = self._stack
        if code in _CONSTANTS:
            stack.append(_CONSTANTS[code])
        elif code in _TEXTS:
            stack.append(str(self._sized(_TEXTS[code]), "utf-8", "surrogatepass"))
        elif code in _BYTES:
            stack.append(self._sized(_BYTES[code]))
        elif code in _ACTIONS:
            _ACTIONS[code](self)
        else:
            raise ValueError(f"opcode {code:#04x}, which no checkpoint has")

    def _take(self, count: int) -> bytes:
        self._at += count
        if self._at > len(self._data):
            raise ValueError(_CUT_OFF)
        return self._data[self._at - count : self._at]

    def _sized(self, width: int) -> bytes:
        return self._take(int.from_bytes(self._take(width), "little"))

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at)
        if end < 0:
            raise ValueError(_CUT_OFF)
        line = self._data[self._at : end]
        self._at = end + 1
        return line.decode()

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

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

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[self._checked_key(key)] = value
        else:
            self._of_no_use(target)

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target += items
        else:
            self._of_no_use(target)

    def _of_no_use(self, target: Any) -> None:
        """Leave out items of an object that stands for one that nobody needs."""
        if not getattr(type(target), "takes_items", False):
            raise ValueError(f"items for a {type(target).__name__}")

    def _add(self) -> None:
        items, target = self._marked(), self._stack[-1]
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

    def _reduce(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._call(function, arguments))

    def _new(self) -> None:
        arguments, kind = self._stack.pop(), self._stack.pop()
        if not isinstance(kind, type):
            raise ValueError("an object of no type")
        self._stack.append(self._call(kind.__new__, arguments, (kind,)))

    def _build(self) -> None:
        state = self._stack.pop()
        if isinstance(state, _SIZED):
            self._look(len(state))
        built = self._stack[-1]
        # What has no such method of its own has no state; a class that is named is no object of it.
        set_state = getattr(type(built), "__setstate__", None)
        if set_state is None:
            raise ValueError(f"a state of a {type(built).__name__}")
        set_state(built, state)

    def _persistent(self) -> None:
        identity = self._stack.pop()
        if self._storage is None:
            raise ValueError("it refers to tensors outside it")
        self._stack.append(self._storage(identity))

    def _pop(self) -> None:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._stack.pop()


def _is_hashed_by_identity(key: Any) -> bool:
    hashes: Any = (type(key).__hash__, object.__hash__)
    return hashes[0] is hashes[1]


_ACTIONS: Final[dict[int, Callable[[Unpickler], Any]]] = {
    # Protocol and frames say nothing that is needed.
    0x80: lambda its: its._take(1),
    0x95: lambda its: its._take(8),
    0x47: lambda its: its._stack.append(struct.unpack(">d", its._take(8))[0]),
    0x8A: lambda its: its._stack.append(int.from_bytes(its._sized(1), "little", signed=True)),
    0x8B: lambda its: its._stack.append(int.from_bytes(its._sized(4), "little", signed=True)),
    0x96: lambda its: its._stack.append(bytearray(its._sized(8))),
    0x29: lambda its: its._stack.append(()),
    0x5D: lambda its: its._stack.append([]),
    0x7D: lambda its: its._stack.append({}),
    0x8F: lambda its: its._stack.append(set()),
    0x74: lambda its: its._stack.append(tuple(its._marked())),
    0x91: lambda its: its._stack.append(frozenset(map(its._checked_key, its._marked()))),
    0x61: lambda its: its._append([its._stack.pop()]),
    0x65: lambda its: its._append(its._marked()),
    0x73: lambda its: its._set([its._stack.pop(-2), its._stack.pop()]),
    0x75: lambda its: its._set(its._marked()),
    0x90: Unpickler._add,
    0x63: lambda its: its._stack.append(its._find(its._line(), its._line())),
    0x93: lambda its: its._stack.append(its._find(its._stack.pop(-2), its._stack.pop())),
    0x52: Unpickler._reduce,
    0x81: Unpickler._new,
    0x62: Unpickler._build,
    0x51: Unpickler._persistent,
    0x30: Unpickler._pop,
    0x31: Unpickler._marked,
}
