# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the commands that score rows: evaluate, predict and explain."""

from dataclasses import dataclass

from flip_ctr.train.option_groups import (
    CLICK_MODEL,
    DATASET_DIR,
    ESCAPE,
    EVENTS,
    ROW_FILES,
    LoadingOptions,
    ScoringOptions,
)
from flip_ctr.train.options import MAX_SEED, Options, option, required


@dataclass(kw_only=True)
class RowFileOptions(Options):
    title = "Tables beside the rows of files"

    side: list[str] | None = option(
        None,
        "NAME=FILE, side tables of the model's data whose columns the rows lack, by their names in its schema",
    )
    items: str | None = option(
        None,
        "file with a row for each item that histories name (the items.parquet of a dataset folder); not needed where "
        "the entries have all fields of their item; --events take fields from it that they lack",
        path=True,
    )
    events: str | None = option(
        None,
        f"{EVENTS}; the rows then must not have such columns themselves",
        path=True,
    )
    time_column: str | None = option(
        None, "column of events and rows: only events that are earlier than a row count (all of them when not given)"
    )
    label_delay: int = option(
        0,
        "with --time_column: how long after an event its click is known, in the unit of the times (seconds, of dates), "
        "as in the model's data: what was not known yet does not count",
        at_least=0,
    )


@dataclass
class EvaluateArguments(RowFileOptions, LoadingOptions, ScoringOptions):
    """Of `flip-ctr evaluate`."""

    model_name_or_path: str = required(CLICK_MODEL, model=True)
    dataset_dir: str | None = option(None, DATASET_DIR, path=True)
    split: str = option("test", "rows of the dataset folder to score", choices=("train", "validation", "test"))
    input: list[str] | None = option(None, f"instead of a dataset folder: {ROW_FILES}", path=True)
    label: str | None = option(
        None, "what a click is in the rows of files: a column of 0, 1, true or false, or a rule such as 'rating >= 4'"
    )
    drop: list[str] | None = option(None, "rules for rows of files that are not scored, such as 'rating == 3'")
    output_dir: str | None = option(
        None, "folder for all_results.json and reliability.png; only printed when not given", path=True
    )
    max_eval_samples: int | None = option(None, "evaluate on a seeded random sample of so many rows", at_least=1)
    seed: int = option(42, "seed of that sample, and of --candidates sampled", at_least=0, at_most=MAX_SEED)
    top_k: int | None = option(
        None, "also rank items for each user by score, and measure NDCG, MRR and hit rate of the first k", at_least=1
    )
    candidates: str = option(
        "split",
        "items that are ranked for a user; split: those of the user's rows in the split; catalogue: all of the dataset "
        "folder that the user has no row of in an earlier split; sampled: each click beside some of those, which is "
        "biased",
        choices=("split", "catalogue", "sampled"),
    )
    item_key: str | None = option(
        None,
        "field that tells items apart for --candidates catalogue and sampled; not needed where the dataset says it",
    )
    num_sampled: int = option(100, "items that are sampled for a user, for --candidates sampled", at_least=1)

    def check(self) -> None:
        if self.top_k is None:
            self.no_effect("without --top_k", candidates=None)
        elif self.max_eval_samples is not None:
            raise ValueError(
                "--top_k ranks all rows of a user, and --max_eval_samples leaves some out: give one of both"
            )
        if self.candidates == "split":
            self.no_effect("with --candidates split", item_key=None)
        if self.candidates != "sampled":
            self.no_effect("without --candidates sampled", num_sampled=None)
        elif self.num_sampled < self.top_k:
            raise ValueError(f"--num_sampled must be at least --top_k {self.top_k}; got {self.num_sampled}")
        if self.candidates != "split" and self.input is not None:
            raise ValueError(
                f"--candidates {self.candidates} takes the items of a dataset folder, and --input names files of rows; "
                "leave it out"
            )


@dataclass
class PredictArguments(RowFileOptions, LoadingOptions, ScoringOptions):
    """Of `flip-ctr predict`."""

    model_name_or_path: str = required(CLICK_MODEL, model=True)
    input: list[str] = required(ROW_FILES, path=True)
    output: str = required(
        "file to write, the rows with their probabilities (.parquet, .csv, .jsonl); it appears when all are scored",
        path=True,
    )
    overwrite_output: bool = option(False, "write in the place of an output that is there already")
    on_error: str = option(
        "stop",
        "stop: a line or value that cannot be read is an error, before any row is scored; null: such a row has no "
        "score, and a column `reason` says why",
        choices=("stop", "null"),
    )
    escape_formulas: bool = option(False, ESCAPE)
    engine: str = option(
        "local",
        "local: this machine scores; pyspark: Spark does, from Parquet to a folder of Parquet files",
        choices=("local", "pyspark"),
    )


@dataclass
class ExplainArguments(RowFileOptions, LoadingOptions, ScoringOptions):
    """Of `flip-ctr explain`."""

    model_name_or_path: str = required(CLICK_MODEL, model=True)
    input: list[str] = required(ROW_FILES, path=True)
    output: str = required(
        "file to write, a line for each row and part of it (.parquet, .csv, .jsonl); it appears when all are scored",
        path=True,
    )
    num_rows: int | None = option(None, "explain the first so many rows; all when not given", at_least=1)
    overwrite_output: bool = option(False, "write in the place of an output that is there already")
    escape_formulas: bool = option(False, ESCAPE)
    plots_dir: str | None = option(
        None,
        "folder for pictures: row-0.png of the first row and so on, and fields.png, the mean over all rows",
        path=True,
    )
    num_plots: int = option(5, "rows with a picture", at_least=1)

    def check(self) -> None:
        if self.plots_dir is None:
            self.no_effect("without --plots_dir", num_plots=None)
