"""One set of rows in every container that can hold it: the same ids, prompts and scores, or a clear refusal."""

import datetime
import decimal
import math

import datasets
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pytest
import tiny
import torch

from flip_ctr import FlipField, FlipForCTR, FlipProcessor
from flip_ctr.data.readers.table_values import TableColumn, typed_column
from flip_ctr.modeling_flip.columns_flip import Column, read_columns
from flip_ctr.modeling_flip.histories_flip import read_histories
from flip_ctr.modeling_flip.pipeline_flip import ClickThroughRatePipeline
from flip_ctr.modeling_flip.rows_flip import RawRows
from flip_ctr.modeling_flip.values_flip import canonical_value, split_values

FIELDS = [
    FlipField("user_id", "int", entity="user", key=True),
    FlipField("price", "float", entity="item"),
    FlipField("weight", "float", kind="numeric", num_buckets=4, entity="item"),
    FlipField("new", "bool", entity="item"),
    FlipField("zip_code", entity="user"),
    FlipField("title", entity="item"),
    FlipField("tags", kind="multi-valued", max_values=3, entity="item"),
    FlipField("sizes", "float", kind="multi-valued", max_values=2, entity="item"),
]
ROWS = [
    {
        "user_id": 2**53 + number,  # a float would lose its last digit
        "price": [0.1, 39.59, 0.3, 2.0][number % 4],
        "weight": number / 10,
        "new": number % 3 == 0,
        "zip_code": f"0{number}139",
        "title": f"Fahrt {number} nach Zürich",
        "tags": [["new", "sale"], ["sale"], ["a, b", "new"]][number % 3],
        "sizes": [[0.1, 0.7], [39.59], []][number % 3],
    }
    for number in range(12)
]
NAMES = list(ROWS[0])
TYPES = {
    "user_id": pa.int64(),
    "price": pa.float32(),
    "weight": pa.float32(),
    "new": pa.bool_(),
    "zip_code": pa.string(),
    "title": pa.string(),
    "tags": pa.list_(pa.string()),
    "sizes": pa.list_(pa.float32()),
}


def columns(rows=ROWS) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def table(**types) -> pa.Table:
    """The rows with floats of 32 bits, or in other types."""
    wanted = TYPES | types
    made = {}
    for name, values in columns().items():
        kind = wanted[name]
        if pa.types.is_decimal(kind):
            values = [decimal.Decimal(str(value)) for value in values]
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        if plain == pa.float16():
            values = np.array(values, np.float16)
        array = pa.array(values, plain)
        made[name] = array.dictionary_encode() if pa.types.is_dictionary(kind) else array
    return pa.table(made)


def frame(**types) -> pd.DataFrame:
    """The rows in pandas with some types; text that holds lists is lists."""
    return pd.DataFrame(columns()).astype({"price": "float32", "weight": "float32"} | types)


class Streamed:
    """What polars and others offer of a table: nothing but a stream."""

    def __init__(self, held):
        self.held = held

    def __arrow_c_stream__(self, requested_schema=None):
        return self.held.__arrow_c_stream__(requested_schema)

    def __len__(self):
        return len(self.held)


def dataset() -> datasets.Dataset:
    return datasets.Dataset(table())


def tensors() -> dict:
    held = columns() | {name: torch.tensor(columns()[name]) for name in ("user_id", "price", "weight", "new")}
    return held | {"sizes": [torch.tensor(one) for one in held["sizes"]]}


def arrays(kind) -> dict:
    held = columns() | {name: np.array(columns()[name], kind) for name in ("price", "weight")}
    held |= {name: np.array(columns()[name]) for name in ("user_id", "new", "title")}
    return held | {"sizes": [np.array(one, kind) for one in held["sizes"]]}


def masked() -> dict:
    held = columns()
    price = np.ma.array([*held["price"][:-1], 7.0], np.float32, mask=[False] * 11 + [True])
    return held | {"price": np.ma.concatenate([price[:-1], np.ma.array([held["price"][-1]], np.float32)])}


def text(row: dict, left="[", right="]", quote='"') -> dict:
    return row | {
        "tags": left + ",".join(f"{quote}{tag}{quote}" for tag in row["tags"]) + right,
        "sizes": left + ",".join(map(str, row["sizes"])) + right,
    }


FORMS = {
    "rows": lambda: ROWS,
    "rows of text": lambda: [{k: str(v) if not isinstance(v, list) else v for k, v in row.items()} for row in ROWS],
    "lists as JSON": lambda: [text(row) for row in ROWS],
    "lists as Python prints them": lambda: [
        row | {"tags": str(row["tags"]), "sizes": str(row["sizes"])} for row in ROWS
    ],
    "lists as numpy prints them": lambda: [row | {"tags": str(np.array(row["tags"]))} for row in ROWS],
    "lists as Postgres writes them": lambda: [text(row, "{", "}") for row in ROWS],
    "numpy scalars": lambda: [row | {"price": np.float32(row["price"]), "new": np.bool_(row["new"])} for row in ROWS],
    "decimals": lambda: [row | {"price": decimal.Decimal(str(row["price"]))} for row in ROWS],
    "scalar tensors": lambda: [row | {"price": torch.tensor(row["price"])} for row in ROWS],
    "spelled otherwise": lambda: [{f" {name}\t": value for name, value in row.items()} for row in ROWS],
    "spelled in two ways": lambda: [*ROWS[:5], *({f"{k} ": v for k, v in row.items()} for row in ROWS[5:])],
    "iterator": lambda: iter(ROWS),
    "columns": columns,
    "float32 arrays": lambda: arrays(np.float32),
    "masked arrays": masked,
    "tensors": tensors,
    "pandas": frame,
    "pandas of spaces": lambda: frame().rename(columns=lambda name: f"{name} "),
    "pandas nullable": lambda: frame(user_id="Int64", price="Float32", new="boolean", title="string"),
    "pandas categories": lambda: frame(price="category", title="category", user_id="category", new="category"),
    "pandas objects": lambda: frame().astype({"user_id": object, "new": object, "title": object}),
    "pandas in Arrow": lambda: table().to_pandas(types_mapper=pd.ArrowDtype),
    # of these nobody can tell that a float had 32 bits: they hold Python's
    "pandas rows": lambda: [row for _, row in pd.DataFrame(columns()).iterrows()],
    "series of columns": lambda: {name: frame()[name] for name in NAMES},
    "indexes of columns": lambda: columns() | {"price": pd.Index(frame().price), "title": pd.Index(frame().title)},
    "Arrow": table,
    "Arrow batch": lambda: table().to_batches()[0],
    "Arrow batches": lambda: table().to_batches(max_chunksize=5),
    "Arrow reader": lambda: table().to_reader(),
    "Arrow dataset": lambda: pa.dataset.dataset(table()),
    "Arrow dictionaries": lambda: table(
        price=pa.dictionary(pa.int32(), pa.float32()), title=pa.dictionary(pa.int8(), pa.string())
    ),
    "Arrow of other types": lambda: table(
        user_id=pa.uint64(),
        price=pa.decimal128(9, 4),
        title=pa.large_string(),
        zip_code=pa.string_view(),
        tags=pa.large_list(pa.large_string()),
    ),
    "Arrow columns": lambda: {name: table().column(name) for name in NAMES},
    "Arrow stream": lambda: Streamed(table(title=pa.string_view(), tags=pa.large_list(pa.string_view()))),
    "streamed columns": lambda: {name: Streamed(table().column(name)) for name in NAMES},
    "duckdb": lambda: (lambda held: duckdb.sql("select * from held"))(table()),
    "datasets": dataset,
    "datasets as numpy": lambda: dataset().with_format("numpy"),
    "datasets as torch": lambda: dataset().with_format("torch"),
    "datasets as pandas": lambda: dataset().with_format("pandas"),
    "batch as numpy": lambda: dataset().with_format("numpy")[:],
    "batch as torch": lambda: dataset().with_format("torch")[:],
    "batch as pandas": lambda: dataset().with_format("pandas")[:],
    "batch as Arrow": lambda: dataset().with_format("arrow")[:],
    "columns of datasets": lambda: {name: dataset()[name] for name in NAMES},
    "streaming datasets": lambda: dataset().to_iterable_dataset(),
    "streaming datasets of rows": lambda: datasets.IterableDataset.from_generator(lambda: iter(ROWS)),
}


@pytest.fixture(scope="module")
def processor():
    return FlipProcessor.from_dataset(ROWS, FIELDS, tiny.wordpiece(), max_length=500)


def values(rows) -> list[dict]:
    """The canonical values, row by row."""
    read = read_columns(rows, FIELDS)
    return [
        {name: column.values[column.codes[row]] for name, column in read.items()}
        for row in range(len(read["title"].codes))
    ]


@pytest.mark.parametrize("form", FORMS)
def test_every_container_gives_the_same_values_ids_and_prompts(processor, form):
    assert values(FORMS[form]()) == values(ROWS)
    expected, got = processor(ROWS), processor(FORMS[form]())
    assert expected.keys() == got.keys() and all(torch.equal(expected[name], got[name]) for name in expected)
    assert (expected["feature_ids"] != 2).all()  # no [UNK]


def test_halves_are_short_floats_too():
    few = [0.1, 0.3, 2.0, 2.5]
    expected = ["0.1", "0.3", "2", "2.5"]
    halves = np.array(few, np.float16)
    for raw in (
        halves,
        pa.array(halves),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 3]), pa.array(halves)),
        pd.Series(halves),
        torch.tensor(halves),
        [*halves],
        pd.Series(few, dtype=pd.ArrowDtype(pa.float32())),
        pd.Categorical(np.array(few, np.float32)),
        pd.arrays.SparseArray(np.array(few, np.float32)),
    ):
        column = Column.read(raw, FlipField("f", "float"))
        assert [column.values[code] for code in column.codes] == expected
    lists = Column.read([halves[:2], halves[2:]], FlipField("f", "float", kind="multi-valued"))
    assert lists.values == [("0.1", "0.3"), ("2", "2.5")]


@pytest.mark.parametrize(
    "raw",
    [
        [None, 1, None, 2],
        [math.nan, 1.0, math.nan, 2.0],
        np.array([np.nan, 1, np.nan, 2]),
        np.ma.array([5, 1, 7, 2], mask=[1, 0, 1, 0]),
        torch.tensor([math.nan, 1, math.nan, 2]),
        pd.Series([None, 1, None, 2]),
        pd.Series([None, 1, None, 2], dtype="Int64"),
        pd.Series([None, 1, None, 2], dtype="category"),
        pd.Series([pd.NA, 1, pd.NaT, 2], dtype=object),
        pd.Series([None, 1, None, 2], dtype=pd.ArrowDtype(pa.int32())),
        pd.Series([None, "1", None, "2"]),
        pd.Series([None, "1", None, "2"], dtype="string"),
        pa.array([None, 1, None, 2]),
        pa.chunked_array([[None, 1], [None, 2]]),
        pa.chunked_array([pa.array([None, "1"]).dictionary_encode(), pa.array([None, "2"]).dictionary_encode()]),
        pa.DictionaryArray.from_arrays([0, 1, 0, 2], pa.array([None, 1, 2])),
    ],
)
def test_nulls_of_every_container(raw):
    column = Column.read(raw, FlipField("f", "int"))
    assert [column.values[code] for code in column.codes] == [None, "1", None, "2"]
    with pytest.raises(ValueError, match="column 'f', row 0: null, and the schema forbids nulls"):
        Column.read(raw, FlipField("f", "int", nullable=False))


NOON = datetime.datetime(2024, 1, 1, 12)


@pytest.mark.parametrize(
    ("raw", "kind", "message"),
    [
        (pd.Series([pd.NaT, NOON]), "string", "row 1: expected text, got Timestamp"),
        (pd.Series([pd.NaT, NOON]), "int", "row 1: expected int, got Timestamp"),
        (np.array(["NaT", "2024-01-01"], "datetime64[ns]"), "int", "row 1: expected int, got datetime64"),
        (pa.array([None, NOON]), "string", "row 1: expected text, got datetime"),
        (pa.array([None, b"x"]), "string", "row 1: expected text, got bytes b'x'"),
        (np.array([b"", b"x"]), "string", "row 0: expected text, got bytes"),
        (pa.array([None, {"a": 1}]), "string", "row 1: expected text, got dict"),
        (pd.Series([2139, 1]), "string", "row 0: expected text, got int 2139; read the file with the schema's types"),
        (pa.array([2139, 1]).cast(pa.decimal128(22, 1)), "string", "row 0: expected text, got Decimal .*leading zeros"),
        (np.array([[1, 2], [3, 4]]), "int", r"row 0: expected int, got list \[1, 2\]"),
        (np.array([1 + 2j]), "float", "row 0: expected float, got complex"),
        ([{"a"}, "b"], "string", "row 0: expected text, got set"),
        (torch.tensor([0.1], dtype=torch.bfloat16), "float", "values of torch.bfloat16 are not read.*give float32"),
        ([torch.tensor(0.1, dtype=torch.bfloat16)], "float", "values of torch.bfloat16 are not read"),
    ],
)
def test_what_holds_no_such_value_is_refused(raw, kind, message):
    with pytest.raises(ValueError, match=f"column 'f'[:,] {message}"):
        Column.read(raw, FlipField("f", kind))


@pytest.mark.parametrize("form", [np.asarray, pa.array, pd.Series, torch.tensor])
def test_unsigned_ids_of_64_bits_are_text(form):
    ids = np.array([2**63 + 1, 7, 2**64 - 1], np.uint64)
    assert Column.read(form(ids), FlipField("f")).values == ["9223372036854775809", "7", "18446744073709551615"]
    assert Column.read([2**63 + 1, "7"], FlipField("f")).values == ["9223372036854775809", "7"]
    with pytest.raises(ValueError, match="row 0: .*9223372036854775809.* does not fit into 64 bits"):
        Column.read(form(ids), FlipField("f", "int"))


# --- rows


ITEM = FlipField("item_id", "int", column="Item  ID")


@pytest.mark.parametrize(
    "rows",
    [
        [{"item_id": 7}],
        [{" Item ID": 7}],
        {" Item  ID ": [7]},
        {"Item ID": [9], "item_id": [7]},  # the name comes before the files' one
        pd.DataFrame({"Item ID": [7]}),
        pa.table({"Item ID\t": [7]}),
        datasets.Dataset.from_dict({"Item ID": [7], "more": [1]}),
        pd.Series({"Item ID": 7, "title": "x"}),
        {"Item ID": 7},
        {"Item ID": torch.tensor(7)},
    ],
)
def test_a_field_is_found_under_its_name_and_that_of_its_files(rows):
    assert read_columns(rows, [ITEM])["item_id"].values == ["7"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pd.DataFrame([["x", "y"]], columns=["title", "title"]), "more than one column 'title'"),
        (pa.table([["x"], ["y"]], names=["title", " title"]), r"more than one column 'title' \('title', ' title'\)"),
        ({"title": ["x"], "title ": ["y"]}, "more than one column 'title'"),
        ([{"title": "x", "title ": "y"}], "more than one column 'title'"),
        ([pd.Series(["x", "y"], index=["title", "title"])], "more than one column 'title'"),
        (pd.Series(["x", "y"], index=["title", "title"]), "more than one column 'title'"),
        (pa.table({" tit le": ["x"]}), r"column\(s\) 'title' missing; the rows have: ' tit le'"),
        ([{"title": "x"}, {"name": "y"}], "column 'title' is missing in row 1; it has: 'name'"),
    ],
)
def test_columns_that_are_missing_or_there_twice_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        read_columns(rows, [FlipField("title")])


def test_a_missing_column_is_named_as_files_call_it():
    with pytest.raises(ValueError, match=r"column\(s\) 'item_id' \(or 'Item  ID'\) missing; the rows have: 'id'"):
        read_columns({"id": [1]}, [ITEM])


def test_a_column_that_is_there_twice_and_not_wanted_is_ignored():
    assert len(read_columns(pd.DataFrame([["x", 1, 2]], columns=["title", "n", "n"]), [FlipField("title")])) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (list(frame().itertuples()), "list of the named tuple Pandas.*give dicts"),
        (next(frame().itertuples()), "the named tuple Pandas"),
        (datasets.DatasetDict(train=dataset()), "got splits: give one of 'train'"),
        (np.ones((2, 2)), "got ndarray"),
    ],
)
def test_what_are_no_rows(rows, message):
    with pytest.raises(TypeError, match=message):
        read_columns(rows, FIELDS)


def test_rows_that_can_be_read_once_are_read_once(processor):
    rows = [row | {"label": number % 2} for number, row in enumerate(ROWS)]
    for form in (iter(rows), pa.Table.from_pylist(rows).to_reader()):
        assert processor(form)["labels"].tolist() == [0, 1] * 6
    raw = RawRows.of(iter(rows), FIELDS)
    assert RawRows.of(raw) is raw


# --- values


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ("a|b", ["a", "b"]),
        ('["a", "b|c"]', ["a", "b|c"]),
        (" ['it', \"it's\"] ", ["it", "it's"]),
        ("['a' 'b'\n 'c']", ["a", "b", "c"]),
        ("[007, -1.5e3 .5]", ["007", "-1.5e3", ".5"]),
        ("[true, False, null, None, nan]", ["true", "False", None, None, None]),
        (r'["\u00e9\"", "\/"]', ['é"', "/"]),
        (r"['\x41', '\'']", ["A", "'"]),
        ("[]", []),
        ("{}", []),
        ("{a,b}", ["a", "b"]),
        ('{"a, b",c d,NULL}', ["a, b", "c d", None]),
        ("{'x', 'y'}", ["x", "y"]),
        ("[REC] 2", ["[REC] 2"]),
        ("[REC]", ["[REC]"]),
        ("[Drama, Comedy]", ["[Drama, Comedy]"]),
        ("['a'b']", ["['a'b']"]),
        ("[a|b]", ["[a", "b]"]),
        ('{"a": 1}', ['{"a": 1}']),
        ("[[1]|[2]]", ["[[1]", "[2]]"]),
        ("{a} and {b}", ["{a} and {b}"]),
        ("[", ["["]),
        ("[1,,2]", ["[1,,2]"]),
    ],
)
def test_lists_in_text(held, expected):
    assert split_values(held, "|") == expected


ODD = [
    *(
        None,
        "",
        " ",
        "NULL",
        "n/a",
        "-1",
        -1,
        -1.0,
        "-1.0",
        0,
        -0.0,
        "-0",
        "7",
        7,
        7.0,
        "7.0",
        "7,0",
        "3,5",
        "3.5",
        3.5,
    ),
    *(True, False, "true", "1", "x", "02139", "Zürich", "Zu\u0308rich", "a\0b", "\ud83d", "half \ude00", b"x", "1,000"),
    *(2**63 - 1, 2**63, -(2**63), -(2**63) - 1, str(2**63), str(2**63 - 1), "9" * 400, 1e18, 1e19, 1e300, math.inf),
    *(np.float32(0.1), np.float16(0.1), np.int8(5), np.bool_(True), decimal.Decimal("1.10"), decimal.Decimal("1E+2")),
    *(decimal.Decimal("NaN"), decimal.Decimal(2**63), math.nan, NOON, [1, 2], ["a", "-1", None], [], {"a": 1}),
    *("a|b", "1|-1|2", '["a", "b"]', "[1, 2]", "{1,-1}", "['1' '2']", "[REC] 2", "[]", '["\\ud83d"]', "3,5|4", "n/a|1"),
]
SETTINGS = [
    {},
    {"null_values": ("NULL", "n/a", "-1")},
    {"decimal": ","},
    {"kind": "multi-valued", "separator": "|"},
    {"kind": "multi-valued", "separator": "|", "null_values": ("NULL", "n/a", "-1")},
    {"kind": "multi-valued", "separator": "|", "decimal": ","},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("kind", ["string", "int", "float", "bool"])
def test_what_prepare_refuses_is_refused_and_what_it_keeps_reads_the_same(kind, settings):
    if "decimal" in settings and kind in ("string", "bool"):
        with pytest.raises(ValueError, match="`decimal` is of type 'int' or 'float'"):
            FlipField("f", kind, **settings)
        return
    field = FlipField("f", kind, **settings)
    separator = field.separator if field.is_multi_valued else None
    column = TableColumn("f", "f", kind, separator, frozenset(field.null_values), decimal=field.decimal)
    for value in ODD:
        prepared, wrong = typed_column([value], column)
        try:
            read = Column.read([value], field).values
        except ValueError as error:
            assert "column 'f', row 0: " in str(error)
            read = None
        if wrong:
            assert read is None, (value, wrong)
        else:
            stored = FlipField("f", kind, **{k: v for k, v in settings.items() if k != "decimal"})
            assert read == Column.read(prepared, stored).values, value


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (FlipField("p", "float"), "3,5", "expected float, got str '3,5'; `decimal: \",\"` says that a comma"),
        (
            FlipField("p", "float", decimal=","),
            "3.5",
            "expected float, got str '3.5'; its schema says `decimal: \",\"`",
        ),
        (FlipField("p", "int"), 2**63, "9223372036854775808 does not fit into 64 bits; with `type: string`"),
        (FlipField("p", "int"), "9" * 30, "'9{30}' does not fit into 64 bits"),
        (FlipField("p"), "nice \ud83d", r"'nice \\ud83d' holds half of a character"),
        (FlipField("p"), "a\0", r"'a\\x00' holds a NUL byte"),
        (FlipField("p", kind="multi-valued"), ["a", "\ud83d"], r"'\\ud83d' holds half of a character"),
    ],
)
def test_refusals_say_what_would_be_right(field, value, message):
    with pytest.raises(ValueError, match=f"column 'p', row 1: {message}"):
        read_columns([{"p": None}, {"p": value}], [field])


def test_decimal_commas():
    column = Column.read(["3,5", "2", 3.5, "-0,25"], FlipField("p", "float", decimal=","))
    assert column.values == ["3.5", "2", "-0.25"]
    lists = FlipField("p", "float", kind="multi-valued", separator=";", decimal=",")
    assert Column.read(["3,5;2"], lists).values == [("3.5", "2")]
    assert "decimal" not in FlipField("p", "float").to_dict() and lists.to_dict()["decimal"] == ","
    with pytest.raises(ValueError, match="`separator` must not hold the comma of `decimal`"):
        FlipField("p", "float", kind="multi-valued", decimal=",")
    with pytest.raises(ValueError, match="`decimal` must be one of '.', ','"):
        FlipField("p", "float", decimal=";")


def test_a_number_keeps_the_digits_of_its_decimal():
    assert canonical_value(decimal.Decimal("12345678901234567.0"), "int") == "12345678901234567"
    assert canonical_value(decimal.Decimal("0.10"), "float") == "0.1"


# --- histories


def test_short_floats_in_histories():
    fields = [
        FlipField("item", "int", entity="item", key=True),
        FlipField("price", "float", entity="item", column="Price"),
        FlipField("past", "int", kind="history", history_of="item", entity="user", max_values=2),
    ]
    entry = pa.struct({"item": pa.int64(), " Price": pa.float32(), "clicked": pa.int8()})
    past = [[{"item": n, " Price": n / 10, "clicked": n % 2} for n in range(4)], None, []]
    held = pa.table({"past": pa.array(past, pa.list_(entry))})
    for rows in (
        held,
        held.to_reader(),
        Streamed(held),
        {"past": held["past"]},
        held.to_pandas(types_mapper=pd.ArrowDtype),
    ):
        items, outcomes, of_items = read_histories(rows, fields)
        assert of_items["price"].values == ["0.2", "0.3"] and outcomes.tolist() == [[1, 2], [0, 0], [0, 0]]
    fields[-1].nullable = False
    with pytest.raises(ValueError, match="column 'past', row 1: null, and the schema forbids nulls here"):
        read_histories(held, fields)


# --- the pipeline


@pytest.fixture(scope="module")
def score(processor):
    torch.manual_seed(0)
    small = processor.without_tokenizer()
    model = tiny.shake(FlipForCTR(tiny.flip_config(small.fields, strategy="id"))).eval()
    return ClickThroughRatePipeline(model=model, processor=small)


@pytest.mark.parametrize("form", FORMS)
def test_every_container_has_the_same_scores(score, form):
    answers = list(score(FORMS[form](), batch_size=5))
    expected = [one["click_probability"] for one in score(ROWS)]
    assert [one["click_probability"] for one in answers] == pytest.approx(expected, abs=1e-6)


def test_a_stream_counts_its_rows_from_its_start(score):
    wrong = [*ROWS[:7], ROWS[7] | {"price": "dear"}]
    for stream in (iter(wrong), (pd.DataFrame([row]) for row in wrong)):
        with pytest.raises(ValueError, match="column 'price', row 7: expected float"):
            list(score(stream, batch_size=3))


def test_a_reader_of_batches_is_read_batch_by_batch(score):
    read = []
    batches = (read.append(1) or batch for batch in table().to_batches(max_chunksize=3))
    answers = score(pa.RecordBatchReader.from_batches(table().schema, batches))
    next(answers)
    assert len(read) < 4 and len(list(answers)) == 11
