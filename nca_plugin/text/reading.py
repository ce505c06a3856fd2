"""Reading the documents of a file: a whole text, or rows of JSON (one object per line, or a list of objects)."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from nca_plugin.errors import NCAPluginError
from nca_plugin.json_files import LineEndError, check_line_ends, kind_of
from nca_plugin.text.compressed import SUFFIXES, open_bytes
from nca_plugin.text.inputs import TextFile

#: Suffixes of files with one JSON value per line.
_LINES: Final = (".jsonl", ".jsonlines", ".ndjson", ".ldjson")
#: Suffixes of tables. As plain text, a model would learn their separators and all their columns.
_TABLES: Final = (".csv", ".tsv", ".psv")
#: Megatron counts a document's tokens in int32.
_MAX_BYTES: Final = 1 << 30
_CHUNK: Final = 1 << 20
#: A zero byte in the first 8,000 bytes means a binary file, as in git.
_HEAD_BYTES: Final = 8000
#: The most characters of field names in a message.
_MAX_FIELDS: Final = 200
_SPACE: Final = re.compile(r"[ \t\r\n]*")
#: The byte order mark, with which editors on Windows begin a file.
BOM: Final = b"\xef\xbb\xbf"

#: How a file holds documents: one text, JSON on each line, or a JSON list.
Form = Literal["text", "lines", "list"]


@dataclass(frozen=True, slots=True)
class Document:
    """One document of a corpus.

    Attributes:
        size: number of input bytes that it took, for progress.
        is_repaired: whether U+FFFD replaced something in it that is not a character.
        is_json: whether it is a JSON file without rows, taken as text.
        is_table: whether it is a table such as a .csv file, taken as text.
    """

    text: str
    size: int
    is_repaired: bool = False
    is_json: bool = False
    is_table: bool = False


def file_documents(file: TextFile, text_key: str) -> Iterator[Document]:
    """Yield the documents of a file in order. They are read one at a time.

    Raises:
        NCAPluginError: the file is not UTF-8 text, was named itself but is JSON without rows, has a row without text,
            or has a document of more than 1 GiB.
    """
    path = file.path
    form = form_of(file, text_key)
    with open_bytes(path) as (raw, stream):
        behind = 0

        def size() -> int:
            nonlocal behind
            before, behind = behind, raw.tell()
            return behind - before

        if form == "text":
            text = _decode(_read_all(path, stream), path, 0).removeprefix("\ufeff")
            holds_text = not text.isspace() and text != ""
            yield Document(
                text.replace("\r\n", "\n").replace("\r", "\n"),
                size(),
                is_json=_suffix(path) == ".json" and holds_text,
                is_table=_suffix(path) in _TABLES and holds_text,
            )
            return
        rows = _lines(path, stream) if form == "lines" else _members(path, stream)
        for where, row in rows:
            text, is_repaired = row_text(row, text_key, where)
            yield Document(text, size(), is_repaired)


def form_of(file: TextFile, text_key: str) -> Form:
    """Return how a file holds documents, judged by its name and its first bytes.

    A file named .jsonl or the like holds rows. So does any other file that begins with a JSON object with the field
    `text_key` or with two JSON objects on two lines, and a .json file that begins with a list of objects.

    Raises:
        NCAPluginError: the file was named itself but is a .json file without rows or a table, or it is not text.
    """
    path, suffix = file.path, _suffix(file.path)
    with open_bytes(path) as (_, stream):
        beginning = _beginning(path, stream)
        if beginning == b"[":
            is_list = suffix in _LINES or _begins_with_objects(_members(path, stream), text_key, suffix)
            form: Form = "list" if is_list else "text"
        elif suffix in _LINES:
            return "lines"
        else:
            is_rows = beginning == b"{" and _begins_with_objects(_lines(path, stream), text_key, "")
            form = "lines" if is_rows else "text"
    if form == "text" and suffix == ".json" and beginning and file.is_named:
        raise NCAPluginError(
            f"{path} holds no rows: write an object with the field '{text_key}' on each line, or a list of objects"
        )
    if form == "text" and suffix in _TABLES and beginning and file.is_named:
        raise NCAPluginError(
            f"{path} is a table, not text: write its rows as JSON lines, each an object with its text in the field "
            f"'{text_key}', or rename it to .txt if it is text"
        )
    return form


def line_text(line: bytes, text_key: str, where: str, path: Path, position: int) -> str:
    """Return the text of a JSON line at byte `position` of a file. Raises `NCAPluginError` if it has none."""
    return row_text(_parse(_decode(line, path, position), where), text_key, where)[0]


def row_text(row: Any, text_key: str, where: str) -> tuple[str, bool]:
    """Return the text of a row, and whether U+FFFD replaced half of a surrogate pair in it.

    Raises:
        NCAPluginError: the row has no text. The message begins with `where`.
    """
    if not isinstance(row, dict):
        raise NCAPluginError(f"{where} is {kind_of(row)}, where an object with the field '{text_key}' is expected")
    if text_key not in row:
        known = " ".join(", ".join(row).split())
        raise NCAPluginError(
            f"{where} has no text in field '{text_key}': name it with --text-key ({known[:_MAX_FIELDS] or 'none'})"
        )
    text = row[text_key]
    if not isinstance(text, str):
        raise NCAPluginError(f"{where} has {kind_of(text)} in field '{text_key}', where text is expected")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"), True
    return text, False


def not_text(path: Path, reason: str, position: int) -> NCAPluginError:
    """Return the error for a file that is not UTF-8, for `reason` at byte `position`."""
    return NCAPluginError(
        f"{path} is not UTF-8 text ({reason} at byte {position}): leave it out with --pattern or --exclude"
    )


def _suffix(path: Path) -> str:
    """Return the lower-case suffix that tells what a file holds, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def _begins_with_objects(rows: Iterator[tuple[str, Any]], text_key: str, suffix: str) -> bool:
    try:
        first = next(rows, ("", None))[1]
        if isinstance(first, dict):
            return suffix == ".json" or text_key in first or isinstance(next(rows, ("", None))[1], dict)
    except LineEndError:
        # These are rows, but none that can be read.
        raise
    except NCAPluginError:
        pass
    return False


def _beginning(path: Path, stream: BinaryIO) -> bytes:
    """Return the first character that is not a space, b"" if there is none."""
    head = stream.read(_HEAD_BYTES)
    stream.seek(0)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NCAPluginError(f"{path} is UTF-16 text: convert it to UTF-8, or leave it out with --pattern or --exclude")
    if b"\0" in head:
        raise not_text(path, "a zero byte", head.index(b"\0"))
    return head.removeprefix(BOM).lstrip()[:1]


def _read_all(path: Path, stream: BinaryIO) -> bytes:
    pieces, total = [], 0
    while piece := stream.read(_CHUNK):
        pieces.append(piece)
        total += len(piece)
        if total > _MAX_BYTES:
            raise _too_long(str(path))
    return b"".join(pieces)


def _split(path: Path, stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield each line of a file with its position in bytes."""
    position = 0
    while line := stream.readline(_MAX_BYTES + 1):
        if len(line) > _MAX_BYTES:
            raise _too_long(f"{path} from byte {position} on")
        yield line, position
        position += len(line)


def _lines(path: Path, stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yield the JSON values of a file with one per line, each with its place for messages."""
    for number, (line, position) in enumerate(_split(path, stream), 1):
        if number == 1:
            line = line.removeprefix(BOM)
        if line.strip():
            where = f"{path} line {number}"
            yield where, _parse(_decode(line, path, position), where)


def _members(path: Path, stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """Yield the members of a JSON list, each with its place for messages. The list is never in memory as a whole."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0

    def read(size: int) -> str:
        nonlocal position
        piece = stream.read(size)
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise not_text(path, error.reason, position + error.start) from error
        position += len(piece)
        # A piece may have been only a part of one character.
        return text or (read(size) if piece else "")

    yield from _list_members(read, str(path))


def _list_members(read: Callable[[int], str], name: str) -> Iterator[tuple[str, Any]]:
    decode = json.JSONDecoder().raw_decode
    # Only spaces can come before the list.
    text, at, number = read(_CHUNK).lstrip(), 1, 1
    while True:
        where = f"{name} row {number}"
        at = _after_space(text, at)
        value, end = None, None
        if at < len(text):
            if text[at] == "]":
                if number > 1:
                    raise NCAPluginError(f"{where} is missing: a comma stands before the end of the list")
                _check_is_end(text[at + 1 :], read, name)
                return
            try:
                value, end = decode(text, at)
            except json.JSONDecodeError as error:
                # The error may only mean that the value goes on after what has been read.
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(text) - 16
                if not is_cut:
                    raise NCAPluginError(f"{where} is not JSON: {error.msg}") from error
            except (ValueError, RecursionError) as error:
                raise NCAPluginError(f"{where} is not JSON that can be read: {error}") from error
        after = len(text) if end is None else _after_space(text, end)
        if after == len(text):
            if len(text) - at > _MAX_BYTES:
                raise _too_long(where)
            piece = read(max(_CHUNK, len(text) - at))
            if not piece:
                raise NCAPluginError(f"{where} is cut off: the list does not end")
            text, at = text[at:] + piece, 0
            continue
        yield where, value
        if text[after] == "]":
            _check_is_end(text[after + 1 :], read, name)
            return
        if text[after] != ",":
            raise NCAPluginError(f"{where} is not JSON: a comma or the end of the list must follow it")
        at, number = after + 1, number + 1


def _check_is_end(text: str, read: Callable[[int], str], name: str) -> None:
    """Raise `NCAPluginError` if anything but spaces follows a list, because it may be rows that would be lost."""
    for piece in chain([text], iter(lambda: read(_CHUNK), "")):
        if _after_space(piece, 0) < len(piece):
            raise NCAPluginError(
                f"{name} has text after the end of its list: write one list, or an object on each line"
            )


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None
    return match.end()


def _parse(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        check_line_ends(line, error, where)
        raise NCAPluginError(f"{where} is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        # Numbers of too many digits, or brackets nested too deeply.
        raise NCAPluginError(f"{where} is not JSON that can be read: {error}") from error


def _decode(data: bytes, path: Path, position: int) -> str:
    """Return the text of bytes that begin at byte `position` of a file."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise not_text(path, error.reason, position + error.start) from error


def _too_long(where: str) -> NCAPluginError:
    return NCAPluginError(
        f"{where} is a document of more than 1 GiB: split it, because Megatron counts its tokens in 32 bits"
    )
