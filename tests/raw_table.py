"""A table of one's own for tests: a schema in YAML, and files of clicks in each format."""

import copy
import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from flip_ctr.train import prepare
from flip_ctr.train.prepare import PrepareArguments

USERS, ITEMS = 20, 30
SCHEMA = {
    "name": "clicks",
    "files": "clicks.csv",
    "label": "stars >= 4",
    "drop": {"three stars": "stars == 3"},
    "sample_weight": "weight",
    "user": "user_id",
    "item": "item_id",
    "time": "at",
    "fields": [
        {"name": "user_id", "column": "uid", "type": "int", "entity": "user", "key": True, "sides": ["id"]},
        {"name": "zip", "column": "Zip Code", "entity": "user"},
        {"name": "item_id", "entity": "item", "key": True, "sides": ["id"]},
        {"name": "title", "entity": "item", "max_tokens": 48},
        {"name": "tags", "kind": "multi-valued", "separator": "|", "max_values": 3, "entity": "item"},
        {"name": "price", "type": "float", "kind": "numeric", "num_buckets": 4, "entity": "item"},
        {"name": "new", "type": "bool"},
    ],
}
TITLES = ["Titanic (1997)", "Cité des enfants\nperdus, La", 'The "Thing"', " two  words "]


def event_rows() -> list[dict]:
    """Every user with every item, rated 1 to 5."""
    return [
        {
            "uid": user,
            "item_id": f"i{item}",
            "stars": (3 * user + 7 * item) % 5 + 1,
            "weight": [1, 0.5][user % 2],
            "at": 1_700_000_000 + 31 * user + item,
            "Zip Code": f"0{user:04}",
            "title": TITLES[item % 4],
            "tags": [["a", "b"], ["b"], None][item % 3],
            "price": [0.1, 25.0, None, 1e-3, 7.0][item % 5],
            "new": [True, False, None][item % 3],
        }
        for user in range(1, USERS + 1)
        for item in range(ITEMS)
    ]


def cell(value) -> str:
    if isinstance(value, list):
        return "|".join(value)
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def write_csv(path: Path, rows: list[dict], delimiter=",", columns=None) -> Path:
    columns = columns or list(rows[0])
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows([cell(row[column]) for column in columns] for row in rows)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text(
        "".join(json.dumps({key: value for key, value in row.items() if value is not None}) + "\n" for row in rows)
    )
    return path


def write_schema(folder: Path, **changes) -> Path:
    """A schema like `SCHEMA`; a change to `...` leaves the key out."""
    schema = copy.deepcopy(SCHEMA) | changes
    path = folder / "schema.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in schema.items() if value is not ...}, sort_keys=False),
        encoding="utf-8",
    )
    return path


def run(folder: Path, out: str = "out", options=None, **changes) -> dict:
    schema = write_schema(folder, **changes)
    return prepare.run(PrepareArguments("table", str(folder / out), schema=str(schema), **options or {}))


def without(rows: list[dict], *columns) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in columns} for row in rows]


def write_joined(folder: Path) -> dict:
    """Writes clicks.csv with items in items.jsonl, whose brands are in brands.parquet; gives the schema's changes."""
    rows = event_rows()
    write_csv(folder / "clicks.csv", without(rows, "title", "tags", "price", "new"))
    items = {row["item_id"]: row for row in rows}
    write_jsonl(
        folder / "items.jsonl",
        [
            {
                "id": name,
                "title": row["title"],
                "tags": row["tags"],
                "price": row["price"],
                "new": row["new"],
                "brand": int(name[1:]) % 4,
            }
            for name, row in items.items()
        ],
    )
    pq.write_table(pa.table({"brand": [0, 1, 2, 3], "title": ["w", "x", "y", "z"]}), folder / "brands.parquet")
    joins = [
        {"files": "items.jsonl", "on": {"item_id": "id"}},
        {"name": "makers", "files": "brands.parquet", "on": "brand", "columns": {"brand_name": "title"}},
    ]
    fields = [*SCHEMA["fields"], {"name": "brand_name", "entity": "item"}]
    return {"joins": joins, "fields": fields}
