"""Readers of tables: every kind of dirt becomes a rejected line or a clear error, and never a shifted row."""

import csv
import gzip
import io
import json
import random
import tracemalloc
from datetime import date, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flip_ctr.data.readers import raw_files, table_files
from flip_ctr.data.readers.csv_files import CsvFormat
from flip_ctr.data.readers.raw_files import LineLog
from flip_ctr.data.readers.table_files import JsonFormat, ParquetFormat, read_table
from flip_ctr.data.readers.table_values import TableColumn, typed_column
from flip_ctr.modeling_flip.values_flip import canonical_value

COLUMNS = {"a": "int", "t": "string"}
BEYOND = "does not fit into 64 bits; with `type: string`, and as text, it keeps all digits"


def read(path, table_format, columns=COLUMNS, **settings):
    """The rows of a file as (line, *values), and its rejected lines as (line, reason, text)."""
    log = LineLog(1.0)
    wanted = [TableColumn(name, name, kind, **settings) for name, kind in columns.items()]
    rows = []
    for chunk in read_table({path.name: path}, table_format, wanted, log):
        assert [array.type for array in chunk.columns] == [column.arrow_type for column in wanted]
        rows += zip(chunk.lines, *(array.to_pylist() for array in chunk.columns))
    entry = log.files[path.name]
    rejected = sorted((one["line"], one["reason"], one["text"]) for one in entry["first_malformed"])
    assert entry["lines"] == len(rows) + entry["malformed"] and entry["malformed"] == len(rejected)
    return rows, rejected


@pytest.fixture(params=["one block", "tiny blocks"])
def blocks(request, monkeypatch):
    """Files are read in blocks; what a record is must not depend on where they end."""
    if request.param == "tiny blocks":
        monkeypatch.setattr(raw_files.byte_blocks, "__defaults__", (7,))


def csv_file(tmp_path, content: bytes, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


# --- CSV


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        (b"a,t\n1,x\n2,y\n", [(2, 1, "x"), (3, 2, "y")]),
        (b"a,t\n1,x\n2,y", [(2, 1, "x"), (3, 2, "y")]),
        (b"a,t\r\n1,x\r\n2,y\r\n\r\n\r\n", [(2, 1, "x"), (3, 2, "y")]),
        (b"\xef\xbb\xbfa,t\n1,x\n", [(2, 1, "x")]),
        (b'\xef\xbb\xbf"a","t"\n1,"x"\n', [(2, 1, "x")]),
        (b" a ,b,t\n1,2,x\n", [(2, 1, "x")]),
        (b"t,a\nx,1\n", [(2, 1, "x")]),
        (b'a,t\n1,"x, ""y"""\n', [(2, 1, 'x, "y"')]),
        (b'a,t\n1,"x\ny\n\nz"\n2,u\n', [(2, 1, "x y z"), (6, 2, "u")]),
        (b'a,t\r\n1,"x\r\ny"\r\n2,u\r\n', [(2, 1, "x y"), (4, 2, "u")]),
        (b'"a\n",t\n1,x\n', [(3, 1, "x")]),
        (b"a,t\n,\n 7 ,  \n", [(2, None, None), (3, 7, None)]),
        (b'a,t\n1,5" pipe\n', [(2, 1, '5" pipe')]),
        (b"a,t\n007,007\n-0,+1\n", [(2, 7, "007"), (3, 0, "+1")]),
        (
            "a,t\n1,caf\u00e9\n2,cafe\u0301\n3,a\u00a0 b\n".encode(),
            [(2, 1, "caf\u00e9"), (3, 2, "caf\u00e9"), (4, 3, "a b")],
        ),
        (b"a,t\n25.0,x\n1e3,y\n", [(2, 25, "x")]),
    ],
)
def test_csv_rows_stand_at_their_lines(tmp_path, blocks, content, rows):
    found, rejected = read(csv_file(tmp_path, content), CsvFormat())
    assert found == rows
    assert [one[:2] for one in rejected] == ([(3, "a is not a whole number")] if b"1e3" in content else [])


QUOTE = "a quote that does not end, or text behind a closing quote"


@pytest.mark.parametrize(
    ("content", "rows", "rejected"),
    [
        (
            b"a,t\n1,x\n2\n3,y,z\n4,u\n",
            [(2, 1, "x"), (5, 4, "u")],
            [(3, "values: 1 for 2 columns", "2"), (4, "values: 3 for 2 columns", "3,y,z")],
        ),
        (b"a,t\n1,x\n\n\n2,y\n", [(2, 1, "x"), (5, 2, "y")], [(3, "blank line", ""), (4, "blank line", "")]),
        (
            b"a,t\n1,x\nx,y\n9999999999999999999,z\n",
            [(2, 1, "x")],
            [(3, "a is not a whole number", "x"), (4, f"a {BEYOND}", "9999999999999999999")],
        ),
        (b"a,t\n1,\xff\n2,b\xc3\xa9\n", [(3, 2, "b\u00e9")], [(2, "t holds bytes that are not utf-8", "1,\\xff")]),
        (
            b"a,t\n1,x\0y\n2\0,z\n3,u\n",
            [(4, 3, "u")],
            [(2, "t holds a NUL byte", "x\0y"), (3, "a is not a whole number", "2\0")],
        ),
        # a quote that does not end costs its own line, and no other
        (
            b'a,t\n1,"open\n2,x\n3,"also, ok"\n4,y\n',
            [(3, 2, "x"), (4, 3, "also, ok"), (5, 4, "y")],
            [(2, f"t: {QUOTE}", '1,"open')],
        ),
        (b'a,t\n1,x\n2,"open', [(2, 1, "x")], [(3, f"t: {QUOTE}", '2,"open')]),
        (b'a,t\n1,"x" y\n2,z\n', [(3, 2, "z")], [(2, f"t: {QUOTE}", '1,"x" y')]),
        (b'a,t\n"1,x\n2,y\n', [(3, 2, "y")], [(2, f"a: {QUOTE}", '"1,x')]),
        # what stands behind it may be the inside of a value: it is not taken for a row
        (
            b'a,t\n1,"He said "hi"\n2,then left"\n3,z\n',
            [(4, 3, "z")],
            [
                (2, f"t: {QUOTE}", '1,"He said "hi"'),
                (3, "a quote behind a line whose quote does not end", '2,then left"'),
            ],
        ),
        # a record of several lines with too many values is one record
        (b'a,t\n1,"x\n2,y",3\n4,z\n', [(4, 4, "z")], [(2, "values: 3 for 2 columns", '1,"x\n2,y",3')]),
        (b"a,t\n1,x\ry\n2,z\n", [(3, 2, "z")], [(2, "a carriage return inside a line", "1,x\ry")]),
    ],
)
def test_csv_dirt_is_rejected_with_line_and_reason(tmp_path, blocks, content, rows, rejected):
    assert read(csv_file(tmp_path, content), CsvFormat()) == (rows, rejected)


def test_an_unclosed_quote_does_not_swallow_a_large_file(tmp_path):
    lines = [f"{number},{'x' * 50}" for number in range(20_000)]
    lines[10] = '10,"' + "x" * 50
    rows, rejected = read(csv_file(tmp_path, ("a,t\n" + "\n".join(lines)).encode()), CsvFormat())
    assert len(rows) == 19_999 and [one[:2] for one in rejected] == [(12, f"t: {QUOTE}")]


def test_a_column_that_nothing_needs_may_hold_anything(tmp_path):
    path = csv_file(tmp_path, b"a,junk,t\n1,\xff\0,x\n2,,y\n")
    assert read(path, CsvFormat()) == ([(2, 1, "x"), (3, 2, "y")], [])


def test_a_column_may_be_read_twice(tmp_path):
    columns = [TableColumn("a", "a", "int"), TableColumn("b", "a", "string")]
    pq.write_table(pa.table({"a": ["07"]}), tmp_path / "t.parquet")
    for path, table_format in (
        (csv_file(tmp_path, b"a,t\n07,x\n"), CsvFormat()),
        (csv_file(tmp_path, b'a,t\n"07",x\n', "q.csv"), CsvFormat()),
        (json_file(tmp_path, '{"a": "07"}'), JsonFormat()),
        (tmp_path / "t.parquet", ParquetFormat()),
    ):
        (chunk,) = read_table({path.name: path}, table_format, columns, LineLog())
        assert [array.to_pylist() for array in chunk.columns] == [[7], ["07"]]


def test_other_csv_formats(tmp_path):
    assert read(csv_file(tmp_path, b'a\tt\n1\t"x\n'), CsvFormat("\t", quote=None))[0] == [(2, 1, '"x')]
    assert read(csv_file(tmp_path, b"1::x:y\n2\n"), CsvFormat("::", quote=None, column_names=("a", "t"))) == (
        [(1, 1, "x:y")],
        [(2, "values: 1 for 2 columns", "2")],
    )
    assert read(csv_file(tmp_path, b'a;t\n1;"x \\" y"\n'), CsvFormat(";", escape="\\"))[0] == [(2, 1, 'x " y')]
    for content in ("a,t\n1,caf\u00e9\n", 'a,t\n1,"caf\u00e9"\n'):
        assert read(csv_file(tmp_path, content.encode("latin-1")), CsvFormat(encoding="latin-1"))[0] == [
            (2, 1, "caf\u00e9")
        ]
    nulls = frozenset({"NULL", "-1"})
    path = csv_file(tmp_path, b'a,t\n NULL ,NULL\n-1,-1\n1,"NULL"\n')
    assert read(path, CsvFormat(), nulls=nulls)[0] == [(2, None, None), (3, None, None), (4, 1, None)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv is empty; expected a first line with the names"),
        (b"\na,t\n1,x\n", "t.csv, line 1 is blank"),
        ("a,t\n1,x\n".encode("utf-16"), "t.csv, line 1 holds NUL bytes .*not in utf-8"),
        (b"a,t\r1,x\r2,y\r", "line 1: .*lines that end in carriage returns"),
        (b'"a,t\n1,x\n', "line 1: a quote that does not end"),
    ],
)
def test_a_csv_file_without_a_header_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read(csv_file(tmp_path, content), CsvFormat())


def test_a_file_with_no_line_feed_at_all_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files, "MAX_LINE_BYTES", 1_000)
    monkeypatch.setattr(raw_files.byte_blocks, "__defaults__", (100,))
    with pytest.raises(ValueError, match="t.csv, line 2: no line feed in"):
        read(csv_file(tmp_path, b"a,t\n" + b"x" * 5_000), CsvFormat())


# --- JSON lines


def json_file(tmp_path, *lines):
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def test_json_lines(tmp_path, blocks):
    path = json_file(
        tmp_path,
        '\ufeff{"a": 1, "t": "x"}',
        ' {"t": "y", "more": [1], "a": 2.0} ',
        '{"a": null}',
        '{"a": "7", "t": ""}',
        "",
        "",
    )
    assert read(path, JsonFormat()) == ([(1, 1, "x"), (2, 2, "y"), (3, None, None), (4, 7, None)], [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": 1', "broken JSON: Expecting ',' delimiter"),
        ("{'a': 1}", "broken JSON: Expecting property name enclosed in double quotes"),
        ('{"a": 1}{"a": 2}', "text behind a JSON object"),
        ('{"a": 1},', "text behind a JSON object"),
        ("[1, 2]", "not a JSON object of columns"),
        ("7", "not a JSON object of columns"),
        ("", "blank line"),
        (b'{"a": 1, "t": "\xff"}', "bytes that are not utf-8"),
        ("[" * 100_000, "JSON that is nested too deep, or holds too long a number"),
        ('{"a": ' + "9" * 5_000 + "}", "JSON that is nested too deep, or holds too long a number"),
        ('{"a": 9223372036854775808}', f"a {BEYOND}"),
        ('{"a": 2.5}', "a is not a whole number"),
        ('{"a": "x"}', "a is not a whole number"),
        ('{"a": true}', "a is true or false, not a whole number"),
        ('{"a": [1]}', "a is a list, not a whole number; `kind: multi-valued` takes lists"),
        ('{"a": {"b": 1}}', "a is an object, not a whole number"),
        ('{"t": 2139}', "t is a number, not text"),
        ('{"t": false}', "t is true or false, not text"),
        ('{"t": "\\u0000"}', "t holds a NUL byte"),
        ('{"t": "\\ud800"}', "t holds half of a character"),
    ],
)
def test_json_dirt_is_rejected(tmp_path, line, reason):
    path = json_file(tmp_path, '{"a": 1, "t": "x"}', line, '{"a": 3, "t": "z"}')
    rows, rejected = read(path, JsonFormat())
    assert rows == [(1, 1, "x"), (3, 3, "z")] and [one[:2] for one in rejected] == [(2, reason)]


def test_json_numbers_that_are_none_are_null_or_rejected(tmp_path):
    path = json_file(tmp_path, '{"f": NaN}', '{"f": 1}', '{"f": Infinity}', '{"f": 0.5}')
    rows, rejected = read(path, JsonFormat(), {"f": "float"})
    assert rows == [(1, None), (2, 1.0), (4, 0.5)] and rejected == [(3, "f is not finite", "inf")]


@pytest.mark.parametrize("size", [1, 7, 2**21])
def test_a_json_array(tmp_path, monkeypatch, size):
    monkeypatch.setattr(table_files, "BLOCK_BYTES", size)
    first, second = (
        '{"a": 1, "t": "x"},\n\n {"a": 12345678901234567890}',
        '{"t":\n "[\u00e9\\"]"}, {"a": "x"},\r\n{"a": 5}',
    )
    path = json_file(tmp_path, f"\ufeff [ {first}, 7,{second}]\n ")
    rows = [(1, 1, "x"), (4, None, '[\u00e9"]'), (6, 5, None)]
    rejected = [
        (
            2,
            "a does not fit into 64 bits; with `type: string`, and as text, it keeps all digits",
            "12345678901234567890",
        ),
        (3, "not a JSON object of columns", "7"),
        (5, "a is not a whole number", "x"),
    ]
    assert read(path, JsonFormat()) == (rows, rejected)
    assert JsonFormat().columns(path)[:1] == ["a"]
    assert list(JsonFormat().texts(path, iter([4, 5]))) == ['{"t":\n "[\u00e9\\"]"}', '{"a": "x"}']


def test_texts_of_rows_that_the_engine_rejects(tmp_path, blocks):
    path = csv_file(tmp_path, b'a,t\n1,x\n2\n3,"y\n\nz"\n4,u\n5,"v\nw"')
    assert list(CsvFormat().texts(path, iter([2, 4, 8]))) == ["1,x", '3,"y\n\nz"', '5,"v\nw"']
    path = json_file(tmp_path, '{"a": 1}', "x", '{"a": 3}', '{"a": 4}')
    assert list(JsonFormat().texts(path, iter([1, 3]))) == ['{"a": 1}', '{"a": 3}']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"a": 1},\n{"a": 2', "line 2: no JSON value"),
        ('[{"a": 1},\n{"a": 2}\n', "line 3: the array does not end"),
        ('[{"a": 1},\n{"a": 2}\n{"a": 3}]', "line 3: '{' where , or ] is expected"),
        ('[{"a": 1},\n]', "line 2: no JSON value"),
        ('[{"a": 1}]\n[{"a": 2}]', r"line 2: '\[' where the end of the file is expected"),
        ('[{"a": 1},\nNULL]', "line 2: no JSON value"),
    ],
)
def test_a_broken_json_array_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=f"t.jsonl, {message}.*; correct the array, or write JSON lines"):
        read(csv_file(tmp_path, text.encode(), "t.jsonl"), JsonFormat())


# --- Parquet


def parquet_file(tmp_path, **columns):
    pq.write_table(pa.table(columns), tmp_path / "t.parquet", row_group_size=2)
    return tmp_path / "t.parquet"


def test_parquet_rows_have_numbers(tmp_path):
    path = parquet_file(tmp_path, a=[1, 2, None, 4], t=["x", None, " a  b ", "x\0y"])
    assert read(path, ParquetFormat()) == (
        [(1, 1, "x"), (2, 2, None), (3, None, "a b")],
        [(4, "t holds a NUL byte", "x\0y")],
    )


def test_parquet_types_become_those_of_the_schema(tmp_path):
    decimals = pa.array([None, "25.00"], pa.string()).cast(pa.decimal128(6, 2))
    path = parquet_file(
        tmp_path,
        i=pa.array([1.0, 2.5]),
        d=decimals,
        f=pa.array([0.1, float("nan")], pa.float32()),
        b=pa.array([1, 0], pa.uint8()),
        s=pa.array(["x", "y"]).dictionary_encode(),
        small=pa.array([1, 2], pa.int16()),
        u=pa.array([1, 2**64 - 1], pa.uint64()),
        l=pa.array(["p", None], pa.large_string()),
        none=pa.nulls(2),
        day=pa.array([date(2024, 1, 1), None]),
        at=pa.array([datetime(2024, 1, 1), None], pa.timestamp("ns", "Europe/Amsterdam")),
    )
    kinds = {
        "d": "int",
        "f": "float",
        "b": "bool",
        "s": "string",
        "small": "float",
        "l": "string",
        "none": "int",
        "day": "timestamp",
        "at": "timestamp",
    }
    rows, rejected = read(path, ParquetFormat(), kinds)
    midnight = datetime(2024, 1, 1)
    assert rejected == [] and rows[0] == (1, None, 0.1, True, "x", 1.0, "p", None, midnight, midnight)
    assert rows[1] == (2, 25, None, False, "y", 2.0, None, None, None, None)
    assert read(path, ParquetFormat(), {"i": "int"}) == ([(1, 1)], [(2, "i is not a whole number", "2.5")])
    assert read(path, ParquetFormat(), {"u": "int"}) == ([(1, 1)], [(2, f"u {BEYOND}", str(2**64 - 1))])


def test_a_damaged_parquet_file_is_named(tmp_path):
    path = parquet_file(tmp_path, a=list(range(1_000)), t=["x"] * 1_000)
    whole = path.read_bytes()
    path.write_bytes(whole[:200])
    with pytest.raises(ValueError, match="t.parquet is no Parquet file, or a damaged one"):
        read(path, ParquetFormat())


# --- what formats share


def pack(content: bytes, kind: str) -> bytes:
    return gzip.compress(content) if kind == "gz" else pa.Codec("zstd").compress(content).to_pybytes()


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_packed_files_are_read_whatever_their_name(tmp_path, kind):
    parts = pack(b"a,t\n1,x\n", kind) + pack(b"2,y\n", kind)  # packed in two parts
    for name in (f"t.csv.{kind}", "t.csv"):
        assert read(csv_file(tmp_path, parts, name), CsvFormat())[0] == [(2, 1, "x"), (3, 2, "y")]
    packed_array = csv_file(tmp_path, pack(b'[{"a": 1}]', kind), f"t.json.{kind}")
    assert read(packed_array, JsonFormat())[0] == [(1, 1, None)]


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_packed_file_is_an_error_that_names_file_and_line(tmp_path, keep, kind):
    generator = random.Random(0)
    lines = [f"{number},{generator.random()}" for number in range(50_000)]
    for name, table_format, text in (
        (f"t.csv.{kind}", CsvFormat(), "a,t\n" + "\n".join(lines)),
        (f"t.jsonl.{kind}", JsonFormat(), "\n".join(json.dumps({"a": line}) for line in lines)),
    ):
        packed = pack(text.encode(), kind)
        path = csv_file(tmp_path, packed[: int(keep * len(packed))], name)
        with pytest.raises(
            ValueError, match=rf"{name}: the packed file is cut off or damaged after line [\d,]+ \(.*fetch it again"
        ) as error:
            read(path, table_format, {"a": "string"})
        line = int(str(error.value).split("after line ")[1].split(" ")[0].replace(",", ""))
        assert line < 50_000 and (kind == "zst" or abs(line - keep * 50_000) < 0.1 * 50_000)  # zstd has large blocks


def test_a_list_comes_from_lists_and_from_text(tmp_path):
    content = b't\n"a|b | a|"\n|\n\nc\n'.replace(b"\n\n", b"\nNULL\n")
    settings = {"separator": "|", "nulls": frozenset({"NULL"})}
    rows = [["a", "b"], None, None, ["c"]]
    assert [row[1] for row in read(csv_file(tmp_path, content), CsvFormat(), {"t": "string"}, **settings)[0]] == rows
    lines = ['{"t": ["a", "b ", "a", "", null]}', '{"t": []}', "{}", '{"t": "c"}']
    assert [row[1] for row in read(json_file(tmp_path, *lines), JsonFormat(), {"t": "string"}, **settings)[0]] == rows
    path = parquet_file(tmp_path, t=[["a", "b ", "a", "", None], [], None, ["c"]])
    assert [row[1] for row in read(path, ParquetFormat(), {"t": "string"}, **settings)[0]] == rows
    path = json_file(tmp_path, '{"t": [1, 2.0, 1]}', '{"t": [1, "x"]}', '{"t": [[1]]}', '{"t": 5}')
    assert read(path, JsonFormat(), {"t": "int"}, separator="|") == (
        [(1, [1, 2]), (4, [5])],
        [(2, "t is not a whole number", "x"), (3, "t is a list, not a whole number", "[1]")],
    )


VALUES = [
    "",
    " ",
    "0",
    "-0",
    "00",
    "7",
    " 7",
    "+7",
    "1_000",
    "٣",
    "7.0",
    "7.",
    ".5",
    "-1.50",
    "1e3",
    "1E400",
    "nan",
    "inf",
    "0x10",
    "true",
    "TRUE",
    "False",
    "yes",
    "02139",
    "a",
    "a  b",
    "a\tb",
    " a",
    "e\u0301",
    "\u00e9",
    "\u212b",
    "a\u00a0b",
    "\u2003",
    "NULL",
    "999999999999999999",
    "9223372036854775807",
    "-9223372036854775808",
    "9223372036854775808",
    "0.1",
    "123456789012345.123456789012345",
    "1.7976931348623157e308",
    "\x1f",
    "\u200b",
    "1,5",
    "--1",
    "-",
]


@pytest.mark.parametrize("kind", ["string", "int", "float", "bool"])
def test_typed_values_are_the_canonical_ones(kind):
    def expected(value):
        try:
            text = canonical_value(value, kind)
        except ValueError:
            return "wrong"
        if text is None:
            return None
        number = {"string": str, "int": int, "float": float, "bool": "true".__eq__}[kind](text)
        return "wrong" if kind == "int" and not -(2**63) <= number < 2**63 else number

    def found(raw):
        array, wrong = typed_column(raw, TableColumn("c", "c", kind))
        return ["wrong" if at in wrong else value for at, value in enumerate(array.to_pylist())]

    same = lambda a, b: [(type(x), x, str(x)) for x in a] == [(type(x), x, str(x)) for x in b]  # noqa: E731  (-0.0 is not 0.0)
    assert same(found(pa.array(VALUES)), [expected(value) for value in VALUES])
    for value in VALUES:  # alone, where the fast way may take it
        assert same(found(pa.array([value])), [expected(value)])
    mixed = [*VALUES, 1, 0, True, False, 1.0, 2.5, float("nan"), None, 10**30, np.float64(3)]
    assert same(found(mixed), [expected(value) for value in mixed])
    for numbers in (
        pa.array([1, 0, None, 2**62]),
        pa.array([1.0, -0.0, 0.1, None, float("nan"), float("inf"), 1e300]),
        pa.array([True, None]),
    ):
        assert same(found(numbers), [expected(value) for value in numbers.to_pylist()])


def test_random_dirt_never_shifts_a_value(tmp_path, blocks):
    """Each good row says its own line in every column, so that a row of parts of others would show."""
    for seed in range(30):
        generator = random.Random(seed)
        buffer, good = io.StringIO(newline=""), {}
        writer = csv.writer(
            buffer,
            lineterminator=generator.choice(["\n", "\r\n"]),
            quoting=generator.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        )
        writer.writerow(["a", "t", "u"])
        for number in range(60):
            where = buffer.getvalue().count("\n") + 1
            kind = generator.randrange(12)
            text = (
                generator.choice(["plain", "com,ma", 'quo"te', "two\nlines", "", "\u00e9", "three\n\nlines,"])
                + f" {number}"
            )
            if kind == 0:
                writer.writerow([number, text])
            elif kind == 1:
                writer.writerow([number, text, number, "more"])
            elif kind == 2:
                writer.writerow([f"x{number}", text, number])
            elif kind == 3:
                buffer.write(f'{number},"open {number},{number}' + generator.choice(["\n", "\r\n"]))
            elif kind == 4:
                buffer.write("\n")
            else:
                writer.writerow([number, text, number])
                good[where] = (number, " ".join(text.split()), number)
        path = csv_file(tmp_path, buffer.getvalue().encode())
        rows, rejected = read(path, CsvFormat(), {"a": "int", "t": "string", "u": "int"})
        assert rows and all(good[row[0]] == row[1:] for row in rows)
        assert len(good) - len(rows) <= 3 * sum(
            "quote" in one[1] for one in rejected
        )  # few are lost behind an open quote


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_files.byte_blocks, "__defaults__", (2**14,))
    peaks = {}
    for count in (3_000, 30_000):
        text = "a,t\n" + "".join(f'{number},"text {number}"\n' for number in range(count))
        path = csv_file(tmp_path, text.encode())
        wanted = [TableColumn(name, name, kind) for name, kind in COLUMNS.items()]
        tracemalloc.start()
        assert (
            sum(len(chunk.lines) for chunk in read_table({"t.csv": path}, CsvFormat(), wanted, LineLog(1.0))) == count
        )
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[30_000] < 1.5 * peaks[3_000]


def test_the_columns_of_json_lines_are_those_of_the_first_lines(tmp_path):
    path = json_file(tmp_path, '{"a": 1, "m": 1, "l": ["x"]}', '{"a": 2.5, "m": "x", "n": null}', "broken")
    assert JsonFormat().own_types(path) == {"a": "float", "m": None, "l": "string", "n": None}
    assert table_files.PEEKED_LINES >= 1_000


def test_text_that_is_no_utf_8_is_the_only_one_refused():
    """In Parquet, whose writers do not always look: single values, lists, and values of a dictionary."""
    texts = pa.Array.from_buffers(pa.string(), 4, pa.array([b"x\xff", b"ok", None, b""], pa.binary()).buffers())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3, 4]), texts)
    for raw, separator in ((texts, None), (lists, ","), (texts.dictionary_encode(), None)):
        values, wrong = typed_column(raw, TableColumn("t", "t", "string", separator))
        assert values.to_pylist() == [None, "ok" if separator is None else ["ok"], None, None]
        assert {row: error.reason for row, error in wrong.items()} == {0: "t is bytes, not text"}
