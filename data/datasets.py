# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What `prepare` asks of a raw dataset; one module for each has them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from flip_ctr.configuration_flip import FlipField
from flip_ctr.data.preparation import Join, Plan
from flip_ctr.data.raw import RawTable


@dataclass(frozen=True)
class RawDataset:
    """One raw dataset of ratings, as `prepare` sees it.

    Args:
        name: its name for `--dataset`.
        files: the raw files that it needs; the first holds the ratings.
        tables: the folder to its tables in the order in which they are read; the last is `ratings`, with a column `rating`.
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
    """

    dataset: str
    tables: list[RawTable]
    plan: Plan
    fields: list[FlipField]
    label_rule: str
    card_facts: dict[str, str]
    way_out: str
    protocol: dict = field(default_factory=dict)

    @property
    def events(self) -> RawTable:
        return next(table for table in self.tables if table.name == self.plan.events)
