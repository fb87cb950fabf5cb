# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Click rates among the fields of a row: what they are of, and what computing them for new rows takes, which travels
with a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flip_ctr.modeling_flip.fields_flip import FlipField

NUM_BUCKETS = 128  # of a rate, or a number of rows: most rows of a crossed key share one, and leave the others few
SMOOTHING = 10  # rows with the click rate of all training rows that are added to those of a key
RATE, COUNT = "_click_rate", "_rows"  # how the columns of a statistic end
STATISTICS = "statistics"  # the key of `reading`


@dataclass(frozen=True)
class Statistic:
    """The smoothed click rate, and the number, of rows that share the values of some columns.

    Args:
        keys: the columns. Where one holds lists, a row shares each of its values, and the rows of all count.
    """

    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        return "_".join(self.keys)

    @property
    def rate(self) -> str:
        """The column of the rate, see [`ClickRates`]."""
        return self.name + RATE

    @property
    def count(self) -> str:
        """The column of the number of rows."""
        return self.name + COUNT

    @property
    def columns(self) -> tuple[str, str]:
        return self.rate, self.count

    def fields(self, entity: str) -> list[FlipField]:
        """Both as fields of a row: numbers, on the ID side."""
        kinds = {self.rate: "float", self.count: "int"}
        return [
            FlipField(name, kind, kind="numeric", entity=entity, sides=("id",), nullable=False, num_buckets=NUM_BUCKETS)
            for name, kind in kinds.items()
        ]


@dataclass(frozen=True)
class ClickRates:
    """Statistics, and the click rate p of all training rows that smooths them: `(clicks + 10 p) / (rows + 10)`.

    Args:
        statistics: what the rates are of.
        rows, clicks: the training rows, and how many of them are clicks. Both are whole numbers, from which every
            engine makes the same rate, to the last bit.
        smoothing: how many rows with the click rate p are added to those of a key.
    """

    statistics: tuple[Statistic, ...]
    rows: int
    clicks: int
    smoothing: int = SMOOTHING

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        keys = [list(one.keys) for one in self.statistics]
        return {"keys": keys, "rows": self.rows, "clicks": self.clicks, "smoothing": self.smoothing}

    @classmethod
    def of_reading(cls, reading: Mapping[str, Any]) -> "ClickRates | None":
        """What the `reading` of a dataset or checkpoint says of them; None where there are none, or where it is older
        than this."""
        if STATISTICS not in reading:
            return None
        said = dict(reading[STATISTICS])
        return cls(tuple(Statistic(tuple(keys)) for keys in said.pop("keys")), **said)
