"""Reads the opcodes of a pickle into a table of the values that they make. Nothing is looked up, called or built.

The table has at most one node for each byte. A node is a value or an addition to one, and its members are earlier
nodes. Large and small pickles are read by the same function, which is compiled for large ones.
"""

import functools
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError

#: Kinds of nodes, which have the names that the module pickletools gives the opcodes that make them. The comments say
#: what `first` and `second` of such a node are.
NONE: Final = 0x4E
TRUE: Final = 0x88
FALSE: Final = 0x89
INT: Final = 0x4B  # The number.
LONG: Final = 0x8A  # Offset and length in the pickle. The number may have more than 56 bits.
FLOAT: Final = 0x47  # Offset in the pickle.
TEXT: Final = 0x8C  # Offset and length in the pickle, as for the next two.
BYTES: Final = 0x43
BYTEARRAY: Final = 0x96
TUPLE: Final = 0x74  # Index and count of its members, as for the next.
FROZENSET: Final = 0x91
LIST: Final = 0x5D
DICT: Final = 0x7D
SET: Final = 0x8F
GLOBAL: Final = 0x63  # Offset and length of two lines: the module and the name.
STACK_GLOBAL: Final = 0x93  # Nodes of the module and the name.
REDUCE: Final = 0x52  # Nodes of the function and its arguments.
NEWOBJ: Final = 0x81  # Nodes of the class and its arguments.
PERSID: Final = 0x51  # Node of the persistent identity.
#: Additions to `target`: index and count of the members. For a mapping, keys and values alternate.
APPENDS: Final = 0x65
SETITEMS: Final = 0x75
ADDITEMS: Final = 0x90
BUILD: Final = 0x62  # Node of the state.

_PROTO: Final = 0x80
_FRAME: Final = 0x95
_STOP: Final = 0x2E
_MARK: Final = 0x28
_POP: Final = 0x30
_POP_MARK: Final = 0x31
_MEMOIZE: Final = 0x94
_BINPUT: Final = 0x71
_LONG_BINPUT: Final = 0x72
_BINGET: Final = 0x68
_LONG_BINGET: Final = 0x6A
_BININT: Final = 0x4A
_BININT2: Final = 0x4D
_LONG4: Final = 0x8B
_TUPLE0: Final = 0x29
_TUPLE1: Final = 0x85
_TUPLE2: Final = 0x86
_TUPLE3: Final = 0x87
_APPEND: Final = 0x61
_SETITEM: Final = 0x73
_TEXTS: Final = {0x8C: 1, 0x58: 4, 0x8D: 8}
_BYTES: Final = {0x43: 1, 0x42: 4, 0x8E: 8}

#: Number of bytes of the operand after an opcode, which is a number, such as the length of a text.
_WIDTHS: Final = {
    **{_PROTO: 1, _FRAME: 8, _BINPUT: 1, _LONG_BINPUT: 4, _BINGET: 1, _LONG_BINGET: 4},
    **{_BININT: 4, INT: 1, _BININT2: 2, LONG: 1, _LONG4: 4, FLOAT: 8, BYTEARRAY: 8, **_TEXTS, **_BYTES},
}
#: Stands for all values on the stack above the last mark.
_ALL: Final = -1
#: Number of values that an opcode takes from the stack.
_TAKES: Final = {
    **{_STOP: 1, _POP: 1, _TUPLE1: 1, _TUPLE2: 2, _TUPLE3: 3, _APPEND: 1, _SETITEM: 2},
    **{BUILD: 1, REDUCE: 2, NEWOBJ: 2, STACK_GLOBAL: 2, PERSID: 1},
    **dict.fromkeys((TUPLE, FROZENSET, APPENDS, SETITEMS, ADDITEMS, _POP_MARK), _ALL),
}
#: Kind of the node that an opcode makes.
_KINDS: Final = {
    **{kind: kind for kind in (NONE, TRUE, FALSE, INT, LONG, FLOAT, BYTEARRAY, TUPLE, FROZENSET, LIST, DICT, SET)},
    **{kind: kind for kind in (GLOBAL, STACK_GLOBAL, REDUCE, NEWOBJ, PERSID, APPENDS, SETITEMS, ADDITEMS, BUILD)},
    **dict.fromkeys((_BININT, _BININT2), INT),
    **dict.fromkeys((_TUPLE0, _TUPLE1, _TUPLE2, _TUPLE3), TUPLE),
    **{_LONG4: LONG, _APPEND: APPENDS, _SETITEM: SETITEMS},
    **dict.fromkeys(_TEXTS, TEXT),
    **dict.fromkeys(_BYTES, BYTES),
}
_OTHERS: Final = (_PROTO, _FRAME, _STOP, _MARK, _POP, _POP_MARK, _MEMOIZE, *(_BINPUT, _LONG_BINPUT, _BINGET))
#: For each opcode: its width, -1 if no checkpoint has the opcode; the values it takes; its kind, 0 if it makes no node.
_TABLES: Final = (
    [_WIDTHS.get(code, 0) if code in (*_KINDS, *_OTHERS, _LONG_BINGET) else -1 for code in range(256)],
    [_TAKES.get(code, 0) for code in range(256)],
    [_KINDS.get(code, 0) for code in range(256)],
)

#: From this number of bytes on, some ten thousand blocks, reading takes longer than numba's import and start, a second.
_LARGE: Final = 1 << 21
#: Offsets are int32.
_MOST_BYTES: Final = (1 << 31) - 2
#: How `_scan` ends.
_DONE: Final = 0
_CUT_OFF: Final = 1
_UNKNOWN: Final = 2
_DAMAGED: Final = 3

#: A column of the table of nodes.
Table = array[int] | NDArray[Any]


@dataclass(frozen=True, slots=True)
class Nodes:
    """The values and additions that a pickle makes, in order.

    Attributes:
        data: the pickle, in which the texts and bytes of nodes lie.
        kinds, first, second, targets: one value for each node.
        members: the members of all nodes, as nodes.
        root: the node of the value that the pickle stands for.
    """

    data: bytes
    kinds: Table
    first: Table
    second: Table
    targets: Table
    members: Table
    root: int

    @property
    def columns(self) -> Iterator[list[int]]:
        """`kinds`, `first`, `second`, `targets` and `members` as lists of Python's integers."""
        tables = (self.kinds, self.first, self.second, self.targets, self.members)
        return (table.tolist() for table in tables)

    def name(self, node: int) -> tuple[str, str]:
        """Return the module and the name that a node consists of. Raises `ValueError` if they are not texts."""
        first, second = self.first[node], self.second[node]
        if self.kinds[node] == GLOBAL:
            module, name = self.data[first : first + second].decode().split("\n")[:2]
            return module, name
        if self.kinds[node] != STACK_GLOBAL or {self.kinds[first], self.kinds[second]} != {TEXT}:
            raise ValueError("a name that is no text")
        return self.text(first), self.text(second)

    def text(self, node: int) -> str:
        """Return the text of a `TEXT` node."""
        return str(self.bytes(node), "utf-8", "surrogatepass")

    def bytes(self, node: int) -> bytes:
        """Return the bytes of a node that has an offset and a length."""
        return self.data[self.first[node] : self.first[node] + self.second[node]]


def scan(data: bytes) -> Nodes:
    """Return the nodes of a pickle.

    Raises:
        ValueError: if `data` is not a pickle, or has opcodes that protocols 2 to 5 do not write.
    """
    if len(data) > _MOST_BYTES:
        raise ValueError(f"it has more than {_MOST_BYTES:,} bytes")
    compiled = _compiled() if len(data) >= _LARGE else None
    room = len(data) + 1
    tables: list[Any]
    if compiled is None:
        tables = [array(kind, bytes(width * room)) for kind, width in (("B", 1), ("q", 8), *[("i", 4)] * 6)]
        ending = _scan(data, *_TABLES, *tables)
    else:
        # Pages of `np.zeros` take no memory until something is written to them.
        types = (np.uint8, np.int64, *[np.int32] * 6)
        tables = [np.zeros(room, dtype) for dtype in types]
        ending = compiled(np.frombuffer(data, np.uint8), *(np.array(table, np.int16) for table in _TABLES), *tables)
    how, at, num_nodes, num_members, root = map(int, ending)
    if how == _CUT_OFF:
        raise ValueError("it is cut off")
    if how == _UNKNOWN:
        raise ValueError(f"opcode {data[at]:#04x}, which no checkpoint has")
    if how == _DAMAGED:
        raise ValueError(f"opcode {data[at]:#04x} at byte {at} has nothing to work on")
    kinds, first, second, targets = (table[:num_nodes] for table in tables[:4])
    return Nodes(data, kinds, first, second, targets, tables[4][:num_members], root)


@functools.cache
def _compiled() -> Any:
    """Return `_scan` compiled; None if compilation is impossible or switched off, since reading works without it."""
    from nca_plugin.compiled import compiled

    with suppress(NCAPluginError):
        return compiled(_scan)
    return None


def _scan(
    data: Any,
    widths: Any,
    takes: Any,
    kind_of: Any,
    kinds: Any,
    first: Any,
    second: Any,
    targets: Any,
    members: Any,
    stack: Any,
    marks: Any,
    memo: Any,
) -> tuple[int, int, int, int, int]:
    """Fill the tables, which are all zeros and longer than the data.

    Compiled code does not check bounds, so the bytes of an opcode and the values that it takes from the stack are
    checked first.

    Returns:
        How it ended, the offset of the last opcode, the numbers of nodes and of members, and the node of the value.
    """
    size = len(data)
    at = num_nodes = num_members = depth = num_marks = fence = memoized = code = start = 0
    while True:
        start = at
        if at >= size:
            return _CUT_OFF, start, num_nodes, num_members, 0
        code = data[at]
        at += 1
        width = widths[code]
        if width < 0:
            return _UNKNOWN, start, num_nodes, num_members, 0
        if width > size - at:
            return _CUT_OFF, start, num_nodes, num_members, 0
        if takes[code] > depth - fence and code != _POP:
            return _DAMAGED, start, num_nodes, num_members, 0
        value = 0
        if width:
            value += data[at]
            if width > 1:
                value += data[at + 1] * 0x100
                if width > 2:
                    value += data[at + 2] * 0x10000 + data[at + 3] * 0x1000000
                    if width > 4:
                        value += data[at + 4] * 0x100000000 + data[at + 5] * 0x10000000000
                        # All lengths that are too large are treated alike, so that no sum overflows.
                        if data[at + 6] or data[at + 7]:
                            value = 1 << 48
            at += width
        # The most frequent opcodes come first.
        if code in (_MEMOIZE, _LONG_BINPUT, _BINPUT):
            if code == _MEMOIZE:
                value = memoized
            if value >= size or depth == fence:
                return _DAMAGED, start, num_nodes, num_members, 0
            if memo[value] == 0:
                memoized += 1
            memo[value] = stack[depth - 1] + 1
            continue
        if code in (_LONG_BINGET, _BINGET):
            if value >= size or memo[value] == 0:
                return _DAMAGED, start, num_nodes, num_members, 0
            stack[depth] = memo[value] - 1
            depth += 1
            continue
        if code == _MARK:
            marks[num_marks] = depth
            num_marks += 1
            fence = depth
            continue
        count = takes[code]
        if count == _ALL or (code == _POP and depth == fence):
            if num_marks == 0:
                return _DAMAGED, start, num_nodes, num_members, 0
            count = depth - fence
            num_marks -= 1
            fence = marks[num_marks - 1] if num_marks else 0
        depth -= count
        kind = kind_of[code]
        if kind == 0:
            if code == _STOP:
                return _DONE, start, num_nodes, num_members, stack[depth]
            continue
        target = -1
        first[num_nodes] = num_members
        second[num_nodes] = count
        if kind == INT:
            if code == _BININT and value >= 0x80000000:
                value -= 0x100000000
            first[num_nodes] = value
        elif kind in (TUPLE, SETITEMS, APPENDS, FROZENSET, ADDITEMS):
            for place in range(depth, depth + count):
                members[num_members] = stack[place]
                num_members += 1
        elif kind in (REDUCE, NEWOBJ, STACK_GLOBAL, BUILD, PERSID):
            first[num_nodes] = stack[depth]
            second[num_nodes] = stack[depth + 1]
        elif kind in (TEXT, BYTES, BYTEARRAY, LONG):
            if value > size - at:
                return _CUT_OFF, start, num_nodes, num_members, 0
            first[num_nodes] = at
            second[num_nodes] = value
            if kind == LONG and value < 8:
                number = 0
                scale = 1
                for place in range(at, at + value):
                    number += data[place] * scale
                    scale *= 0x100
                if value > 0 and data[at + value - 1] >= 0x80:
                    number -= scale
                kind = INT
                first[num_nodes] = number
            at += value
        elif kind == FLOAT:
            first[num_nodes] = at - 8
        elif kind == GLOBAL:
            first[num_nodes] = at
            lines = 0
            while lines < 2:
                if at >= size:
                    return _CUT_OFF, start, num_nodes, num_members, 0
                if data[at] == 0x0A:
                    lines += 1
                at += 1
            second[num_nodes] = at - first[num_nodes]
        if kind in (SETITEMS, APPENDS, ADDITEMS, BUILD):
            if depth <= fence:
                return _DAMAGED, start, num_nodes, num_members, 0
            target = stack[depth - 1]
        else:
            stack[depth] = num_nodes
            depth += 1
        kinds[num_nodes] = kind
        targets[num_nodes] = target
        num_nodes += 1
