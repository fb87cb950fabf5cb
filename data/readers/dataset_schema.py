# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The schema of a dataset folder: its fields, its label, and how its rows were made."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from flip_ctr.modeling_flip.fields_flip import LEARNED, Allowed, FlipField, read_fields

SCHEMA_NAME = "schema.json"
REPORT_NAME = "prepare_report.json"
FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
OF_PLACING = ("split", "split_rule", "split_seed", "ratios", "split_fold")  # keys of a protocol


@dataclass
class DatasetSchema:
    """What `schema.json` says of a dataset folder.

    Args:
        dataset: name of the dataset, such as `ml-1m`.
        fields: the fields of a row, in the order in which both views show them.
        label: column of the click, 0 or 1.
        user_column: column that names the user, for per-user metrics; `None` where there is none.
        weight_column: column of the sample weight; `None` where every row weighs 1.
        protocol: how labels and splits were made (rule, seed, ratios): enough to make the same rows again.
        reading: how raw rows like these are read when they are scored, by the keys of a table's schema (formats,
            encodings, side tables, and no paths), and what computing their click rates takes, see [`ClickRates`].

    Raises:
        ValueError: two fields share a column, or a field has a value that is not allowed.
    """

    dataset: str
    fields: list[FlipField]
    label: str = "label"
    user_column: str | None = None
    weight_column: str | None = None
    protocol: dict = field(default_factory=dict)
    reading: dict = field(default_factory=dict)

    def __post_init__(self):
        if not isinstance(self.fields, list | tuple):
            raise ValueError(f"`fields` must be a list of fields; got {self.fields!r}")
        for name in ("dataset", "label", "user_column", "weight_column"):
            Allowed(str, optional=name.endswith("_column")).check("the dataset's schema", name, getattr(self, name))
        self.fields = read_fields(self.fields)

    @property
    def placing(self) -> dict | None:
        """What decides which rows of the dataset are in which split; `None` where the protocol does not say."""
        parts = {name: self.protocol[name] for name in OF_PLACING if name in self.protocol}
        return {"dataset": self.dataset, **parts} if "split" in parts else None

    def to_dict(self) -> dict:
        # a dataset has no vocabulary and no buckets: they belong to a processor
        columns = [{k: v for k, v in one.to_dict().items() if k not in LEARNED} for one in self.fields]
        return {
            "format_version": FORMAT_VERSION,
            "dataset": self.dataset,
            "label": self.label,
            "user_column": self.user_column,
            "weight_column": self.weight_column,
            "fields": columns,
            "protocol": self.protocol,
            **({"reading": self.reading} if self.reading else {}),
        }

    def save(self, folder: str | Path) -> Path:
        """Writes `schema.json` into an existing folder and returns its path."""
        path = Path(folder) / SCHEMA_NAME
        path.write_text(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "DatasetSchema":
        """Reads the schema of a dataset folder.

        Raises:
            FileNotFoundError: there is no such folder, or it holds no `schema.json`.
            ValueError: `schema.json` cannot be read, or is of a format that this version does not know.
        """
        folder = Path(folder)
        path = folder / SCHEMA_NAME
        if not folder.is_dir():
            raise FileNotFoundError(f"there is no dataset folder {folder}; `flip-ctr prepare` writes one.")
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is not a dataset folder: it has no {SCHEMA_NAME}; `flip-ctr prepare` writes one."
            )
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON in UTF-8: {error}.") from error
        version = values.pop("format_version", None) if isinstance(values, dict) else None
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path}: `format_version` is {version!r}; this version of flip-ctr reads {FORMAT_VERSION}. Prepare "
                "the dataset again, or use the version that wrote it."
            )
        try:
            return cls(**values)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error
