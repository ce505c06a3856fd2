"""Examples of a task for fine-tuning: JSONL files with a `prompt` and an `answer` on each line."""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.json_files import check_line_ends, kind_of, shown_names
from nca_plugin.text.compressed import open_bytes, read_errors


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, and the answer that the model has to write. The two texts are joined without anything between."""

    prompt: str
    answer: str


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a JSONL file in order. Other fields of the lines are ignored.

    Raises:
        NCAPluginError: the file is missing, is not JSONL in UTF-8 or has no example, or a line has no prompt or answer
            or has half of a surrogate pair in one.
    """
    examples = [_example(row, where) for row, where in read_rows(path)]
    if not examples:
        raise NCAPluginError(f"{path} holds no example: each line must be an object with 'prompt' and 'answer'")
    return examples


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of a JSONL file, which may be compressed, each with its place for messages.

    Raises:
        NCAPluginError: the file is missing or is not JSONL in UTF-8, or a line is not an object.
    """
    with read_errors(path):
        # Reading a pipe or a device might never end.
        if path.exists() and not path.is_file():
            raise NCAPluginError(f"{path} is not a file: name a JSONL file")
    with open_bytes(path) as (_, lines):
        for number, line in enumerate(lines, 1):
            if number == 1:
                line = line.removeprefix(BOM_UTF8)
            if line.strip():
                where = f"{path} line {number}"
                yield _row(line, where), where


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise NCAPluginError(f"{where} is not UTF-8 text ({error.reason} at byte {error.start} of the line)") from error
    except RecursionError:
        raise NCAPluginError(f"{where} cannot be read: it is nested too deeply") from None
    except ValueError as error:
        if isinstance(error, json.JSONDecodeError):
            check_line_ends(line.decode(), error, where)
        raise NCAPluginError(f"{where} is not JSON: {one_line(error)}") from error
    if not isinstance(row, dict):
        raise NCAPluginError(f"{where} is not an object")
    return row


def _example(row: dict[str, Any], where: str) -> Example:
    for name in ("prompt", "answer"):
        if name not in row or row[name] == "":
            raise NCAPluginError(f"{where} has no text in field '{name}' (fields: {shown_names(list(row)) or 'none'})")
        if not isinstance(row[name], str):
            raise NCAPluginError(f"{where} has {kind_of(row[name])} in field '{name}', where text is expected")
        # Tokenizers refuse them.
        if any("\ud800" <= character <= "\udfff" for character in row[name]):
            raise NCAPluginError(f"{where} has half of a surrogate pair in field '{name}', which is not a character")
    return Example(row["prompt"], row["answer"])
