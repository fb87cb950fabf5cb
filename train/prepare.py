# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Raw files to a dataset folder: label, split, and an account of every row.

    flip-ctr prepare --dataset ml-1m --output_dir data-1m                     # downloads the official archive
    flip-ctr prepare --dataset ml-100k --data_dir ml-100k.zip --split time --output_dir data-100k
    flip-ctr prepare --dataset bookcrossing --data_dir BX-CSV-Dump.zip --output_dir data-bx
    flip-ctr prepare --dataset goodreads --data_dir goodreads --split time --output_dir data-gr
    flip-ctr prepare --infer_schema clicks.csv users.csv --schema schema.yaml      # a first description of your own
    table, to edit flip-ctr prepare --dataset table --schema schema.yaml --output_dir data-mine

The same as `python -m flip_ctr.train.prepare …` or `python train/prepare.py …`.
"""

import signal
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Literal

from flip_ctr.data.datasets import bookcrossing, goodreads, movielens
from flip_ctr.data.datasets.infer_schema import infer_schema
from flip_ctr.data.datasets.raw_dataset import RawDataset, Source, ratings_source
from flip_ctr.data.datasets.table import table_source
from flip_ctr.data.datasets.table_schema import check_ratios, read_schema
from flip_ctr.data.prepare.dataset_card import dataset_card
from flip_ctr.data.prepare.dataset_folder import (
    REJECTED_NAME,
    check_output_dir,
    new_dataset_folder,
    write_rejected,
    write_split,
    write_texts,
)
from flip_ctr.data.prepare.dataset_picture import plot_dataset
from flip_ctr.data.prepare.engines import Engine
from flip_ctr.data.prepare.labelled_rows import prepare_rows
from flip_ctr.data.prepare.prompt_lengths import prompt_lengths
from flip_ctr.data.prepare.split_statistics import check_splits, split_statistics
from flip_ctr.data.prepare.splits import RATIOS, SEED, SPLIT_RULES, check_split, check_split_name
from flip_ctr.data.readers.dataset_schema import SPLITS, DatasetSchema
from flip_ctr.data.readers.download import fetch_archive, open_raw_folder
from flip_ctr.data.readers.raw_files import LineLog
from flip_ctr.data.readers.shards import shard_paths
from flip_ctr.train.arguments import parse_arguments, preset_settings

DATASETS: dict[str, RawDataset] = movielens.DATASETS | bookcrossing.DATASETS | goodreads.DATASETS
TABLE = "table"
SCHEMA_FILE = "schema.yaml"
# options that mean nothing to some dataset, and what says it there
OF_RATINGS = {
    "drop_ratings": "`drop` of the schema",
    "click_threshold": "`label` of the schema",
    "ids_in_prompt": "`sides` of the schema's fields",
    "preset": "`sides` of the schema's fields",
}
OF_TABLES = ("schema", "data_files")


@dataclass
class PrepareArguments:
    dataset: Literal["ml-100k", "ml-1m", "bookcrossing", "goodreads", "table"] | None = field(
        default=None, metadata={"help": "Which dataset the raw files are; table: any table, which --schema describes."}
    )
    output_dir: str | None = field(default=None, metadata={"help": "Dataset folder to write."})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the raw files, or their zip. Without it the official archive is downloaded "
            "(MovieLens only). Of a table "
            "the folder to which the schema's files are relative; that of the schema when not given."
        },
    )
    schema: str | None = field(
        default=None,
        metadata={
            "help": "YAML file that describes a table (docs/datasets.md), or with --infer_schema the one to write: "
            "schema.yaml when "
            "not given."
        },
    )
    data_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Files or patterns of a table's events, in place of the schema's: relative to --data_dir, or to "
            "the current "
            "folder without it.",
            "nargs": "+",
        },
    )
    infer_schema: list[str] | None = field(
        default=None,
        metadata={
            "help": "Write a first --schema to edit from a sample of these files, and no dataset. The first are the "
            "events; files "
            "with other columns are side tables.",
            "nargs": "+",
        },
    )
    split: Literal["random", "time", "leave_last_out", "by_user", "cold_items", "cold_users"] | None = field(
        default=None,
        metadata={
            "help": "random (when neither this nor a schema says): rows, by hash; time: the latest rows are test; "
            "leave_last_out: each "
            "user's last row is test (neither of them for bookcrossing or the CSV of goodreads, which have no times); "
            "by_user: a share of each "
            "user's rows, by hash; cold_*: whole items or users, by hash."
        },
    )
    split_seed: int | None = field(
        default=None, metadata={"help": f"Part of what is hashed; {SEED} when neither this nor a schema says."}
    )
    ratios: list[int] | None = field(
        default=None,
        metadata={
            "help": "Three whole numbers, the shares of train, validation and test; 8 1 1 when neither this nor a "
            "schema says.",
            "nargs": 3,
        },
    )
    drop_ratings: str | None = field(
        default=None,
        metadata={
            "help": "Ratings to drop, comma separated; '' drops none. When not given: 3 of MovieLens, 0 (a book "
            "without a "
            "rating) of bookcrossing and goodreads. Not of a table."
        },
    )
    click_threshold: int | None = field(
        default=None,
        metadata={
            "help": "A rating of at least this is a click. When not given: 4 of MovieLens and goodreads, 8 of "
            "bookcrossing."
        },
    )
    preset: str | None = field(default=None, metadata={"help": "Named settings: paper puts the ids into the prompt."})
    ids_in_prompt: bool = field(default=False, metadata={"help": "Put the ids into the prompt (as the paper does)."})
    max_malformed_share: float = field(
        default=0.001, metadata={"help": "Share of a file's lines that may be malformed; above it nothing is written."}
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "A PLM (path or hub id) whose tokens the card counts the prompts in; words when not given."},
    )
    engine: Literal["duckdb", "pyspark"] = field(
        default="duckdb",
        metadata={
            "help": "What joins, labels and splits: DuckDB in this process, or Spark (pip install 'flip-ctr[spark]', "
            "Java 17)."
        },
    )
    memory_limit: str | None = field(
        default=None,
        metadata={
            "help": "Most memory that DuckDB takes, e.g. 4GB; the rest goes through files. four fifths of the "
            "machine's "
            "when not given."
        },
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an existing dataset folder."})

    def __post_init__(self):
        if not 0 <= self.max_malformed_share <= 1:
            raise ValueError(f"--max_malformed_share is a share, from 0 to 1; got {self.max_malformed_share}.")
        for name in ("data_files", "infer_schema"):
            if isinstance(getattr(self, name), str):  # a YAML file may say `data_files: clicks.csv`
                setattr(self, name, [getattr(self, name)])
        if self.ratios is not None:
            self.ratios = list(check_ratios("--ratios", self.ratios))
        if self.infer_schema is not None:
            self._refuse(
                [one.name for one in fields(self) if one.name not in ("dataset", "infer_schema", "schema")],
                "--infer_schema",
            )
            if self.dataset not in (None, TABLE):
                raise ValueError(f"--infer_schema is for --dataset {TABLE}; {self.dataset} is known already.")
            return
        if self.split is not None:
            check_split_name(self.split)
        names = [*DATASETS, TABLE]
        if self.dataset not in names:
            raise ValueError(f"--dataset must be one of {', '.join(names)}; got {self.dataset!r}.")
        if self.output_dir is None:
            raise ValueError("--output_dir is needed: the dataset folder to write.")
        if self.dataset != TABLE:
            self._refuse(OF_TABLES, f"--dataset {self.dataset}")
            self._check_ratings(DATASETS[self.dataset])
            if self.preset is not None and preset_settings(PrepareArguments, self.preset) != {
                "ids_in_prompt": self.ids_in_prompt
            }:
                raise ValueError(
                    f"--preset {self.preset} puts the ids into the prompt, and ids_in_prompt is {self.ids_in_prompt}: "
                    "leave the preset "
                    "out, or set both."
                )
            return
        self._refuse(OF_RATINGS, f"--dataset {TABLE}")
        if self.schema is None:
            raise ValueError(
                f"--schema is needed for --dataset {TABLE}: a YAML file that describes it (docs/datasets.md); "
                "--infer_schema FILE writes a first one."
            )

    def _refuse(self, names, owner: str) -> None:
        """`ValueError` where one of the options was given, as it would have no effect."""
        for one in fields(self):
            if one.name in names and getattr(self, one.name) != one.default:
                instead = f"; {OF_RATINGS[one.name]} says that" if owner == f"--dataset {TABLE}" else ""
                raise ValueError(f"--{one.name} has no effect with {owner}{instead}.")

    def _check_ratings(self, raw: RawDataset) -> None:
        """Sets what is not given to what the dataset has, and raises `ValueError` where a value is not for it."""
        self.split, self.split_seed = self.split or "random", SEED if self.split_seed is None else self.split_seed
        if self.data_dir is None and raw.described_at:
            raise ValueError(
                f"--data_dir is needed for {self.dataset}, which is not downloaded: name a folder or zip with "
                f"{', '.join(raw.files)}. They are described in {raw.described_at}."
            )
        check_split(self.split, user=raw.user, item=raw.item, time=raw.time)
        lowest, highest = raw.ratings[0], raw.ratings[-1]
        if self.drop_ratings is None:
            self.drop_ratings = ",".join(map(str, raw.drop_ratings))
        self.drop_ratings = str(self.drop_ratings)  # a YAML file may say `drop_ratings: 3`
        given = [rating.strip() for rating in self.drop_ratings.split(",")] if self.drop_ratings.strip() else []
        if not set(given) <= set(map(str, raw.ratings)):
            raise ValueError(
                f"--drop_ratings takes ratings from {lowest} to {highest} for {self.dataset}, as '3' or '2,3'; "
                f"got {self.drop_ratings!r}."
            )
        if self.click_threshold is None:
            self.click_threshold = raw.click_threshold
        if not lowest < self.click_threshold <= highest:
            raise ValueError(
                f"--click_threshold must be from {lowest + 1} to {highest} for {self.dataset}, whose ratings go from "
                f"{lowest} "
                f"to {highest}; got {self.click_threshold}."
            )

    @property
    def dropped_ratings(self) -> list[int]:
        return sorted({int(rating) for rating in self.drop_ratings.split(",") if rating.strip()})


def open_source(args: PrepareArguments) -> Source:
    """The raw tables, what becomes of them, and what the folder says of that.

    Raises:
        FileNotFoundError, ConnectionError: raw files are missing, or cannot be downloaded.
        ValueError: a file's header lacks a column, or the schema of a table does not fit its files.
    """
    if args.dataset == TABLE:
        return table_source(
            read_schema(args.schema), args.data_dir, args.data_files, args.split, args.split_seed, args.ratios
        )
    raw = DATASETS[args.dataset]
    folder = open_raw_folder(args.dataset, args.data_dir or fetch_archive(args.dataset), raw.files)
    return ratings_source(
        raw,
        folder,
        args.click_threshold,
        args.dropped_ratings,
        args.ids_in_prompt,
        split=args.split,
        seed=args.split_seed,
        ratios=tuple(args.ratios or RATIOS),
    )


def run(args: PrepareArguments) -> dict:
    """Writes the dataset folder and returns the report, which also lies in it as `prepare_report.json`.

    Raises:
        FileExistsError: the output folder is taken.
        FileNotFoundError, ConnectionError: raw files are missing, or cannot be downloaded.
        ImportError: `--engine pyspark` without PySpark.
        OSError: the disk is full, or the engine fails.
        ValueError: too many malformed lines, a label rule or a split that leaves one class, no order in time.
    """
    # 1. Nothing is read before it is clear that the result may be written.
    check_output_dir(args.output_dir, args.overwrite_output_dir)
    source = open_source(args)
    plan = source.plan

    with new_dataset_folder(args.output_dir, args.overwrite_output_dir) as (folder, work):
        log = LineLog(args.max_malformed_share, sink=work / REJECTED_NAME)
        with Engine(args.engine, work, args.memory_limit) as engine:
            # 2. Raw files to typed tables, these to labelled rows in splits.
            prepared = prepare_rows(engine, source.tables, plan, log)
            statistics = split_statistics(prepared.rows, source.fields, engine.fetch)
            check_splits(statistics, source.fields, plan.split, source.label_rule, source.way_out)

            # 3. The shards, and every line that became no row.
            for code, name in enumerate(SPLITS):
                write_split(folder, name, prepared.split(code), prepared.schema, statistics[name]["rows"])
            log.close()
            write_rejected(folder, engine.batches(engine.read(work / REJECTED_NAME).order_by(["_file", "line"])))

        # 4. An account of every row.
        schema = DatasetSchema(
            dataset=source.dataset,
            fields=source.fields,
            user_column=plan.user,
            weight_column=plan.weight,
            protocol={
                "label_rule": source.label_rule,
                **source.protocol,
                "split": plan.split,
                "split_rule": SPLIT_RULES[plan.split].format(
                    row_key="|".join(plan.row_key), item=plan.item, user=plan.user, time=plan.time
                ),
                "split_seed": plan.seed,
                "ratios": list(plan.ratios),
                "row_key": list(plan.row_key),
            },
        )
        events = [log.files[name] for name in source.events.files]
        unused = sum((entry["unused_by_reason"] for entry in events), Counter())
        report = {
            "dataset": source.dataset,
            "protocol": schema.protocol,
            "rows_read": sum(entry["lines"] for entry in events),
            "dropped": dict(unused) | prepared.dropped,
            "malformed": sum(entry["malformed"] for entry in events),
            "rows_kept": sum(one["rows"] for one in statistics.values()),
            "splits": statistics,
            "prompt_lengths": prompt_lengths(
                {name: shard_paths(folder, name) for name in SPLITS}, source.fields, args.tokenizer_name
            ),
            "events_files": list(source.events.files),
            "raw_files": log.files,
            "notes": list(source.notes),
        }
        picture = plot_dataset(report, schema, folder)
        write_texts(folder, schema, report, dataset_card(schema, report, source.card_facts, picture is not None))
    return report


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def summary(report: dict) -> str:
    """The report in a few lines for a person."""
    counts = [
        ("read", report["rows_read"]),
        *((f"dropped: {rule}", count) for rule, count in report["dropped"].items()),
    ]
    counts += [("malformed or unknown", report["malformed"]), ("kept", report["rows_kept"])]
    width = max(28, *(len(name) + 2 for name, _ in counts))
    lines = [f"{report['dataset']:<{width}}{'rows':>10}  click rate"]
    lines += [f"{name:<{width}}{count:>10,}" for name, count in counts]
    lines += [
        f"  {name:<{width - 2}}{one['rows']:>10,}  {one['click_rate']:.4f}" for name, one in report["splits"].items()
    ]
    for name, entry in report["raw_files"].items():
        for one in entry["first_malformed"][:3]:
            lines.append(f"{name}, line {one['line']}: {one['reason']}: {one['text']!r}")
        if entry["malformed"] > 3:
            lines.append(f"{name}: {counted(entry['malformed'] - 3, 'more malformed line')}, see {REJECTED_NAME}")
        if name not in report["events_files"]:  # dropped lines of these are rows, and stand above
            lines += [
                f"{name}: {counted(count, 'line')} dropped: {reason}"
                for reason, count in entry["unused_by_reason"].items()
            ]
        for kind, count in entry["values_changed"].items():
            lines.append(f"{name}: {counted(count, 'value')} changed: {kind}")
    return "\n".join([*lines, *report["notes"]])


def main(argv: list[str] | None = None) -> None:
    description = "Raw files of MovieLens, BookCrossing, GoodReads or any table of yours to a dataset folder."
    args = parse_arguments(PrepareArguments, argv, prog="flip-ctr prepare", description=description)
    if args.infer_schema is not None:
        print(infer_schema(args.infer_schema, args.schema or SCHEMA_FILE))
        return
    signals = []

    def stop(number: int, frame) -> None:
        signals.append(number)
        sys.exit(128 + number)  # what was written so far is removed then, as after any other end

    main_thread = threading.current_thread() is threading.main_thread()  # Python lets no other say what a signal does
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT) if main_thread}
    try:
        report = run(args)
    except RuntimeError:  # of DuckDB, in whose query the signal came
        if not signals:
            raise
        sys.exit(128 + signals[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    print(summary(report))
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    main()
