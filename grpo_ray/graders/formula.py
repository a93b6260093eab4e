"""Formulas over named numbers: `0.7 * correct + 0.3 * min(short, 1)`. A small arithmetic of its own, and no `eval`.

The operators + - * / ** (OpenAI's guide to graders writes powers as ^) and the functions min, max, abs, floor, ceil,
exp, sqrt and log (natural). Every number is a float, so that none can grow until the machine stands still.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

LONGEST = 500
"""Characters of a formula."""
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{"min": min, "max": max, "abs": abs, "floor": math.floor, "ceil": math.ceil},
    **{"exp": math.exp, "sqrt": math.sqrt, "log": math.log},
}
_NODES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant, *_OPERATORS)


def names_in(formula: str) -> set[str]:
    """The values that a formula is made of. Raises ValueError for anything beyond + - * / ** ^ and the functions."""
    nodes = list(ast.walk(_parsed(formula)))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    return {node.id for node in nodes if isinstance(node, ast.Name) and node not in called}


def calculate(formula: str, values: Mapping[str, float]) -> float:
    """The formula's value, over floats. Raises ValueError where it has none: a division by 0, the root of −1."""
    try:
        result = _value(_parsed(formula).body, values)
    except (ArithmeticError, ValueError, TypeError, RecursionError) as fault:
        raise ValueError(f"{formula} has no value here: {fault}") from fault
    if isinstance(result, complex) or not math.isfinite(result):
        raise ValueError(f"{formula} has no finite value here")
    return float(result)


@lru_cache
def _parsed(formula: str) -> ast.Expression:
    if len(formula) > LONGEST:
        raise ValueError(f"a formula may have {LONGEST} characters, not {len(formula)}")
    try:
        tree = ast.parse(formula.strip().replace("^", "**"), mode="eval")  # OpenAI's guide writes powers with ^
    except (SyntaxError, RecursionError, MemoryError, ValueError) as fault:
        raise ValueError(f"{formula!r} is no formula") from fault
    for node in ast.walk(tree):
        if not isinstance(node, _NODES) or not _is_plain(node):
            known = ", ".join(_FUNCTIONS)
            raise ValueError(f"the formula {formula!r} may only have numbers, names, + - * / ** ^ and {known}")
    return tree


def _is_plain(node: ast.AST) -> bool:
    """Whether a constant is a number, and a call one of the functions."""
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS and not node.keywords
    return True


def _value(node: ast.AST, values: Mapping[str, float]) -> Any:
    match node:
        case ast.Constant(value=number):
            return float(number)  # pyright: ignore[reportArgumentType]
        case ast.Name(id=name):
            return values[name]
        case ast.UnaryOp(op=sign, operand=inner):
            return _OPERATORS[type(sign)](_value(inner, values))
        case ast.BinOp(left=left, op=sign, right=right):
            return _OPERATORS[type(sign)](_value(left, values), _value(right, values))
        case ast.Call(func=ast.Name(id=name), args=inner):
            return _FUNCTIONS[name](*(_value(one, values) for one in inner))
    raise ValueError("this can't stand in a formula")
