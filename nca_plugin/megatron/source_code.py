"""Reads Megatron's source code for messages: which statement failed, its condition, and the arguments in it."""

import ast
import functools
import inspect
from pathlib import Path
from types import FrameType
from typing import Final

from megatron.training.argument_utils import core_transformer_config_from_args

from nca_plugin.megatron.option_names import OptionNames

#: Names of variables that hold arguments, or a configuration with fields of the same names.
HOLDERS: Final = ("args", "self", "config")


def failed_condition(file: str, line: int) -> tuple[ast.expr | None, list[ast.expr]]:
    """Return the condition or expression of the statement at a line, and the conditions around it, innermost first."""
    statements = statements_around(file, line)
    if not statements:
        return None, []
    inner = statements[-1]
    around = [node.test for node in reversed(statements[:-1]) if isinstance(node, ast.If)]
    if isinstance(inner, ast.Assert):
        return inner.test, around
    if isinstance(inner, ast.Raise):
        return (around[0], around[1:]) if around else (None, [])
    if isinstance(inner, ast.Assign | ast.Expr | ast.Return | ast.AugAssign):
        return inner.value, around
    return (inner.test, around) if isinstance(inner, ast.If) else (None, around)


def argument_of(field: str) -> str:
    """Return the argument from which Megatron sets a field of its configuration, as its source code says."""
    return _fields().get(field, field)


@functools.cache
def _fields() -> dict[str, str]:
    source = inspect.getsourcefile(core_transformer_config_from_args) or ""
    named = (n for n in _parsed(source).body if getattr(n, "name", None) == core_transformer_config_from_args.__name__)
    found = {}
    for statement in getattr(next(named, None), "body", ()):
        match statement:
            case ast.Assign(
                targets=[ast.Subscript(value=ast.Name("kw_args"), slice=ast.Constant(str(field)))],
                value=ast.Attribute(value=ast.Name("args"), attr=dest),
            ):
                found[field] = dest
    return found


def statements_around(file: str, line: int) -> list[ast.stmt]:
    """Return the statements around a line, the innermost last."""
    statements = [node for node in ast.walk(_parsed(file)) if isinstance(node, ast.stmt) and _covers(node, line)]
    return sorted(statements, key=lambda node: (node.lineno, -(node.end_lineno or 0)))


def _covers(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or node.lineno)


@functools.cache
def _parsed(file: str) -> ast.Module:
    try:
        return ast.parse(Path(file).read_text())
    except (OSError, SyntaxError):
        return ast.Module([], [])


def function_of(frame: FrameType) -> ast.AST | None:
    """Return the source code of the function in a frame."""
    code = frame.f_code
    functions = (n for n in ast.walk(_parsed(code.co_filename)) if isinstance(n, ast.FunctionDef))
    return next((n for n in functions if n.name == code.co_name and _covers(n, code.co_firstlineno)), None)


def arguments_in(node: ast.AST | None, options: OptionNames) -> list[str]:
    """Return the arguments that a piece of source code looks at, in order."""
    attributes = [] if node is None else [n for n in ast.walk(node) if isinstance(n, ast.Attribute)]
    attributes.sort(key=lambda n: (n.lineno, n.col_offset))
    found = [argument_of(n.attr) for n in attributes if isinstance(n.value, ast.Name) and n.value.id in HOLDERS]
    return list(dict.fromkeys(name for name in found if name in options.actions))
