# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What `prepare` asks of a raw dataset; one module for each has them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from flip_ctr.data.prepare.histories import read_history
from flip_ctr.data.prepare.labelled_rows import Join, Plan
from flip_ctr.data.prepare.same_items import check_item_title
from flip_ctr.data.prepare.splits import check_split
from flip_ctr.data.prepare.statistics import MODES, read_past, read_statistics, statistic_fields
from flip_ctr.data.readers.raw_files import RawTable
from flip_ctr.modeling_flip.fields_flip import FlipField


@dataclass(frozen=True)
class RawDataset:
    """One raw dataset of ratings, as `prepare` sees it.

    Args:
        name: its name for `--dataset`.
        files: the raw files that it needs, by name or pattern (`books*`); the first holds the ratings.
        tables: the folder to its tables in the order in which they are read; the last is `ratings`, with a column
            `rating`.
        joins: what is added to a rating.
        fields: `ids_in_prompt` to the fields of a row.
        card_facts: what the dataset card says of the raw data: `title`, `licence`, `licence_link`, `citation`, and
            `values` where values are changed on the way.
        ratings: the ratings that the raw file may hold.
        drop_ratings: ratings that are no part of the dataset, unless `--drop_ratings` says otherwise.
        click_threshold: a rating of at least this is a click, unless `--click_threshold` says otherwise.
        item, user, time: columns of the item, the user and the time of a rating; `None` where the raw files have none.
        unique: whether of a user's ratings of an item only the first counts, and what the others are called.
        described_at: where the files are described, for a dataset that is not downloaded; `None` where it is.
        in_folder: for a dataset whose files differ from folder to folder: the folder to those of the above that its
            files decide, which take the place of what stands here.
        notes: what of the dataset a folder lacks, for people.
        later_counts: fields that count what came after a row too, its own rating among it.
    """

    name: str
    files: tuple[str, ...]
    tables: Callable[..., list[RawTable]]
    joins: tuple[Join, ...]
    fields: Callable[[bool], list[FlipField]]
    card_facts: dict[str, str]
    ratings: range
    drop_ratings: tuple[int, ...]
    click_threshold: int
    item: str
    user: str = "user_id"
    time: str | None = None
    unique: bool = False
    again_reason: str | None = None
    described_at: str | None = None
    in_folder: Callable[..., dict] | None = None
    notes: tuple[str, ...] = ()
    later_counts: tuple[str, ...] = ()

    def of(self, folder) -> "RawDataset":
        """The dataset as the files of a folder make it.

        Raises:
            FileNotFoundError, ValueError: the folder lacks a file, or holds files that do not go together.
        """
        return self if self.in_folder is None else replace(self, **self.in_folder(folder))

    @property
    def row_key(self) -> tuple[str, str]:
        return self.user, self.item


@dataclass
class Source:
    """Raw tables with what becomes of them, whatever they are of.

    Args:
        dataset: its name.
        tables: in the order in which they are read.
        plan: what becomes of them.
        fields: of a row of the dataset folder.
        label_rule: what a click is, for people.
        protocol: more of `schema.json`'s protocol.
        card_facts: what the dataset card says of the raw data, see [`RawDataset`].
        way_out: the options that change the label rule, for errors.
        notes: what of the dataset the raw files lack, for people.
        reading: how raw rows like these are read when they are scored, by the keys of a table's schema.
    """

    dataset: str
    tables: list[RawTable]
    plan: Plan
    fields: list[FlipField]
    label_rule: str
    card_facts: dict[str, str]
    way_out: str
    protocol: dict = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reading: dict = field(default_factory=dict)

    @property
    def events(self) -> RawTable:
        return next(table for table in self.tables if table.name == self.plan.events)


def ratings_source(
    raw: RawDataset,
    folder,
    click_threshold: int,
    dropped: Sequence[int],
    ids_in_prompt: bool,
    later_counts: bool = False,
    *,
    split: str,
    seed: int,
    ratios: Sequence[int],
    fold: int = 0,
    statistics: Sequence[str] = (),
    history: int | None = None,
    support_rows: int = 0,
    past: str = MODES[0],
    label_delay: int = 0,
    item_title: str | None = None,
) -> Source:
    """What `prepare` runs for a dataset of ratings.

    Args:
        folder: a `pathlib.Path` or `zipfile.Path` that holds the raw files.
        click_threshold: a rating of at least this is a click.
        dropped: ratings that are no part of the dataset.
        ids_in_prompt: whether ids, and fields that name a person, are in the prompt.
        later_counts: whether the dataset's fields that count later ratings are kept.
        split, seed, ratios, fold: see `splits`.
        statistics: see [`read_statistics`].
        history, support_rows: see [`read_history`].
        past, label_delay: see [`read_past`].
        item_title: see [`check_item_title`].

    Raises:
        FileNotFoundError: a raw file is missing.
        ValueError: a file's header lacks a column, or what was found in the folder has no column that the split needs.
    """
    raw = raw.of(folder)
    check_split(split, owner=raw.files[0], user=raw.user, item=raw.item, time=raw.time)
    fields = [one for one in raw.fields(ids_in_prompt) if later_counts or one.name not in raw.later_counts]
    rates = read_statistics(statistics, fields, "--statistics")
    columns = tuple([one.name for one in fields] + ([raw.time] if raw.time else []))
    check_item_title(item_title, fields, split=split, item=raw.item, name="--item_title")
    histories = read_history(history, support_rows, fields, split=split, user=raw.user, item=raw.item, columns=columns)
    counts = bool(rates or histories)
    stars = f"; ratings of {', '.join(map(str, dropped))} are dropped" if dropped else ""
    plan = Plan(
        events="ratings",
        joins=raw.joins,
        label=f"rating >= {click_threshold}",
        drops={f"rating {rating}": f"rating == {rating}" for rating in dropped},
        columns=columns,
        row_key=raw.row_key,
        unique=raw.unique,
        again_reason=raw.again_reason,
        user=raw.user,
        item=raw.item,
        time=raw.time,
        split=split,
        seed=seed,
        ratios=ratios,
        fold=fold,
        statistics=rates,
        history=histories,
        past=read_past(past, label_delay, split, counts, ("--past", "--label_delay")),
        item_title=item_title,
    )
    return Source(
        dataset=raw.name,
        tables=raw.tables(folder),
        plan=plan,
        fields=fields + statistic_fields(rates, fields) + ([histories.field] if histories else []),
        label_rule=f"a rating of at least {click_threshold} is a click{stars}",
        protocol={"click_threshold": click_threshold, "drop_ratings": list(dropped)},
        card_facts=raw.card_facts,
        notes=raw.notes,
        way_out="--click_threshold, --drop_ratings",
    )
