"""Broken Parquet tables: columns of odd types, columns that are missing or twice, damaged bytes."""

import io
import random
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from broken_tables import COLUMNS, BrokenTable, Dialect, clean_rows


def _bad_utf8(values: list) -> pa.Array:
    """Text of which one value is no UTF-8."""
    data = [None if value is None else value.encode() for value in values]
    data[len(data) // 2] = b"\xff\xfe half"
    binary = pa.array(data, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())


def _texts(values: list) -> list:
    return [None if value is None else str(value) for value in values]


TEXT = [
    lambda values: pa.array(values, pa.string()),
    lambda values: pa.array(values, pa.large_string()),
    lambda values: pa.array(values, pa.string()).dictionary_encode(),
    lambda values: pa.array(values, pa.string_view()),
    lambda values: pa.array([None if one is None else one.encode() for one in values], pa.binary()),
    lambda values: pa.array([None if one is None else {"a": one} for one in values]),
    lambda values: pa.array([None if one is None else [one] for one in values], pa.list_(pa.string())),
    lambda values: pa.nulls(len(values)),
    lambda values: pa.array(range(len(values))),
    _bad_utf8,
]
INTEGERS = [
    lambda values: pa.array(values, pa.int64()),
    lambda values: pa.array([None if one is None else one % 100 for one in values], pa.int8()),
    lambda values: pa.array([None if one is None else one % 100 for one in values], pa.uint32()),
    lambda values: pa.array([None if one is None else 2**63 + one % 100 for one in values], pa.uint64()),
    lambda values: pa.array([None if one is None else Decimal(one) for one in values], pa.decimal128(30, 0)),
    lambda values: pa.array([None if one is None else Decimal(one % 100) / 2 for one in values], pa.decimal128(30, 2)),
    lambda values: pa.array([None if one is None else float(one % 1000) for one in values], pa.float64()),
    lambda values: pa.array(np.array([(one or 0) % 1000 for one in values], np.float16), pa.float16()),
    lambda values: pa.array(_texts(values), pa.string()),
    lambda values: pa.array(values, pa.int64()).dictionary_encode(),
    lambda values: pa.array([None if one is None else [one] for one in values]),
    lambda values: pa.array([one if one is None else one > 0 for one in values], pa.bool_()),
]
FLOATS = [
    lambda values: pa.array(values, pa.float64()),
    lambda values: pa.array(values, pa.float32()),
    lambda values: pa.array(np.array([one or 0 for one in values], np.float16), pa.float16()),
    lambda values: pa.array([one if one != 25.0 else float("nan") for one in values], pa.float64(), from_pandas=False),
    lambda values: pa.array([one if one != 25.0 else float("inf") for one in values], pa.float32()),
    lambda values: pa.array([None if one is None else Decimal(str(one)) for one in values], pa.decimal256(40, 9)),
    lambda values: pa.array(_texts(values), pa.large_string()),
    lambda values: pa.array([None if one is None else int(one) for one in values], pa.duration("s")),
]
TIMES = [
    *(lambda values, unit=unit: pa.array(values, pa.timestamp(unit)) for unit in ("s", "ms", "us", "ns")),
    *(
        lambda values, zone=zone: pa.array(values, pa.timestamp("us", "UTC")).cast(pa.timestamp("us", zone))
        for zone in ("UTC", "Asia/Tokyo", "+05:30")
    ),
    lambda values: pa.array([one and one.date() for one in values], pa.date32()),
    lambda values: pa.array([one and one.date() for one in values], pa.date64()),
    lambda values: pa.array([one and one.time() for one in values], pa.time64("us")),
    lambda values: pa.array([one and one.isoformat() for one in values], pa.string()),
    lambda values: pa.array([one and int(one.timestamp()) for one in values], pa.int64()),
    lambda values: pa.array([one and 2**62 for one in values], pa.timestamp("us")),  # later than Python's last year
    lambda values: pa.array([one and -(2**50) for one in values], pa.timestamp("s")),
]
LISTS = [
    lambda values: pa.array(values, pa.list_(pa.string())),
    lambda values: pa.array(values, pa.large_list(pa.large_string())),
    lambda values: pa.array([one and (one + one)[:2] for one in values], pa.list_(pa.string(), 2)),
    lambda values: pa.array([one and "|".join(one) for one in values], pa.string()),
    lambda values: pa.array([one and [[two] for two in one] for one in values], pa.list_(pa.list_(pa.string()))),
    lambda values: pa.array([one and {"a": one} for one in values]),
    lambda values: pa.array([one and [(two, 1) for two in one] for one in values], pa.map_(pa.string(), pa.int64())),
    lambda values: pa.array([one and [None, *one] for one in values], pa.list_(pa.string())),
    lambda values: pa.array([one and [1, 2] for one in values], pa.list_(pa.int64())),
]
BOOLS = [
    lambda values: pa.array(values, pa.bool_()),
    lambda values: pa.array(values, pa.bool_()).cast(pa.int8()),
    lambda values: pa.array([None if one is None else str(one) for one in values], pa.string()),
    lambda values: pa.array([None if one is None else float(one) for one in values], pa.float64()),
    lambda values: pa.array([None if one is None else 2 for one in values], pa.int64()),
]
KINDS = {
    "key": TEXT[:4],  # by which rows are told apart
    "n": INTEGERS,
    "text": TEXT,
    "tags": LISTS,
    "price": FLOATS,
    "at": TIMES,
    "new": BOOLS,
    "stars": INTEGERS,
    "note": TEXT,
}


def broken_parquet(rng: random.Random, count: int | None = None) -> BrokenTable:
    """A Parquet table with odd types, most of them whole otherwise; of a few rows when `count` is None."""
    rows = clean_rows(rng, count or rng.randint(1, 12))
    table, names, arrays = BrokenTable(Dialect("parquet"), rows), [], []
    odd = rng.choices(COLUMNS, k=rng.randint(0, 2))
    for name in COLUMNS:
        kinds = KINDS[name]
        kind = rng.randrange(1, len(kinds)) if name in odd else 0
        array = kinds[kind]([row[name] for row in rows])
        if kind:
            table.did.append(f"{name} is {array.type}")
        names.append(name)
        arrays.append(array)
    what = rng.choice(["", "", "", "lacks", "twice", "case", "renamed", "no rows", "shuffled"])
    place = rng.randrange(len(names))
    if what == "lacks":
        del names[place], arrays[place]
    elif what == "twice":
        names.append(names[place])
        arrays.append(arrays[place])
    elif what == "case":
        names.append(names[place].upper())
        arrays.append(arrays[place])
    elif what == "renamed":
        names[place] = rng.choice(["", "a\nb", " ", "key ", names[place].upper()])
    elif what == "no rows":
        arrays = [array[:0] for array in arrays]
    elif what == "shuffled":
        order = rng.sample(range(len(names)), len(names))
        names, arrays = [names[at] for at in order], [arrays[at] for at in order]
    table.did += [what] * bool(what)
    buffer = io.BytesIO()
    compression = rng.choice(["snappy", "none", "zstd", "gzip"])
    pq.write_table(pa.table(arrays, names=names), buffer, row_group_size=rng.choice([3, 20, 1000]),
                   compression=compression, version=rng.choice(["1.0", "2.6"]),
                   use_dictionary=rng.random() < 0.5)  # fmt: skip
    table.data = buffer.getvalue()
    if rng.random() < 0.4:
        table.data = _damaged(rng, table.data)
        table.did.append("bytes damaged")
    return table


def _damaged(rng: random.Random, data: bytes) -> bytes:
    place = rng.randrange(len(data))
    if rng.random() < 0.3:  # in the footer
        place = max(0, len(data) - rng.randint(1, 2000))
    how = rng.choice(["cut", "byte", "byte", "zeros", "front", "more", "lost"])
    if how == "cut":
        return data[:place]
    if how == "byte":
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if how == "zeros":
        return data[:place] + bytes(min(16, len(data) - place)) + data[place + 16 :]
    if how == "front":
        return data[place:]
    return data[:place] + (rng.randbytes(5) + data[place:] if how == "more" else data[place + 7 :])
