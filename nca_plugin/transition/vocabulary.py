"""The rows of embedding and output: how many the next stage has, and which old rows it keeps."""

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.checkpoint.contents import Tensor
from nca_plugin.checkpoint.dtypes import Values
from nca_plugin.checkpoint.model_config import ModelConfig
from nca_plugin.errors import NCAPluginError
from nca_plugin.files import read_lines

#: Tensors with a row for every token id.
ROW_TENSORS: Final = ("embedding.word_embeddings.weight", "output_layer.weight", "output_layer.bias")
#: No vocabulary has more rows.
MOST_ROWS: Final = 1 << 24


@dataclass(frozen=True)
class Vocabulary:
    """The sizes of the old and the new vocabulary in ids, and of the new embedding in rows, with padding.

    Attributes:
        divisible_by: the next stage's --make-vocab-size-divisible-by.
    """

    old_ids: int
    new_ids: int
    rows: int
    divisible_by: int


@dataclass(frozen=True)
class RowMap:
    """The rows that are kept: new row `new[i]` is old row `old[i]`. `new` is ascending."""

    new: NDArray[np.int64]
    old: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.new)

    def between(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the new and old rows with `start <= new < stop`."""
        first, last = np.searchsorted(self.new, [start, stop])
        return self.new[first:last], self.old[first:last]


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """Return the number of rows that Megatron gives the embedding of a vocabulary (megatron.training.vocab_utils)."""
    multiple = divisible_by * tensor_parallel_size
    return -(-vocab_size // multiple) * multiple


def next_vocabulary(
    model: ModelConfig,
    stored_rows: int,
    vocab_size: int | None,
    make_divisible_by: int | None,
    tensor_parallel_size: int | None,
) -> Vocabulary:
    """Return the vocabulary of the next stage. Arguments that are None stay as they were.

    Args:
        model: the model of the finished stage.
        stored_rows: the number of rows of its embedding.

    Raises:
        NCAPluginError: if there would be more than `MOST_ROWS` rows, or the padding changes and the number of ids is
            unknown.
    """
    old_ids = min(model.vocab_size or stored_rows, stored_rows)
    new_ids = vocab_size or old_ids
    divisible_by = make_divisible_by or model.divisible_by
    tensor_parallel = tensor_parallel_size or model.tensor_parallel_size
    is_padding_asked = bool(make_divisible_by or tensor_parallel_size)
    if vocab_size is None and model.vocab_size is None and is_padding_asked:
        raise NCAPluginError("the checkpoint does not say how many ids its vocabulary has: give --vocab-size")
    is_asked = is_padding_asked or vocab_size is not None
    rows = padded_vocab_size(new_ids, divisible_by, tensor_parallel) if is_asked else stored_rows
    if rows > MOST_ROWS:
        raise NCAPluginError(
            f"{new_ids} ids, padded to a multiple of {divisible_by} x {tensor_parallel}, are {rows} embedding rows, of "
            f"which at most {MOST_ROWS} are written: lower --vocab-size, --make-vocab-size-divisible-by or "
            "--tensor-model-parallel-size"
        )
    return Vocabulary(old_ids, new_ids, rows, divisible_by)


def same_rows(start: int, stop: int) -> RowMap:
    """Return the map that keeps rows `start` .. `stop - 1` at their places."""
    rows = np.arange(start, stop, dtype=np.int64)
    return RowMap(rows, rows)


def parse_keep_rows(text: str) -> RowMap:
    """Return the map that keeps the rows of `0:256`, or of several such ranges with commas, at their places.

    Raises:
        NCAPluginError: if the text has another form, a range is empty, or a row is named twice.
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
    """Return the rows of a text file with a new and an old id on each line. `#` begins a comment.

    Raises:
        NCAPluginError: if the file cannot be read, a line has another form, or a new row is named twice.
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
    """Raise `NCAPluginError` if the old or the new vocabulary does not have one of the rows."""
    if rows.old.max() >= old_ids:
        raise NCAPluginError(
            f"row {rows.old.max()} is to be kept, but '{tensor.name}' has rows for {old_ids} ids, 0 to {old_ids - 1}"
        )
    if rows.new[-1] >= new_ids:
        raise NCAPluginError(f"row {rows.new[-1]} is to be kept, but the new vocabulary has {new_ids} ids")


def read_embedding_rows(tensor: Tensor, ids: NDArray[np.int64]) -> Values:
    """Return rows of a tensor in the order of `ids`. This is fast only for a tensor that is `opened`."""
    out = np.empty((len(ids), *tensor.shape[1:]), tensor.dtype.array)
    order = np.argsort(ids, kind="stable")
    # Consecutive rows are read at once.
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
