# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Raw files to a dataset folder: label, split, and an account of every row.

    flip-ctr prepare --dataset ml-1m --output_dir data-1m                     # downloads the official archive
    flip-ctr prepare --dataset ml-100k --data_dir ml-100k.zip --split time --output_dir data-100k
    flip-ctr prepare --dataset bookcrossing --data_dir BX-CSV-Dump.zip --output_dir data-bx
    flip-ctr prepare --dataset goodreads --data_dir goodreads --split time --output_dir data-gr
    flip-ctr prepare --infer_schema clicks.csv users.csv --schema schema.yaml      # describes your own table, to edit
    flip-ctr prepare --dataset table --schema schema.yaml --output_dir data-mine

It imports neither torch nor transformers, unless --tokenizer_name asks for a tokenizer.
"""

import signal
import sys
import threading
from collections import Counter

from flip_ctr.data.datasets.infer_schema import write_schema
from flip_ctr.data.datasets.public_datasets import PUBLIC_DATASETS
from flip_ctr.data.datasets.raw_dataset import Source, ratings_source
from flip_ctr.data.datasets.table import table_source
from flip_ctr.data.datasets.table_schema import read_schema
from flip_ctr.data.prepare.dataset_card import dataset_card
from flip_ctr.data.prepare.dataset_folder import (
    REJECTED_NAME,
    check_account,
    check_output_dir,
    new_dataset_folder,
    write_items,
    write_rejected,
    write_split,
    write_texts,
)
from flip_ctr.data.prepare.dataset_picture import plot_dataset
from flip_ctr.data.prepare.engines import Engine
from flip_ctr.data.prepare.histories import history_lengths, history_rule
from flip_ctr.data.prepare.labelled_rows import prepare_rows
from flip_ctr.data.prepare.prompt_lengths import PromptMeter, prompt_lengths
from flip_ctr.data.prepare.same_items import SAME_ITEMS
from flip_ctr.data.prepare.split_statistics import check_splits, entity_prompts, split_statistics
from flip_ctr.data.prepare.splits import RATIOS, SPLIT_RULES
from flip_ctr.data.prepare.statistics import statistics_rule
from flip_ctr.data.readers.click_rates import STATISTICS, ClickRates
from flip_ctr.data.readers.dataset_schema import SPLITS, DatasetSchema
from flip_ctr.data.readers.download import fetch_archive, open_raw_folder
from flip_ctr.data.readers.raw_files import LineLog
from flip_ctr.data.readers.shards import shard_paths
from flip_ctr.train.prepare_arguments import TABLE, PrepareArguments

SCHEMA_FILE = "schema.yaml"


def open_source(args: PrepareArguments) -> Source:
    """The raw tables, what becomes of them, and what the folder says of that.

    Raises:
        FileNotFoundError, ConnectionError: raw files are missing, or cannot be downloaded.
        ValueError: a file's header lacks a column, or the schema of a table does not fit its files.
    """
    if args.dataset == TABLE:
        placing = args.split, args.split_seed, args.ratios, args.split_fold
        return table_source(read_schema(args.schema), args.data_dir, args.data_files, *placing)
    raw = PUBLIC_DATASETS[args.dataset]
    folder = open_raw_folder(args.dataset, args.data_dir or fetch_archive(args.dataset), raw.files)
    return ratings_source(
        raw,
        folder,
        args.click_threshold,
        args.dropped_ratings,
        args.ids_in_prompt,
        args.later_counts,
        split=args.split,
        seed=args.split_seed,
        ratios=tuple(args.ratios or RATIOS),
        fold=args.split_fold or 0,
        statistics=args.statistics or (),
        history=args.history,
        support_rows=args.support_rows,
        past=args.past,
        label_delay=args.label_delay,
        item_title=args.item_title,
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
    plan, meter = source.plan, PromptMeter(source.fields, args.tokenizer_name)

    with new_dataset_folder(args.output_dir, args.overwrite_output_dir) as (folder, work):
        log = LineLog(args.max_malformed_share, sink=work / REJECTED_NAME)
        with Engine(args.engine, work, args.memory_limit) as engine:
            # 2. Raw files to typed tables, these to labelled rows in splits.
            prepared = prepare_rows(engine, source.tables, plan, log)
            statistics = split_statistics(prepared.rows, source.fields, engine.fetch)
            check_splits(statistics, source.fields, plan.split, source.label_rule, source.way_out, plan.asked)
            there = [name for name in SPLITS if statistics[name]["rows"] or name in plan.asked]
            statistics = {name: statistics[name] for name in there}
            prompts = entity_prompts(prepared.rows, source.fields, engine.fetch)
            lengths = history_lengths(prepared.rows, engine.fetch) if plan.history else None

            # 3. The shards, and every line that became no row.
            for name in there:
                write_split(folder, name, prepared.split(SPLITS.index(name)), prepared.schema, statistics[name]["rows"])
            if plan.history:
                write_items(folder, prepared.item_batches(), prepared.items_schema)
            log.close()
            write_rejected(folder, engine.batches(engine.read(work / REJECTED_NAME).order_by(["_file", "line"])))

        # 4. An account of every row.
        reading = dict(source.reading)
        if plan.statistics:
            totals = (statistics["train"][name] for name in ("rows", "clicks"))
            reading[STATISTICS] = ClickRates(plan.statistics, *totals).to_dict()
        schema = DatasetSchema(
            dataset=source.dataset,
            fields=source.fields,
            user_column=plan.user,
            weight_column=plan.weight,
            reading=reading,
            protocol={
                "label_rule": source.label_rule,
                **source.protocol,
                "split": plan.split,
                "split_rule": plan.own_split.rule
                if plan.own_split
                else SPLIT_RULES[plan.split].format(
                    row_key="|".join(plan.row_key), item=plan.item, user=plan.user, time=plan.time
                )
                + (SAME_ITEMS.format(title=plan.item_title) if plan.item_title else ""),
                "split_seed": plan.seed,
                **({} if plan.own_split else {"ratios": list(plan.ratios)}),
                **({"split_fold": plan.fold} if plan.fold else {}),
                "row_key": list(plan.row_key),
                **(
                    {"statistics": statistics_rule(plan.order, plan.past, plan.support_rows)} if plan.statistics else {}
                ),
                **({"history": history_rule(plan.order, plan.history, plan.past)} if plan.history else {}),
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
            **({"support": prepared.support} if prepared.support else {}),
            **({"same_items": prepared.same_items} if prepared.same_items else {}),
            "rows_kept": sum(one["rows"] for one in statistics.values()),
            "splits": statistics,
            **({"history_lengths": lengths} if lengths else {}),
            "entity_prompts": prompts,
            "prompt_lengths": prompt_lengths({name: shard_paths(folder, name) for name in there}, meter),
            "events_files": list(source.events.files),
            "raw_files": log.files,
            "notes": list(source.notes),
        }
        check_account(report)
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
    counts.append(("malformed or unknown", report["malformed"]))
    if "support" in report:
        counts.append(("support, in no split", report["support"]["rows"]))
    counts.append(("kept", report["rows_kept"]))
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


def main(args: PrepareArguments) -> None:
    """Runs and says what was done; a signal to stop removes what was written so far."""
    if args.infer_schema is not None:
        print(write_schema(args.infer_schema, args.schema or SCHEMA_FILE))
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
