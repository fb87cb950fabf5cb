# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Rules over the columns of a row, such as `rating >= 4` or `dwell < 2 and action != "buy"`, as Ibis expressions.

The syntax is a small part of Python's: columns by name, numbers, text in quotes, `true`, `false` and `null`; `== != < <= > >=`,
`in [...]`, `not in [...]`, `is null`, `is not null`; `+ - * /`; `and`, `or`, `not`, parentheses. Nothing is ever evaluated as
Python. As in SQL, a comparison with a null is neither true nor false but null.
"""

import ast
import operator
from functools import reduce
from typing import Any

import ibis
import ibis.expr.types as ir

CONSTANTS = {"null": None, "None": None, "true": True, "True": True, "false": False, "False": False}
COMPARISONS = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
               ast.GtE: operator.ge}  # fmt: skip
ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


class Rule:
    """A parsed rule.

    Attributes:
        text: the rule as it was written.
        columns: names of the columns that it reads, in order.

    Raises:
        ValueError: the text is not of the syntax above; says what is not understood, and where.
    """

    def __init__(self, text: str):
        self.text = " ".join(str(text).split())
        try:
            self._tree = ast.parse(self.text, mode="eval").body
        except (SyntaxError, ValueError) as error:
            at = getattr(error, "text", None) and error.offset and self.text[max(0, error.offset - 1) :][:20]
            near = f" near {at!r}" if at else ""
            raise ValueError(f"rule {self.text!r} cannot be read{near}; write it as in `rating >= 4 and country in ['nl', 'be']`.") from None
        names = [node.id for node in ast.walk(self._tree) if isinstance(node, ast.Name)]
        self.columns = [name for name in dict.fromkeys(names) if name not in CONSTANTS]
        self._check(self._tree)

    def __repr__(self) -> str:
        return f"Rule({self.text!r})"

    def _refuse(self, node: ast.AST, why: str):
        shown = ast.get_source_segment(self.text, node) or type(node).__name__
        raise ValueError(f"rule {self.text!r}: {shown!r} {why}.")

    def _check(self, node: ast.AST) -> None:
        known = (ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.Compare, *COMPARISONS, ast.In, ast.NotIn, ast.Is,
                 ast.IsNot, ast.BinOp, *ARITHMETIC, ast.Div, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple)  # fmt: skip
        for one in ast.walk(node):
            if not isinstance(one, known):
                self._refuse(one, "is not part of what a rule may say")
            if isinstance(one, ast.Constant) and not isinstance(one.value, str | int | float):
                self._refuse(one, "is neither a number nor text")

    def __call__(self, table: ir.Table) -> ir.Value:
        """The rule as a column of the table.

        Raises:
            ValueError: the table lacks a column, or a column's type does not fit what it is compared with.
        """
        missing = [name for name in self.columns if name not in table.columns]
        if missing:
            raise ValueError(f"rule {self.text!r}: no column {', '.join(missing)}; there are {', '.join(table.columns)}.")
        return self._build(self._tree, table)

    def of_rows(self, table: ir.Table) -> ir.BooleanValue:
        """As calling it; `ValueError` where it is not true or false for a row, but a number, say."""
        value = self(table)
        if not isinstance(value, ir.BooleanValue):
            kind = value.type() if isinstance(value, ir.Value) else type(value).__name__
            raise ValueError(f"rule {self.text!r} is {kind} and not true or false; compare it, as in `{self.text} >= 4`.")
        return value

    def _build(self, node: ast.AST, table: ir.Table) -> Any:
        match node:
            case ast.Name(id=name):
                return table[name] if name not in CONSTANTS else CONSTANTS[name]
            case ast.Constant(value=value):
                return value
            case ast.BoolOp(op=op, values=values):
                parts = [self._truth(value, table) for value in values]
                return reduce(operator.and_ if isinstance(op, ast.And) else operator.or_, parts)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return ~self._truth(operand, table)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._build(operand, table)
            case ast.BinOp(left=left, op=op, right=right):
                left, right = self._number(left, table), self._number(right, table)
                if isinstance(op, ast.Div):  # engines differ on a division by zero: here it is null
                    return left / (right.nullif(0) if isinstance(right, ir.Value) else right)
                return ARITHMETIC[type(op)](left, right)
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                operands = [left, *comparators]
                parts = [self._compare(a, op, b, table) for a, op, b in zip(operands, ops, operands[1:])]
                return reduce(operator.and_, parts)
        self._refuse(node, "is not part of what a rule may say")

    def _truth(self, node: ast.AST, table: ir.Table) -> ir.BooleanValue:
        value = self._build(node, table)
        if not isinstance(value, ir.BooleanValue | bool):
            self._refuse(node, "is not true or false; compare it with something")
        return ibis.literal(value) if isinstance(value, bool) else value

    def _number(self, node: ast.AST, table: ir.Table) -> Any:
        value = self._build(node, table)
        if not isinstance(value, ir.NumericValue | int | float) or isinstance(value, bool):
            self._refuse(node, "is not a number")
        return value

    def _compare(self, left: ast.AST, op: ast.cmpop, right: ast.AST, table: ir.Table) -> ir.BooleanValue:
        value = self._build(left, table)
        if isinstance(op, ast.Is | ast.IsNot):
            if not isinstance(value, ir.Value) or self._build(right, table) is not None:
                self._refuse(right, "cannot follow `is`; write `is null` or `is not null` behind a column")
            return value.isnull() if isinstance(op, ast.Is) else value.notnull()
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple) or not right.elts:
                self._refuse(right, "is not a list of values, such as [1, 2]")
            choices = [self._build(one, table) for one in right.elts]
            for one, choice in zip(right.elts, choices):
                self._check_types(left, value, one, choice)
            found = value.isin(choices)
            return ~found if isinstance(op, ast.NotIn) else found
        other = self._build(right, table)
        self._check_types(left, value, right, other)
        return COMPARISONS[type(op)](value, other)

    def _check_types(self, left: ast.AST, value: Any, right: ast.AST, other: Any) -> None:
        if value is None or other is None:
            self._refuse(left if value is None else right, "is never equal to anything; write `is null` or `is not null`")
        if not isinstance(value, ir.Value) and not isinstance(other, ir.Value):
            self._refuse(left, "and what it is compared with are both constants")
        kinds = [_kind(one) for one in (value, other)]
        if kinds[0] != kinds[1]:
            self._refuse(left, f"is {kinds[0]} and cannot be compared with {ast.get_source_segment(self.text, right)}, which is {kinds[1]}")


def _kind(value: Any) -> str:
    if isinstance(value, ir.BooleanValue | bool):
        return "true or false"
    if isinstance(value, ir.NumericValue | int | float):
        return "a number"
    return "text" if isinstance(value, ir.StringValue | str) else str(value.type())
