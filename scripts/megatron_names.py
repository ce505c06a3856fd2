"""List the names of Megatron that nca_plugin and examples/ use and another release of Megatron lacks.

    python scripts/megatron_names.py ../Megatron-LM

The folder holds a package `megatron`: a checkout of Megatron-LM, or an environment's site-packages. Its source is
parsed and nothing of it is executed. Looked up are the modules and names that are imported, attributes of those,
methods of a base class that are called through super() and the keyword arguments of calls. An attribute of an object,
such as an option in Megatron's `args`, has no name that can be looked up. A line names the first use in a file.

Exit code 0 if nothing is lacking, 1 if something is, 2 if the folder holds no Megatron.
"""

import ast
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from source_names import Names, Use, dotted, parsed

from nca_plugin.errors import NCAPluginError, one_line_errors
from nca_plugin.launch.process import Parser

_ROOT: Final = Path(__file__).parents[1]
_MEGATRON: Final = "megatron"
_BRIDGE: Final = "megatron.bridge"
_OURS: Final = ("nca_plugin", "examples")


class _Uses(ast.NodeVisitor):
    """Collects the uses of names in a file.

    Args:
        module: that the file is.
        packages: whose names count.
    """

    def __init__(self, path: Path, module: str, packages: Sequence[str]) -> None:
        self.uses: list[Use] = []
        self._path = path
        self._module = module
        self._packages = packages
        # For each scope that is open: full names by the names that they have there, None for what does not count.
        self._scopes: list[dict[str, str | None]] = [{}]
        self._bases: list[str | None] = [None]

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            first = alias.name.partition(".")[0]
            self._imported(node, alias.name, alias.asname or first, alias.name if alias.asname else first)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            name = "" if node.level else f"{node.module}.{alias.name}"
            self._imported(node, name, alias.asname or alias.name, name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._scopes[-1][node.name] = f"{self._module}.{node.name}" if len(self._scopes) == 1 else None
        self._bases.append(self._full_name(node.bases[0]) if len(node.bases) == 1 else None)
        self._visit_scope(node)
        self._bases.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._scopes[-1][node.name] = None
        self._visit_scope(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_scope(node)

    def visit_arg(self, node: ast.arg) -> None:
        self.generic_visit(node)
        self._scopes[-1][node.arg] = None

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            # What stands in for an import that fails leaves the name that of the import.
            self._scopes[-1].setdefault(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        name = self._full_name(node)
        if name is None:
            self.generic_visit(node)
        else:
            self._add(node, name, is_replaced=not isinstance(node.ctx, ast.Load))

    def visit_Call(self, node: ast.Call) -> None:
        name = self._full_name(node.func)
        text = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if name is not None:
            self._add(node, name, tuple(keyword.arg for keyword in node.keywords if keyword.arg is not None))
        else:
            self.visit(node.func)
        if dotted(node.func) in ("import_module", "find_spec") and isinstance(text, str) and self._counts(text):
            self._add(node, text)
        for child in (*node.args, *node.keywords):
            self.visit(child)

    def _visit_scope(self, node: ast.AST) -> None:
        self._scopes.append({})
        self.generic_visit(node)
        self._scopes.pop()

    def _imported(self, node: ast.stmt, name: str, bound: str, meaning: str) -> None:
        if self._counts(name):
            self._add(node, name)
            self._scopes[-1][bound] = meaning
        else:
            self._scopes[-1].setdefault(bound)

    def _full_name(self, node: ast.AST) -> str | None:
        """Return the full name of an expression, None if it does not count."""
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Call):
            is_of_base = dotted(node.value.func) == "super" and self._bases[-1] is not None
            return f"{self._bases[-1]}.{node.attr}" if is_of_base else None
        first, *rest = (dotted(node) or "").split(".")
        meaning = next((scope[first] for scope in reversed(self._scopes) if first in scope), None)
        return None if meaning is None else ".".join([meaning, *rest])

    def _counts(self, name: str) -> bool:
        return name.partition(".")[0] in self._packages

    def _add(
        self, node: ast.expr | ast.stmt, name: str, keywords: tuple[str, ...] = (), is_replaced: bool = False
    ) -> None:
        self.uses.append(Use(self._path, node.lineno, name, keywords, is_replaced))


def uses_in(path: Path, module: str, packages: Sequence[str] = (_MEGATRON, *_OURS)) -> list[Use]:
    """Return where a file uses names of packages, which may come through our own. Raises `NCAPluginError` if it cannot
    be parsed."""
    visitor = _Uses(path, module, packages)
    visitor.visit(parsed(path))
    return sorted(visitor.uses, key=lambda use: use.line)


def main() -> None:
    """Print what is lacking, and leave with the exit code."""
    parser = Parser(description=__doc__, prog=Path(__file__).name)
    parser.add_argument("checkout", type=Path, metavar="CHECKOUT", help="the folder that holds the package megatron")
    checkout = parser.parse_args().checkout
    if not (checkout / _MEGATRON / "core").is_dir():
        raise NCAPluginError(f"{checkout} holds no megatron/core: name a checkout of Megatron-LM, or a site-packages")
    has_bridge = checkout.joinpath(*_BRIDGE.split(".")).is_dir()
    names = Names({_MEGATRON: checkout, **dict.fromkeys(_OURS, _ROOT)})
    used: set[str] = set()
    lacking: set[str] = set()
    left_out: set[str] = set()
    for path in sorted(path for folder in _OURS for path in (_ROOT / folder).rglob("*.py")):
        shown = path.relative_to(_ROOT)
        told: set[str] = set()
        for use in uses_in(path, ".".join(shown.with_suffix("").parts)):
            if f"{use.name}.".startswith(f"{_BRIDGE}.") and not has_bridge:
                left_out.add(use.name)
                continue
            used.add(use.name)
            for name in names.lacking(use):
                lacking.add(use.name)
                if name not in told:
                    print(f"{shown}:{use.line}: {name}")
                told.add(name)
    of_megatron = sum(name.startswith(f"{_MEGATRON}.") for name in used | lacking)
    result = f"lacks {len(lacking)} of the {of_megatron} names" if lacking else f"has all {of_megatron} names"
    note = f"; {len(left_out)} of {_BRIDGE}, which is not there, were not looked up" if left_out else ""
    print(f"{checkout} {result} of Megatron that are used here{note}")
    sys.exit(bool(lacking))


if __name__ == "__main__":
    with one_line_errors(of_every_rank=True):
        main()
