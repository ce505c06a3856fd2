"""Wrong and hostile calls of every command: one line, a code of four, nothing half-written, bounded time and memory."""

import hashlib
import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from warm import Ended, WarmProcess
from wrong_inputs import Call, commands, draw_call, make_files

CODES = {0, 2, 75, 130}
MOST_BYTES = 2 << 30
FEW, MANY, AT_ONCE = 140, 1400, 20
#: What may stand on stderr beside the line of the error.
NOTICES = re.compile(r"nca-plugin: what numba compiles|.*(at work for \d|, \S+/s)|importing what is installed")
#: What is imported once for all cases.
MODULES = (
    *(
        "nca_plugin.__main__",
        "nca_plugin.commands.app",
        "nca_plugin.transition.transfer",
        "nca_plugin.lineage.diagnosis",
    ),
    *(
        "nca_plugin.text.prepare",
        "nca_plugin.inspection.match_summary",
        "nca_plugin.indexed.verify",
        "nca_plugin.inspection.inspect",
    ),
    *(
        "nca_plugin.evaluation.evaluate",
        "nca_plugin.study.file",
        "nca_plugin.chain.next_stage",
        "nca_plugin.megatron.blend",
    ),
    *("matplotlib.figure", "transformers", "datasets", "nca_plugin.huggingface.importing"),
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "given"
    make_files(folder)
    return folder


@pytest.fixture(scope="module")
def process() -> Iterator[WarmProcess]:
    # Nothing is to be looked up: a name that is no file may be one of the hub.
    os.environ["HF_HUB_OFFLINE"] = "1"
    with WarmProcess(*MODULES) as warm:
        yield warm


def test_every_command_is_among_them() -> None:
    assert {"prepare", "generate", "transfer", "doctor", "eval", "tokenizer"} <= commands().keys()
    assert all(commands().values())


@pytest.mark.parametrize("first", range(0, FEW, AT_ONCE))
def test_wrong_inputs(process: WarmProcess, given: Path, tmp_path: Path, first: int) -> None:
    check_all(process, given, tmp_path, range(first, first + AT_ONCE))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FEW, FEW + MANY, AT_ONCE))
def test_many_wrong_inputs(process: WarmProcess, given: Path, tmp_path: Path, first: int) -> None:
    check_all(process, given, tmp_path, range(first, first + AT_ONCE))


def check_all(process: WarmProcess, given: Path, tmp_path: Path, seeds: range) -> None:
    """Run the calls that the seeds draw; the message names all of those that went wrong."""
    before = state(given)
    faults = []
    for seed in seeds:
        folder = tmp_path / str(seed)
        work = folder / "work"
        work.mkdir(parents=True)
        call = draw_call(random.Random(seed), given, folder)
        damaged = state(folder)
        ended = process.run("nca_plugin.__main__", call.arguments, work, before=call.before)
        found = [*faults_of(call, ended, work)]
        if state(given) != before or {name: damaged[name] for name in state(folder) if name in damaged} != damaged:
            found.append("what was given has changed")
        if found:
            shown = " ".join(ascii(text)[:300] for text in call.arguments)
            faults.append(f"{seed}: {'; '.join(found)}\n  {shown}\n  {call.before}\n  {ended.stderr[-1500:]}")
    assert not faults, "\n".join(faults)


def faults_of(call: Call, ended: Ended, work: Path) -> Iterator[str]:
    """Yield what is wrong with how a call ended."""
    if ended.code not in CODES:
        yield f"code {ended.code} after {ended.seconds:.0f} s"
    if "Traceback" in ended.stderr:
        yield "a traceback"
    if ended.peak_bytes > MOST_BYTES:
        yield f"{ended.peak_bytes / 1e9:.1f} GB"
    lines = [line for line in ended.stderr.splitlines() if line.strip() and not NOTICES.match(line)]
    is_silent = "os.close(2)" in call.before
    if ended.code == 2 and not is_silent and [line[:18] for line in lines] != ["nca-plugin: error:"]:
        yield f"{len(lines)} lines"
    if ended.code == 0 and any(line.startswith("nca-plugin: error") for line in lines):
        yield "an error and code 0"
    written = [path for path in sorted(work.rglob("*")) if path.is_file()]
    # What an evaluation keeps, it continues from.
    has_records = call.arguments[0] == "eval"
    if ended.code == 2 and written and "standard output" not in ended.stderr and not is_silent and not has_records:
        yield f"half-written: {[path.name[:50] for path in written]}"
    for path in written:
        if ".partial" in path.name:
            yield f"left behind: {path.name[:50]}"
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".idx" and not path.with_suffix(".bin").is_file():
            yield f"without its data: {path.name}"


def state(folder: Path) -> dict[str, str]:
    """Return what a folder holds, but for what a command may write below its own."""
    found = {}
    for path in folder.rglob("*"):
        name = os.fsencode(path.relative_to(folder)).hex()
        if path.is_file() and not path.is_symlink() and "work" not in path.relative_to(folder).parts[:1]:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif not path.is_file() and "work" not in path.relative_to(folder).parts[:1]:
            found[name] = "no file"
    return found
