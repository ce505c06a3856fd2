"""What the modules of packages define, by their source: nothing of it is executed.

Used by scripts/megatron_names.py.
"""

import ast
import builtins
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

from nca_plugin.errors import NCAPluginError

#: A package without source.
_EMPTY = ast.Module([], [])
_Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Use:
    """A place where a name is used.

    Attributes:
        name: with its module, such as `megatron.core.utils.log_single_rank`.
        keywords: of a call of it.
        is_replaced: whether it is assigned to, as a method that is replaced by one of ours.
    """

    path: Path
    line: int
    name: str
    keywords: tuple[str, ...] = ()
    is_replaced: bool = False


@dataclass(frozen=True)
class _Module:
    name: str


@dataclass(frozen=True)
class _Defined:
    """A class or function, and the module that defines it."""

    module: str
    node: ast.ClassDef | _Function


@dataclass(frozen=True)
class _Outside:
    """What another package defines; empty for a value, or what only running the source would tell."""

    name: str = ""


_Thing = _Module | _Defined | _Outside
#: The names, with their modules, that are being followed: two modules may import from each other.
_Seen = frozenset[tuple[str, str]]


class Names:
    """The names that the modules of packages define, by their source.

    Args:
        roots: by package, the folder that holds it.
    """

    def __init__(self, roots: dict[str, Path]) -> None:
        self._roots = roots

    def lacking(self, use: Use) -> list[str]:
        """Return the part of a used name that is not defined, or the keywords that it does not take.

        What cannot be told without running the source counts as defined.

        Raises:
            NCAPluginError: a source file that cannot be parsed.
        """
        first, *rest = use.name.split(".")
        things: Sequence[_Thing] = [_Module(first)]
        for count, part in enumerate(rest, 1):
            is_replaced = use.is_replaced and count == len(rest)
            things = [found for thing in things for found in self._members(thing, part, is_replaced)]
            if not things:
                return [".".join([first, *rest[:count]])]
        return [
            f"{use.name}({keyword}=)"
            for keyword in use.keywords
            if not any(self._takes(thing, keyword) for thing in things)
        ]

    def _members(self, thing: _Thing, name: str, is_replaced: bool = False) -> list[_Thing]:
        """Return what an attribute may be: more than one where the source has a branch, nothing if it has none."""
        if isinstance(thing, _Module):
            return self._of_module(thing.name, name)
        if isinstance(thing, _Defined) and isinstance(thing.node, ast.ClassDef):
            if is_replaced:
                # That a base class has it too, or every class, does not make it one to replace.
                return [_Outside()] if name in _bindings(thing.node) else []
            return self._of_class(thing, name) or ([_Outside()] if hasattr(type, name) else [])
        return self._of_outside(thing, name) if isinstance(thing, _Outside) else [_Outside()]

    def _of_module(self, module: str, name: str, seen: _Seen = frozenset()) -> list[_Thing]:
        body = self._body(module)
        if body is None or (module, name) in seen:
            return [_Outside()] if body is None and self._file(module) is not None else []
        bindings = _bindings(body)
        found: list[_Thing] = []
        for statement in bindings.get(name, ()):
            found += self._bound(module, name, statement, seen | {(module, name)})
        statements = bindings.get("*", ())
        stars = [self._absolute(module, statement) for statement in statements if isinstance(statement, ast.ImportFrom)]
        if not found and self._file(f"{module}.{name}") is not None:
            found.append(_Module(f"{module}.{name}"))
        for star in stars if not found else ():
            if not self._is_known(star):
                found.append(_Outside())
            elif self._is_public(star, name):
                found += self._of_module(star, name, seen | {(module, name)})
        # What every module has, and what one may answer when it is asked.
        is_answered = name.startswith("__") and hasattr(ast, name)
        if not found and (is_answered or "__getattr__" in bindings):
            found.append(_Outside())
        return found

    def _of_class(self, thing: _Defined, name: str) -> list[_Thing]:
        assert isinstance(thing.node, ast.ClassDef)
        if statements := _bindings(thing.node).get(name):
            first = statements[0]
            return [_Defined(thing.module, first) if isinstance(first, ast.ClassDef | _Function) else _Outside()]
        return [found for base in self._bases(thing) for found in self._inherited(base, name)]

    def _inherited(self, base: _Thing, name: str) -> list[_Thing]:
        if isinstance(base, _Defined) and isinstance(base.node, ast.ClassDef):
            return self._of_class(base, name)
        return self._of_outside(base, name) if isinstance(base, _Outside) else []

    @staticmethod
    def _of_outside(thing: _Outside, name: str) -> list[_Thing]:
        if thing.name.partition(".")[0] not in sys.stdlib_module_names:
            return [_Outside()]
        base = resolve_name(thing.name)
        has_own = name in dir(base) and getattr(base, name) is not getattr(object, name, None)
        return [_Outside()] if has_own else []

    def _bases(self, thing: _Defined) -> Iterator[_Thing]:
        assert isinstance(thing.node, ast.ClassDef)
        for base in thing.node.bases:
            name = dotted(base.value if isinstance(base, ast.Subscript) else base)
            yield from [_Outside()] if name is None else self._named(thing.module, name)

    def _named(self, module: str, name: str) -> list[_Thing]:
        """Return what a name, which may have dots, means within a module."""
        first, *rest = name.split(".")
        things = self._of_module(module, first)
        if not things and hasattr(builtins, first):
            things = [_Outside(f"builtins.{first}")]
        for part in rest:
            things = [
                _Outside(thing.name and f"{thing.name}.{part}") if isinstance(thing, _Outside) else found
                for thing in things
                for found in self._members(thing, part)
            ]
        return things

    def _bound(self, module: str, name: str, statement: ast.AST, seen: _Seen) -> list[_Thing]:
        """Return what a statement of a module binds a name to."""
        if isinstance(statement, ast.ClassDef | _Function):
            return [_Defined(module, statement)]
        if isinstance(statement, ast.Import):
            alias = next(alias for alias in statement.names if name in (alias.asname, alias.name.partition(".")[0]))
            target = alias.name if alias.asname else name
            if not self._is_known(target):
                return [_Outside(target)]
            return [_Module(target)] if self._file(target) is not None else []
        if isinstance(statement, ast.ImportFrom):
            origin = self._absolute(module, statement)
            imported = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
            if self._is_known(origin):
                return self._of_module(origin, imported, seen)
            return [_Outside(f"{origin}.{imported}")]
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name) and statement.value.id != name:
            # Another name for the same, as an old one that is kept.
            return self._of_module(module, statement.value.id, seen) or [_Outside()]
        return [_Outside()]

    def _takes(self, thing: _Thing, keyword: str) -> bool:
        """Whether a call of a class or function may have this keyword argument."""
        if not isinstance(thing, _Defined):
            return True
        if not isinstance(thing.node, ast.ClassDef):
            arguments = thing.node.args
            names = [argument.arg for argument in (*arguments.args, *arguments.kwonlyargs)]
            return arguments.kwarg is not None or keyword in names
        for name in ("__new__", "__init__"):
            if made_by := self._of_class(thing, name):
                return any(self._takes(function, keyword) for function in made_by)
        return not _is_dataclass(thing.node) or bool(self._of_class(thing, keyword))

    def _is_known(self, module: str) -> bool:
        return module.partition(".")[0] in self._roots

    def _file(self, module: str) -> Path | None:
        return _source(self._roots[module.partition(".")[0]], module)

    def _body(self, module: str) -> ast.Module | None:
        """Return a module's tree, None if it has no source in Python or does not exist."""
        file = self._file(module)
        if file is None or file.suffix in (".so", ".cpp"):
            return None
        return _EMPTY if file.is_dir() else parsed(file)

    def _absolute(self, module: str, statement: ast.ImportFrom) -> str:
        if not statement.level:
            return statement.module or ""
        file = self._file(module)
        is_package = file is not None and (file.is_dir() or file.name == "__init__.py")
        parts = module.split(".")
        parent = parts[: len(parts) - statement.level + is_package]
        return ".".join([*parent, *filter(None, [statement.module])])

    def _is_public(self, module: str, name: str) -> bool:
        """Whether `from module import *` brings a name."""
        for statement in _bindings(self._body(module) or _EMPTY).get("__all__", ()):
            if isinstance(statement, ast.Assign):
                try:
                    return name in ast.literal_eval(statement.value)
                except ValueError:
                    return True
        return not name.startswith("_")


@cache
def _source(root: Path, module: str) -> Path | None:
    """Return the source of a module, the folder of a package without any, or what it is compiled to or from."""
    path = root.joinpath(*module.split("."))
    if path.is_dir():
        return path / "__init__.py" if (path / "__init__.py").is_file() else path
    # A checkout holds the source of what it compiles at the first start.
    compiled = [*path.parent.glob(f"{path.name}.*.so"), path.with_name(f"{path.name.removesuffix('_cpp')}.cpp")]
    return next((file for file in (path.with_name(f"{path.name}.py"), *compiled) if file.is_file()), None)


@cache
def _bindings(scope: ast.Module | ast.ClassDef) -> dict[str, list[ast.stmt]]:
    """Return the statements that bind each name of a module or class, in order; see `_bound_by`."""
    bindings: dict[str, list[ast.stmt]] = {}
    for name, statement in _bound_by(scope.body):
        bindings.setdefault(name, []).append(statement)
    return bindings


def _bound_by(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the names that statements bind, in whatever branch, with the statement; `*` for a star import."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | _Function):
            yield statement.name, statement
            for node in ast.walk(statement):
                if isinstance(node, ast.Global):
                    yield from ((name, node) for name in node.names)
        elif isinstance(statement, ast.Import):
            yield from ((alias.asname or alias.name.partition(".")[0], statement) for alias in statement.names)
        elif isinstance(statement, ast.ImportFrom):
            yield from ((alias.asname or alias.name, statement) for alias in statement.names)
        else:
            for child in ast.iter_child_nodes(statement):
                if isinstance(child, ast.ExceptHandler | ast.match_case):
                    yield from _bound_by(child.body)
                elif isinstance(child, ast.stmt):
                    yield from _bound_by([child])
                else:
                    stored = (node for node in ast.walk(child) if isinstance(node, ast.Name))
                    yield from ((node.id, statement) for node in stored if isinstance(node.ctx, ast.Store))


def _is_dataclass(node: ast.ClassDef) -> bool:
    called = (decorator.func if isinstance(decorator, ast.Call) else decorator for decorator in node.decorator_list)
    return any(dotted(decorator) in ("dataclass", "dataclasses.dataclass") for decorator in called)


def dotted(node: ast.AST) -> str | None:
    """Return `a.b.c` for such an expression, None for another."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (value := dotted(node.value)) is not None:
        return f"{value}.{node.attr}"
    return None


@cache
def parsed(path: Path) -> ast.Module:
    """Return a source file's tree. Raises `NCAPluginError` if it cannot be parsed."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError) as error:
        raise NCAPluginError(f"{path} cannot be parsed: {error}") from error
