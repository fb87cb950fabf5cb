# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Writing and reading a dataset folder: three Parquet splits, `schema.json`, a dataset card and `prepare_report.json`.

One that was made from raw files also has `rejected.parquet`: each line that became no row, with file, line, reason and
text; empty where there is none. It lies outside `data/`, so that nothing takes it for a split.

A folder is written under a temporary name beside its own and renamed at the end: it is there complete, or not at all.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from flip_ctr.data.schema import SCHEMA_NAME, DatasetSchema
from flip_ctr.data.splits import SPLITS

REPORT_NAME = "prepare_report.json"
CARD_NAME = "README.md"
REJECTED_NAME = "rejected.parquet"
# What a dataset folder may hold for `--overwrite_output_dir` to replace it; caches can be made again.
OWN_ENTRIES = {SCHEMA_NAME, REPORT_NAME, CARD_NAME, REJECTED_NAME, "data", ".cache"}


def split_path(folder: Path, split: str) -> Path:
    return folder / "data" / f"{split}-00000-of-00001.parquet"


def read_split(dataset_dir: str | Path, split: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one split, with all columns or those named, in that order.

    Raises:
        FileNotFoundError: `dataset_dir` is not a dataset folder, or has no such split; the message names those it has.
        ValueError: the split has no such column; the message names those it has.
    """
    dataset_dir = Path(dataset_dir)
    DatasetSchema.load(dataset_dir)  # its errors say what is wrong with the folder
    paths = sorted((dataset_dir / "data").glob(f"{split}-*.parquet"))
    if not paths:
        available = sorted({path.name.split("-")[0] for path in (dataset_dir / "data").glob("*-*.parquet")})
        raise FileNotFoundError(f"{dataset_dir} has no split '{split}'; it has {', '.join(available) or 'none'}.")
    names = pq.read_schema(paths[0]).names
    unknown = [column for column in columns or [] if column not in names]
    if unknown:
        raise ValueError(f"{paths[0]} has no column {', '.join(unknown)}; it has {', '.join(names)}.")
    return pa.concat_tables([pq.read_table(path, columns=columns and list(columns)) for path in paths])


def check_output_dir(output_dir: str | Path, overwrite: bool = False) -> Path:
    """The resolved folder to write, if it may be written.

    Raises:
        FileExistsError: it is not empty, and either `overwrite` is off or it holds anything but a dataset folder.
    """
    # resolved: a link to a folder is replaced where it points to
    output_dir = Path(output_dir).expanduser().resolve()
    if not output_dir.exists():
        return output_dir
    if not output_dir.is_dir():
        raise FileExistsError(f"--output_dir {output_dir} is a file; name a folder.")
    entries = {path.name for path in output_dir.iterdir()}
    if not entries:
        return output_dir
    if not overwrite:
        raise FileExistsError(
            f"--output_dir {output_dir} is not empty; name another folder, or replace it with --overwrite_output_dir."
        )
    if SCHEMA_NAME not in entries:
        raise FileExistsError(
            f"--output_dir {output_dir} is not a dataset folder (it has no {SCHEMA_NAME}), so --overwrite_output_dir "
            "does not replace it; name another folder."
        )
    own_data = {split_path(output_dir, split) for split in SPLITS}
    foreign = entries - OWN_ENTRIES
    foreign |= {f"data/{path.name}" for path in (output_dir / "data").glob("*") if path not in own_data}
    if foreign:
        raise FileExistsError(
            f"--output_dir {output_dir} also holds {', '.join(sorted(foreign)[:5])}, which --overwrite_output_dir "
            "would delete; move that away, or name another folder."
        )
    return output_dir


def write_dataset_folder(
    output_dir: str | Path,
    splits: dict[str, pa.Table],
    schema: DatasetSchema,
    report: dict,
    card: str,
    overwrite: bool = False,
    rejected: pa.Table | None = None,
) -> Path:
    """Writes a dataset folder and returns its path; where anything fails, what was there before stays as it was.

    Args:
        splits: the rows of `train`, `validation` and `test`.
        report: content of `prepare_report.json`.
        card: content of `README.md`, see [`dataset_card`].
        overwrite: whether a dataset folder of this name may be replaced.
        rejected: content of `rejected.parquet`; without it there is no such file.

    Raises:
        FileExistsError: see [`check_output_dir`].
    """
    output_dir = check_output_dir(output_dir, overwrite)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    # a sibling, so that a rename stays within one file system
    with tempfile.TemporaryDirectory(dir=output_dir.parent, prefix=f".{output_dir.name}.") as temporary:
        partial, replaced = Path(temporary) / "new", Path(temporary) / "old"
        (partial / "data").mkdir(parents=True)
        for name, table in splits.items():
            pq.write_table(table, split_path(partial, name))
        if rejected is not None:
            pq.write_table(rejected, partial / REJECTED_NAME)
        schema.save(partial)
        (partial / REPORT_NAME).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / CARD_NAME).write_text(card, encoding="utf-8")
        try:
            if output_dir.exists():
                output_dir.rename(replaced)
            partial.rename(output_dir)
        except BaseException:
            if replaced.exists():
                replaced.rename(output_dir)
            raise
    return output_dir


def split_statistics(splits: dict[str, pa.Table], schema: DatasetSchema) -> dict[str, dict]:
    """For each split its rows, clicks and click rate, and for each field its distinct values and nulls and, outside
    `train`, the share of rows with a value that `train` never has (a null is not a value; a list is as many as it holds)."""
    known = {field.name: pc.unique(_single_values(splits["train"][field.name])[0]) for field in schema.fields}
    statistics = {}
    for name, table in splits.items():
        clicks = pc.sum(table[schema.label]).as_py()
        columns = {}
        for field in schema.fields:
            values, rows = _single_values(table[field.name])
            nulls = len(table) - pc.count_distinct(rows).as_py()
            columns[field.name] = {"values": pc.count_distinct(values).as_py(), "nulls": nulls}
            if name != "train":
                unseen = rows.filter(pc.invert(pc.is_in(values, value_set=known[field.name])))
                columns[field.name]["unseen_share"] = round(pc.count_distinct(unseen).as_py() / len(table), 6)
        statistics[name] = {
            "rows": len(table),
            "clicks": clicks,
            "click_rate": round(clicks / len(table), 6),
            "fields": columns,
        }
    return statistics


def _single_values(column: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """The values of a column, or of its lists, without nulls, and the row of each."""
    column = column.combine_chunks()  # else rows are counted anew in each chunk
    rows = pa.array(np.arange(len(column)))
    if hasattr(column.type, "value_field"):
        rows, column = rows.take(pc.list_parent_indices(column)), pc.list_flatten(column)
    valid = pc.is_valid(column)
    return column.filter(valid), rows.filter(valid)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence], right: bool = True) -> str:
    """A Markdown table; all columns but the first are set right, unless told otherwise."""
    cells = [header, ["---"] + ["---:" if right else "---"] * (len(header) - 1), *rows]
    lines = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def dataset_card(schema: DatasetSchema, report: dict, facts: dict[str, str]) -> str:
    """The dataset card, with the front matter by which `datasets.load_dataset(folder)` finds the splits.

    Args:
        report: with `rows_read`, `dropped` (by rule), `malformed`, `rows_kept` and `splits` ([`split_statistics`]).
        facts: `title`, `licence`, `licence_link` and `citation` of the raw data, and `values`, how they were cleaned, if
            they were.
    """
    files = [{"split": name, "path": f"data/{name}-*.parquet"} for name in report["splits"]]
    front_matter = {
        "pretty_name": facts["title"],
        "license": "other",
        "license_name": schema.dataset,
        "license_link": facts["licence_link"],
        "task_categories": ["tabular-classification"],
        "tags": ["click-through-rate", "recommendation", "flip-ctr"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    splits, protocol = report["splits"], schema.protocol
    keys = [field for field in schema.fields if field.key]
    rows = []
    for name, one in splits.items():
        counts = [one["fields"][field.name]["values"] for field in keys]
        rows.append([name, one["rows"], one["clicks"], f"{one['click_rate']:.4f}", *counts])
    split_header = ["split", "rows", "clicks", "click rate", *(f"{field.wording}s" for field in keys)]
    columns = [
        [
            f"`{field.name}`",
            field.type,
            field.entity,
            " + ".join(field.sides),
            splits["train"]["fields"][field.name]["values"],
            sum(one["fields"][field.name]["nulls"] for one in splits.values()),
            *(f"{100 * splits[name]['fields'][field.name]['unseen_share']:.2f} %" for name in SPLITS[1:]),
        ]
        for field in schema.fields
    ]
    column_header = ["column", "type", "entity", "views", "values in train", "nulls"]
    column_header += [f"unseen in {name}" for name in SPLITS[1:]]
    values = f"\n{facts['values']}\n" if "values" in facts else ""
    accounts = [["rows read", report["rows_read"]]]
    accounts += [[f"dropped: {rule}", count] for rule, count in report["dropped"].items()]
    accounts += [["malformed, or of an unknown user or item", report["malformed"]], ["kept", report["rows_kept"]]]
    return f"""---
{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)}---

# {facts["title"]}

Made from the raw files of `{schema.dataset}` by `flip-ctr prepare`; read it with `datasets.load_dataset(this_folder)`.
`{SCHEMA_NAME}` holds the fields and the protocol, `{REPORT_NAME}` every count, `{REJECTED_NAME}` every line that could not be
read or used, with file, line, reason and text.

* **Label** `{schema.label}`: {protocol["label_rule"]}.
* **Split** `{protocol["split"]}`, {":".join(map(str, protocol["ratios"]))}, seed {protocol["split_seed"]}:
  {protocol["split_rule"]}.

## Splits

{markdown_table(split_header, rows)}

## Fields

{markdown_table(column_header, columns)}

*Values* are distinct values; *unseen* is the share of rows whose value no training row has.
{values}
## Where the rows went

{markdown_table(["", "rows"], accounts)}

## Licence

{facts["licence"]}

## Citation

```bibtex
{facts["citation"]}
```
"""
