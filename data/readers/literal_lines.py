# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Lines that are no JSON but what Python prints of a dict: `{'user': 1, 'liked': True, 'price': None}`."""

import ast
import warnings
from dataclasses import dataclass
from typing import Any

from flip_ctr.data.readers.raw_files import MalformedLine
from flip_ctr.data.readers.table_files import JsonFormat


@dataclass(frozen=True)
class LiteralFormat(JsonFormat):
    """A dict of columns on each line, as Python or JSON writes it; a column that it lacks is null there. Nothing is
    executed.

    Args:
        encoding: of the text; one in which a line feed is a single byte.
    """

    def is_array(self, path) -> bool:
        return False

    def value(self, line: str) -> Any:
        try:
            with warnings.catch_warnings(action="ignore"):  # of odd backslashes
                row = ast.literal_eval(line.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            row = super().value(line)
        if not isinstance(row, dict) or not all(isinstance(name, str) for name in row):
            return MalformedLine("not a Python dict of columns", line)
        return {name: list(one) if isinstance(one, set | frozenset | tuple) else one for name, one in row.items()}
