# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Raw files to a dataset folder: label, split, and an account of every row.

    flip-ctr prepare --dataset ml-1m --output_dir data-1m                     # downloads the official archive
    flip-ctr prepare --dataset ml-100k --data_dir ml-100k.zip --split time --output_dir data-100k

The same as `python -m flip_ctr.train.prepare …` or `python train/prepare.py …`.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from flip_ctr.data.dataset_folder import check_output_dir, dataset_card, split_statistics, write_dataset_folder
from flip_ctr.data.download import fetch_archive, open_raw_folder
from flip_ctr.data.movielens import RAW_FILES, LineLog, card_facts, movielens_fields, read_movielens
from flip_ctr.data.schema import DatasetSchema
from flip_ctr.data.splits import RATIOS, SPLIT_RULES, check_both_classes, split_table
from flip_ctr.train.arguments import parse_arguments

ROW_KEY = ("user_id", "movie_id")


@dataclass
class PrepareArguments:
    dataset: Literal["ml-100k", "ml-1m"] = field(metadata={"help": "Which dataset the raw files are."})
    output_dir: str = field(metadata={"help": "Dataset folder to write."})
    data_dir: str | None = field(
        default=None,
        metadata={"help": "Folder with the raw files, or their zip. Without it the official archive is downloaded."},
    )
    split: Literal["random", "time", "cold_items", "cold_users"] = field(
        default="random",
        metadata={"help": "random: rows, by hash; time: the latest rows are test; cold_*: items or users, by hash."},
    )
    split_seed: int = field(default=42, metadata={"help": "Part of what is hashed."})
    drop_ratings: str = field(default="3", metadata={"help": "Ratings to drop, comma separated; '' drops none."})
    click_threshold: int = field(default=4, metadata={"help": "A rating of at least this is a click."})
    preset: str | None = field(default=None, metadata={"help": "Named settings: paper puts the ids into the prompt."})
    ids_in_prompt: bool = field(default=False, metadata={"help": "Put the ids into the prompt (as the paper does)."})
    max_malformed_share: float = field(
        default=0.001, metadata={"help": "Share of a file's lines that may be malformed; above it nothing is written."}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace an existing dataset folder."})

    def __post_init__(self):
        if self.dataset not in RAW_FILES:
            raise ValueError(f"--dataset must be one of {', '.join(RAW_FILES)}; got {self.dataset!r}.")
        if self.split not in SPLIT_RULES:
            raise ValueError(f"--split must be one of {', '.join(SPLIT_RULES)}; got {self.split!r}.")
        if not 0 <= self.max_malformed_share <= 1:
            raise ValueError(f"--max_malformed_share is a share, from 0 to 1; got {self.max_malformed_share}.")
        self.drop_ratings = str(self.drop_ratings)  # a YAML file may say `drop_ratings: 3`
        if not re.fullmatch(r"\s*([1-5]\s*(,\s*[1-5]\s*)*)?", self.drop_ratings):
            raise ValueError(f"--drop_ratings takes ratings from 1 to 5, as '3' or '2,3'; got {self.drop_ratings!r}.")

    @property
    def dropped_ratings(self) -> list[int]:
        return sorted({int(rating) for rating in re.findall("[1-5]", self.drop_ratings)})


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
    raw_files = RAW_FILES[args.dataset]
    raw_folder = open_raw_folder(args.dataset, args.data_dir or fetch_archive(args.dataset), raw_files)
    log = LineLog(args.max_malformed_share)
    ratings = read_movielens(args.dataset, raw_folder, log)

    # 3. Ratings to clicks.
    table = label_ratings(ratings, args.dropped_ratings, args.click_threshold)
    counts = {rating: pc.sum(pc.equal(ratings["rating"], rating)).as_py() for rating in args.dropped_ratings}

    # 4. Rows to splits.
    splits = split_table(
        table,
        args.split,
        args.split_seed,
        row_key=ROW_KEY,
        user_column="user_id",
        item_column="movie_id",
        time_column="timestamp",
    )
    stars = f"; ratings of {', '.join(map(str, args.dropped_ratings))} are dropped" if args.dropped_ratings else ""
    schema = DatasetSchema(
        dataset=args.dataset,
        fields=movielens_fields(args.dataset, args.ids_in_prompt),
        user_column="user_id",
        protocol={
            "label_rule": f"a rating of at least {args.click_threshold} is a click{stars}",
            "click_threshold": args.click_threshold,
            "drop_ratings": args.dropped_ratings,
            "split": args.split,
            "split_rule": SPLIT_RULES[args.split].format(
                row_key="|".join(ROW_KEY), item="movie_id", user="user_id", time="timestamp"
            ),
            "split_seed": args.split_seed,
            "ratios": list(RATIOS),
            "row_key": list(ROW_KEY),
        },
    )

    # 5. An account of every row, and the folder.
    ratings_file = log.files[raw_files[0]]
    report = {
        "dataset": args.dataset,
        "protocol": schema.protocol,
        "rows_read": ratings_file["lines"],
        "dropped": {f"rating {rating}": count for rating, count in counts.items()},
        "malformed": ratings_file["malformed"],
        "rows_kept": len(table),
        "splits": split_statistics(splits, schema),
        "raw_files": log.files,
    }
    card = dataset_card(schema, report, card_facts(args.dataset))
    write_dataset_folder(args.output_dir, splits, schema, report, card, args.overwrite_output_dir)
    return report


def summary(report: dict) -> str:
    """The report in a few lines for a person."""
    lines = [f"{report['dataset']:<28}{'rows':>10}  click rate", f"{'read':<28}{report['rows_read']:>10,}"]
    lines += [f"{f'dropped: {rule}':<28}{count:>10,}" for rule, count in report["dropped"].items()]
    lines += [f"{'malformed or unknown':<28}{report['malformed']:>10,}", f"{'kept':<28}{report['rows_kept']:>10,}"]
    lines += [f"  {name:<26}{one['rows']:>10,}  {one['click_rate']:.4f}" for name, one in report["splits"].items()]
    for name, entry in report["raw_files"].items():
        for one in entry["first_malformed"][:3]:
            lines.append(f"{name}, line {one['line']}: {one['reason']}: {one['text']!r}")
        if entry["malformed"] > 3:
            lines.append(f"{name}: {entry['malformed'] - 3:,} more malformed lines, see prepare_report.json")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    description = "Raw MovieLens files to a dataset folder."
    args = parse_arguments(PrepareArguments, argv, prog="flip-ctr prepare", description=description)
    print(summary(run(args)))
    print(f"written to {args.output_dir}")


if __name__ == "__main__":
    main()
