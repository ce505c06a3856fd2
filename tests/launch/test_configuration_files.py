"""Files and overrides that are wrong in any way: one bounded line that names them, for every reader of YAML."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nca_plugin.chain.stages import load_chain
from nca_plugin.errors import NCAPluginError
from nca_plugin.launch.configuration import ConfigFile, load_run
from nca_plugin.launch.multirun import expand
from nca_plugin.study.file import load_study

READERS: dict[str, Callable[[Path], Any]] = {
    "launcher": lambda path: load_run(ConfigFile(path.parent, path.name, [])),
    "chain": lambda path: load_chain(path, []),
    "study": lambda path: load_study(path, []),
}

#: What is wrong in any file, and in those of the launcher alone.
BROKEN: dict[str, tuple[bytes, str]] = {
    "a list that includes itself": (b"a: &x [*x]\n", "is inside the value that it names"),
    "a mapping that includes itself": (b"a: &x {b: *x}\n", "is inside the value that it names"),
    "a merge with itself": (b"a: &x {<<: *x}\n", "is inside the value that it names"),
    "a list": (b"- 1\n- 2\n", "must be a mapping of names to values"),
    "a word": (b"hello\n", "must be a mapping of names to values"),
    "a tab": (b"a:\n\tb: 1\n", "is not YAML: .*line 2, column 1"),
    "an unclosed list": (b"a: [1, 2\n", "is not YAML"),
    "two documents": (b"a: 1\n---\nb: 2\n", "another document"),
    "another alias": (b"a: *nope\n", "undefined alias"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "is not UTF-8 text: byte 0 is 0xff"),
    "Latin-1": ("a: \xe9\n".encode("latin-1"), "is not UTF-8 text: byte 3 is 0xe9"),
    "bytes": (bytes(range(256)), "is not UTF-8 text"),
    "a NUL": (b"a: \0\n", "is not YAML"),
    "a lone surrogate": (b'a: "\\ud800"\n', "is not YAML"),
    "a key twice": (b"a:\n  b: 1\n  b: 2\n", "duplicate key b"),
    "a null key": (b"null: 2\n", "Incompatible key type"),
    "a list as key": (b"? [a, b]\n: 1\n", "unhashable key"),
    "deep lists": (b"a: " + 100_000 * b"[" + 100_000 * b"]", "nests deeper than 50 levels"),
    "deep mappings": (b"".join(number * b" " + b"a:\n" for number in range(1000)), "nests deeper than 50 levels"),
    "a billion values": (
        b"a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 10)),
        "stands for more than",
    ),
    "five megabytes": (b"a: [" + 2_500_000 * b"1," + b"1]\n", "holds 5,000,007 bytes"),
    "deep interpolations": (b"a: '" + 3000 * b"${" + b"a" + 3000 * b"}" + b"'\n", "more than 20 interpolations"),
    "interpolations of interpolations": (
        b"k0: 1\n" + b"".join(b"k%d: '%s'\n" % (n, 10 * (b"${k%d}" % (n - 1))) for n in range(1, 10)),
        "interpolations of 'k.' stand for more than 100,000 values",
    ),
    "interpolations of sections": (
        b"k0: {a: 1}\n"
        + b"".join(
            b"k%d: {%s}\n" % (n, b", ".join(b"a%d: '${k%d}'" % (m, n - 1) for m in range(9))) for n in range(1, 10)
        ),
        "interpolations of 'k.' stand for more than 100,000 values",
    ),
    "interpolations of those beside": (
        b"x: {y: {k0: 1, "
        + b", ".join(b"k%d: '%s'" % (n, 10 * (b"${.k%d}" % (n - 1))) for n in range(1, 10))
        + b"}}\n",
        "interpolations of 'k.' stand for more than 100,000 values",
    ),
    "half an interpolation": (b"a: '${x'\n", "a: .*no viable alternative"),
    "a Python object": (b"a: !!python/object:os.system x\n", "could not determine a constructor"),
    "a set": (b"a: !!set {b, c}\n", "a: Value 'set' is not a supported"),
    "5,000 digits": (b"a: " + 5000 * b"9" + b"\n", "Exceeds the limit"),
    "defaults that are a number": (b"defaults: 5\n", "defaults must be a list"),
    "defaults that are nowhere": (b"defaults: [nope]\n", "file nope.yaml.* does not exist"),
    "defaults that are the file": (b"defaults: [file]\n", "includes itself"),
    "a wrong header": (b"# @package\na: 1\n", "Expected header format"),
    "an unknown key": (b"2: 2\ntrue: 1\n'': 3\n", "unknown keys '2', 'True', ''"),
    "many unknown keys": (b"".join(b"k%d: 1\n" % number for number in range(200)), "and 180 more"),
    "arguments that are a list": (b"folder: x\nstages: {}\narguments: [1]\n", "(arguments must be a mapping|unknown)"),
    "arguments without any": (b"arguments:\n", "arguments must be a mapping"),
}

LAUNCHER: dict[str, tuple[bytes, str]] = {
    "no such key": (b"arguments: {lr: '${nope}'}\n", "arguments.lr: Interpolation key 'nope' not found"),
    "in a circle": (b"arguments: {a: '${arguments.b}', b: '${arguments.a}'}\n", "Recursive interpolation"),
    "no such variable": (b"arguments: {lr: '${oc.env:NOPE_NOPE}'}\n", "arguments.lr: .*'NOPE_NOPE' not found"),
    "no such resolver": (b"arguments: {lr: '${nope:1}'}\n", "arguments.lr: Unsupported interpolation type nope"),
    "a division by zero": (b"arguments: {lr: '${divide_floor:1,0}'}\n", "arguments.lr: ZeroDivisionError"),
    "a product of words": (b"arguments: {lr: '${multiply:a,b}'}\n", "arguments.lr: TypeError"),
    "a product of words and numbers": (
        b"arguments: {lr: '${multiply:10000000000,a}'}\n",
        "arguments.lr: TypeError.*a is no number",
    ),
    "products of products": (
        b"arguments:\n  k0: 99\n"
        + b"".join(b"  k%d: '${multiply:${arguments.k%d},99}'\n" % (n, n - 1) for n in range(1, 19)),
        "arguments.k10: ValueError.*numbers end at 1e.18",
    ),
    "twice two products": (
        b"arguments:\n  k0: 9\n"
        + b"".join(b"  k%d: '${sum:${.k%d},${.k%d}}'\n" % (n, n - 1, n - 1) for n in range(1, 30)),
        "interpolations of 'k..' stand for more than",
    ),
    "a sum of one": (b"arguments: {lr: '${sum:1}'}\n", "arguments.lr: TypeError"),
    "data that are a word": (b"data: web\n", "data must be a mapping of names to values"),
    "NeMo 1 in numbers": (b"trainer: 1\nmodel: 2\n", "trainer=1 .must be a mapping"),
    "NeMo 1 without a number": (b"trainer: {devices: 1}\nmodel: {}\n", "model.num_layers is required"),
    "NeMo 1 in a circle": (b"trainer: {devices: '${trainer.devices}'}\nmodel: {}\n", "trainer.devices: Recursive"),
    "NeMo 1 by zero": (b"trainer: {}\nmodel: {num_layers: '${divide_ceil:1,0}'}\n", "model.num_layers: ZeroDiv"),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize(("content", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_one_line(tmp_path: Path, reader: Callable[[Path], Any], content: bytes, reason: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    check(lambda: reader(path), reason, "file.yaml")


@pytest.mark.parametrize(("content", "reason"), LAUNCHER.values(), ids=LAUNCHER)
def test_a_value_that_has_none_is_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    check(lambda: READERS["launcher"](path), reason, "file.yaml")


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["arguments.save=a=b"], "override arguments.save=a=b: quote its value, .* \"arguments.save='a=b'\""),
        (["data.path=nca://web?seed=1"], "quote its value, .* \"data.path='nca://web\\?seed=1'\""),
        (["arguments.save=it's=b"], r"quote its value"),
        (["arguments.save='open"], "override arguments.save='open: quote its value"),
        (["arguments.save=" + 500 * "["], "quote its value"),
        (["arguments.save=" + 100_000 * "x" + "="], "quote its value"),
        (["arguments.a=b=c", "arguments.d"], "quote its value.*; override arguments.d has no value"),
        (["data.source"], "override data.source has no value: write data.source=VALUE"),
        ([""], "override '' names no key"),
        (["=1"], "override =1 names no key"),
        (["a b=c"], "override a b=c is not of the form key=value"),
        (["arguments.x\n=1"], r"override 'arguments.x\\n=1'"),
        (["arguments@foo=1"], "config group 'arguments' does not exist"),
        (["arguments.lr=1e-3,1e-4"], "'arguments.lr=1e-3,1e-4'.*add --multirun"),
        (["~arguments.nope"], "'arguments.nope' does not exist"),
        (["arguments=null"], "arguments must be a mapping"),
        (["dat.source=nca", "modle=1", "trainer.x=5"], r"'dat' \(did you mean 'data'\?\), 'modle' .*, 'trainer'"),
        (["arguments.lr=${nope}"], "arguments.lr: Interpolation key 'nope' not found"),
    ],
    ids=lambda value: value[0][:20] if isinstance(value, list) else "",
)
def test_a_wrong_override_is_one_line(tmp_path: Path, overrides: list[str], reason: str) -> None:
    (tmp_path / "run.yaml").write_text("arguments: {num-layers: 4}\n")
    check(lambda: load_run(ConfigFile(tmp_path, "run", overrides)), reason, "run.yaml")


def test_several_runs_read_overrides_the_same_way() -> None:
    check(lambda: expand(["a=1,2", "b=c=d", "e"]), "override b=c=d: quote its value.*override e has no value", "")


@pytest.mark.parametrize("split", ["99,1,0", "[99,1,0]", "'99,1,0'", [99, 1, 0]])
def test_shares_are_one_argument(tmp_path: Path, split: Any) -> None:
    """Megatron reads the numbers in it, whatever stands around them."""
    from megatron.core.datasets.blended_megatron_dataset_config import parse_and_normalize_split

    (tmp_path / "run.yaml").write_text(f"arguments: {{split: {split if isinstance(split, list) else repr(split)}}}\n")
    option, shares = load_run(ConfigFile(tmp_path, "run", [])).arguments
    assert option == "--split" and parse_and_normalize_split(shares) == [0.99, 0.01, 0.0]


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfarguments: {lr: 1}\n")
    assert load_run(ConfigFile(tmp_path, "run", [])).arguments == ["--lr", "1"]


def check(read: Callable[[], Any], reason: str, file: str) -> None:
    with pytest.raises(NCAPluginError, match=reason) as error:
        read()
    message = str(error.value)
    assert "\n" not in message and len(message) < 2500 and file in message, message
