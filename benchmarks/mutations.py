"""What a mutant changes: one node of a syntax tree, replaced by a neighbour of its kind.

The kinds are those of cosmic-ray and mutmut, and two more, since the checks of hostile input are
made of them: a statement left out, and a condition that always holds or never does. Annotations,
docstrings, imports, decorators and the words of messages stay as they are.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
_OPERATORS: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitOr,
    ast.Pow: ast.Mult,
}
_CALLS: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
_UNTOUCHED: Final = (ast.Import, ast.ImportFrom, ast.JoinedStr, ast.expr_context)
_UNTOUCHED_FIELDS: Final = ("annotation", "returns", "decorator_list", "type_comment", "bases")
_CONTEXT: Final = 72  # characters of source around a change that tell one from another
_SCOPES: Final = (ast.FunctionDef, ast.ClassDef)

Place = tuple[tuple[str, int | None], ...]
"""The fields, and indices in them, that lead from a tree's root to a node."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A change to a module.

    Attributes:
        line: where the node begins.
        scope: qualified name of the function or class around it, or an empty one.
        change: source before and after.
        text: the module's source.
        place: of the node.
        replacement: what stands there instead.
    """

    line: int
    scope: str
    change: str
    text: str
    place: Place
    replacement: ast.AST

    def source(self) -> str:
        """The module's source with the change, without comments."""
        return ast.unparse(_replaced(ast.parse(self.text), self.place, self.replacement))


def mutants_of(text: str) -> list[Mutant]:
    """Every mutant of a module, in the order of its source."""
    tree = ast.parse(text)
    found = []
    for place, ancestors in _places(tree, (), ()):
        node = ancestors[-1]
        scope = ".".join(a.name for a in ancestors[:-1] if isinstance(a, _SCOPES))
        for replacement in _replacements(node, ancestors):
            change = _described(ancestors, place, replacement)
            line = next(a.lineno for a in reversed(ancestors) if hasattr(a, "lineno"))
            found.append(Mutant(line, scope, change, text, place, replacement))
    return found


def _places(
    node: ast.AST, place: Place, ancestors: tuple[ast.AST, ...]
) -> Iterator[tuple[Place, tuple[ast.AST, ...]]]:
    ancestors = (*ancestors, node)
    yield place, ancestors
    for name, value in ast.iter_fields(node):
        if name in _UNTOUCHED_FIELDS:
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if isinstance(child, ast.AST) and not isinstance(child, _UNTOUCHED):
                step = (name, index if isinstance(value, list) else None)
                yield from _places(child, (*place, step), ancestors)


def _replacements(node: ast.AST, ancestors: tuple[ast.AST, ...]) -> Iterator[ast.AST]:
    parent = ancestors[-2] if len(ancestors) > 1 else node
    if any(isinstance(a, ast.Raise) for a in ancestors[:-1]) and not isinstance(node, ast.Constant):
        return
    match node:
        case ast.Compare(ops=operators):
            for index, operator in enumerate(operators):
                for other in _COMPARISONS[type(operator)]:
                    yield _with(node, ops=_put(operators, index, other()))
        case ast.BinOp(op=operator) if type(operator) in _OPERATORS:
            yield _with(node, op=_OPERATORS[type(operator)]())
        case ast.AugAssign(op=operator):
            yield ast.Pass()
            if type(operator) in _OPERATORS:
                yield _with(node, op=_OPERATORS[type(operator)]())
        case ast.BoolOp(op=operator, values=values):
            yield _with(node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
            for index in range(len(values)):
                left = values[:index] + values[index + 1 :]
                yield left[0] if len(left) == 1 else _with(node, values=left)
        case ast.UnaryOp(operand=operand):
            yield operand
        case ast.If() | ast.IfExp():
            yield _with(node, test=ast.Constant(False))
            yield _with(node, test=ast.Constant(True))
        case ast.While():
            yield _with(node, test=ast.Constant(False))
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
        case ast.For():
            yield _with(node, iter=ast.Tuple([], ast.Load()))
        case ast.ExceptHandler() if not isinstance(node.body[0], ast.Raise) or node.body[0].exc:
            yield _with(node, body=[ast.Raise()])
        case ast.Raise() if isinstance(parent, ast.If) and len(parent.body) == 1:
            return  # as with a condition that never holds
        case ast.Raise() | ast.Expr(value=ast.Call()) | ast.Delete():
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield _with(node, value=ast.Constant(None))
        case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
            yield _with(node, func=ast.Name(_CALLS[name], ast.Load()))
        case ast.Call(keywords=keywords):
            for index in range(len(keywords)):
                yield _with(node, keywords=keywords[:index] + keywords[index + 1 :])
        case ast.Slice():
            for bound in ("lower", "upper", "step"):
                if getattr(node, bound) is not None:
                    yield _with(node, **{bound: None})
        case ast.Constant(value=value) if not isinstance(parent, ast.Expr | ast.UnaryOp):
            yield from map(ast.Constant, _other_values(value))


def _other_values(value: object) -> list[object]:
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case float():
            return [value * 2 + 1]
        case str() if value and " " not in value:  # names and codes, but no words
            return ["?" + value]
        case bytes():
            return [b"?" + value]
    return []


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _put(values: list[ast.cmpop], index: int, value: ast.cmpop) -> list[ast.cmpop]:
    return [*values[:index], value, *values[index + 1 :]]


def _replaced(tree: ast.AST, place: Place, replacement: ast.AST) -> ast.AST:
    """The tree with another node at a place; it shares what does not lie on the way there."""
    if not place:
        return replacement
    (name, index), *rest = place
    value = getattr(tree, name)
    if index is None:
        return _with(tree, **{name: _replaced(value, tuple(rest), replacement)})
    changed = _replaced(value[index], tuple(rest), replacement)
    return _with(tree, **{name: [*value[:index], changed, *value[index + 1 :]]})


def _described(ancestors: tuple[ast.AST, ...], place: Place, replacement: ast.AST) -> str:
    """Source before and after, of the largest expression or statement that is short."""
    before, after = "", ""
    for above in range(len(place) + 1):
        node = ancestors[-1 - above]
        if not isinstance(node, ast.expr | ast.stmt | ast.comprehension | ast.ExceptHandler):
            continue
        changed = _replaced(node, place[len(place) - above :], replacement)
        old, new = (_first_line(n) for n in (node, changed))
        if before and (len(old) > _CONTEXT or old == new):
            break
        before, after = old, new
        if isinstance(node, ast.stmt):
            break
    return f"{before} → {after}"


def _first_line(node: ast.AST) -> str:
    """Source of an expression, or of a statement but for its body."""
    if hasattr(node, "body") and not isinstance(node, ast.expr):
        node = _with(node, body=node.body if isinstance(node, ast.ExceptHandler) else [ast.Pass()])
        for rest in ("orelse", "finalbody"):
            if hasattr(node, rest):
                setattr(node, rest, [])
    return " ".join(ast.unparse(node).split()).removesuffix(" pass")
