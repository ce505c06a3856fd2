"""Pieces of a corpus's text, spread evenly over all of it, without reading all of a large one."""

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
#: Input that is read whole, in bytes, and what is read of a data set at most.
_READ_WHOLE: Final = 1 << 26
_BLOCK: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Pieces:
    """Text of a corpus, as UTF-8."""

    texts: tuple[bytes, ...]
    """At most 2,000 pieces of one length, in the corpus's order."""

    size: int
    """Length of each, in bytes."""

    covered: int
    """Bytes of input that the pieces are spread over."""

    is_beginning: bool
    """Whether that is the beginning of the corpus only: a data set of a hub is read from its start."""


def sample_pieces(corpus: Corpus, size: int, start_stage: StartStage = silent_stage) -> Pieces:
    """Return pieces of `size` bytes of the text of `corpus`, its documents one after another with a newline between.

    The same corpus gives the same pieces, one from each of equal parts of it. Up to 64 MiB of input are read whole. Of
    more, files are read only where a piece is taken, so that the time does not grow with the corpus; a data set or a
    compressed file, in which no place can be looked up, has the corpus read from its start for 64 MiB.

    Raises:
        NCAPluginError: see `documents`.
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
            # The last places may be too near the end.
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
    """Return a member of each of `count` equal parts of 0 .. total-1, or all members if there are no more.

    Which member is drawn, with a fixed seed: even steps could keep time with a corpus that repeats itself.
    """
    count = min(count, total)
    draw = random.Random(0)
    edges = [i * total // count for i in range(count + 1)] if count else []
    return [begin + int(draw.random() * (end - begin)) for begin, end in itertools.pairwise(edges)]


def _places(sizes: list[int], count: int) -> Iterator[tuple[int, int]]:
    """Yield places in equal parts of files laid end to end, as the number of a file and a byte in it."""
    ends = list(itertools.accumulate(sizes))
    for place in _spread(ends[-1], count):
        number = bisect.bisect_right(ends, place)
        yield number, place - ends[number] + sizes[number]


def _has_places(file: TextFile, corpus: Corpus) -> bool:
    return form_of(file, corpus.text_key) != "list" and not is_compressed(file.path)


def _piece_at(files: list[TextFile], number: int, offset: int, size: int, corpus: Corpus) -> bytes | None:
    """Return the `size` bytes of text from a place on, None where the corpus ends before."""
    piece = bytearray()
    for file in itertools.islice(files, number, None):
        for text in _texts(file, offset, size, corpus):
            piece += text
            if len(piece) >= size:
                return bytes(piece[:size])
        offset = 0
    return None


def _texts(text_file: TextFile, offset: int, size: int, corpus: Corpus) -> Iterator[bytes]:
    """Yield the text of a file from a byte on: of a text file what suffices for `size` bytes, of JSONL row by row."""
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
        # Newlines of two bytes become one, as where documents are read whole.
        data = file.read(2 * size)
        first = 0
        while offset and first < min(3, len(data)) and data[first] & 0xC0 == 0x80:
            first += 1  # the rest of a character
        yield _encoded(_decode(data[first:], path, offset + first).replace("\r\n", "\n"))


def _row_texts(file: BinaryIO, path: Path, offset: int, corpus: Corpus) -> Iterator[bytes]:
    start = _line_start(file, offset)
    file.seek(start)
    while line := file.readline():
        if line.strip():
            row = line.removeprefix(BOM)
            text = _encoded(line_text(row, corpus.text_key, f"{path} at byte {start}", path, start))
            # As far into the text as the place is into its row, so that a long text is met as often as its length says.
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
    """Return the text of `data`, whose last character may be cut, and which stands at byte `position` of a file."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError as error:
        raise not_text(path, error.reason, position + error.start) from error
