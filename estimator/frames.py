# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Rows in any form that people have them in -> a frame whose rows can be picked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from flip_ctr.modeling_flip.fields_flip import FlipField


def is_matrix(X: Any) -> bool:
    """Whether rows are numbers without names: an array, a sparse matrix, a list of lists."""
    if isinstance(X, list | tuple):
        return not X or not (isinstance(X[0], Mapping) or hasattr(X[0], "iloc") or hasattr(X[0], "__arrow_c_stream__"))
    if hasattr(X, "toarray"):
        return True
    named = ("columns", "iloc", "keys", "__arrow_c_stream__", "column_names", "__next__", "collect_schema")
    return X is None or not any(hasattr(X, name) for name in named)


def matrix_frame(matrix: np.ndarray) -> tuple[pd.DataFrame, list[FlipField]]:
    """A matrix of numbers `(n, c)` as a frame with the columns x0, x1, ..., and its fields."""
    names = [f"x{number}" for number in range(matrix.shape[1])]
    fields = [FlipField(name, "float", kind="numeric", sides=("id",)) for name in names]
    return pd.DataFrame(matrix, columns=names), fields


def as_frame(rows: Any) -> pd.DataFrame:
    """A pandas frame of rows in a form that [`FlipProcessor`] takes, numbered from 0; its columns have the names that
    the rows have.

    Raises:
        TypeError: the rows have another form.
        ValueError: two columns have one name, or columns differ in length.
    """
    if hasattr(rows, "with_format") and hasattr(rows, "column_names"):  # of datasets
        rows = rows.with_format("arrow")[:]
    if hasattr(rows, "collect_schema"):  # a lazy frame of polars
        rows = rows.collect()
    if hasattr(rows, "iloc"):
        frame = rows.reset_index(drop=True)
        for name, kind in frame.dtypes.items():
            if isinstance(kind, pd.SparseDtype):
                frame[name] = frame[name].sparse.to_dense()
    elif hasattr(rows, "__arrow_c_stream__"):
        frame = pa.table(rows).to_pandas(types_mapper=pd.ArrowDtype)
    else:
        frame = pd.DataFrame(list(rows) if hasattr(rows, "__next__") else rows)
    twice = frame.columns[frame.columns.duplicated()]
    if len(twice):
        raise ValueError(f"X has more than one column {twice[0]!r}")
    return named_by_text(frame)


def named_by_text(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with names that are text: those of `pd.DataFrame(matrix)` are numbers."""
    if all(isinstance(name, str) for name in frame.columns):
        return frame
    return frame.set_axis([str(name) for name in frame.columns], axis=1)
