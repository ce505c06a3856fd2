"""Reads a pickle of many similar objects by columns: an attribute of all objects is one array, no object is built.

All names in the pickle are looked up, so that a forbidden one is refused even if nobody reads it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.checkpoint import opcodes
from nca_plugin.checkpoint.opcodes import Nodes
from nca_plugin.checkpoint.pickling import Size

Ints = NDArray[np.int64]
#: Stands in the place of a node that does not exist.
MISSING: Final = -1
#: PyTorch's limit on the axes of a tensor, and a limit on the values of shapes for each byte of the pickle.
_MOST_AXES: Final = 64
_SIZES_PER_BYTE: Final = 8


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of different lengths: list i is `values[starts[i] : starts[i] + counts[i]]`. Lists may share values."""

    values: Ints
    starts: Ints
    counts: Ints

    def joined(self) -> Ints:
        """Return the values of all lists in order. Shared values are repeated."""
        before = np.cumsum(self.counts) - self.counts
        return self.values[np.arange(self.counts.sum()) + np.repeat(self.starts - before, self.counts)]


class Columns:
    """The values of a pickle, by columns.

    Args:
        nodes: the nodes of the pickle.
        find: returns the object that stands for a name in a module, and may raise any exception.

    Raises:
        ValueError: if the pickle is inconsistent.
    """

    def __init__(self, nodes: Nodes, find: Callable[[str, str], Any]) -> None:
        self._nodes = nodes
        self.kinds = np.asarray(nodes.kinds, np.uint8)
        self._first = np.asarray(nodes.first, np.int64)
        self._second = np.asarray(nodes.second, np.int64)
        self._targets = np.asarray(nodes.targets, np.int64)
        self._members = np.asarray(nodes.members, np.int64)
        named = np.flatnonzero((self.kinds == opcodes.GLOBAL) | (self.kinds == opcodes.STACK_GLOBAL)).tolist()
        self._named = {node: find(*nodes.name(node)) for node in named}
        # A pickle may contain the same text many times. Equal texts get one number.
        self._texts: dict[bytes, int] = {}
        self._text_of = np.full(len(self.kinds), MISSING, np.int64)
        texts = np.flatnonzero(self.kinds == opcodes.TEXT)
        spans = zip(self._first[texts].tolist(), self._second[texts].tolist(), strict=True)
        data, known = nodes.data, self._texts
        self._text_of[texts] = [known.setdefault(data[at : at + length], len(known)) for at, length in spans]
        self._state_of = np.full(len(self.kinds), MISSING, np.int64)
        built = np.flatnonzero(self.kinds == opcodes.BUILD)
        self._state_of[self._targets[built]] = self._first[built]
        self._appended = self._added(opcodes.APPENDS)
        self._set = self._added(opcodes.SETITEMS)
        pairs = self._set[1].joined()
        if (self._set[1].counts % 2).any():
            raise ValueError("a key without a value")
        self._owners = np.repeat(self._set[0], self._set[1].counts // 2)
        self._keys, self._values = pairs[::2], pairs[1::2]
        self._key_texts = self._text_of[self._keys]

    @property
    def root(self) -> Ints:
        return np.array([self._nodes.root])

    @property
    def texts(self) -> list[str]:
        """All texts; the number of a text is its index."""
        return [str(text, "utf-8", "surrogatepass") for text in self._texts]

    def named(self, nodes: Ints) -> list[Any]:
        """Return the objects that names stand for. Raises `ValueError` if a node is not a name."""
        return [self._named_by(node) for node in nodes.tolist()]

    def are(self, nodes: Ints, kind: object) -> NDArray[np.bool_]:
        """Return which nodes are objects of the class `kind`, which `find` returned."""
        classes = [node for node, found in self._named.items() if found is kind]
        made = np.isin(self.kinds[nodes], (opcodes.NEWOBJ, opcodes.REDUCE)) & (nodes >= 0)
        return made & np.isin(self._first[nodes], classes)

    def attribute(self, objects: Ints, name: str) -> Ints:
        """Return the nodes of an attribute of objects, `MISSING` for an object without it."""
        states = self.state(objects)
        of_name = self._key_texts == self._texts.get(name.encode(), len(self._texts))
        owners, values = self._owners[of_name], self._values[of_name]
        if not len(owners):
            return np.full(len(objects), MISSING)
        # If an object sets the attribute several times, the last one counts.
        places = np.searchsorted(owners, states, "right") - 1
        return np.where((states >= 0) & (owners[places] == states), values[places], MISSING)

    def state(self, objects: Ints) -> Ints:
        """Return the nodes of the objects' states, `MISSING` for an object without one."""
        return np.where(objects >= 0, self._state_of[objects], MISSING)

    def text_numbers(self, nodes: Ints) -> Ints:
        """Return the numbers of texts, `MISSING` for a node that is not a text."""
        return np.where(nodes >= 0, self._text_of[nodes], MISSING)

    def integers(self, nodes: Ints) -> Ints:
        """Return integers of up to 56 bits. Raises `ValueError` if a node is not one."""
        if not self._are_of(nodes, opcodes.INT).all():
            raise ValueError("no integer where there must be one")
        return self._first[nodes]

    def is_none(self, nodes: Ints) -> NDArray[np.bool_]:
        """Return which nodes are None or missing."""
        return (nodes < 0) | (self.kinds[nodes] == opcodes.NONE)

    def items(self, mapping: int) -> tuple[Ints, Ints]:
        """Return the keys and values of a mapping."""
        if not self._are_of(np.array([mapping]), opcodes.DICT).all():
            raise ValueError("no mapping where there must be one")
        first, last = np.searchsorted(self._owners, [mapping, mapping + 1]).tolist()
        return self._keys[first:last], self._values[first:last]

    def elements(self, lists: Ints) -> Lists:
        """Return the elements of lists, as nodes. Raises `ValueError` if a node is not a list."""
        if not self._are_of(lists, opcodes.LIST).all():
            raise ValueError("no list where there must be one")
        targets, added = self._appended
        first, last = np.searchsorted(targets, lists, "left"), np.searchsorted(targets, lists, "right")
        ends = np.concatenate([[0], np.cumsum(added.counts)])
        return self._within_bounds(Lists(added.joined(), ends[first], ends[last] - ends[first]))

    def tuples(self, nodes: Ints) -> Lists:
        """Return the elements of tuples, as nodes. Raises `ValueError` if a node is not a tuple."""
        if not self._are_of(nodes, opcodes.TUPLE).all():
            raise ValueError("no tuple where there must be one")
        return Lists(self._members, self._first[nodes], self._second[nodes])

    def sizes(self, nodes: Ints) -> Lists:
        """Return the numbers in shapes, which are `torch.Size`. Raises `ValueError` if a node is not a shape."""
        # Many objects may share a shape, which is read once.
        found, places = np.unique(nodes, return_inverse=True)
        if len(found) and not self.are(found, Size).all():
            raise ValueError("no shape where there must be one")
        arguments = self.tuples(self._second[found])
        if (arguments.counts != 1).any():
            raise ValueError("a shape that no tensor has")
        numbers = self.tuples(arguments.joined())
        if numbers.counts.max(initial=0) > _MOST_AXES:
            raise ValueError("a shape that no tensor has")
        self._within_bounds(numbers)
        starts = np.cumsum(numbers.counts) - numbers.counts
        return self._within_bounds(Lists(self.integers(numbers.joined()), starts[places], numbers.counts[places]))

    def _within_bounds(self, lists: Lists) -> Lists:
        if lists.counts.sum() > _SIZES_PER_BYTE * len(self._nodes.data):
            raise ValueError("a few of its bytes stand for more values than memory may hold")
        return lists

    def _are_of(self, nodes: Ints, kind: int) -> NDArray[np.bool_]:
        return (nodes >= 0) & (self.kinds[nodes] == kind)

    def _named_by(self, node: int) -> Any:
        if node not in self._named:
            raise ValueError("no name where there must be one")
        return self._named[node]

    def _added(self, kind: int) -> tuple[Ints, Lists]:
        """Return the targets and the members of all additions of a kind, sorted by target and then by order."""
        added = np.flatnonzero(self.kinds == kind)
        added = added[np.argsort(self._targets[added], kind="stable")]
        return self._targets[added], Lists(self._members, self._first[added], self._second[added])
