# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Ranking for whole user bases: the best items of a catalogue for each user of a file.

flip-ctr rank --model_name_or_path M --items items.parquet --users users.parquet --output best.parquet
accelerate launch -m flip_ctr.train.cli rank --model_name_or_path M --items D --users users.csv --output best.csv
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from flip_ctr.data.readers.row_files import RowWriter, check_output_file
from flip_ctr.data.readers.row_reader import RowReader
from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.fields_flip import FlipField
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.values_flip import Value
from flip_ctr.serve.catalogue import ITEMS, MANIFEST
from flip_ctr.serve.item_files import fields_of_file, read_items, read_pairs
from flip_ctr.serve.ranker import FlipRanker
from flip_ctr.train.loop.event_columns import EventColumns, statistics_of
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.run_log import set_up_logging
from flip_ctr.train.serve_arguments import RankArguments

RANK = "rank"
KEY_TYPES = {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}  # of others text
SCORES_AT_ONCE = 2**22  # of users and items, that are in memory


def run(args: RankArguments) -> dict[str, int]:
    """Writes for each user the best items: the columns of the user's keys (of a model without one, of all fields of the
    user), `rank` from 1, the item's key and the probabilities. Returns how many `users` were read, and how many `rows`
    written.

    Raises:
        ValueError: the output is there already; or users or items lack a column, or hold a value that cannot be read
            (names file and line).
    """
    check_output_file(args.output, args.overwrite_output, args.escape_formulas)
    import_custom_code(args.custom_code)
    accelerator = make_accelerator(args.mixed_precision)
    set_up_logging(accelerator)
    events, items = open_events(args)
    ranker = FlipRanker.from_pretrained(
        args.model_name_or_path,
        items,
        args.item_key,
        accelerator.device,
        base_model_name_or_path=args.base_model_name_or_path,
        backend=args.backend,
    )
    users = UsersToRank(ranker, args, events)
    keys = [field.name for field in users.keys if field.key]
    index, processes, main = accelerator.process_index, accelerator.num_processes, accelerator.is_main_process
    counts, parts, seen = {"users": 0, "rows": 0}, users.parts(), set()
    with RowWriter(args.output, None, users.keys, main, args.overwrite_output, args.escape_formulas) as writer:
        with tqdm(unit="user", unit_scale=True, dynamic_ncols=True, disable=not main) as bar:
            while several := list(islice(parts, processes)):  # one for each process
                mine = []
                if index < len(several):
                    with accelerator.autocast():
                        mine = [users.rank(several[index])]
                for part, best in zip(several, gather_object(mine) if processes > 1 else mine):
                    writer.write(best, {})
                    counts["users"] += len(part)
                    seen |= {tuple(row.values()) for row in part.select(keys).to_pylist()} if keys else set()
                    counts["rows"] += len(best)
                    bar.update(len(part))
        if counts["users"] == 0:
            raise ValueError(f"{', '.join(args.users)} has no users")
    accelerator.wait_for_everyone()  # for the output, which one process writes
    if main:
        several = f"rows of {len(seen):,} " if keys and len(seen) < counts["users"] else ""
        print(f"{counts['rows']:,} items for {counts['users']:,} {several}users written to {args.output}")
    return counts


def open_events(args: RankArguments) -> tuple[EventColumns | None, str | pa.Table]:
    """The events, and the items with those of their click rates that events make.

    Raises:
        FileNotFoundError, ValueError: as of [`EventColumns`] and [`read_items`]; or a click rate that users and items
            lack is of both together, or of the items of a saved catalogue.
    """
    if args.events is None:
        return None, args.items
    processor = FlipProcessor.from_pretrained(args.model_name_or_path)
    place = Path(args.items)
    is_saved = (place / MANIFEST).is_file()
    items = args.items if is_saved else read_items(args.items, processor, args.item_key)
    have = {*(pq.read_schema(place / ITEMS).names if isinstance(items, str) else items.column_names)}
    there = have | {field.name for field in fields_of_file(args.users[0], processor, "--users")}
    statistics = [one for one in statistics_of(processor) if not there & {*one.columns}]
    of_items = [one for one in statistics if have >= {*one.keys}]
    for one in statistics:
        if one not in of_items and have & {*one.keys}:
            raise ValueError(
                f"--events: '{one.rate}' counts rows by {' and '.join(one.keys)}, which users and items have apart: "
                "score rows of both with predict, or give --users the column"
            )
    events = EventColumns(args.events, processor, statistics)
    if isinstance(items, str):
        if of_items:
            raise ValueError(
                f"{items}: its items have no '{of_items[0].rate}', and --events adds none to a saved catalogue"
            )
        return events, items
    return events, events.with_rates(items, of_items)


class UsersToRank:
    """The users of files, with what belongs to them.

    Args:
        events: that make what the users lack.

    Raises:
        ValueError: a column is missing, or what is given does not fit the model.
    """

    def __init__(self, ranker: FlipRanker, args: RankArguments, events: EventColumns | None):
        self.ranker, self.args, self._events, processor = ranker, args, events, ranker.processor
        reading = processor.feature_extractor.reading
        there = fields_of_file(args.users[0], processor, "--users")
        of_items = {field.name for field in ranker.item_fields}
        self._statistics = [one for one in events.statistics if not of_items & {*one.columns}] if events else []
        made = [name for one in self._statistics for name in one.columns]
        self.fields = [field for field in ranker.user_fields if field.name not in made]
        history = processor.history_field
        if events is None and history in there:
            self.fields = [*self.fields, history]
        # what tells users apart in the output
        self.keys = [field for field in ranker.user_fields if field.key] or ranker.user_fields
        self._excluded: dict[Value, list[Value]] = {}
        if args.exclude is not None:
            if [field.key for field in self.keys] != [True]:
                found = ", ".join(field.name for field in self.keys if field.key) or "none"
                raise ValueError(f"--exclude needs one field that is the key of a user; the model has {found}")
            self._excluded = read_pairs(args.exclude, processor, self.keys[0], ranker.key)
        also = {args.candidates: None} if args.candidates else {}
        self._reader = RowReader(args.users, self.fields, reading, also=also, option="--users")

    def parts(self) -> Iterator[pa.Table]:
        """The users in their order, so many at a time that their scores fit into memory."""
        at_once = max(1, SCORES_AT_ONCE // max(len(self.ranker), 1))
        for batch in self._reader:
            for row in sorted(batch.reasons)[:1]:
                raise ValueError(f"{batch.where(row)}: {batch.reasons[row]}")
            for start in range(0, len(batch.known), at_once):
                yield batch.known.slice(start, at_once)

    def rank(self, users: pa.Table) -> pa.Table:
        """A row for each user and item, best first."""
        if self._events is not None:
            users = self._events.with_rates(self._events.with_histories(users), self._statistics)
        candidates = None
        if self.args.candidates:  # a null lists nothing; text, as CSV has it, is read as that of multi-valued fields
            lists = FlipField(self.args.candidates, self.ranker.key.type, kind="multi-valued")
            column = Column.read(users.column(self.args.candidates), lists)
            candidates = [column.values[code] or () for code in column.codes]
        excluded = None
        if self._excluded:
            column = Column.read(users.column(self.keys[0].name), self.keys[0])
            excluded = [self._excluded.get(column.values[code], []) for code in column.codes]
        best = self.ranker.rank(users, candidates, top_k=self.args.top_k, exclude=excluded)
        of = pa.array([row for row, items in enumerate(best) for _ in items], pa.int64())
        columns = {field.name: users.column(field.name).take(of) for field in self.keys}
        columns[RANK] = pa.array([rank for items in best for rank in range(1, len(items) + 1)], pa.int64())
        key, rows = self.ranker.key, [item for items in best for item in items]
        types = {key.name: KEY_TYPES.get(key.type, pa.string())} | dict.fromkeys(
            self.ranker.probabilities, pa.float64()
        )
        return pa.table(columns | {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()})
