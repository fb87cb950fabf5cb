"""Broken tables: a clean table with values of all kinds in a dialect, and what is done to it, all from a
seed."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

FORMATS = ("csv", "tsv", "jsonl", "parquet", "gzip")
# the columns of a table and their types; `note` is in the files, and nothing reads it
TYPES = {
    "key": "string",
    "n": "int",
    "text": "string",
    "tags": "list",
    "price": "float",
    "at": "timestamp",
    "new": "bool",
    "stars": "int",
}
COLUMNS = [*TYPES, "note"]
TEXTS = [
    "plain",
    "two, with a comma",
    'a "quoted" word',
    "it's",
    "first\nsecond",
    "first\r\n\r\nthird",
    "tab\there",
    "Cité, 東京 😀",
    "a|b;c",
    "back\\slash",
    "line\u2028separator \x85 and \x0b\x0c\x1c",
    "007",
    "NULL",
    "[1, 2]",
    '{"a": 1}',
    "=1+1",
    "#hash",
    "-",
]


@dataclass(frozen=True)
class Dialect:
    """How a table is written. Of a CSV file what `CsvFormat` takes, and the ends of its lines."""

    format: str
    delimiter: str = ","
    quote: str | None = '"'
    escape: str | None = None
    encoding: str = "utf-8"
    header: bool = True
    end: str = "\n"
    packed: bool = False

    @property
    def suffix(self) -> str:
        return f".{self.format}" + ".gz" * self.packed

    def settings(self) -> dict:
        """What the schema of a table says of it."""
        values = {} if self.encoding == "utf-8" else {"encoding": self.encoding}
        if self.format == "csv":
            values |= {"delimiter": self.delimiter, "quote": self.quote, "escape": self.escape}
            values |= {} if self.header else {"column_names": COLUMNS}
        return values


@dataclass(eq=False)
class Line:
    """A record of a text file, its header, or what stands in its place.

    Attributes:
        data: its bytes, with their end.
        row: number of the row in the clean table; None for what is none.
        touched: whether it is not what was written.
    """

    data: bytes
    row: int | None = None
    touched: bool = False

    def change(self, data: bytes) -> None:
        self.touched |= data != self.data
        self.data = data


@dataclass
class BrokenTable:
    """A table after what was done to it.

    Attributes:
        rows: the clean rows, `{column: value}`.
        lines: of a text file what it consists of, in order.
        header: the header as it was.
        data: the bytes of the file.
        did: what was done, in words.
    """

    dialect: Dialect
    rows: list[dict]
    lines: list[Line] = field(default_factory=list)
    header: bytes = b""
    data: bytes = b""
    did: list[str] = field(default_factory=list)

    @property
    def separator(self) -> str:
        """Between the values of a list."""
        return ";" if self.dialect.delimiter == "|" else "|"

    @property
    def is_headed(self) -> bool:
        """Whether the header is as it was, where there is one."""
        headed = self.dialect.header and self.dialect.format != "jsonl"
        return not headed or (bool(self.lines) and self.lines[0].data == self.header)

    def text(self) -> bytes:
        """The bytes of a text file before it is packed."""
        return b"".join(line.data for line in self.lines)

    def whole(self) -> dict[int, dict]:
        """Of a text file the clean rows that are there as they were written, and nothing before them on their line, by
        the number of that line."""
        found, number, fresh = {}, 1, True
        for line in self.lines:
            ended = line.data.endswith(b"\n") or line is self.lines[-1]
            if fresh and ended and not line.touched and line.row is not None:
                found[number] = self.rows[line.row]
            number += line.data.count(b"\n")
            fresh = line.data.endswith(b"\n") or (fresh and not line.data)
        return found


# --- clean tables


def clean_rows(rng: random.Random, count: int) -> list[dict]:
    return [
        {
            "key": f"k{number:04}",
            "n": rng.choice([0, 7, -12, 2**53 + 1, 10**17, None]),
            "text": rng.choice([*TEXTS, None]),
            "tags": rng.choice([["a", "b"], ["b"], ["c c", "d"], None]),
            "price": rng.choice([0.1, 25.0, -0.001, 123456.5, None]),
            "at": rng.choice([datetime(2024, 3, 1, 12) + timedelta(days=number), None]),
            "new": rng.choice([True, False, None]),
            "stars": rng.randint(1, 5),
            "note": rng.choice(TEXTS),
        }
        for number in range(count)
    ]


def random_dialect(rng: random.Random, kind: str) -> Dialect:
    if kind == "gzip":
        inner = random_dialect(rng, rng.choice(["csv", "tsv", "jsonl"]))
        return Dialect(**inner.__dict__ | {"packed": True})
    if kind == "parquet":
        return Dialect("parquet")
    end = rng.choice(["\n", "\n", "\r\n"])
    if kind == "jsonl":
        return Dialect("jsonl", end=end)
    if kind == "tsv":
        return Dialect("tsv", delimiter="\t", end=end)
    delimiter = rng.choice([",", ",", ";", "\t", "|", "::"])
    quote = None if delimiter == "::" else rng.choice(['"', '"', "'", None])
    escape = "\\" if delimiter != "::" and rng.random() < 0.3 else None
    encoding = rng.choice(["utf-8", "utf-8", "latin-1", "cp1252"])
    return Dialect("csv", delimiter, quote, escape, encoding, rng.random() < 0.75, end)


def cell(value, dialect: Dialect, rng: random.Random) -> str:
    """A value as a CSV file has it. Where the dialect cannot have it, a simpler one."""
    separator = ";" if dialect.delimiter == "|" else "|"
    text = separator.join(value) if isinstance(value, list) else "" if value is None else str(value)
    quote, escape, delimiter = dialect.quote, dialect.escape, dialect.delimiter
    if escape:
        text = text.replace(escape, escape * 2)
    if quote and (rng.random() < 0.1 or any(one in text for one in (quote, delimiter, "\n", "\r"))):
        return quote + text.replace(quote, quote * 2) + quote
    if quote is None:
        text = " ".join(text.split("\n")).replace("\r", "")
        return text.replace(delimiter, escape + delimiter if escape else " ")
    return text


def simpler(value, dialect: Dialect):
    """A text that the dialect can have."""
    if not isinstance(value, str):
        return value
    value = value.encode(dialect.encoding, "replace").decode(dialect.encoding)
    if dialect.format in ("csv", "tsv") and dialect.quote is None:
        value = value.replace("\n", " ").replace("\r", "")
        value = value if dialect.escape else value.replace(dialect.delimiter, " ")
    return value


def text_lines(rng: random.Random, rows: list[dict], dialect: Dialect) -> list[Line]:
    if dialect.format == "jsonl":
        ascii_only = rng.random() < 0.5
        shown = [{key: value.isoformat() if isinstance(value, datetime) else value for key, value in row.items()}
                 for row in rows]  # fmt: skip
        return [
            Line((json.dumps(row, ensure_ascii=ascii_only) + dialect.end).encode(), number)
            for number, row in enumerate(shown)
        ]
    records = [dialect.delimiter.join(cell(row[name], dialect, rng) for name in COLUMNS) + dialect.end for row in rows]
    lines = [Line(record.encode(dialect.encoding, "replace"), number) for number, record in enumerate(records)]
    header = Line((dialect.delimiter.join(COLUMNS) + dialect.end).encode(dialect.encoding))
    return [header, *lines] if dialect.header else lines


# --- what is done to records

Mutation = Callable[[random.Random, BrokenTable], str]


def _at(rng: random.Random, table: BrokenTable) -> Line:
    return rng.choice(table.lines)


def _insert(rng: random.Random, line: Line, what: bytes) -> None:
    place = rng.randint(0, len(line.data))
    line.change(line.data[:place] + what + line.data[place:])


def inserting(name: str, *choices: bytes) -> Mutation:
    """Bytes somewhere in a record."""

    def mutation(rng, table):
        _insert(rng, _at(rng, table), rng.choice(choices))
        return name

    return mutation


def new_line(name: str, *choices: bytes, first: bool = False, last: bool = False) -> Mutation:
    """Bytes between two records."""

    def mutation(rng, table):
        place = 0 if first else len(table.lines) if last else rng.randint(0, len(table.lines))
        table.lines.insert(place, Line(rng.choice(choices), touched=True))
        return name

    return mutation


def a_sign_of_the_dialect(rng, table):
    signs = [one for one in (table.dialect.delimiter, table.dialect.quote, table.dialect.escape) if one]
    sign = rng.choice(signs)
    _insert(rng, _at(rng, table), sign.encode())
    return f"{sign!r} inserted"


def a_sign_less(rng, table):
    line = _at(rng, table)
    signs = [one.encode() for one in (table.dialect.delimiter, table.dialect.quote) if one]
    places = [at for sign in signs for at in range(len(line.data)) if line.data.startswith(sign, at)]
    if places:
        place = rng.choice(places)
        line.change(line.data[:place] + line.data[place + 1 :])
    return "delimiter or quote removed"


def cut_record(rng, table):
    line = _at(rng, table)
    kept = line.data[: rng.randint(0, len(line.data))]
    line.change(kept + (b"\n" if rng.random() < 0.7 else b""))
    return "record cut off"


def cut_file(rng, table):
    keep = rng.randint(0, len(table.lines) - 1)
    line = table.lines[keep]
    line.change(line.data[: rng.randint(0, len(line.data))])
    del table.lines[keep + 1 :]
    return "file cut off"


def other_line_end(rng, table):
    line = _at(rng, table)
    line.change(line.data.rstrip(b"\r\n") + rng.choice([b"\r", b"\r\n", b"\n", b"\r\r\n", b"\n\r", b""]))
    return "another line end"


def flipped_byte(rng, table):
    line = _at(rng, table)
    if line.data:
        place = rng.randrange(len(line.data))
        line.change(line.data[:place] + bytes([rng.randrange(256)]) + line.data[place + 1 :])
    return "a byte changed"


def removed_byte(rng, table):
    line = _at(rng, table)
    place = rng.randint(0, max(0, len(line.data) - 1))
    line.change(line.data[:place] + line.data[place + 1 :])
    return "a byte removed"


def repeated(rng, table):
    line = _at(rng, table)
    table.lines.insert(rng.randint(0, len(table.lines)), Line(line.data, line.row, touched=True))
    return "a record twice"


def swapped_value(rng, table):
    """A value of another type in the place of one."""
    line = _at(rng, table)
    if line.row is None:
        return "nothing"
    odd = ["x", "1e400", "99999999999999999999999", "nan", "-", "yesterday", "1_000", "٣", "2024-13-01", "0001-01-01",
           "9999-12-31T23:59:59.9999999", "1.5", "TRUE ", " ", "12:00", "+7", "0x1f", "1,5", "2", "١٢"]  # fmt: skip
    name, value = rng.choice(list(TYPES)[1:]), rng.choice(odd)
    row = dict(table.rows[line.row]) | {name: value}
    line.change(text_lines(rng, [row], table.dialect)[-1].data)
    return f"{name} {value!r}"


def very_long(rng, table):
    _insert(rng, _at(rng, table), rng.choice([b"x", b"\xc3\xa9", b'"', b",", b"ab "]) * rng.choice([40_000, 140_000]))
    return "a very long value"


# --- JSON lines: a value of a record is changed


def json_value(rng, table):
    odd = ['"\\ud83d"', '"\\udc00\\ud83d x"', "NaN", "-Infinity", "1e999", "9" * 30, "9" * 5000, '{"a": 1}', "[1, 2]",
           '[["a"]]', "[" * 30 + "]" * 30, '"\\u0000"', "true", "12", "1.5", '""', '"  "', "[]", "[null, \"a\"]",
           '["\\ud83d"]', '"2024-03-01T00:00:00+14:00"', "1e300", "-0.0", "[" * 100_000]  # fmt: skip
    line = _at(rng, table)
    if line.row is None:
        return "nothing"
    name, value = rng.choice(list(TYPES)[1:]), rng.choice(odd)
    row = json.loads(line.data) if not line.touched else {}
    pairs = [f"{json.dumps(key)}: {value if key == name else json.dumps(one)}" for key, one in row.items()]
    line.change(("{" + ", ".join(pairs) + "}\n").encode())
    return f"{name}: {value[:40]}"


def duplicate_key(rng, table):
    line = _at(rng, table)
    name = rng.choice(list(TYPES)[1:])
    line.change(line.data.rstrip().removesuffix(b"}") + f', "{name}": null}}\n'.encode())
    return f"{name} twice in an object"


def lacking_key(rng, table):
    line = _at(rng, table)
    if line.row is None or line.touched:
        return "nothing"
    row = json.loads(line.data)
    row.pop(rng.choice(list(row)))
    line.change(json.dumps(row).encode() + b"\n")
    return "a key is missing"


JSON_LINES = new_line(
    "a line that is no object", b"[]\n", b"1\n", b"null\n", b"{}\n", b'"x"\n', b"{} {}\n", b"{,}\n", b"{'key': 1}\n",
    b"[" * 100_000 + b"\n", b'{"key": "a"}\r{"key": "b"}\n', b"\x00\n", b"#\n", b"{\n}\n",
)  # fmt: skip


# --- what is done to the header and to whole files


def header(rng, table):
    line = table.lines[0]
    if not table.dialect.header or table.dialect.format == "jsonl":
        return "nothing"
    text, name = line.data.decode(table.dialect.encoding, "replace"), rng.choice(list(TYPES))
    delimiter = table.dialect.delimiter
    changed = rng.choice(
        [
            text.replace(name, "other", 1),
            text.replace(name, "note", 1),
            text.replace(name, "", 1),
            text.replace(name, f" {name} ", 1),
            text.replace(name, name.upper(), 1),
            text.replace(name + delimiter, "", 1),
            text.replace(name, f'"{name}"', 1),
            text.replace(name, name + "\0", 1),
            text.replace(name, f"{name}{delimiter}more", 1),
            text.rstrip("\r\n") + delimiter + "\n",
            "\n",
            text * 2,
        ]
    )
    line.change(changed.encode(table.dialect.encoding, "replace"))
    return "header changed"


def only(name: str, *choices: bytes) -> Mutation:
    def mutation(rng, table):
        table.lines = [Line(rng.choice(choices), touched=True)]
        return name

    return mutation


def header_alone(rng, table):
    del table.lines[1:]
    return "first line alone"


def without_last_end(rng, table):
    if table.lines:
        table.lines[-1].data = table.lines[-1].data.rstrip(b"\r\n")  # still the same record
    return "no last line end"


def other_encoding(rng, table):
    name = rng.choice(["utf-16", "utf-16-le", "utf-32", "cp500"])
    text = table.text().decode(table.dialect.encoding, "replace")
    table.lines = [Line(text.encode(name, "replace"), touched=True)]
    return f"written in {name}"


def shuffled(rng, table):
    first = table.lines[:1] if table.dialect.header and table.dialect.format != "jsonl" else []
    others = table.lines[len(first) :]
    rng.shuffle(others)
    table.lines = first + [line for line in others if line.data.endswith(b"\n")]
    return "records shuffled"


RECORDS: list[Mutation] = [
    a_sign_of_the_dialect,
    a_sign_of_the_dialect,
    a_sign_less,
    cut_record,
    other_line_end,
    flipped_byte,
    removed_byte,
    repeated,
    swapped_value,
    very_long,
    inserting("a line end inserted", b"\r", b"\n", b"\r\n", b"\n\n"),
    inserting("a NUL byte", b"\0"),
    inserting("a BOM inside", b"\xef\xbb\xbf"),
    inserting("bytes of no encoding", b"\xff", b"\xc3", b"\xed\xa0\xbd", b"\xf0\x9f", b"\x81", b"\x80"),
    inserting("a control character", b"\x1a", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xe2\x80\xa8", b"\x1b"),
    new_line("blank lines", b"\n", b"\n\n\n", b"\r\n", b" \n", b"\t\n", b",\n", b'""\n', b"\xc2\xa0\n"),
    new_line("a line of something else", b"# comment\n", b"\xff\xfe\x00\n", b'"\n', b"sep=;\n", b"--\n"),
]
JSON_RECORDS: list[Mutation] = [*RECORDS, json_value, json_value, json_value, duplicate_key, lacking_key, JSON_LINES]
FILES: list[Mutation] = [
    header,
    header,
    header,
    cut_file,
    header_alone,
    without_last_end,
    without_last_end,
    other_encoding,
    shuffled,
    new_line("a BOM first", b"\xef\xbb\xbf", first=True),
    new_line("blank lines first", b"\n", b"\n\n", b"\r\n", first=True),
    new_line("blank lines last", b"\n", b"\n\n\n", b"\r\n\r\n", b" \n", last=True),
    only("empty", b""),
    only(
        "other bytes alone", b"\n", b"\n\n\n", b"\0" * 500, b"\xef\xbb\xbf", b"\x1f\x8b", b"[]", b"[{}]", b"PAR1", b'"'
    ),
]


def clean_table(rng: random.Random, count: int, dialect: Dialect = Dialect("csv")) -> BrokenTable:
    """A text table with nothing done to it."""
    rows = [{name: simpler(value, dialect) for name, value in row.items()} for row in clean_rows(rng, count)]
    table = BrokenTable(dialect, rows, text_lines(rng, rows, dialect))
    table.data = table.text()
    return table


def broken_text(rng: random.Random, kind: str, count: int | None = None, plain: bool = False) -> BrokenTable:
    """A text table with one to four things done to it.

    Args:
        count: rows; a few when None.
        plain: in the dialect of its format that needs no description.
    """
    dialect = random_dialect(rng, kind)
    if plain:
        dialect = Dialect(
            dialect.format, "\t" if dialect.format == "tsv" else ",", end=dialect.end, packed=dialect.packed
        )
    table = clean_table(rng, count or rng.randint(3, 12), dialect)
    table.header = table.lines[0].data
    records = JSON_RECORDS if dialect.format == "jsonl" else RECORDS
    for _ in range(rng.randint(1, 4)):
        if table.lines:
            table.did.append(rng.choice(records if rng.random() < 0.8 else FILES)(rng, table))
    table.data = table.text()
    if dialect.packed:
        table.data = broken_gzip(rng, table)
    return table


def broken_gzip(rng: random.Random, table: BrokenTable) -> bytes:
    """Its text packed; half of the packages are damaged."""
    data = gzip.compress(table.data, mtime=0)
    how = rng.choice(["cut", "byte", "behind", "two", "unpacked", "whole", "whole", "whole", "zeros"])
    table.did.append(f"gzip: {how}")
    if how == "cut":
        return data[: rng.randrange(len(data))]
    if how == "byte":
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
    if how == "two":
        middle = rng.randint(0, len(table.data))
        return gzip.compress(table.data[:middle], mtime=0) + gzip.compress(table.data[middle:], mtime=0)
    more = {"behind": b"garbage", "zeros": b"\0" * 20}
    return table.data if how == "unpacked" else data + more.get(how, b"")
