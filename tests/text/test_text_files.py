"""Text as people have it: every file in a folder, under whatever name, is read or refused in one line."""

import bz2
import gzip
import io
import json
import lzma
import os
import socket
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nca_plugin.errors import NCAPluginError
from nca_plugin.inspection import text_pieces as sampling
from nca_plugin.inspection.text_pieces import sample_pieces
from nca_plugin.text import reading
from nca_plugin.text.examples import read_examples
from nca_plugin.text.prepare import Corpus, documents, prepare
from nca_plugin.text.reading import Document
from nca_plugin.text.streams import Streams

ROWS = [{"id": 1, "text": "first"}, {"id": 2, "text": "zweiter \u00e4\n"}, {"id": 3, "text": "{third}"}]
TEXTS = [str(row["text"]) for row in ROWS]

AS_LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
AS_LIST = json.dumps(ROWS)
AS_PRETTY_LIST = json.dumps(ROWS, indent=2)


#: Values of JSON that are no text.
KINDS = {
    **{"null": "null", "true": "true or false", "7": "a number", "7.5": "a number", "NaN": "a number"},
    **{'["x"]': "a list", "{}": "an object"},
}


def read(*inputs: Path, **settings_: object) -> list[str]:
    return [document.text for document in whole(*inputs, **settings_)]


def whole(*inputs: Path, **settings_: object) -> list[Document]:
    return list(documents(Corpus(inputs=tuple(map(str, inputs)), **settings_)))  # type: ignore[arg-type]


def assert_refused(reason: str, *inputs: Path, **settings_: object) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        read(*inputs, **settings_)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [AS_LINES, AS_LIST, AS_PRETTY_LIST, "\ufeff" + AS_LINES, "\n \r\n" + AS_LINES + "\n\n"]
)
@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "a.JSONL", "a.Jsonl", "a.ndjson", "a.json", "a.JSON", "a.txt", "part-00000", "a.jsonl.1", ".json"],
)
def test_rows_under_any_name(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    assert read(tmp_path / name) == read(tmp_path) == TEXTS
    pieces = sample_pieces(Corpus(inputs=(str(tmp_path / name),)), 3)
    assert b"".join(pieces.texts).startswith(b"first\nzwe")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", '{"rows": [\n{"text": "x"}]}', "holds no rows"),
        ("a.json", '["x", "y"]', "holds no rows"),
        ("a.json", '"x"', "holds no rows"),
        (
            "a.json",
            '{"body": "x"}\n{"body": "y"}',
            r"line 1 has no text in field 'text': name it with --text-key \(body\)",
        ),
        ("a.json", '[{"body": "x"}]', "row 1 has no text in field 'text'"),
        ("a.json", '[{"text": "x"} {"text": "y"}]', "row 1 is not JSON: a comma"),
        ("a.json", '[{"text": "x"}, {"text": "y"', "row 2 is cut off"),
        ("a.json", '[{"text": "x"}, ]', "row 2 is missing: a comma stands before the end"),
        ("a.jsonl", '[{"text": "x"},\n]\n', "row 2 is missing: a comma stands before the end"),
        ("a.json", '[{"text": "x"}, {"text": y}' + " " * 100, "row 2 is not JSON"),
        ("a.txt", '{"body": "x"}\n{"body": "y"}', "line 1 has no text in field 'text'"),
        ("a.jsonl", "{broken", "line 1 is not JSON"),
        ("a.jsonl", "{}", r"line 1 has no text in field 'text': name it with --text-key \(none\)"),
        *(
            ("a.jsonl", template % value, reason)
            for value, what in KINDS.items()
            for template, reason in (
                ('{"text": "x"}\n{"text": %s}', f"line 2 has {what} in field 'text', where text is expected"),
                ('[{"text": "x"}, {"text": %s}]', f"row 2 has {what} in field 'text', where text is expected"),
                ('{"text": "x"}\n%s', f"line 2 is {what}, where an object with the field 'text' is expected"),
            )
            if value != "{}" or "has" in reason
        ),
        ("a.jsonl", "{" + '"a":{' * 100_000, "line 1 is not JSON"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", '{"text": ' + "9" * 10_000 + "}", "line 1 is not JSON"),
        ("a.json", '[{"text": "x"}, ' + "[" * 100_000, "row 2 is not JSON"),
        ("a.jsonl", "[" * 100_000, "row 1 is not JSON"),
        ("a.jsonl", json.dumps({f"field\n{i}": i for i in range(10_000)}), "line 1 has no text"),
    ],
)
def test_json_that_holds_no_rows_with_text(tmp_path: Path, name: str, content: str, reason: str) -> None:
    (tmp_path / name).write_text(content)
    assert_refused(reason, tmp_path / name)


ENDS = {
    "": None,
    "\n \t\r\n": None,
    '\n[{"text":"c"}]\n': "has text after the end of its list",
    '[{"text":"c"}]': "has text after the end of its list",
    "[]": "has text after the end of its list",
    '\n{"text":"c"}\n': "has text after the end of its list",
    " garbage": "has text after the end of its list",
    "]": "has text after the end of its list",
    ",": "has text after the end of its list",
    "\ufeff[]": "has text after the end of its list",
    "\0": "a zero byte|has text after the end of its list",
    "\n" * 10_000 + "x": "has text after the end of its list",
}


@pytest.mark.parametrize("chunk", [1, 5, 1 << 20])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz"])
@pytest.mark.parametrize("end", ENDS)
def test_nothing_after_a_list_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, name: str, chunk: int
) -> None:
    monkeypatch.setattr(reading, "_CHUNK", chunk)
    for whole_list, texts in (('[{"text":"a"},{"text":"b"}]', ["a", "b"]), ("[]", [])):
        if not texts and name != "a.jsonl":
            continue
        data = (whole_list + end).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        for path in (tmp_path / name, tmp_path):
            if (reason := ENDS[end]) is None:
                assert read(path) == texts
            else:
                assert_refused(reason, path)


def test_json_of_a_folder_of_code_is_text_and_counted(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{\n "name": "x"\n}')
    (tmp_path / "names.json").write_text('["x", "y"]')
    (tmp_path / "small.json").write_text('{"name": "x"}')
    (tmp_path / "dict.py").write_text('{"a": 1}\n')
    (tmp_path / "list.py").write_text('[{"a": 1}]\n')
    (tmp_path / "rows.txt").write_text('{"a": 1}\nand text\n')
    found = whole(tmp_path)
    assert len(found) == 6 and sum(document.is_json for document in found) == 3


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.fixed_dictionaries({"text": st.text(), "more": st.recursive(st.integers() | st.text(), st.lists)})
    ),
    chunk=st.integers(1, 40),
    indent=st.none() | st.integers(0, 2),
    is_ascii=st.booleans(),
)
def test_a_list_is_read_in_pieces_as_a_whole(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]], chunk: int, indent: int | None, is_ascii: bool
) -> None:
    path = tmp_path_factory.mktemp("list") / "a.jsonl"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=is_ascii), errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "_CHUNK", chunk)
        assert read(path) == [row["text"] for row in rows]


def test_half_of_a_surrogate_pair_becomes_a_character_and_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83d b"}\n{"text": "\\ud83d\\ude00"}\n{"text": "\\udc00"}\n')
    found = whole(path)
    assert [document.text for document in found] == ["a\ufffd b", "\U0001f600", "\ufffd"]
    assert [document.is_repaired for document in found] == [True, False, True]


def zstd() -> Callable[[bytes], bytes]:
    for module in ("compression.zstd", "backports.zstd"):
        try:
            return import_module(module).compress  # type: ignore[no-any-return]
        except ImportError:
            continue
    pytest.skip("no zstd here")


COMPRESS = {".gz": lambda: gzip.compress, ".bz2": lambda: bz2.compress, ".xz": lambda: lzma.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", AS_LINES),
        ("a.JSON", AS_LIST),
        ("a.json", AS_LINES),
        ("a", AS_LINES),
        ("a.txt", "plain\r\ntext \u00e4"),
    ],
)
def test_compressed_files(tmp_path: Path, name: str, content: str, suffix: str) -> None:
    compress = COMPRESS[suffix]()
    expected = TEXTS if content in (AS_LINES, AS_LIST) else ["plain\ntext \u00e4"]
    middle = content.encode()[:7], content.encode()[7:]
    data = b"".join(map(compress, middle))
    path = tmp_path / (name + suffix.upper())
    path.write_bytes(data)
    assert read(path) == read(tmp_path) == expected
    # What is in a file is told by its first bytes, not by its name.
    path.rename(tmp_path / f"{name}.data")
    assert read(tmp_path / f"{name}.data") == expected
    data = compress(content.encode())
    for damaged in (data[:-9], data[: len(data) // 2]):
        path.write_bytes(damaged)
        assert_refused("is compressed and damaged or cut off", path)


@pytest.mark.parametrize("suffix", COMPRESS)
def test_no_stream_of_several_is_lost(tmp_path: Path, suffix: str) -> None:
    """A flipped bit anywhere in the second one is told, and so is what is no stream."""
    compress = COMPRESS[suffix]()
    first, second = compress(b"first\n"), compress(b"second\n")
    path = tmp_path / ("a.txt" + suffix)
    path.write_bytes(first + second)
    assert read(path) == ["first\nsecond\n"]
    # The header of gzip holds a time and a system, that of zstd a size, which its frames do not check.
    header = len(second) if suffix in (".bz2", ".xz") else 2
    for place in range(header):
        # The last byte of bzip2 has bits that are not of the stream, and its size of blocks only bounds them.
        if suffix == ".bz2" and place in (3, len(second) - 1):
            continue
        damaged = bytearray(second)
        damaged[place] ^= 1
        path.write_bytes(first + damaged)
        assert_refused("is compressed and damaged or cut off", path)
    for garbage in (b"x", b"garbage" * 10, second[:3], b"\0" * 8 + b"x"):
        path.write_bytes(first + garbage)
        assert_refused("is compressed and damaged or cut off", path)


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".gz"])
@pytest.mark.parametrize("zeros", [4, 200_000])
def test_zeros_behind_a_stream_are_padding(tmp_path: Path, suffix: str, zeros: int) -> None:
    compress = COMPRESS[suffix]()
    (tmp_path / "a").write_bytes(compress(b"first") + bytes(zeros) + compress(b"second") + bytes(zeros))
    assert read(tmp_path) == ["firstsecond"]


@settings(max_examples=40, deadline=None)
@given(parts=st.lists(st.binary(max_size=300_000), min_size=1, max_size=4), sizes=st.lists(st.integers(1, 400_000)))
def test_streams_are_read_as_pythons_own_reader_reads_them(parts: list[bytes], sizes: list[int]) -> None:
    for compress, new in ((bz2.compress, bz2.BZ2Decompressor), (lzma.compress, lzma.LZMADecompressor)):
        raw = io.BytesIO(b"".join(map(compress, parts)))
        stream = io.BufferedReader(Streams(raw, new), 1 << 10)
        assert stream.read(10) == b"".join(parts)[:10]
        stream.seek(0)
        assert b"".join([*(stream.read(size) for size in sizes), stream.read()]) == b"".join(parts)


def test_a_skipped_frame_before_zstd(tmp_path: Path) -> None:
    (tmp_path / "a.zst").write_bytes(b"\x50\x2a\x4d\x18\x04\0\0\0size" + zstd()(b"text"))
    assert read(tmp_path) == ["text"]


@pytest.mark.parametrize("inner", COMPRESS)
@pytest.mark.parametrize("outer", COMPRESS)
def test_what_is_compressed_twice_is_told_so(tmp_path: Path, outer: str, inner: str) -> None:
    (tmp_path / "a").write_bytes(COMPRESS[outer]()(COMPRESS[inner]()(b"text")))
    assert_refused("is compressed twice: unpack it once", tmp_path)


def test_zstd_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nca_plugin.text.compressed._ZSTD_MODULES", ("no_such_package",))
    (tmp_path / "a.jsonl.zst").write_bytes(b"\x28\xb5\x2f\xfd" + bytes(20))
    assert_refused("is compressed with zstd: pip install backports.zstd", tmp_path / "a.jsonl.zst")


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"PK\x03\x04", "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"\x04\x22\x4d\x18", "compressed with lz4"),
        (b"PAR1\x15\x04\0", "a parquet file"),
        (b"a.txt".ljust(257, b"\0") + b"ustar", "a tar archive"),
        (gzip.compress(b"a.txt".ljust(257, b"\0") + b"ustar", mtime=0), "a tar archive"),
        ("text in UTF-16".encode("utf-16"), "is UTF-16 text: convert it to UTF-8"),
        ("text in UTF-16".encode("utf-16-le"), "is not UTF-8 text \\(a zero byte"),
        (b"\xff\xfea\0", "is UTF-16 text"),
        ("text \u00e4".encode("latin-1"), "is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, start: bytes, what: str) -> None:
    (tmp_path / "a.txt").write_bytes(start)
    assert_refused(what, tmp_path)


@pytest.mark.parametrize("is_compressed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", b"text,label\nx,1\n", "a table"),
        ("A.CSV", b"text;label\nx;1\n", "a table"),
        ("a.tsv", b"text\tlabel\nx\t1\n", "a table"),
        ("a.psv", b"text|label\nx|1\n", "a table"),
        ("a.parquet", b"PAR1\x15\x04\0", "a parquet file"),
        ("a.arrow", b"ARROW1\0\0", "an arrow file"),
        ("data-0.arrow", b"\xff\xff\xff\xff\x10\0\0\0", "an arrow file"),
        ("a.feather", b"FEA1\0\0", "a feather file"),
        ("a.orc", b"ORC\0\0", "an ORC file"),
        ("a.avro", b"Obj\x01\x04\x14", "an Avro file"),
        ("a.xlsx", b"PK\x03\x04\x14\0", "a spreadsheet"),
        ("a.ods", b"PK\x03\x04\x14\0", "a spreadsheet"),
        ("a.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0\0", "a spreadsheet"),
        ("a.db", b"SQLite format 3\0\x10", "an SQLite database"),
        ("a.h5", b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
        ("a.npy", b"\x93NUMPY\x01\0", "a NumPy array"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
def test_a_table_is_told_from_text(tmp_path: Path, name: str, content: bytes, what: str, is_compressed: bool) -> None:
    path = tmp_path / name
    # Only the name tells what some are.
    if is_compressed and what in ("a table", "a parquet file"):
        path = tmp_path / f"{name}.gz"
        content = gzip.compress(content)
    path.write_bytes(content)
    assert_refused(f"is {what}, not text: write its rows as JSON lines", path)
    if what != "a table":
        assert_refused(f"is {what}, not text: write its rows as JSON lines", tmp_path)
        return
    # Among the files of a folder a table is text, as those of code are.
    result = prepare(Corpus(inputs=(str(tmp_path),)), tmp_path / "out" / "text")
    assert [note for note in result.notes if note.startswith("1 files of tables, such as .csv, are taken as text")]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.xls", "a.orc", "a.txt"])
def test_text_and_rows_are_read_under_the_name_of_a_table(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"text": "ORC"}\n{"text": "PK"}\n')
    assert read(tmp_path / name) == ["ORC", "PK"]
    (tmp_path / name).write_text("")
    assert read(tmp_path / name) == [""]


@pytest.mark.parametrize("word", ["PAR1", "ARROW1", "FEA1", "ORC", "BZh"])
def test_text_may_begin_as_a_table_does(tmp_path: Path, word: str) -> None:
    (tmp_path / "a.txt").write_text(f"{word} is a word.")
    assert read(tmp_path / "a.txt") == [f"{word} is a word."]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.txt", "part-00000"])
@pytest.mark.parametrize("between", ["\r", "\r\r", " \r "], ids=["one", "two", "spaces"])
def test_lines_that_end_in_a_carriage_return_alone_are_told_so(tmp_path: Path, name: str, between: str) -> None:
    rows = [json.dumps({"text": "x", "prompt": "x", "answer": "y"})] * 2
    (tmp_path / name).write_bytes(between.join(rows).encode())
    reason = r"is several lines, each ended by a carriage return \(\\r\) alone: end them with line feeds"
    assert_refused(reason, tmp_path / name)
    with pytest.raises(NCAPluginError, match=reason):
        read_examples(tmp_path / name)
    with pytest.raises(NCAPluginError, match=reason):
        sample_pieces(Corpus(inputs=(str(tmp_path / name),)), 3)
    # Before a line feed, and within a text, it is none of this.
    (tmp_path / name).write_bytes("\r\n".join(rows).encode())
    assert read(tmp_path / name) == ["x", "x"] and len(read_examples(tmp_path / name)) == 2


@pytest.mark.parametrize(
    ("name", "unit"),
    [("a.txt", b"x"), ("a.jsonl", b'{"text": "x'), ("a.json", b'[{"text": "' + b"x" * 99), ("b", b" ")],
)
def test_what_unpacks_to_more_than_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, unit: bytes
) -> None:
    monkeypatch.setattr(reading, "_MAX_BYTES", 1 << 20)
    monkeypatch.setattr(reading, "_CHUNK", 1 << 16)
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as file:
        file.write(unit)
        for _ in range(64):
            file.write(b"x" * (1 << 20))
    tracemalloc.start()
    assert_refused("is a document of more than 1 GiB: split it|holds no rows", tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_many_rows_are_never_in_memory_together(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.json.gz", "wb", compresslevel=1) as file:
        file.write(b"[" + b",".join([b'{"text": "' + b"x" * 50_000 + b'"}'] * 1_000) + b"]")
    corpus = Corpus(inputs=(str(tmp_path),))
    tracemalloc.start()
    assert sum(len(document.text) for document in documents(corpus)) == 50_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def folder_with_links(tmp_path: Path) -> Path:
    folder, other = tmp_path / "folder", tmp_path / "other"
    (folder / "sub").mkdir(parents=True)
    (other / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "sub" / "b.txt").write_text("b")
    (folder / ".hidden").write_text("hidden")
    (folder / "UPPER.TXT").write_text("upper")
    (folder / "empty.txt").write_text("")
    (other / "c.txt").write_text("c")
    (other / "deep" / "d.txt").write_text("d")
    (tmp_path / "e.txt").write_text("e")
    (folder / "link").symlink_to(other)
    (folder / "again").symlink_to(other)
    (folder / "e.txt").symlink_to(tmp_path / "e.txt")
    (folder / "e2.txt").symlink_to("../e.txt")
    (folder / "a2.txt").symlink_to("a.txt")
    (folder / "sub" / "round").symlink_to("..")
    (other / "round").symlink_to(other)
    (other / "back").symlink_to(folder / "sub")
    return folder


def test_links_are_followed_and_every_file_is_read_once(tmp_path: Path) -> None:
    folder = folder_with_links(tmp_path)
    assert sorted(read(folder)) == ["", "a", "b", "c", "d", "e", "hidden", "upper"]
    assert sorted(read(folder, pattern="*.txt", exclude=("sub", "empty.txt"))) == ["a", "b", "c", "d", "e"]
    assert sorted(read(folder, exclude=("sub", "back", "link", "again", "empty.txt"))) == ["a", "e", "hidden", "upper"]
    (tmp_path / "name").symlink_to(folder)
    assert read(tmp_path / "name") == read(folder)


def test_many_links_to_folders_of_links_take_no_time(tmp_path: Path) -> None:
    for level in range(40):
        (tmp_path / str(level)).mkdir()
        for name in ("left", "right"):
            (tmp_path / str(level) / name).symlink_to(tmp_path / str(level + 1))
    (tmp_path / "40").mkdir()
    (tmp_path / "40" / "a.txt").write_text("a")
    assert read(tmp_path / "0") == ["a"]


def test_hard_links_are_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    os.link(tmp_path / "a", tmp_path / "b")
    assert read(tmp_path) == ["a", "a"]


def test_inputs_that_overlap_are_refused(tmp_path: Path) -> None:
    folder = folder_with_links(tmp_path)
    for inputs in ((folder, folder), (folder, folder / "sub"), (folder / "a.txt", folder / "a2.txt")):
        assert_refused("is in input .* too: name it once", *inputs, exclude=("round",))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sock(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def broken(path: Path) -> None:
    path.symlink_to("nothing")


def itself(path: Path) -> None:
    path.symlink_to(path.name)


def above(path: Path) -> None:
    path.symlink_to("../..")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (fifo, "is a pipe"),
        (sock, "is a socket"),
        (device, "is a device"),
        (broken, "is a broken link"),
        (itself, "is a broken link"),
        (above, "is a link to a folder that holds"),
    ],
)
def test_what_a_folder_holds_beside_files_is_refused_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    make(folder / "odd")
    assert_refused(f"odd {reason}", folder)
    assert read(folder, exclude=("odd",)) == ["a"]
    if make is not above:
        assert_refused(f"odd {reason}", folder / "odd")
        assert read(folder, pattern="*.txt") == ["a"]


def test_what_may_not_be_read_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        assert_refused("cannot be read", Path("/proc/self/mem"))
        return
    (tmp_path / "sub").mkdir(mode=0)
    assert_refused("cannot be read", tmp_path)


@pytest.mark.parametrize("pattern", ["", "/a", "**", "a/**/b", "../*", "**/"])
def test_patterns_that_would_match_nothing_or_not_all_are_refused(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "a").write_text("a")
    assert_refused("--pattern", tmp_path, pattern=pattern)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", "abc"),
        ("*.py", "ab"),
        ("**/*.py", "ab"),
        ("sub/*", "bc"),
        ("sub/*.py", "b"),
        ("b.*", "b"),
        ("*.p[xy]", "ab"),
    ],
)
def test_patterns(tmp_path: Path, pattern: str, names: str) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.py", "sub/b.py", "sub/c.md"):
        (tmp_path / name).write_text(Path(name).stem)
    assert read(tmp_path, pattern=pattern) == list(names)


def test_a_large_compressed_corpus_is_measured_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_READ_WHOLE", 20_000)
    for name, data in (("a.txt", b"plain " * 5_000), ("b.gz", gzip.compress(os.urandom(20_000).hex().encode()))):
        (tmp_path / name).write_bytes(data)
    pieces = sample_pieces(Corpus(inputs=(str(tmp_path),)), 100)
    assert pieces.is_beginning and set(pieces.texts) <= {(b"plain " * 50)[i : i + 100] for i in range(6)}
