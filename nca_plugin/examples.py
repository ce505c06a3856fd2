"""Examples of a task, to fine-tune on: JSONL files with a `prompt` and an `answer` on each line."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nca_plugin.errors import NCAPluginError, one_line
from nca_plugin.json_files import kind_of, shown_names


@dataclass(frozen=True, slots=True)
class Example:
    """What a model is given, and what it is to write after it: their texts are joined as they are."""

    prompt: str
    answer: str


def read_examples(path: Path) -> list[Example]:
    """Return the examples of a JSONL file, in order; other fields of its lines are left out.

    Raises:
        NCAPluginError: a file that is missing, that is not JSONL in UTF-8, that has no example, or a line without
            prompt or answer, or with half of a surrogate pair in them.
    """
    examples = [_example(row, where) for row, where in read_rows(path)]
    if not examples:
        raise NCAPluginError(f"{path} holds no example: each line is to be an object with 'prompt' and 'answer'")
    return examples


def read_rows(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of a JSONL file, in order, each with where it stands.

    Raises:
        NCAPluginError: a file that is missing, that is not JSONL in UTF-8, or a line that is no object.
    """
    try:
        # What is no plain file, such as a pipe, may have no end.
        if path.exists() and not path.is_file():
            raise NCAPluginError(f"{path} is no file: name a JSONL file")
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _row(line, f"{path} line {number}"), f"{path} line {number}"
    except UnicodeDecodeError as error:
        raise NCAPluginError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise NCAPluginError(f"{path} cannot be read ({error.strerror}): name a JSONL file") from error


def _row(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except RecursionError:
        raise NCAPluginError(f"{where} cannot be read: it is nested too deeply") from None
    except ValueError as error:
        raise NCAPluginError(f"{where} is not JSON: {one_line(error)}") from error
    if not isinstance(row, dict):
        raise NCAPluginError(f"{where} is no object")
    return row


def _example(row: dict[str, Any], where: str) -> Example:
    for name in ("prompt", "answer"):
        if name not in row or row[name] == "":
            raise NCAPluginError(f"{where} has no text in field '{name}' (fields: {shown_names(list(row)) or 'none'})")
        if not isinstance(row[name], str):
            raise NCAPluginError(f"{where} has {kind_of(row[name])} in field '{name}', where text is due")
        # Tokenizers take none.
        if any("\ud800" <= character <= "\udfff" for character in row[name]):
            raise NCAPluginError(f"{where} has half of a surrogate pair in field '{name}', which is no character")
    return Example(row["prompt"], row["answer"])
