# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Raw files to a dataset folder: label, split, and an account of every row.

    flip-ctr prepare --dataset ml-1m --output_dir data-1m                     # downloads the official archive
    flip-ctr prepare --dataset ml-100k --data_dir ml-100k.zip --split time --output_dir data-100k
    flip-ctr prepare --dataset bookcrossing --data_dir BX-CSV-Dump.zip --output_dir data-bx

The same as `python -m flip_ctr.train.prepare …` or `python train/prepare.py …`.
"""

from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from flip_ctr.data import bookcrossing, movielens
from flip_ctr.data.dataset_folder import (
    REJECTED_NAME, check_output_dir, dataset_card, split_statistics, write_dataset_folder,
)  # fmt: skip
from flip_ctr.data.download import fetch_archive, open_raw_folder
from flip_ctr.data.raw import LineLog, RawDataset
from flip_ctr.data.schema import DatasetSchema
from flip_ctr.data.splits import RATIOS, SPLIT_RULES, check_both_classes, split_table
from flip_ctr.train.arguments import parse_arguments

DATASETS: dict[str, RawDataset] = movielens.DATASETS | bookcrossing.DATASETS


@dataclass
class PrepareArguments:
    dataset: Literal["ml-100k", "ml-1m", "bookcrossing"] = field(metadata={"help": "Which dataset the raw files are."})
    output_dir: str = field(metadata={"help": "Dataset folder to write."})
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with the raw files, or their zip. Without it the official archive is downloaded (MovieLens only)."
        },
    )
    split: Literal["random", "time", "cold_items", "cold_users"] = field(
        default="random",
        metadata={"help": "random: rows, by hash; time: the latest rows are test (not bookcrossing, which has no times); "
            "cold_*: items or users, by hash."},
    )
    split_seed: int = field(default=42, metadata={"help": "Part of what is hashed."})
    drop_ratings: str | None = field(
        default=None,
        metadata={
            "help": "Ratings to drop, comma separated; '' drops none. When not given: 3 of MovieLens, 0 (a book without a "
            "rating) of bookcrossing."
        },
    )
    click_threshold: int | None = field(
        default=None,
        metadata={"help": "A rating of at least this is a click. When not given: 4 of MovieLens, 8 of bookcrossing."},
    )
    preset: str | None = field(default=None, metadata={"help": "Named settings: paper puts the ids into the prompt."})
    ids_in_prompt: bool = field(default=False, metadata={"help": "Put the ids into the prompt (as the paper does)."})
    max_malformed_share: float = field(
        default=0.001, metadata={"help": "Share of a file's lines that may be malformed; above it nothing is written."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an existing dataset folder."})

    def __post_init__(self):
        if self.dataset not in DATASETS:
            raise ValueError(f"--dataset must be one of {', '.join(DATASETS)}; got {self.dataset!r}.")
        if self.split not in SPLIT_RULES:
            raise ValueError(f"--split must be one of {', '.join(SPLIT_RULES)}; got {self.split!r}.")
        if not 0 <= self.max_malformed_share <= 1:
            raise ValueError(f"--max_malformed_share is a share, from 0 to 1; got {self.max_malformed_share}.")
        raw = DATASETS[self.dataset]
        if self.data_dir is None and raw.described_at:
            raise ValueError(
                f"--data_dir is needed for {self.dataset}, which is not downloaded: name a folder or zip with "
                f"{', '.join(raw.files)}. They are described in {raw.described_at}."
            )
        if self.split == "time" and raw.time_column is None:
            raise ValueError(f"--split time: {self.dataset} has no times; use --split random, cold_items or cold_users.")
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
                f"--click_threshold must be from {lowest + 1} to {highest} for {self.dataset}, whose ratings go from {lowest} "
                f"to {highest}; got {self.click_threshold}."
            )

    @property
    def dropped_ratings(self) -> list[int]:
        return sorted({int(rating) for rating in self.drop_ratings.split(",") if rating.strip()})


def label_ratings(ratings: pa.Table, dropped_ratings: list[int], click_threshold: int) -> pa.Table:
    """Drops rows by rating and puts `label` (int8) in the place of `rating`; `ValueError` where one class remains."""
    kept = ratings.filter(pc.invert(pc.is_in(ratings["rating"], value_set=pa.array(dropped_ratings, pa.int64()))))
    labels = pc.greater_equal(kept["rating"], click_threshold).cast(pa.int8())
    table = kept.drop_columns("rating").append_column("label", labels)
    rule = f"--drop_ratings {','.join(map(str, dropped_ratings)) or 'none'} and --click_threshold {click_threshold}"
    check_both_classes(table, "label", f"what is left by {rule}")
    return table


def run(args: PrepareArguments) -> dict:
    """Writes the dataset folder and returns the report, which also lies in it as `prepare_report.json`.

    Raises:
        FileExistsError: the output folder is taken.
        FileNotFoundError, ConnectionError: raw files are missing, or cannot be downloaded.
        ValueError: too many malformed lines, a label rule or a split that leaves one class, no order in time.
    """
    # 1. Nothing is read before it is clear that the result may be written.
    check_output_dir(args.output_dir, args.overwrite_output_dir)

    # 2. Raw files to one table of ratings.
    raw = DATASETS[args.dataset]
    raw_folder = open_raw_folder(args.dataset, args.data_dir or fetch_archive(args.dataset), raw.files)
    log = LineLog(args.max_malformed_share)
    ratings = raw.read(raw_folder, log)

    # 3. Ratings to clicks.
    table = label_ratings(ratings, args.dropped_ratings, args.click_threshold)
    counts = {rating: pc.sum(pc.equal(ratings["rating"], rating)).as_py() for rating in args.dropped_ratings}

    # 4. Rows to splits.
    splits = split_table(
        table,
        args.split,
        args.split_seed,
        row_key=raw.row_key,
        user_column=raw.user_column,
        item_column=raw.item_column,
        time_column=raw.time_column,
    )
    stars = f"; ratings of {', '.join(map(str, args.dropped_ratings))} are dropped" if args.dropped_ratings else ""
    schema = DatasetSchema(
        dataset=args.dataset,
        fields=raw.fields(args.ids_in_prompt),
        user_column=raw.user_column,
        protocol={
            "label_rule": f"a rating of at least {args.click_threshold} is a click{stars}",
            "click_threshold": args.click_threshold,
            "drop_ratings": args.dropped_ratings,
            "split": args.split,
            "split_rule": SPLIT_RULES[args.split].format(
                row_key="|".join(raw.row_key), item=raw.item_column, user=raw.user_column, time=raw.time_column
            ),
            "split_seed": args.split_seed,
            "ratios": list(RATIOS),
            "row_key": list(raw.row_key),
        },
    )

    # 5. An account of every row, and the folder.
    ratings_file = log.files[raw.files[0]]
    report = {
        "dataset": args.dataset,
        "protocol": schema.protocol,
        "rows_read": ratings_file["lines"],
        "dropped": dict(ratings_file["unused_by_reason"]) | {f"rating {rating}": count for rating, count in counts.items()},
        "malformed": ratings_file["malformed"],
        "rows_kept": len(table),
        "splits": split_statistics(splits, schema),
        "raw_files": log.files,
    }
    card = dataset_card(schema, report, raw.card_facts)
    write_dataset_folder(args.output_dir, splits, schema, report, card, args.overwrite_output_dir, log.rejected_table())
    return report


def summary(report: dict) -> str:
    """The report in a few lines for a person."""
    counts = [("read", report["rows_read"]), *((f"dropped: {rule}", count) for rule, count in report["dropped"].items())]
    counts += [("malformed or unknown", report["malformed"]), ("kept", report["rows_kept"])]
    width = max(28, *(len(name) + 2 for name, _ in counts))
    lines = [f"{report['dataset']:<{width}}{'rows':>10}  click rate"]
    lines += [f"{name:<{width}}{count:>10,}" for name, count in counts]
    lines += [f"  {name:<{width - 2}}{one['rows']:>10,}  {one['click_rate']:.4f}" for name, one in report["splits"].items()]
    ratings_file = DATASETS[report["dataset"]].files[0]  # its dropped lines are rows, and stand above
    for name, entry in report["raw_files"].items():
        for one in entry["first_malformed"][:3]:
            lines.append(f"{name}, line {one['line']}: {one['reason']}: {one['text']!r}")
        if entry["malformed"] > 3:
            lines.append(f"{name}: {entry['malformed'] - 3:,} more malformed lines, see {REJECTED_NAME}")
        if name != ratings_file:
            lines += [f"{name}: {count:,} lines dropped: {reason}" for reason, count in entry["unused_by_reason"].items()]
        for kind, count in entry["values_changed"].items():
            lines.append(f"{name}: {count:,} values changed: {kind}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    description = "Raw files of MovieLens or BookCrossing to a dataset folder."
    args = parse_arguments(PrepareArguments, argv, prog="flip-ctr prepare", description=description)
    print(summary(run(args)))
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    main()
