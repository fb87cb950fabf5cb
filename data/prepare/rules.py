# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Rules over the columns of a row, such as `rating >= 4` or `dwell < 2 and action != "buy"`, as Ibis expressions.

The syntax is a small part of Python's: columns by name (in backticks where the name is no single word: `` `Book-Rating`
>= 8 ``), numbers, text in quotes, `true`, `false` and `null`; `== != < <= > >=`, `in [...]`, `not in [...]`, `is null`,
`is not null`; `+ - * /`; `and`, `or`, `not`, parentheses. A time is compared with text such as "2024-03-01" or
"2024-03-01 12:00", in UTC. Nothing is ever evaluated as Python or as SQL. As in SQL, a comparison with a null is
neither true nor false but null.
"""

import ast
import operator
import re
import unicodedata
from functools import reduce
from typing import Any

import ibis
import ibis.expr.types as ir

from flip_ctr.data.readers.table_values import read_time

CONSTANTS = {"null": None, "None": None, "true": True, "True": True, "false": False, "False": False}
COMPARISONS = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
# what may stand in backticks, and the texts in which a backtick is nothing but itself
QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')|`([^`]+)`""")
ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
# what a rule may be made of
KNOWN = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, *COMPARISONS, ast.In, ast.NotIn)
KNOWN += (ast.Is, ast.IsNot, ast.BinOp, *ARITHMETIC, ast.Div, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple)


class Rule:
    """A parsed rule.

    Attributes:
        text: the rule as it was written.
        columns: names of the columns that it reads, in order.

    Raises:
        ValueError: the text is not of the syntax above; says what is not understood, and where.
    """

    def __init__(self, text: str):
        self.text = " ".join(unicodedata.normalize("NFC", str(text)).split())  # as canonical values are written
        if not self.text:
            raise ValueError("rule is empty; write it as in `rating >= 4`.")
        self._names: dict[str, str] = {}  # of columns in backticks, by the word that takes their place
        self._code = QUOTED.sub(self._word, self.text)
        try:
            self._tree = ast.parse(self._code, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            example = "`rating >= 4 and country in ['nl', 'be']`"
            raise ValueError(
                f"rule {self.text!r} cannot be read{self._near(error)}; write it as in {example}, a name that is no "
                "single word in backticks."
            ) from None
        self._check()
        names = sorted(
            (node.lineno, node.col_offset, self._names.get(node.id, node.id)) for node in self._nodes(ast.Name)
        )
        self.columns = list(dict.fromkeys(name for *_, name in names))

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"

    def _word(self, match: re.Match) -> str:
        if match[1] is not None:
            return match[1]
        word = f"column_in_backticks_{len(self._names)}"
        self._names[word] = match[2]
        return word

    def _near(self, error: Exception) -> str:
        at = self._code[max(0, (error.offset or 0) - 1) :] if isinstance(error, SyntaxError) and error.text else ""
        if at.startswith("=") or re.search(r"[^=!<>]=[^=]", self._code):
            return " (equality is written `==`)"
        return f" near {self._shown(at)[:20]!r}" if at else ""

    def _shown(self, code: str) -> str:
        """A piece of the rule as it was written."""
        return re.sub(
            r"(column_in_backticks_\d+)",
            lambda match: f"`{self._names[match[1]]}`" if match[1] in self._names else match[0],
            code,
        )

    def _source(self, node: ast.AST) -> str:
        return self._shown(ast.get_source_segment(self._code, node) or type(node).__name__)

    def _refuse(self, node: ast.AST, why: str):
        raise ValueError(f"rule {self.text!r}: {self._source(node)!r} {why}.")

    def _nodes(self, kind: type) -> list:
        nodes = [node for node in ast.walk(self._tree) if isinstance(node, kind)]
        return [node for node in nodes if not (kind is ast.Name and node.id in CONSTANTS)]

    def _check(self) -> None:
        for one in ast.walk(self._tree):
            if not isinstance(one, KNOWN):
                self._refuse(one if hasattr(one, "lineno") else self._tree, "is not part of what a rule may say")
            if isinstance(one, ast.Constant) and not isinstance(one.value, str | int | float | None):
                self._refuse(one, "is neither a number nor text")

    def kinds(self) -> dict[str, set[str]]:
        """For each column what the rule takes it for: `number`, `text`, `bool`; nothing where it does not say."""
        found: dict[str, set[str]] = {name: set() for name in self.columns}

        def say(node: ast.AST, kind: str) -> None:
            if isinstance(node, ast.Name) and node.id not in CONSTANTS:
                found[self._names.get(node.id, node.id)].add(kind)

        def of(node: ast.AST) -> str | None:
            match node:
                case ast.Constant(value=value) if value is not None:
                    return "bool" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
                case ast.Name(id="true" | "false"):
                    return "bool"
                case ast.BinOp() | ast.UnaryOp(op=ast.USub()):
                    return "number"
            return None

        say(self._tree, "bool")
        for node in ast.walk(self._tree):
            match node:
                case ast.BoolOp(values=values):
                    for value in values:
                        say(value, "bool")
                case ast.UnaryOp(op=op, operand=operand):
                    say(operand, "bool" if isinstance(op, ast.Not) else "number")
                case ast.BinOp(left=left, right=right):
                    say(left, "number"), say(right, "number")
                case ast.Compare(left=left, comparators=others):
                    sides = [
                        left,
                        *(
                            one
                            for other in others
                            for one in (other.elts if isinstance(other, ast.List | ast.Tuple) else [other])
                        ),
                    ]
                    for kind in filter(None, map(of, sides)):
                        for side in sides:
                            say(side, kind)
        return found

    def __call__(self, table: ir.Table) -> ir.Value:
        """The rule as a column of the table.

        Raises:
            ValueError: the table lacks a column, or a column's type does not fit what it is compared with.
        """
        missing = [name for name in self.columns if name not in table.columns]
        if missing:
            raise ValueError(
                f"rule {self.text!r}: no column {', '.join(missing)}; there are {', '.join(table.columns)}."
            )
        return self._build(self._tree, table)

    def of_rows(self, table: ir.Table) -> ir.BooleanValue:
        """As calling it; `ValueError` where it is not true or false for a row, but a number, say."""
        value = self(table)
        if not isinstance(value, ir.BooleanValue):
            kind = _kind(value) if isinstance(value, ir.Value) else "the same for every row"
            raise ValueError(
                f"rule {self.text!r} is {kind} and not true or false of a row; compare a column, as in `rating >= 4`."
            )
        return value

    def _build(self, node: ast.AST, table: ir.Table) -> Any:
        match node:
            case ast.Name(id=name):
                return table[self._names.get(name, name)] if name not in CONSTANTS else CONSTANTS[name]
            case ast.Constant(value=value):
                return value
            case ast.BoolOp(op=op, values=values):
                parts = [self._truth(value, table) for value in values]
                return reduce(operator.and_ if isinstance(op, ast.And) else operator.or_, parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self._truth(operand, table)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._number(operand, table)
            case ast.BinOp(left=left, op=op, right=right):
                a, b = self._number(left, table), self._number(right, table)
                if isinstance(op, ast.Div):  # engines differ on a division by zero: here it is null
                    if not isinstance(b, ir.Value) and b == 0:
                        self._refuse(right, "is nothing to divide by")
                    return a / (b.nullif(0) if isinstance(b, ir.Value) else b)
                return ARITHMETIC[type(op)](a, b)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                operands = [left, *comparators]
                parts = [self._compare(a, op, b, table) for a, op, b in zip(operands, ops, operands[1:])]
                return reduce(operator.and_, parts)
        self._refuse(node, "is a list and stands behind `in` only")

    def _truth(self, node: ast.AST, table: ir.Table) -> ir.BooleanValue:
        value = self._build(node, table)
        if not isinstance(value, ir.BooleanValue | bool):
            self._refuse(node, "is not true or false; compare it with something")
        return ibis.literal(value) if isinstance(value, bool) else value

    def _number(self, node: ast.AST, table: ir.Table) -> Any:
        value = self._build(node, table)
        if not isinstance(value, ir.NumericValue | int | float) or isinstance(value, bool | ir.BooleanValue):
            self._refuse(node, "is not a number")
        return value

    def _compare(self, left: ast.AST, op: ast.cmpop, right: ast.AST, table: ir.Table) -> ir.BooleanValue:
        value = self._build(left, table)
        if isinstance(op, ast.Is | ast.IsNot):
            is_null = isinstance(right, ast.Constant | ast.Name) and self._build(right, table) is None
            if not isinstance(value, ir.Value) or not is_null:
                self._refuse(right, "cannot follow `is`; write `is null` or `is not null` behind a column")
            return value.isnull() if isinstance(op, ast.Is) else value.notnull()
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
                self._refuse(right, "is not a list of values, such as [1, 2]")
            if not isinstance(value, ir.Value):
                self._refuse(left, "is no column; write a column before `in`")
            choices = [self._alike(left, value, one, self._build(one, table))[1] for one in right.elts]
            found = value.isin(choices)
            return ~found if isinstance(op, ast.NotIn) else found
        return COMPARISONS[type(op)](*self._alike(left, value, right, self._build(right, table)))

    def _alike(self, left: ast.AST, value: Any, right: ast.AST, other: Any) -> tuple[Any, Any]:
        """Both sides of a comparison, of one type."""
        if value is None or other is None:
            self._refuse(
                left if value is None else right, "is never equal to anything; write `is null` or `is not null`"
            )
        if not isinstance(value, ir.Value) and not isinstance(other, ir.Value):
            self._refuse(left, f"and {self._source(right)} are both constants; compare a column")
        if isinstance(value, ir.TimestampValue) and isinstance(other, str):
            other = self._time(right, other)
        elif isinstance(other, ir.TimestampValue) and isinstance(value, str):
            value = self._time(left, value)
        kinds = [_kind(one) for one in (value, other)]
        if kinds[0] != kinds[1]:
            self._refuse(left, f"is {kinds[0]} and cannot be compared with {self._source(right)}, which is {kinds[1]}")
        return value, other

    def _time(self, node: ast.AST, text: str) -> ir.TimestampScalar:
        try:
            return ibis.literal(read_time(text), "timestamp(6)")
        except ValueError:
            self._refuse(node, "is not a time such as '2024-03-01' or '2024-03-01 12:00'")


def _kind(value: Any) -> str:
    if isinstance(value, ir.BooleanValue | bool):
        return "true or false"
    if isinstance(value, ir.NumericValue | int | float):
        return "a number"
    if isinstance(value, ir.TimestampValue):
        return "a time"
    if isinstance(value, ir.ArrayValue):
        return "a list"
    return "text" if isinstance(value, ir.StringValue | str) else str(value.type())
