"""Files and calls that are wrong in every way that the commands could meet, drawn at random."""

import json
import os
import random
import shutil
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from corpora import BLOCK, write

from nca_plugin.commands.app import app

DATA: Final = Path(__file__).parent / "data" / "checkpoints"

#: None of them makes work that is right and takes minutes.
NUMBERS: Final = (
    *("-1", "0", "", " ", "abc", "1.5", "1e400", "nan", "inf", "-inf", "-0", "9" * 30, "9" * 5000, str(1 << 63)),
    *("\uff11\uff12", "\u0663", "1_000", "1,000", "0x10", "\t1", "1e3", "--", "1/0", "None", "2147483648", "1 "),
    *("1e-400", "-1e-400", "1K", "0.5K"),
)
TEXTS: Final = (
    *(
        "",
        " ",
        "--",
        "-",
        "=",
        ",",
        ":",
        "@",
        "%",
        "a=b",
        "a,b",
        "a\nb",
        "\x1b[31m",
        "\u202e",
        "\udcff",
        "%s%n",
        "${x}",
    ),
    *("*", "**/[", "../..", "~", "~nobody-here/x", "/", ".", "..", "con", "x" * 300, "x" * 100_000, "/" * 5000, "0"),
    *("all", "none", "null", "true", "'", '"', "\\", "$(id)", "mlp[0]", "mlp[", "[0:9]", "mlp[9999999999]", "0:256"),
    *("1/2", "0/0", "3/2", "hf", "copy", "link", "train", "valid", "web", "bytes", "cuda:99", "tasks=1", "x=y=z"),
)
URIS: Final = (
    *(
        "nca",
        "nca://",
        "nca://web:80",
        "nca://web&seed=1",
        "nca:web",
        "NCA://WEB",
        "nca://wbe",
        "://",
        "nca:///",
        "eca",
    ),
    *("nca://web:0.5,code:0.4", "nca://web:nan,code:1", "nca://web,code", "nca://web:1e400", "shuffled://web:1"),
    *("dyck://?k=0", "dyck://?p=nan", "copy://?min_length=9&max_length=2", "iid://?vocab_size=1e9", "eca://?rule=256"),
    *("file:///etc/passwd", "s3://x/y", "http://[", "memory://x", "zip://x::y", "nca://web?vocab_offset=2147483647"),
    *(
        "iid://?exponent=1e400",
        "nca://web?seed=1?seed=2",
        "nca://web;seed=1",
        "nca://web%3Fseed=1",
        "0.9 nca://web 0.1",
        "nca://web 0.5",
    ),
)
OPTIONS_OF_SOURCES: Final = (
    *("seed", "band", "temperature", "num_colors", "grid_size", "patch_size", "curriculum", "num_rules", "split"),
    *("vocab_offset", "identity_bias", "burn_in", "first_state", "sed", "", "web.seed", "k", "rule", "max_length"),
)

#: A right value of a parameter, by its name; a file's stands in the folder of what is given. A parameter that is not
#: here is drawn from what is wrong alone, so that a new command is covered by itself.
RIGHT: Final[Mapping[str, Sequence[str]]] = {
    "inputs": ("text.txt", "rows.jsonl", "folder", "tables"),
    "uri": ("nca://toy", "iid", "dyck://?k=4", "nca://web:0.5,code:0.5"),
    "uris": ("iid",),
    "source": ("nca://web", "checkpoint"),
    "tokens": ("4K", "2000"),
    "out": ("written", "written/deeper"),
    "target": ("written",),
    "parts": ("corpus-1-of-2",),
    "prefix": ("corpus", "corpus.idx"),
    "origin": ("checkpoint", "nemo2", "core016", "links"),
    "checkpoint": ("checkpoint", "nemo2", "core016", "links"),
    "checkpoints": ("checkpoint",),
    "config": ("chain.yaml", "study.yaml"),
    "folder": ("written",),
    "task": ("nca_gsm8k",),
    "json": ("written.json",),
    "row_map": ("rows.txt",),
    "tokenizer": ("bytes",),
    "data": ("nca://web", "corpus", "nca_gsm8k=rows.jsonl"),
}
#: What keeps a call short that is right after all.
SHORT: Final[Mapping[str, Sequence[str]]] = {
    "bench": ("iid", "--seconds", "0.05", "--processes", "1", "--seq-length", "256"),
    "inspect": ("--count", "3"),
    "chain": ("--is-complete",),
    "study": ("--power",),
    "doctor": ("--data", "nca://web"),
    "eval": ("--limit", "1"),
    "examples": ("--data", "missing.jsonl"),
    "generate": ("--workers", "1"),
}
#: Those that take ten seconds where nothing is wrong: drawn less often.
SLOW: Final = frozenset({"bench", "examples", "eval", "inspect", "match"})
#: What happens to the process, as Python.
SURROUNDINGS: Final = (
    "import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)",
    "import os; os.close(1)",
    "import os; os.close(0); os.close(1); os.close(2)",
    "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1)",
    "import os; [os.environ.pop(name, None) for name in ('HOME', 'TERM', 'USER', 'PATH')]",
    "import os; os.environ.update(COLUMNS='1', LINES='1', LANG='C', LC_ALL='C')",
    "import os, tempfile; tempfile.tempdir = None; os.environ.update(TMPDIR='/nothing', HOME='/nothing')",
    "import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone')",
    "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))",
    "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))",
    "import os; os.umask(0o777)",
)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a command: its names on the command line, none of an argument."""

    name: str
    options: tuple[str, ...]
    kind: Any
    is_required: bool
    is_empty_by_default: bool


@dataclass(frozen=True)
class Call:
    """A call of a command, and what happens to its process first."""

    arguments: tuple[str, ...]
    before: str


def commands() -> dict[str, list[Parameter]]:
    """Return the parameters of every command, as typer is told of them."""
    found = {}
    for command in app.registered_commands:
        function = command.callback
        assert function is not None
        defaults = function.__defaults__ or ()
        hints = typing.get_type_hints(function, include_extras=True)
        names = [name for name in hints if name != "return"]
        values = [*[...] * (len(names) - len(defaults)), *defaults]
        found[command.name or function.__name__.replace("_", "-")] = [
            _parameter(name, hints[name], value) for name, value in zip(names, values, strict=True)
        ]
    return found


def _parameter(name: str, hint: Any, default: Any) -> Parameter:
    kind, info = typing.get_args(hint)
    # typer takes the first of them for a default until it looks at the function.
    given = tuple(text for text in (info.default, *(info.param_decls or ())) if str(text).startswith("--"))
    is_option = type(info).__name__ == "OptionInfo"
    options = (given or (f"--{name.replace('_', '-')}",)) if is_option else ()
    kinds = [each for each in typing.get_args(kind) if each is not type(None)] if typing.get_args(kind) else [kind]
    return Parameter(name, options, kinds[0] if kinds else str, default is ..., default == "")


def make_files(folder: Path) -> None:
    """Write what is given to the commands: right files, wrong ones, and what is no file."""
    folder.mkdir()
    text = "".join(f"The {number}th line of a text that is no longer than it has to be.\n" for number in range(2000))
    (folder / "text.txt").write_text(text)
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"text": text[i : i + 900]}) + "\n" for i in range(0, 60_000, 900))
    )
    (folder / "rows.txt").write_text("0 0\n1 2\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "part.txt").write_text(text)
    write(folder / "corpus", documents=3)
    write(folder / "corpus-1-of-2", documents=2 * BLOCK, shard=(1, 2))
    for name, origin in (("checkpoint", "bridge/iter_0000001"), ("nemo2", "nemo2"), ("core016", "core016")):
        shutil.copytree(DATA / origin, folder / name)
    stage = {"train_iters": 1, "arguments": {"data-source": "nca://toy", "save-interval": 1}}
    (folder / "chain.yaml").write_text(json.dumps({"folder": "written", "stages": {"nca": stage}}))
    (folder / "study.yaml").write_text(json.dumps({"output": "written"}))
    # What is wrong, under every name that a file has that is right.
    (folder / "empty").touch()
    (folder / "garbage").write_bytes(random.Random(0).randbytes(5000))
    (folder / "zeros").write_bytes(bytes(5000))
    (folder / "broken-link").symlink_to("nowhere")
    (folder / "link-cycle").symlink_to("link-cycle")
    (folder / "folder-cycle").mkdir()
    (folder / "folder-cycle" / "again").symlink_to(".")
    os.mkfifo(folder / "fifo")
    (folder / "nested.json").write_text("[" * 100_000)
    (folder / "nested.yaml").write_text("a: " + "[" * 3000)
    (folder / "cycle.yaml").write_text("a: &x [*x]\n")
    (folder / "bomb.yaml").write_text(
        "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 20))
    )
    (folder / "table.csv").write_text("text,label\nfirst,1\n")
    (folder / "tables").mkdir()
    (folder / "tables" / "table.tsv").write_text("text\tlabel\nfirst\t1\n" * 2000)
    (folder / "sheet.xlsx").write_bytes(b"PK\x03\x04" + bytes(500))
    (folder / "returns.jsonl").write_bytes(b'{"text": "first"}\r{"text": "second"}\r')
    # A checkpoint whose bytes lie elsewhere.
    (folder / "links").mkdir()
    for file in sorted((folder / "core016").iterdir()):
        (folder / "links" / file.name).symlink_to(Path("..") / "core016" / file.name)
    (folder / "number.jsonl").write_text('{"text": 1e999}\n{"text": "\\ud800"}\n')
    (folder / "nested.jsonl").write_text('{"text": ' + "[" * 100_000 + "\n")
    for name in ("a b", "a=b", "a,b", "a\nb", "\u00e4\u4e2d", "\udcff\udcfe", "-x", "[bold]", "%s", "x" * 255):
        (folder / name).write_text(text)
        (folder / f"{name[:200]}.d").mkdir()


def wrong_targets(folder: Path) -> list[str]:
    """Return paths that cannot be written to, or should not: what is there already is somebody's."""
    folder.mkdir(exist_ok=True)
    (folder / "mine").write_text("mine")
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / "mine").write_text("mine")
    for name, target in (("broken-link", "nowhere"), ("link-cycle", "link-cycle")):
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(target)
    own = ("mine/below", "full", "broken-link", "link-cycle", "link-cycle/below", "a\nb", "\udcff", "x" * 300)
    return [
        *(str(folder / name) for name in own),
        "nope/../x",
        "nope/..",
        f"{folder}/nope/../full/x",
        "/dev/null/x",
        "/proc/x",
        "/proc/1/mem",
        "",
        "/",
        "x" * 5000,
        "s3://",
    ]


def wrong_paths(folder: Path) -> list[str]:
    """Return the paths of all that is given, and of what is none."""
    of_devices = ["/dev/null", "/dev/full", "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/fd/0", "/sys", "/"]
    missing = [str(folder / "missing"), str(folder / "text.txt" / "below"), "missing/", "", "x" * 5000, "nothing://x"]
    return [*map(str, sorted(folder.iterdir())), *of_devices, *missing]


def damage(draw: random.Random, path: Path, copy: Path) -> Path:
    """Return a copy of a file, or of a folder with one of its files, that is cut, changed, or something else."""
    if path.is_dir():
        shutil.copytree(path, copy)
        files = sorted(file for file in copy.rglob("*") if file.is_file())
    else:
        # Files that belong together, such as those of a dataset.
        files = [copy.with_name(file.name) for file in sorted(path.parent.glob(f"{path.stem}*")) if file.is_file()]
        for file in files:
            shutil.copy(path.parent / file.name, file)
        copy = copy.with_name(path.name)
    if not files:
        return copy
    victim = draw.choice(files)
    content = bytearray(victim.read_bytes())
    kind = draw.randrange(9)
    victim.unlink()
    if kind == 0:
        victim.mkdir()
    elif kind == 1:
        os.mkfifo(victim)
    elif kind == 2:
        victim.symlink_to(victim.name)
    elif kind == 3:
        victim.touch()
    elif kind == 4:
        victim.write_bytes(content[: draw.randrange(len(content) + 1)])
    elif kind == 5:
        victim.write_bytes(content + draw.randbytes(draw.randrange(1, 100)))
    elif kind == 6 and content:
        for _ in range(draw.randrange(1, 9)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        victim.write_bytes(content)
    elif kind == 7:
        victim.write_bytes(draw.choice((b"[" * 50_000, b"a: &x [*x]\n", b"\xff\xfe\x00", b"null", b"{}", b"1e999")))
    # Otherwise it is missing.
    return copy


def draw_call(draw: random.Random, given: Path, folder: Path) -> Call:
    """Return a call with one fault or more, or none; copies of files that are damaged lie in `folder`."""
    known = commands()
    name = draw.choice(sorted(known))
    if name in SLOW and draw.random() < 0.75:
        name = draw.choice(sorted(known.keys() - SLOW))
    parameters = known[name]
    faults = draw.choice((0, 1, 1, 1, 2, 3))
    wrong = set(draw.sample(range(len(parameters)), min(faults, len(parameters))))
    options, values = list(SHORT.get(name, ())), []
    for number, parameter in enumerate(parameters):
        is_wrong = number in wrong
        if not (is_wrong or parameter.is_required or (parameter.name in RIGHT and draw.random() < 0.3)):
            continue
        if is_wrong and parameter.is_required and draw.random() < 0.1:
            continue
        value = _value(draw, parameter, given, folder, is_wrong)
        if parameter.kind is bool:
            options.append(parameter.options[0])
        elif parameter.options:
            options += [f"{parameter.options[0]}={value}"] if draw.random() < 0.3 else [parameter.options[0], value]
        else:
            values.append(value)
    arguments = [*options, *values] if draw.random() < 0.5 else [*values, *options]
    if draw.random() < 0.05:
        arguments.insert(draw.randrange(len(arguments) + 1), draw.choice(TEXTS))
    before = draw.choice(SURROUNDINGS) if draw.random() < 0.15 else ""
    # A command line holds no zero byte, and no longer text.
    return Call((name, *(text.replace("\0", "")[:100_000] for text in arguments)), before)


def _value(draw: random.Random, parameter: Parameter, given: Path, folder: Path, is_wrong: bool) -> str:
    right = draw.choice(RIGHT.get(parameter.name, ("x",)))
    is_given = (given / right).exists() or Path(f"{given / right}.json").exists()
    if not is_wrong:
        return str(given / right) if is_given else right
    if parameter.name in ("processes", "seconds"):
        # A thousand of either is right, and takes its time.
        return draw.choice([number for number in NUMBERS if "000" not in number and "e3" not in number])
    if parameter.kind in (int, float):
        return draw.choice(NUMBERS)
    if right.startswith("written"):
        return draw.choice((*wrong_targets(folder / "targets"), *NUMBERS))
    chance = draw.random()
    # As of a variable of the shell that is not set.
    if chance < 0.05:
        return ""
    if is_given and chance < 0.5:
        copy = folder / "damaged"
        copy.mkdir(exist_ok=True)
        return str(damage(draw, given / right, copy / f"{len(list(copy.iterdir()))}"))
    if chance < 0.65 or "://" in right or "uri" in parameter.name:
        if draw.random() < 0.5:
            return f"{draw.choice(('nca://web', 'dyck://', 'eca://', 'iid://', 'copy://'))}?{_options(draw)}"
        return draw.choice(URIS)
    if chance < 0.85:
        path = draw.choice(wrong_paths(given))
        return f"x={path}" if draw.random() < 0.1 else path
    return draw.choice((*TEXTS, *NUMBERS))


def _options(draw: random.Random) -> str:
    return "&".join(
        f"{draw.choice(OPTIONS_OF_SOURCES)}={draw.choice((*NUMBERS, *TEXTS))}" for _ in range(draw.randrange(1, 4))
    )
