# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Arguments of `flip-ctr prepare`, made of groups of options."""

from dataclasses import dataclass
from typing import ClassVar

from flip_ctr.train.options import Options, by_case, option, preset_names

TABLE = "table"
DATASETS = ("ml-100k", "ml-1m", "bookcrossing", "goodreads", TABLE)
SPLITS = ("random", "time", "leave_last_out", "by_user", "cold_items", "cold_users")
PAST = ("frozen", "rolling")
# options that mean nothing to some dataset, and what says it there
OF_RATINGS = {
    "drop_ratings": "`drop` of the schema",
    "click_threshold": "`label` of the schema",
    "ids_in_prompt": "`sides` of the schema's fields",
    "preset": "`sides` of the schema's fields",
    "later_counts": "what stands in the schema's `fields`",
    "statistics": "`statistics` of the schema",
    "history": "`history` of the schema",
    "support_rows": "`support_rows` of the schema",
    "past": "`past` of the schema",
    "label_delay": "`label_delay` of the schema",
    "item_title": "`item_title` of the schema",
}
OF_TABLES = ("schema", "data_files")


@dataclass(kw_only=True)
class TableOptions(Options):
    title = "A table of your own"

    schema: str | None = option(
        None,
        "YAML file that describes a table (docs/datasets.md), or with --infer_schema the one to write: schema.yaml "
        "when not given",
        path=True,
    )
    data_files: list[str] | None = option(
        None,
        "files or patterns of the events, in place of the schema's: relative to --data_dir, or to the current folder "
        "without it",
        path=True,
    )
    infer_schema: list[str] | None = option(
        None,
        "write a first --schema to edit from a sample of these files, and no dataset. The first are the events; files "
        "with other columns are side tables",
        path=True,
    )


@dataclass(kw_only=True)
class RowOptions(Options):
    title = "Rows and splits"

    split: str | None = option(
        None,
        "random (when neither this nor a schema says): rows, by hash; time: the latest rows are test; leave_last_out: "
        "each user's last row is test (neither of them for bookcrossing or the CSV of goodreads, which have no times); "
        "by_user: a share of each user's rows, by hash; cold_*: whole items or users, by hash",
        choices=SPLITS,
    )
    split_seed: int | None = option(None, "part of what is hashed; 42 when neither this nor a schema says")
    ratios: list[int] | None = option(
        None,
        "three whole numbers, the shares of train, validation and test; 8 1 1 when neither this nor a schema says. A "
        "split of 0 is left out",
        length=3,
        at_least=0,
    )
    split_fold: int | None = option(
        None,
        "which of the disjoint parts of the hashes is the test split, 0 to 9 with ratios 8 1 1; 0 when neither this "
        "nor a schema says. For random and cold_*: with all folds each row, item or user is tested once",
        at_least=0,
    )
    drop_ratings: str | None = option(
        None,
        "ratings to drop, comma separated; '' drops none. When not given: 3 of MovieLens, 0 (a book without a rating) "
        "of bookcrossing and goodreads. Not of a table",
    )
    click_threshold: int | None = option(
        None, "a rating of at least this is a click. When not given: 4 of MovieLens and goodreads, 8 of bookcrossing"
    )
    statistics: list[str] | None = option(
        None,
        "add the click rate, and the number, of earlier rows (of other training rows, in a split that is not by time) "
        "with the same user_id, movie_id, user_id+genre, ... as two numeric fields each. Not of a table",
    )
    history: int | None = option(
        None,
        "add the user's last so many earlier rows (other training rows, in a split that is not by time) as a list of "
        "items, each with whether it was clicked. Not of a table",
        at_least=1,
    )
    support_rows: int = option(
        0,
        "with --history and --split cold_users: so many first rows of each held-out user are its history, and in no "
        "split. Not of a table",
        at_least=0,
    )
    past: str = option(
        "frozen",
        "in a split by time, which earlier rows statistics and histories hold: frozen: training rows; rolling: for "
        "rows of validation and test those of validation and test too. Not of a table",
        choices=PAST,
    )
    label_delay: int = option(
        0,
        "in a split by time: how long after a row its click is known, in the unit of the times (seconds). Statistics "
        "and histories hold what was known before the row. Not of a table",
        at_least=0,
    )
    item_title: str | None = option(
        None,
        "with --split cold_items: the field whose text makes items one, such as title, so that no item is in two "
        "splits under two keys; its letters and digits count. Not of a table",
    )
    max_malformed_share: float = option(
        0.001, "share of a file's lines that may be malformed; above it nothing is written", at_least=0, at_most=1
    )


@dataclass(kw_only=True)
class PromptOptions(Options):
    title = "Prompts"

    preset: str | None = option(
        None, "named settings: paper puts the ids into the prompt, and keeps later counts", choices=preset_names()
    )
    ids_in_prompt: bool = by_case(
        "put the ids into the prompt, and fields that name a person: MovieLens' zip code, BookCrossing's location (as "
        "the paper does)"
    )
    later_counts: bool = by_case(
        "keep fields that count what came after a row too, and its own rating among it: GoodReads' average rating and "
        "number of reviews (as the paper does)"
    )
    tokenizer_name: str | None = option(
        None, "a PLM (path or hub id) whose tokens the card counts the prompts in; words when not given", model=True
    )


@dataclass(kw_only=True)
class EngineOptions(Options):
    title = "Engine"

    engine: str = option(
        "duckdb",
        "what joins, labels and splits: DuckDB in this process, or Spark (pip install 'flip-ctr[spark]', Java 17)",
        choices=("duckdb", "pyspark"),
    )
    memory_limit: str | None = option(
        None,
        "most memory that DuckDB takes, e.g. 4GB; the rest goes through files. Four fifths of the machine's when not "
        "given",
    )


@dataclass
class PrepareArguments(TableOptions, RowOptions, PromptOptions, EngineOptions):
    """Of `flip-ctr prepare`."""

    recipe: ClassVar[str] = "prepare"
    title = "Files"

    dataset: str | None = option(
        None, "which dataset the raw files are; table: any table, which --schema describes", choices=DATASETS
    )
    output_dir: str | None = option(None, "dataset folder to write", path=True)
    data_dir: str | None = option(
        None,
        "folder with the raw files, or their zip. Without it the official archive is downloaded (MovieLens only). Of a "
        "table the folder to which the schema's files are relative; that of the schema when not given",
        path=True,
    )
    overwrite_output_dir: bool = option(False, "replace an existing dataset folder")

    def check(self) -> None:
        if self.infer_schema is not None:
            self._refuse(self.given - {"dataset", "infer_schema", "schema"}, "--infer_schema")
            if self.dataset not in (None, TABLE):
                raise ValueError(f"--infer_schema is for --dataset {TABLE}; {self.dataset} is known already.")
            return
        if self.dataset is None:
            raise ValueError(f"--dataset must be one of {', '.join(DATASETS)}.")
        if self.output_dir is None:
            raise ValueError("--output_dir is needed: the dataset folder to write.")
        if self.ratios is not None and self.ratios[0] == 0:
            shares = " ".join(map(str, self.ratios))
            raise ValueError(f"--ratios: the first share, that of train, must be above 0; got {shares}.")
        if self.dataset != TABLE:
            self._refuse(OF_TABLES, f"--dataset {self.dataset}")
            self._check_ratings()
            return
        self._refuse(OF_RATINGS, f"--dataset {TABLE}")
        if self.schema is None:
            raise ValueError(
                f"--schema is needed for --dataset {TABLE}: a YAML file that describes it (docs/datasets.md); "
                "--infer_schema FILE writes a first one."
            )

    def _refuse(self, names, owner: str) -> None:
        """`ValueError` where one of the options was given, as it would have no effect."""
        for name in sorted(self.given.intersection(names)):
            instead = f"; {OF_RATINGS[name]} says that" if owner == f"--dataset {TABLE}" else ""
            raise ValueError(f"--{name} has no effect with {owner}{instead}.")

    def _check_ratings(self) -> None:
        """Sets what is not given to what the dataset has, and raises `ValueError` where a value is not for it."""
        from flip_ctr.data.datasets.public_datasets import PUBLIC_DATASETS
        from flip_ctr.data.prepare.splits import SEED, check_split

        raw = PUBLIC_DATASETS[self.dataset]
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
                f"{lowest} to {highest}; got {self.click_threshold}."
            )

    @property
    def dropped_ratings(self) -> list[int]:
        return sorted({int(rating) for rating in self.drop_ratings.split(",") if rating.strip()})
