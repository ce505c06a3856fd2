"""The text of a study. It is prepared once, and some documents are held out for validation."""

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError
from nca_plugin.files import complete_files
from nca_plugin.indexed.layout import DTYPE_CODES, MAGIC
from nca_plugin.study.design import CorpusConfig
from nca_plugin.text.prepare import BYTE_IDS, BYTES, prepare
from nca_plugin.text.tokenizers import load_auto_tokenizer

_STAMP: Final = "corpus.json"
#: Least number of held-out documents, each of which has at most this share of the held-out tokens.
_LEAST_DOCUMENTS: Final = 30
#: Seed of the choice of held-out documents, the same for all seeds of a study.
_HELD_OUT_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class StudyCorpus:
    """A text in two parts of whole documents.

    Attributes:
        folder: holds the `.bin/.idx` of `train` and `validation`.
        vocab_size: vocabulary size of its tokenizer.
        train_tokens, validation_tokens: number of tokens in each part.
        validation_documents: number of documents that are held out.
        validation_bytes: number of bytes of text in the tokens that are predicted in the held-out part; None if the
            tokenizer is not known.
    """

    folder: Path
    vocab_size: int
    train_tokens: int
    validation_tokens: int
    validation_documents: int = 0
    validation_bytes: int | None = None

    @property
    def facts(self) -> dict[str, int | None]:
        """The facts about the text that do not depend on where its files are."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "folder"}

    @property
    def train(self) -> str:
        return str(self.folder / "train")

    @property
    def validation(self) -> str:
        return str(self.folder / "validation")


def study_corpus(
    config: CorpusConfig, folder: Path, validation_tokens: int, on_progress: Callable[[int], None]
) -> StudyCorpus:
    """Return the text of a study. It is prepared if `folder` does not hold it yet.

    Random documents are held out until they have `validation_tokens` + 1 tokens, which make `validation_tokens`
    targets. Only the beginning of a long document is held out and its rest is not used, so that no document has more
    than 1/30 of the tokens. The choice depends on the corpus alone. The tokens are not copied: two .idx refer to one
    .bin.

    Args:
        on_progress: called with the number of bytes of text read since the last call.

    Raises:
        NCAPluginError: see `prepare`; or Megatron cannot read the files, or there is too little text to hold any out.
    """
    stamp = folder / _STAMP
    if stamp.is_file():
        return StudyCorpus(folder, **json.loads(stamp.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if config.path is None:
        prepared = prepare(config.corpus(), folder / "text", on_progress)
        prefix, vocab_size = prepared.prefix, prepared.vocab_size
    else:
        assert config.vocab_size is not None
        prefix, vocab_size = Path(config.path).resolve(), config.vocab_size
    facts = {"vocab_size": vocab_size, **_divide(prefix, folder, validation_tokens)}
    if config.path is None:
        facts["validation_bytes"] = _num_bytes(str(folder / "validation"), config.tokenizer)
    with complete_files(stamp) as (unfinished,):
        unfinished.write_text(json.dumps(facts, indent=1))
    return StudyCorpus(folder, **facts)


def _divide(prefix: Path, folder: Path, validation_tokens: int) -> dict[str, int]:
    """Write the indices of both parts, and return their numbers of tokens."""
    # Imported here, because importing Megatron takes seconds.
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    try:
        dataset = IndexedDataset(str(prefix), mmap=True)
    except Exception as error:
        raise NCAPluginError(f"corpus {prefix} cannot be read as Megatron's .bin/.idx: {error}") from error
    index = dataset.index
    lengths, pointers = np.asarray(index.sequence_lengths), np.asarray(index.sequence_pointers)
    order = np.random.default_rng(_HELD_OUT_SEED).permutation(len(lengths))
    # One token more than targets, because the first token is only an input.
    wanted = validation_tokens + 1
    ends = np.cumsum(np.minimum(lengths[order], -(-wanted // _LEAST_DOCUMENTS)), dtype=np.int64)
    num_held_out = int(np.searchsorted(ends, wanted)) + 1
    total = int(lengths.sum(dtype=np.int64))
    if len(lengths) <= _LEAST_DOCUMENTS:
        raise NCAPluginError(
            f"corpus {prefix} has {len(lengths)} documents, and {_LEAST_DOCUMENTS} of them are to be held out, so that "
            "the comparison does not hang on a few: divide the text into more documents"
        )
    if num_held_out >= len(lengths):
        raise NCAPluginError(
            f"corpus {prefix} is too short: of {total:,} tokens in {len(lengths):,} documents, "
            f"{wanted:,} are to be held out: add text, or lower language.validation_tokens"
        )
    is_trained_on = np.ones(len(lengths), bool)
    is_trained_on[order[:num_held_out]] = False
    held_out = order[:num_held_out]
    held_out_lengths = np.diff(ends[:num_held_out], prepend=0).astype(lengths.dtype)
    # The last document that was drawn is cut to the wanted number of tokens.
    held_out_lengths[-1] -= int(ends[num_held_out - 1]) - wanted
    parts = (
        ("train", lengths[is_trained_on], pointers[is_trained_on]),
        ("validation", held_out_lengths, pointers[held_out]),
    )
    for name, part_lengths, part_pointers in parts:
        # The link is relative, so that the folder can be moved together with the text.
        (folder / f"{name}.bin").symlink_to(
            os.path.relpath(prefix.resolve().with_name(f"{prefix.name}.bin"), folder.resolve())
        )
        with complete_files(folder / f"{name}.idx") as (unfinished,):
            unfinished.write_bytes(_index(part_lengths, part_pointers, np.dtype(index.dtype)))
    return {
        "train_tokens": int(parts[0][1].sum(dtype=np.int64)),
        "validation_tokens": validation_tokens,
        "validation_documents": num_held_out,
    }


def read_documents(prefix: str, seed: int | None = None) -> Iterator[NDArray[np.integer]]:
    """Yield the tokens of each document of a part of a text, with a seed in a random order."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(prefix)
    order = range(len(dataset)) if seed is None else np.random.default_rng(seed).permutation(len(dataset)).tolist()
    for number in order:
        # Copied, because the arrays would become invalid together with the dataset, whose file they are views of.
        yield np.array(dataset[number])


def _num_bytes(prefix: str, tokenizer: str) -> int:
    """Return the number of bytes of the text that is predicted in a held-out part."""
    documents = list(read_documents(prefix))
    # The first token is only an input.
    documents[0] = documents[0][1:]
    if tokenizer == BYTES:
        return sum(int((document < BYTE_IDS).sum()) for document in documents)
    decode = load_auto_tokenizer(tokenizer).decode
    texts = (decode(document.tolist(), skip_special_tokens=True) for document in documents)
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def _index(lengths: NDArray[np.int32], pointers: NDArray[np.int64], dtype: np.dtype) -> bytes:
    """Return Megatron's .idx for documents of one sequence each; see `nca_plugin.indexed.layout`."""
    count = len(lengths)
    header = struct.pack("<9sQBQQ", MAGIC, 1, DTYPE_CODES[dtype.name], count, count + 1)
    documents = np.arange(count + 1, dtype="<i8")
    return header + lengths.astype("<i4").tobytes() + pointers.astype("<i8").tobytes() + documents.tobytes()
