"""scripts/megatron_names.py: which names of another release of Megatron are lacking."""

import importlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from places import ROOT
from releases import needs_0_19

SCRIPTS = ROOT / "scripts"

#: A release of Megatron, by file.
MEGATRON = {
    "core/__init__.py": "from .moved import Moved, old as new\nfrom megatron.core import parallel as mpu\n",
    "core/moved.py": "from torch.nn import Module as Moved\ndef old(a, /, b, *args, c=1): ...\n",
    "core/parallel.py": "_group = None\ndef rank():\n    global _size\n    _size = 1\ndef size(**options): ...\n",
    "core/branches.py": """
try:
    from elsewhere import fast
    has_fast = True
except ImportError:
    def slow(): ...
else:
    tried = True
if has_fast:
    for index, value in enumerate("ab"):
        chosen = value
    with open("a") as file:
        first, (second, *others) = file
match index:
    case 1:
        matched = 1
Aliased = slow
typed: int = 0
def _hidden(): ...
""",
    "core/starred.py": "from .branches import *\nfrom .listed import *\n",
    "core/listed.py": "__all__ = ['_shown']\n_shown = unlisted = 1\n",
    "core/outside.py": "from torch import *\n",
    "core/lazy.py": "known = 1\ndef __getattr__(name): ...\n",
    "core/circle.py": "from .circle import round\nfrom .circular import there\n",
    "core/circular.py": "from .circle import there\n",
    "core/broken.py": "from .branches import gone\n",
    "core/classes.py": """
import enum, torch
from dataclasses import dataclass
class Kind(enum.Enum):
    gpt = 1
class Base:
    if True:
        def load(self, state): ...
    def save(self): ...
    def __init__(self, size, *, name=None): ...
class Derived(Base): ...
class Norm(torch.nn.Module): ...
class Maker:
    def __new__(cls, config): ...
@dataclass
class Config:
    seed: int
@dataclass(kw_only=True)
class LargeConfig(Config):
    path: str = ""
""",
    "core/helpers.cpp": "",
    "core/compiled.cpython-312-x86_64-linux-gnu.so": "",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("megatron_names")


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = folder / "megatron" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("source", "lacking"),
    [
        ("import megatron.core.moved", []),
        ("import megatron.core.gone", ["core.gone"]),
        ("import megatron.core.gone.deeper as z; z.name", ["core.gone"] * 2),
        ("import megatron.core.moved as m; m.old; m.new", ["core.moved.new"]),
        ("import megatron.core; megatron.core.new; megatron.core.old", ["core.old"]),
        ("from megatron.core import new, old, Moved, moved, mpu", ["core.old"]),
        ("from megatron.core import mpu as p; p.rank(); p._size; p._group.size(); p.gone()", ["core.mpu.gone"]),
        ("from megatron.core import Moved; Moved.anything", []),
        ("from megatron.core.branches import fast, has_fast, slow, tried, index, chosen, file, others, matched", []),
        ("from megatron.core.branches import Aliased, typed, __file__, __path", ["core.branches.__path"]),
        ("from megatron.core.starred import slow, _shown, _hidden", ["core.starred._hidden"]),
        ("from megatron.core.starred import unlisted", ["core.starred.unlisted"]),
        ("from megatron.core.outside import anything", []),
        ("from megatron.core.lazy import known, anything", []),
        ("from megatron.core.circle import round, there", ["core.circle.round", "core.circle.there"]),
        ("from megatron.core.broken import gone", ["core.broken.gone"]),
        ("from megatron.core import helpers_cpp, compiled; compiled.anything", []),
        (
            "import_module('megatron.core.gone'); find_spec('megatron.none'); print('megatron.no')",
            ["core.gone", "none"],
        ),
        ("def f():\n    from megatron.core import moved\n    moved.gone", ["core.moved.gone"]),
        ("from megatron.core import moved\ndef f(moved):\n    moved.gone", []),
        ("from megatron.core import moved\nf = lambda moved: moved.gone", []),
        ("from megatron.core import moved\ndef f():\n    moved = g()\n    moved.gone\nmoved.far", ["core.moved.far"]),
        (
            "try:\n    from megatron.core import mpu\nexcept ImportError:\n    mpu = None\nmpu.gone",
            ["core.mpu.gone"],
        ),
        ("from other import moved; moved.gone; from . import core; core.gone", []),
        ("from megatron.core.classes import Kind; Kind.gpt; Kind.hybrid", ["core.classes.Kind.hybrid"]),
        ("from megatron.core.classes import Norm; Norm.forward; Norm.__new__", []),
        ("from megatron.core.classes import Base, Derived; Base.load = f(Derived.save, Derived.__name__)", []),
        ("from megatron.core.classes import Derived; Derived.load = f", ["core.classes.Derived.load"]),
        ("from megatron.core.classes import Base; Base.__new__; Base.__new__ = f", ["core.classes.Base.__new__"]),
        (
            "from megatron.core.classes import Derived\nclass O(Derived):\n    def f(self):\n        super().save()\n"
            "        super().gone()\n        return [super().far() for _ in self]",
            ["core.classes.Derived.gone", "core.classes.Derived.far"],
        ),
        ("from megatron.core import new; new(1, b=2, c=3); new(a=1)", ["core.new(a=)"]),
        ("from megatron.core.parallel import size; size(anything=1)", []),
        ("from megatron.core.classes import Derived; Derived(size=1, name=2, gone=3)", ["core.classes.Derived(gone=)"]),
        ("from megatron.core.classes import Maker; Maker(config=1, size=2)", ["core.classes.Maker(size=)"]),
        ("from megatron.core.classes import Norm; Norm(anything=1)", []),
        (
            "from megatron.core.classes import LargeConfig; LargeConfig(seed=1, path=2, gone=3)",
            ["core.classes.LargeConfig(gone=)"],
        ),
        (
            "from megatron.core.classes import Config\n@dataclass\nclass Own(Config):\n    own: int\n"
            "Own(seed=1, own=2, gone=3)",
            ["ours.Own(gone=)"],
        ),
    ],
)
def test_forms_of_use(script: ModuleType, tmp_path: Path, source: str, lacking: list[str]) -> None:
    write(tmp_path, MEGATRON)
    (tmp_path / "ours.py").write_text(source)
    names = script.Names({"megatron": tmp_path, "ours": tmp_path})
    uses = script.uses_in(tmp_path / "ours.py", "ours", ("megatron", "ours"))
    found = [name.removeprefix("megatron.") for use in uses for name in names.lacking(use)]
    assert found == lacking


def run(checkout: Path) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, SCRIPTS / "megatron_names.py", checkout)
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.fixture
def installed() -> Path:
    spec = find_spec("megatron.core")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[2]


@needs_0_19
def test_the_release_that_is_installed_has_all(installed: Path) -> None:
    done = run(installed)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith(f"{installed} has all 1")


@needs_0_19
def test_a_name_and_a_method_that_were_removed_are_listed(installed: Path, tmp_path: Path) -> None:
    changed = {
        "core/datasets/utils.py": ("def get_blend_from_list(", "def blend_from_list("),
        "core/optimizer/distrib_optimizer.py": ("def sharded_state_dict(", "def sharded_states("),
        "core/datasets/gpt_dataset.py": ("sequences_per_dataset", "sequences_of_datasets"),
    }
    for name, (old, new) in changed.items():
        content = (installed / "megatron" / name).read_text()
        assert old in content
        write(tmp_path, {name: content.replace(old, new)})
    for folder in ("", "core", "core/optimizer", "core/datasets"):
        for entry in (installed / "megatron" / folder).iterdir():
            link = tmp_path / "megatron" / folder / entry.name
            if not link.exists() and entry.name != "bridge":
                link.symlink_to(entry)
    done = run(tmp_path)
    *listed, result = done.stdout.splitlines()
    assert done.returncode == 1 and done.stderr == ""
    assert {line.split(":", 1)[0]: line.split(": ")[1] for line in listed} == {
        "nca_plugin/megatron/blend.py": "megatron.core.datasets.utils.get_blend_from_list",
        "nca_plugin/megatron/dataset_provider.py": (
            "nca_plugin.megatron.dataset.SourceGPTDatasetConfig(sequences_per_dataset=)"
        ),
        "nca_plugin/megatron/plain_torch.py": (
            "megatron.core.optimizer.distrib_optimizer.DistributedOptimizer.sharded_state_dict"
        ),
    }
    file, line = listed[0].split(":")[:2]
    assert "get_blend_from_list" in (SCRIPTS.parent / file).read_text().splitlines()[int(line) - 1]
    assert "lacks 3 of the 1" in result
    assert "of megatron.bridge, which is not there, were not looked up" in result


@pytest.mark.parametrize("files", [{}, {"core/__init__.py": "def ("}])
def test_what_is_no_checkout_is_one_line(tmp_path: Path, files: dict[str, str]) -> None:
    done = run(write(tmp_path, files))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("nca-plugin: error: ") and str(tmp_path) in line
