# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A column in any container -> its distinct raw values, and which of them each row has.

Containers are told by what they have: neither pandas nor Arrow is imported here, as neither is needed where rows are
lists. A short float stays one (float32 0.1 is not 0.10000000149011612).
"""

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np


class UnknownContainer(TypeError):
    """A column in what cannot be read; the message says what can."""


PLAIN_TYPES = (str, int, float)  # a union made anew for each row would take longer than the rest


def arrow() -> Any:
    """The module `pyarrow`, for rows of another library that give themselves as Arrow streams. An
    [`UnknownContainer`] where it is not installed."""
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise UnknownContainer("rows of this form are read with pyarrow: pip install pyarrow") from None


def is_single(value: Any) -> bool:
    """Whether something is no column: one value of a row."""
    return isinstance(value, str | bytes) or not hasattr(value, "__len__") or getattr(value, "ndim", None) == 0


def plain_column(raw: Any) -> Any:
    """A column as an Arrow (chunked) array, a pandas object, a numpy array, or a sequence.

    Raises:
        UnknownContainer: a tensor has a type that numpy lacks; or pyarrow, which would read it, is not installed.
    """
    if hasattr(raw, "source") and hasattr(raw, "column_name"):  # of a datasets.Dataset, whose values are Python's
        name = raw.column_name
        source = raw.source
        if hasattr(source, "select_columns"):
            return plain_column(source.select_columns([name]).with_format("arrow")[:].column(name))
    if hasattr(raw, "dictionary_encode"):
        return _plain_arrow(raw)
    if hasattr(raw, "factorize"):
        in_arrow = hasattr(raw.dtype, "pyarrow_dtype")
        return _plain_arrow(getattr(raw, "array", raw).__arrow_array__()) if in_arrow else raw
    if hasattr(raw, "__arrow_c_stream__"):
        return _plain_arrow(arrow().chunked_array(raw))
    if hasattr(raw, "__arrow_c_array__"):
        return _plain_arrow(arrow().array(raw))
    return _array(raw) if hasattr(raw, "ndim") else raw


def _plain_arrow(raw: Any) -> Any:
    """The same values without an encoding that the rest does not know."""
    kind = raw.type
    if hasattr(kind, "storage_type"):  # an extension
        chunks = [chunk.storage for chunk in _chunks(raw)]
        return _plain_arrow(arrow().chunked_array(chunks, kind.storage_type))
    if str(kind) == "string_view":  # as polars has text
        return raw.cast("large_string")
    return raw


def holds_lists(raw: Any) -> bool:
    """Whether this is an Arrow (chunked) array of lists."""
    return hasattr(raw, "dictionary_encode") and hasattr(raw.type, "value_field")


def arrow_slices(raw: Any, size: int) -> Iterator:
    """An Arrow (chunked) array in slices of at most so many rows."""
    for chunk in _chunks(raw):
        for start in range(0, len(chunk), size):
            yield chunk.slice(start, size)


def _chunks(raw: Any) -> list:
    return raw.chunks if hasattr(raw, "chunks") else [raw]


def _array(raw: Any) -> np.ndarray:
    """A tensor or another library's array as a numpy array."""
    if isinstance(raw, np.ndarray):
        return raw
    if hasattr(raw, "detach"):
        raw = raw.detach().cpu()
        try:
            return raw.numpy()
        except TypeError:
            raise UnknownContainer(
                f"values of {raw.dtype} are not read, as they keep too few digits of a number; give float32"
            ) from None
    return np.asarray(raw)


def _listed(array: np.ndarray) -> list:
    """The values of an array; short floats as they are, and others as Python's."""
    if array.dtype.kind == "f" and array.itemsize < 8:
        return list(array) if array.ndim == 1 else [_listed(row) for row in array]
    # times by themselves: as Python values they may be integers
    return array.tolist() if array.dtype.kind in "biufUSO" else list(array)


def factorize(raw: Any) -> tuple[list, np.ndarray]:
    """The distinct raw values of a `plain_column` `(D,)`, and each row's position among them `(rows,)`."""
    if hasattr(raw, "dictionary_encode"):
        return _of_arrow(raw)
    if hasattr(raw, "factorize"):
        return _of_pandas(raw)
    return _of_array(raw) if isinstance(raw, np.ndarray) else _of_list(raw)


def _with_null(distinct: list, codes: np.ndarray) -> tuple[list, np.ndarray]:
    """With a null behind the distinct values, where codes are below 0."""
    return [*distinct, None], np.where(codes < 0, len(distinct), codes).astype(np.int64, copy=False)


def _of_arrow(raw: Any) -> tuple[list, np.ndarray]:
    if holds_lists(raw):
        return _of_list(raw.to_pylist())
    try:
        encoded = raw.dictionary_encode()
    except NotImplementedError:  # structs and the like
        return _of_list(raw.to_pylist())
    if hasattr(encoded, "chunks"):
        encoded = encoded.unify_dictionaries().combine_chunks()
    words = encoded.dictionary
    is_short = str(words.type) in ("float", "halffloat")
    distinct = list(words.to_numpy(zero_copy_only=False)) if is_short else words.to_pylist()
    return _with_null(distinct, encoded.indices.cast("int64").fill_null(-1).to_numpy(zero_copy_only=False))


def _of_pandas(raw: Any) -> tuple[list, np.ndarray]:
    kind = raw.dtype
    if hasattr(kind, "categories"):
        held = getattr(raw, "array", raw)
        distinct, codes = factorize(plain_column(held.categories))
        return _with_null(distinct, np.append(codes, -1)[held.codes])
    if isinstance(kind, np.dtype):
        if kind.kind in "biu" or (kind.kind == "f" and kind.itemsize in (4, 8)):
            codes, distinct = raw.factorize()
            return _with_null(_listed(np.asarray(distinct)), codes)
        return _of_array(raw.to_numpy()) if kind.kind == "f" else _of_list(raw.tolist())
    if hasattr(kind, "numpy_dtype"):  # Int64, Float32, boolean
        codes, distinct = raw.factorize()
        return _with_null(_listed(distinct.to_numpy(dtype=kind.numpy_dtype)), codes)
    if hasattr(kind, "storage"):  # text
        codes, distinct = raw.factorize()
        return _with_null(distinct.tolist(), codes)
    return _of_list(raw.tolist())


def _of_array(array: np.ndarray) -> tuple[list, np.ndarray]:
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        return _of_list(_listed(array))
    distinct, first, codes = np.unique(np.asarray(array), return_index=True, return_inverse=True)
    order = np.argsort(first)
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    codes = places[codes]
    if isinstance(array, np.ma.MaskedArray):
        codes[np.ma.getmaskarray(array)] = -1
    return _with_null(_listed(distinct[order]), codes)


def _of_list(values: Any) -> tuple[list, np.ndarray]:
    seen: dict[Any, int] = {}
    distinct: list = []
    codes = np.empty(len(values), np.int64)
    for row, value in enumerate(values):
        key = value
        if not isinstance(value, PLAIN_TYPES):
            if hasattr(value, "ndim") and not isinstance(value, np.generic):  # an array or tensor in a row
                array = _array(value)
                value = array[()] if array.ndim == 0 else _listed(array)
            key = (*map(type, value), *value) if isinstance(value, list | tuple) else value
        try:
            code = seen.setdefault((type(value), key), len(distinct))  # the type too: 1 == 1.0 == True
        except TypeError:  # unhashable: not a single value; named by canonical_value
            code = len(distinct)
        if code == len(distinct):
            distinct.append(value)
        codes[row] = code
    return distinct, codes
