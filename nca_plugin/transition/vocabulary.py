"""The rows of embedding and output: how many the next stage has, and which of the old ones it takes over."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.checkpoint.contents import Tensor
from nca_plugin.checkpoint.dtypes import Values
from nca_plugin.errors import NCAPluginError
from nca_plugin.files import read_lines

#: Tensors with a row for every token id.
ROW_TENSORS: Final = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")
#: More than any vocabulary has.
MOST_ROWS: Final = 1 << 24


@dataclass(frozen=True)
class RowMap:
    """Rows that are taken over: row `new[i]` is the old row `old[i]`; int64, `new` ascending."""

    new: NDArray[np.int64]
    old: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.new)

    def between(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the new and old rows with `start <= new < stop`."""
        first, last = np.searchsorted(self.new, [start, stop])
        return self.new[first:last], self.old[first:last]


def same_rows(start: int, stop: int) -> RowMap:
    """Return the map that leaves rows `start` .. `stop - 1` where they are."""
    rows = np.arange(start, stop, dtype=np.int64)
    return RowMap(rows, rows)


def parse_keep_rows(text: str) -> RowMap:
    """Return the rows of `0:256`, or of several such ranges with commas, at their places.

    Raises:
        NCAPluginError: another form, an empty range, or a row twice.
    """
    ranges = []
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,9}):([0-9]{1,9})", part.strip())
        if match is None or not int(match[1]) < int(match[2]) <= MOST_ROWS:
            raise NCAPluginError(f"--keep-rows '{text}': write start:stop, such as 0:256, several with commas")
        ranges.append(np.arange(int(match[1]), int(match[2]), dtype=np.int64))
    rows = np.concatenate(ranges)
    return _row_map(f"--keep-rows '{text}'", rows, rows)


def read_row_map(path: Path) -> RowMap:
    """Return the rows of a text file with a new and an old id on each line, after which `#` begins a comment.

    Raises:
        NCAPluginError: a file that cannot be read, a line of another form, or a new row twice.
    """
    lines = read_lines(path, "--row-map")
    new, old = [], []
    for number, line in enumerate(lines, 1):
        fields = line.split("#", 1)[0].split()
        if not fields:
            continue
        if len(fields) != 2 or not all(re.fullmatch(r"[0-9]{1,9}", value) for value in fields):
            raise NCAPluginError(f"--row-map {path}, line {number}: must be a new id and an old id, such as '17 42'")
        new.append(int(fields[0]))
        old.append(int(fields[1]))
    if not new:
        raise NCAPluginError(f"--row-map {path} names no rows")
    return _row_map(f"--row-map {path}", np.array(new, np.int64), np.array(old, np.int64))


def check_rows(rows: RowMap, tensor: Tensor, old_ids: int, new_ids: int) -> None:
    """Raise `NCAPluginError` for rows that the old vocabulary does not have, or the new one."""
    if rows.old.max() >= old_ids:
        raise NCAPluginError(
            f"row {rows.old.max()} is to be kept, but '{tensor.name}' has rows for {old_ids} ids, 0 to {old_ids - 1}"
        )
    if rows.new[-1] >= new_ids:
        raise NCAPluginError(f"row {rows.new[-1]} is to be kept, but the new vocabulary has {new_ids} ids")


def read_embedding_rows(tensor: Tensor, ids: NDArray[np.int64]) -> Values:
    """Return rows of a tensor, in the order of `ids`; the tensor should be `opened`."""
    out = np.empty((len(ids), *tensor.shape[1:]), tensor.dtype.array)
    order = np.argsort(ids, kind="stable")
    # Rows that follow each other are read at once.
    for _, group in itertools.groupby(enumerate(order), key=lambda item: int(ids[item[1]]) - item[0]):
        places = [int(place) for _, place in group]
        start = int(ids[places[0]])
        out[places] = tensor.read((start, start + len(places)))
    return out


def _row_map(origin: str, new: NDArray[np.int64], old: NDArray[np.int64]) -> RowMap:
    order = np.argsort(new, kind="stable")
    rows = RowMap(new[order], old[order])
    twice = rows.new[1:][np.diff(rows.new) == 0]
    if len(twice):
        raise NCAPluginError(f"{origin}: row {twice[0]} is named twice")
    return rows
