"""``--filter``: a small expression language over columns, parsed, never evaluated as code.

    label == 3 and (width > 100 or source in ("a", "b")) and not blurred and caption is not None

Comparisons, ``in``, ``is None``, ``and``/``or``/``not`` and parentheses; a name is a column
(``col("odd name")`` for names that are no identifiers), everything else a literal.

A comparison with a null is neither true nor false, as in SQL, and only rows that are true are kept;
``in`` and ``is`` always decide: a null is in no list.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import MismatchError, UsageError
from .storage import one_line

__all__ = ["Filter"]

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_MAX_CHARS = 10_000
_HINT = 'write for example: label == 3 and name in ("a", "b")'


@dataclass(frozen=True)
class Filter:
    """A parsed row filter.

    Attributes:
        text: What the user wrote; two filters are equal when their texts are.

    Raises:
        UsageError: The text is no expression of this language.
    """

    text: str

    def __post_init__(self) -> None:
        _parse(self.text)

    @property
    def expression(self) -> pc.Expression:
        """The filter as an Arrow expression."""
        return _parse(self.text)[0]

    @property
    def columns(self) -> frozenset[str]:
        """The columns it reads."""
        return _parse(self.text)[1]

    @property
    def negates(self) -> bool:
        """Whether a row may pass because a comparison fails, which NaN always does."""
        found = ast.walk(ast.parse(self.text.strip(), mode="eval"))
        return any(isinstance(node, ast.Not | ast.NotEq | ast.NotIn) for node in found)

    def check(self, schema: pa.Schema) -> None:
        """Makes sure that the filter can run on data of this schema.

        Raises:
            MismatchError: A column is missing, or its type cannot be compared with the literal.
        """
        missing = sorted(self.columns - set(schema.names))
        if missing:
            raise MismatchError(
                f"--filter names column {missing[0]!r}, which the data lacks",
                f"columns: {', '.join(schema.names)}",
            )
        try:
            schema.empty_table().filter(self.expression)
        except pa.ArrowException as error:
            raise MismatchError(
                f"--filter {self.text!r} does not fit the data: {one_line(error)}",
                "compare columns with literals of their type",
            ) from error


def _parse(text: str) -> tuple[pc.Expression, frozenset[str]]:
    if len(text) > _MAX_CHARS:
        raise UsageError(f"--filter is {len(text):,} characters long, at most {_MAX_CHARS:,} are read", _HINT)
    columns: set[str] = set()
    try:
        tree = ast.parse(text.strip(), mode="eval")
        expression = _Builder(columns).logical(tree.body)
    except (SyntaxError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise UsageError(f"--filter {text[:200]!r} cannot be parsed", _HINT) from error
    return expression, frozenset(columns)


@dataclass(frozen=True)
class _Builder:
    columns: set[str]

    def logical(self, node: ast.expr) -> Any:
        match node:
            case ast.BoolOp(op=joint, values=values):
                parts = [self.logical(value) for value in values]
                result = parts[0]
                for part in parts[1:]:
                    result = result & part if isinstance(joint, ast.And) else result | part
                return result
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self.logical(operand)
            case ast.Compare(left=left, ops=ops, comparators=rights):
                result = None
                for op, right in zip(ops, rights, strict=True):
                    part = self.comparison(left, op, right)
                    result = part if result is None else result & part
                    left = right
                return result
            case ast.Name() | ast.Call():
                return self.column(node)
        raise self._refuse(node)

    def comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
        match op:
            case ast.Is() | ast.IsNot() if isinstance(right, ast.Constant) and right.value is None:
                null = self.operand(left).is_null()
                return null if isinstance(op, ast.Is) else ~null
            case ast.In() | ast.NotIn() if isinstance(right, ast.Tuple | ast.List | ast.Set):
                member = self.operand(left).isin([self.literal(item) for item in right.elts])
                return member if isinstance(op, ast.In) else ~member
        if type(op) not in _COMPARE:
            raise UsageError(f"--filter does not know {ast.unparse(left)} {type(op).__name__} ...", _HINT)
        return _COMPARE[type(op)](self.operand(left), self.operand(right))

    def operand(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name | ast.Call):
            return self.column(node)
        return pc.scalar(self.literal(node))

    def column(self, node: ast.expr) -> Any:
        match node:
            case ast.Name(id=name):
                pass
            case ast.Call(func=ast.Name(id="col"), args=[ast.Constant(value=str(name))], keywords=[]):
                pass
            case _:
                raise self._refuse(node)
        self.columns.add(name)
        return pc.field(name)

    def literal(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | bytes() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -number
        raise self._refuse(node)

    def _refuse(self, node: ast.expr) -> UsageError:
        return UsageError(f"--filter does not know {ast.unparse(node)[:200]!r}", _HINT)
