"""Takes pieces of text spread evenly over a corpus, without reading all of a large one."""

import bisect
import codecs
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from nca_plugin.display.progress import StartStage, silent_stage
from nca_plugin.text.compressed import is_compressed, read_errors
from nca_plugin.text.inputs import TextFile
from nca_plugin.text.prepare import Corpus, documents, input_files
from nca_plugin.text.reading import BOM, file_documents, form_of, line_text, not_text

_MAX_PIECES: Final = 2_000
#: Up to this number of bytes, a corpus is read whole. Of a data set, at most this number of bytes is read.
_READ_WHOLE: Final = 1 << 26
_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Pieces:
    """Pieces of a corpus's text, as UTF-8."""

    texts: tuple[bytes, ...]
    """At most 2,000 pieces of the same length, in the order of the corpus."""

    size: int
    """Length of each piece in bytes."""

    covered: int
    """Number of input bytes over which the pieces are spread."""

    is_beginning: bool
    """Whether the pieces are only from the beginning of the corpus, as those of a data set of a hub are."""


def sample_pieces(corpus: Corpus, size: int, start_stage: StartStage = silent_stage) -> Pieces:
    """Return pieces of `size` bytes of the text of `corpus`, whose documents are joined by newlines.

    The same corpus gives the same pieces, one from each of equal parts. A corpus of up to 64 MiB is read whole. Of a
    larger one, files are read only at the places of the pieces, so that the time does not grow with the corpus. If it
    has a data set or a compressed file, which can only be read from the start, only its first 64 MiB are read.

    Raises:
        NCAPluginError: for the reasons of `documents`.
    """
    count = max(1, min(_MAX_PIECES, _READ_WHOLE // size))
    files = input_files(corpus)
    sizes = [file.size for file in files or ()]
    places = list(_places(sizes, count)) if sum(sizes) > _READ_WHOLE else []
    if files is not None and places and all(_has_places(files[n], corpus) for n in {number for number, _ in places}):
        advance = start_stage("reading", count)
        texts = []
        for number, offset in places:
            piece = _piece_at(files, number, offset, size, corpus)
            # The last places may be too near the end of the corpus for a piece.
            if piece is not None:
                texts.append(piece)
            advance(1)
        return Pieces(tuple(texts), size, sum(sizes), is_beginning=False)

    advance = start_stage("reading", _READ_WHOLE if files is None else sum(sizes))
    text, covered, is_beginning = bytearray(), 0, False
    for document in documents(corpus):
        text += _encoded(document.text)
        covered += document.size
        advance(document.size)
        if len(text) >= _READ_WHOLE:
            is_beginning = True
            break
    numbers = _spread(len(text) // size, count)
    return Pieces(tuple(bytes(text[i * size : (i + 1) * size]) for i in numbers), size, covered, is_beginning)


def _encoded(text: str) -> bytes:
    return text.encode() + b"\n" if text else b""


def _spread(total: int, count: int) -> list[int]:
    """Return a number from each of `count` equal parts of 0 .. total - 1, or all numbers if there are no more.

    The number is drawn with a fixed seed, because equal steps could coincide with repetitions in the corpus.
    """
    count = min(count, total)
    draw = random.Random(0)
    edges = [i * total // count for i in range(count + 1)] if count else []
    return [begin + int(draw.random() * (end - begin)) for begin, end in itertools.pairwise(edges)]


def _places(sizes: list[int], count: int) -> Iterator[tuple[int, int]]:
    """Yield places in equal parts of the joined files, as the index of a file and an offset in it."""
    ends = list(itertools.accumulate(sizes))
    for place in _spread(ends[-1], count):
        number = bisect.bisect_right(ends, place)
        yield number, place - ends[number] + sizes[number]


def _has_places(file: TextFile, corpus: Corpus) -> bool:
    return form_of(file, corpus.text_key) != "list" and not is_compressed(file.path)


def _piece_at(files: list[TextFile], number: int, offset: int, size: int, corpus: Corpus) -> bytes | None:
    """Return `size` bytes of text from a place on; None if the corpus ends before."""
    piece = bytearray()
    for file in itertools.islice(files, number, None):
        for text in _texts(file, offset, size, corpus):
            piece += text
            if len(piece) >= size:
                return bytes(piece[:size])
        offset = 0
    return None


def _texts(text_file: TextFile, offset: int, size: int, corpus: Corpus) -> Iterator[bytes]:
    """Yield the text of a file from `offset` on: at least `size` bytes of a text file, or the rows of JSONL."""
    path = text_file.path
    if not _has_places(text_file, corpus):
        yield from (_encoded(document.text) for document in file_documents(text_file, corpus.text_key))
        return
    form = form_of(text_file, corpus.text_key)
    with read_errors(path), path.open("rb") as file:
        if form == "lines":
            yield from _row_texts(file, path, offset, corpus)
            return
        file.seek(offset)
        # As in whole documents, newlines of two bytes become one byte, so more is read than needed.
        data = file.read(2 * size)
        first = 0
        while offset and first < min(3, len(data)) and data[first] & 0xC0 == 0x80:
            first += 1  # skip the rest of a character
        yield _encoded(_decode(data[first:], path, offset + first).replace("\r\n", "\n"))


def _row_texts(file: BinaryIO, path: Path, offset: int, corpus: Corpus) -> Iterator[bytes]:
    start = _line_start(file, offset)
    file.seek(start)
    while line := file.readline():
        if line.strip():
            row = line.removeprefix(BOM)
            text = _encoded(line_text(row, corpus.text_key, f"{path} at byte {start}", path, start))
            # The piece begins as far into the text as the place is into its row, so that the chance of a text to be met
            # is proportional to its length.
            yield text[len(text) * max(0, offset - start) // len(line) :]
        start += len(line)


def _line_start(file: BinaryIO, offset: int) -> int:
    while offset > 0:
        begin = max(0, offset - _BLOCK)
        file.seek(begin)
        newline = file.read(offset - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        offset = begin
    return 0


def _decode(data: bytes, path: Path, position: int) -> str:
    """Return the text of `data` from byte `position` of a file. Its last character may be cut."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError as error:
        raise not_text(path, error.reason, position + error.start) from error
