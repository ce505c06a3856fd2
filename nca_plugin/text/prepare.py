"""Tokenising text into Megatron's `.bin/.idx`, with Megatron's own writer."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.files import complete_files
from nca_plugin.indexed.layout import token_dtype
from nca_plugin.indexed.storage import local_output
from nca_plugin.text.hub import dataset_rows
from nca_plugin.text.inputs import TextFile, exists, find_files
from nca_plugin.text.reading import Document, file_documents, row_text
from nca_plugin.text.tokenizers import load_auto_tokenizer, num_ids

#: The byte tokenizer: ids 0 .. 255 are bytes, 256 ends a document.
BYTES: Final = "bytes"
BYTE_IDS: Final = 256
_BYTES_VOCAB_SIZE: Final = BYTE_IDS + 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """A text corpus: its inputs, and its tokenizer. Documents are text files, or rows of JSON files or data sets."""

    inputs: tuple[str, ...]
    """Text files or files of JSON rows, compressed or not, folders, or names of Hugging Face data sets."""

    pattern: str = "*"
    """Which files to take from a folder, such as `*.py`."""

    exclude: tuple[str, ...] = ()
    """Names of files and folders in a folder to leave out."""

    text_key: str = "text"
    """Field of a JSON row that holds the text."""

    split: str = "train"
    """Split of a Hugging Face data set."""

    tokenizer: str = BYTES
    """`bytes`, or a folder or name that `transformers.AutoTokenizer` loads."""


#: Megatron's default of --split.
_DEFAULT_SPLIT: Final = (969, 30, 1)
_SPLITS: Final = ("train", "validation", "test")


@dataclass
class PreparedCorpus:
    """What `prepare` wrote to `prefix`.bin and `prefix`.idx.

    Attributes:
        vocab_size: highest id of the tokenizer plus one.
        empty: number of documents without text, which were left out.
        repaired: number of documents in which U+FFFD replaced half of a surrogate pair.
        json_texts: number of JSON files without rows, which were taken as text.
        tables: number of files of tables, which were taken as text.
    """

    prefix: Path
    vocab_size: int
    documents: int = 0
    tokens: int = 0
    empty: int = 0
    repaired: int = 0
    json_texts: int = 0
    tables: int = 0

    @property
    def notes(self) -> list[str]:
        """What to know before training on the corpus, one sentence each."""
        notes = []
        if self.empty:
            notes.append(f"{self.empty:,} documents without text are left out")
        if self.repaired:
            notes.append(f"{self.repaired:,} documents held half of a surrogate pair: U+FFFD stands for it")
        if self.json_texts:
            notes.append(f"{self.json_texts:,} .json files hold no rows and are taken as text, braces and all")
        if self.tables:
            notes.append(
                f"{self.tables:,} files of tables, such as .csv, are taken as text, with all columns and their "
                "separators: leave them out with --exclude or --pattern, or write their rows as JSON lines"
            )
        if lacking := empty_splits(self.documents):
            split = ",".join(map(str, _DEFAULT_SPLIT))
            way_out = (
                f"train with --split {self.documents - 2},1,1 or the like"
                if self.documents >= len(_SPLITS)
                else "train with --split 1,0,0 and --eval-iters 0"
            )
            notes.append(
                f"Megatron's default --split {split} leaves no document of {self.documents:,} for "
                f"{' and '.join(lacking)}, and Megatron then waits for them for ever: {way_out}"
            )
        return notes


def prepare(
    corpus: Corpus, prefix: Path | str, on_progress: Callable[[int], None] = lambda num_bytes: None
) -> PreparedCorpus:
    """Tokenise `corpus` into `prefix`.bin and `prefix`.idx, each document ended by the tokenizer's end-of-text id.

    The files get their names when they are complete.

    Args:
        on_progress: called after each document with the number of input bytes that it took.

    Raises:
        NCAPluginError: the output exists or cannot be written, an input does not exist or cannot be read, or there is
            no text.
    """
    prefix = local_output(str(prefix))
    targets = [prefix.with_name(prefix.name + suffix) for suffix in (".bin", ".idx")]
    for target in targets:
        if exists(str(target)):
            raise NCAPluginError(f"output {target} exists already: choose another name, or remove it")
    texts = documents(corpus)
    # A missing input is reported before a tokenizer is loaded.
    first = list(itertools.islice(texts, 1))
    tokenize, vocab_size = load_tokenizer(corpus.tokenizer)
    result = PreparedCorpus(prefix, vocab_size)
    try:
        with complete_files(*targets) as partials:
            _write(itertools.chain(first, texts), tokenize, result, partials, on_progress)
            if not result.tokens:
                raise NCAPluginError(f"corpus {', '.join(corpus.inputs)} holds no text (files: {corpus.pattern})")
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise NCAPluginError(f"cannot write {prefix}: {reason}; make room, or choose another output") from error
    return result


def empty_splits(documents: int) -> list[str]:
    """Return the splits for which Megatron's default --split leaves none of `documents` documents."""
    bounds = [0.0, *itertools.accumulate(part / sum(_DEFAULT_SPLIT) for part in _DEFAULT_SPLIT)]
    # This is how Megatron rounds.
    edges = [round(bound * documents) for bound in bounds]
    return [name for name, (begin, end) in zip(_SPLITS, itertools.pairwise(edges), strict=True) if begin == end]


def input_bytes(corpus: Corpus) -> int | None:
    """Return the number of bytes that `prepare` will read, None if a data set is among the inputs."""
    files = input_files(corpus)
    return None if files is None else sum(file.size for file in files)


def input_files(corpus: Corpus) -> list[TextFile] | None:
    """Return the files that `prepare` will read, in order, None if a data set is among the inputs."""
    if not all(map(exists, corpus.inputs)):
        return None
    found = find_files(corpus.inputs, corpus.pattern, corpus.exclude)
    return [file for name in corpus.inputs for file in found[name]]


def documents(corpus: Corpus) -> Iterator[Document]:
    """Yield the documents of `corpus` in order. They are read one at a time.

    Raises:
        NCAPluginError: there is no input, an input does not exist, or text cannot be read.
    """
    if not corpus.inputs:
        raise NCAPluginError("no input: name text files, directories, .jsonl files or a Hugging Face data set")
    here = find_files([name for name in corpus.inputs if exists(name)], corpus.pattern, corpus.exclude)
    for name in corpus.inputs:
        if name in here:
            for file in here[name]:
                yield from file_documents(file, corpus.text_key)
        else:
            yield from _hub_documents(name, corpus)


def vocab_size(tokenizer: str) -> int:
    """Return the vocabulary size of a tokenizer of `Corpus`. Raises `NCAPluginError` if it cannot be loaded."""
    return load_tokenizer(tokenizer)[1]


def load_tokenizer(name: str) -> tuple[Callable[[str], list[int] | NDArray[Any]], int]:
    """Return a function from text to ids with the end-of-text id, and the highest id plus one, for a tokenizer.

    Raises:
        NCAPluginError: the tokenizer cannot be loaded or has no end-of-text id.
    """
    if name == BYTES:
        end = _BYTES_VOCAB_SIZE - 1
        return lambda text: np.append(np.frombuffer(text.encode(), np.uint8).astype(np.uint16), end), _BYTES_VOCAB_SIZE
    tokenizer = load_auto_tokenizer(name)
    if tokenizer.eos_token_id is None:
        raise NCAPluginError(f"tokenizer '{name}' has no end-of-text token, which must end every document")
    return lambda text: [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id], num_ids(tokenizer)


def _write(
    texts: Iterator[Document],
    tokenize: Callable[[str], list[int] | NDArray[Any]],
    result: PreparedCorpus,
    partials: list[Path],
    on_progress: Callable[[int], None],
) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    bin_path, idx_path = map(str, partials)
    builder = IndexedDatasetBuilder(bin_path, dtype=np.dtype(token_dtype(result.vocab_size)).type)
    with closing(builder.data_file):
        for document in texts:
            ids = np.asarray(tokenize(document.text))
            # A document of one id, the end of text, is empty.
            if ids.size > 1:
                if not 0 <= ids.min() <= ids.max() < result.vocab_size:
                    raise NCAPluginError(
                        f"the tokenizer made an id outside 0 .. {result.vocab_size - 1:,}, the range of its vocabulary"
                    )
                builder.add_document(ids, [ids.size])
                result.documents += 1
                result.tokens += ids.size
                result.repaired += document.is_repaired
                result.json_texts += document.is_json
                result.tables += document.is_table
            else:
                result.empty += 1
            on_progress(document.size)
        builder.finalize(idx_path)


def _hub_documents(name: str, corpus: Corpus) -> Iterator[Document]:
    for number, row in enumerate(dataset_rows(name, corpus.split), 1):
        text, is_repaired = row_text(row, corpus.text_key, f"{name} row {number}")
        yield Document(text, len(text.encode()), is_repaired)
