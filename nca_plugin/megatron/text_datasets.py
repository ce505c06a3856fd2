"""Checks that the files of indexed datasets are complete, and that each split that a run reads has tokens.

Megatron maps the files into memory without checking their sizes, and searches a split without tokens for ever.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from megatron.core.datasets.blended_megatron_dataset_config import (
    convert_split_vector_to_split_matrix,
    parse_and_normalize_split,
)
from megatron.core.datasets.indexed_dataset import DType
from megatron.core.datasets.utils import Split

from nca_plugin.errors import NCAPluginError
from nca_plugin.indexed.layout import HEADER, MAGIC
from nca_plugin.indexed.source import IndexedSource, is_generated
from nca_plugin.sources import is_source

#: Matches the numbers of a split, with the separators, quotes and brackets that Megatron ignores.
_SPLIT: Final = re.compile(r"""[\s'"\[(]*(?:\d*\.?\d+|\d+\.)(?:[\s,/]+(?:\d*\.?\d+|\d+\.))*[\s,'"\])]*""")
#: Number of document lengths that are read at once in the search for one above 0.
_AT_ONCE: Final = 1 << 20


@dataclass(frozen=True)
class SplitShare:
    """The documents of a data path that a split of a run reads.

    Attributes:
        low, high: the range, as shares of all documents.
        is_one_epoch: whether they are read exactly once, as in a blend of several paths without weights.
    """

    split: str
    path: str
    low: float = 0.0
    high: float = 1.0
    is_one_epoch: bool = False


def parts(blend: Any, blend_per_split: Any, split: str | None, option: str) -> list[SplitShare]:
    """Return what the splits of a run read, given the blends of Megatron's dataset configuration.

    Args:
        split: the shares of training, validation and test in the paths of `blend`.
        option: how the user names the shares.

    Raises:
        NCAPluginError: if `split` is invalid.
    """
    if blend_per_split:
        blends = [(name, of_split) for name, of_split in zip(_names(), blend_per_split, strict=True) if of_split]
        return [
            SplitShare(name, path, is_one_epoch=_is_one_epoch(blend)) for name, blend in blends for path in blend[0]
        ]
    if blend is None:
        return []
    matrix = convert_split_vector_to_split_matrix(split_shares(split or "", option))
    ranges = [(name, share) for name, share in zip(_names(), matrix, strict=True) if share is not None]
    is_one_epoch = _is_one_epoch(blend)
    return [SplitShare(name, path, low, high, is_one_epoch) for path in blend[0] for name, (low, high) in ranges]


def _is_one_epoch(blend: Any) -> bool:
    paths, weights = blend
    return len(paths) > 1 and weights is None


def split_shares(split: str, option: str) -> list[float]:
    """Return the shares of training, validation and test as Megatron reads them. Their sum is 1.

    Raises:
        NCAPluginError: if the split is invalid.
    """
    with np.errstate(invalid="ignore"):
        try:
            # Megatron's function extracts numbers and ignores everything else, such as signs.
            shares = list(parse_and_normalize_split(split)) if _SPLIT.fullmatch(split) else []
        except (AssertionError, ValueError):
            shares = []
    if not shares or not np.isfinite(shares).all():
        raise NCAPluginError(f"{option} {split}: must be up to three numbers with a sum above 0, such as 98,1,1")
    return shares


def check_trains(split: str, option: str) -> None:
    """Raise `NCAPluginError` if the shares leave nothing to train on, with which a run would end at once."""
    if split_shares(split, option)[0] == 0:
        raise NCAPluginError(f"{option} {split} leaves nothing to train on: give its first part a share, as in 99,1,0")


def check_text(read: Iterable[SplitShare], num_samples: Sequence[int | None], seq_length: int, option: str) -> None:
    """Raise `NCAPluginError` for damaged datasets and for splits that cannot be read as the run needs.

    An indexed dataset must be complete, and each split must have tokens. In a blend without weights, each path must
    have a sample, and all together as many as the training reads.

    Args:
        read: what the splits of the run read. Paths in object storage are not checked.
        num_samples: number of samples of training, validation and test; None for all.
        seq_length: number of input tokens of a sample.
        option: how the user names the shares of the splits.
    """
    lengths: dict[str, Any] = {}
    samples_of_training: list[int] = []
    for part in read:
        if part.is_one_epoch and is_source(part.path):
            raise NCAPluginError(
                f"source {part.path} has no end, and a blend without weights reads each path once: write each path "
                "after its weight, as in 0.5 nca://web 0.5 text"
            )
        # This is a source or in object storage. An unknown scheme is refused when it is opened.
        if "://" in part.path:
            continue
        is_ours = is_generated(part.path)
        # A split of a generated dataset may be empty if no samples are read from it. A split of text may not.
        if is_ours and num_samples[Split[part.split].value] == 0:
            continue
        if part.path not in lengths:
            num = IndexedSource(part.path).num_documents if is_ours else None
            lengths[part.path] = read_lengths(part.path) if num is None else np.ones(num, np.int8)
        of_path = lengths[part.path]
        first, last = (round(share * float(len(of_path))) for share in (part.low, part.high))
        if first == last:
            name = f"dataset {part.path}" if is_ours else f"data path {part.path}"
            raise NCAPluginError(
                f"the {part.split} split of {name} holds none of its {len(of_path)} documents: give it more in "
                f"{option}, or data of its own"
                + (f", or end {option} with 0, as in 99,1,0, for no test" if part.split == "test" else "")
            )
        if not any(of_path[at : min(at + _AT_ONCE, last)].any() for at in range(first, last, _AT_ONCE)):
            raise NCAPluginError(f"the {part.split} split of data path {part.path} holds no token in its documents")
        if part.is_one_epoch:
            samples = last - first if is_ours else _samples(part, of_path[first:last], seq_length)
            samples_of_training += [samples] if part.split == Split.train.name else []
    needed = num_samples[Split.train.value]
    if samples_of_training and needed is not None and sum(samples_of_training) < needed:
        raise NCAPluginError(
            f"the training reads {needed:,} samples, and its blend holds {sum(samples_of_training):,}: without weights "
            "each path is read once; write each path after its weight, or train for less"
        )


def _samples(part: SplitShare, lengths: Any, seq_length: int) -> int:
    """Return the number of samples that Megatron cuts out of documents in one epoch. Adjacent samples share a token."""
    tokens = int(lengths.sum(dtype=np.int64))
    if tokens <= seq_length:
        raise NCAPluginError(
            f"the {part.split} split of data path {part.path} holds {tokens} tokens, less than a sample of "
            f"{seq_length + 1}, and a blend without weights reads each path once: write each path after its weight"
        )
    return (tokens - 1) // seq_length


def read_lengths(prefix: str) -> Any:
    """Return the lengths of the sequences of an indexed dataset, int32, mapped into memory.

    Raises:
        NCAPluginError: if a file is missing, damaged, or shorter than the index says.
    """
    index, data = Path(f"{prefix}.idx"), Path(f"{prefix}.bin")
    for file in (index, data):
        if not file.is_file():
            hint = ": name its files without .bin and .idx" if prefix.endswith((".bin", ".idx")) else ""
            raise NCAPluginError(f"data path {prefix}: {file} does not exist{hint}")
    try:
        with index.open("rb") as stream:
            header = stream.read(HEADER.size)
        size, data_size = index.stat().st_size, data.stat().st_size
        with data.open("rb"):
            pass
    except OSError as error:
        raise NCAPluginError(f"data path {prefix} cannot be read: {error}") from error
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        raise NCAPluginError(f"data path {prefix}: {index} is no index of Megatron's, or is cut off")
    _, version, code, num_sequences, num_documents = HEADER.unpack(header)
    try:
        token_bytes = DType.size(DType.dtype_from_code(code))
    except ValueError:
        token_bytes = 0
    if version != 1 or not token_bytes:
        raise NCAPluginError(f"data path {prefix}: {index} has version {version} and type {code}, unknown to Megatron")
    expected = HEADER.size + 12 * num_sequences + 8 * num_documents
    if size < expected or num_documents < 1:
        raise NCAPluginError(
            f"data path {prefix}: {index} has {size} bytes, and {expected} by its counts: make it anew"
        )
    if not num_sequences:
        raise NCAPluginError(f"data path {prefix} holds no documents")
    lengths = np.memmap(index, "<i4", "r", HEADER.size, (num_sequences,))
    last = int(np.memmap(index, "<i8", "r", HEADER.size + 4 * num_sequences, (num_sequences,))[-1])
    if not 0 <= last + int(lengths[-1]) * token_bytes <= data_size:
        raise NCAPluginError(f"data path {prefix}: {data} is shorter than {index} says: make or copy both anew")
    return lengths


def _names() -> list[str]:
    return [split.name for split in Split]
