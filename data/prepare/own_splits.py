# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Splits that the data brings: a column that names the split of each row, or files of each split."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ibis
import ibis.expr.types as ir

from flip_ctr.data.prepare.splits import text_key
from flip_ctr.data.readers.dataset_schema import SPLITS

WORDS = {
    "train": ("train", "training", "tr"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval"),
    "test": ("test", "testing", "te"),
}
BY_COLUMN, BY_FILE = "column", "files"  # their names in the place of those of `SPLIT_RULES`


def split_of(word: Any) -> str | None:
    """The split that a usual word names; None where it names none."""
    return next((split for split, words in WORDS.items() if str(word).strip().lower() in words), None)


@dataclass(frozen=True)
class OwnSplit:
    """A split that the data brings.

    Args:
        column: of the rows, whose value says the split; None where the files do.
        values: texts in lower case to the split that they name.
        files: names of files to the split of their rows.
        asked: the splits that are to have rows.
    """

    column: str | None = None
    values: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    asked: tuple[str, ...] = ("train",)

    @property
    def name(self) -> str:
        return BY_FILE if self.column is None else BY_COLUMN

    @property
    def rule(self) -> str:
        """For people."""
        if self.column is None:
            return "as the files bring it: " + "; ".join(
                f"{split} is {', '.join(name for name, of in self.files.items() if of == split)}"
                for split in dict.fromkeys(self.files.values())
            )
        return f"as column {self.column} says it"

    @property
    def reason(self) -> str:
        """Why a row with another value is rejected."""
        return f"{self.column} names no split ({', '.join(self.values)})"

    def code(self, rows: ir.Table, numbers: Mapping[str, int]) -> ir.IntegerValue:
        """The index into `SPLITS` of each row; null where the value names none.

        Args:
            rows: with the column, or with `_file`.
            numbers: of each file what `_file` calls it.
        """
        if self.column is None:
            cases = [(rows._file == numbers[name], SPLITS.index(split)) for name, split in self.files.items()]
        else:
            text = text_key(rows, self.column).strip().lower()
            cases = [(text == value, SPLITS.index(split)) for value, split in self.values.items()]
        return ibis.cases(*cases, else_=ibis.null("int8")).cast("int8")


def read_split(value: Mapping[str, Any]) -> OwnSplit:
    """The `split` of a schema where it names a column: `{column: fold}`, or with the values of some splits, as
    `{column: fold, validation: [4], test: [5]}`.

    Raises:
        ValueError: a key is unknown, there is no column, a value is of two splits, or no row would be of `train`.
    """
    unknown = [key for key in value if key not in ("column", *SPLITS)]
    if unknown:
        raise ValueError(
            f"`split`: unknown key(s) {', '.join(map(repr, unknown))}; there are column, {', '.join(SPLITS)}"
        )
    column = value.get("column")
    if not isinstance(column, str) or not column.strip():
        raise ValueError(f"`split`: `column` must be the name of the column that says the split; got {column!r}")
    values: dict[str, str] = {}
    for split in SPLITS:
        said = value.get(split)
        some = list(WORDS[split]) if said is None and len(value) == 1 else said if isinstance(said, list) else [said]
        for one in [] if said is None and len(value) > 1 else some:
            text = str(one).strip().lower()
            if one is None or isinstance(one, float | dict | list) or values.get(text, split) != split:
                raise ValueError(
                    f"`split`: `{split}` must be values of {column} that no other split has, such as [0, 1]; got "
                    f"{one!r}"
                )
            values[text] = split
    if "train" not in values.values():
        raise ValueError(f"`split`: `train` must name the values of {column} whose rows are learned from")
    return OwnSplit(column, values, asked=tuple(split for split in SPLITS if split in value) or ("train",))


def read_split_files(files: Mapping[str, Any]) -> dict[str, Any]:
    """The `files` of a schema where they name the split of each, by the names of the splits.

    Raises:
        ValueError: a name is no split, two are of one split, or there is none for `train`.
    """
    found: dict[str, Any] = {}
    for word, patterns in files.items():
        split = split_of(word)
        if split is None:
            usual = ", ".join(words[0] for words in WORDS.values())
            raise ValueError(f"`files`: '{word}' is no split; write {usual} (or val, valid, dev, eval)")
        if split in found:
            raise ValueError(f"`files`: two entries are of the split {split}; give it one, with a list of files")
        found[split] = patterns
    if "train" not in found:
        raise ValueError("`files`: `train` must name the files whose rows are learned from")
    return {split: found[split] for split in SPLITS if split in found}
