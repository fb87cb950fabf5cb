# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""How long the prompts of a dataset folder are: in the tokens of a PLM's tokenizer, or in words where none is named."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flip_ctr.modeling_flip.columns_flip import Column, read_columns
from flip_ctr.modeling_flip.fields_flip import FlipField

MAX_ROWS = 50_000  # of a split; lengths of more would not differ
# what BERT's tokenizer takes apart before it looks into its vocabulary: no tokenizer of its kind gives fewer tokens
WORD = re.compile(r"\w+|[^\w\s]")


def sample_rows(files: Sequence[Path], columns: Sequence[str]) -> pa.Table:
    """At most `MAX_ROWS` rows of a split's shards, of row groups that are evenly spread."""
    groups = [(path, group) for path in files for group in range(pq.ParquetFile(path).num_row_groups)]
    total = sum(pq.ParquetFile(path).metadata.num_rows for path in files)
    wanted = max(1, len(groups) * MAX_ROWS // max(total, 1)) if total > MAX_ROWS else len(groups)
    picked = [groups[at] for at in np.unique(np.linspace(0, len(groups) - 1, wanted).astype(int))] if groups else []
    tables = [pq.ParquetFile(path).read_row_group(group, columns=list(columns)) for path, group in picked]
    return pa.concat_tables(tables).slice(0, MAX_ROWS) if tables else pq.read_table(files[0], columns=list(columns))


class PromptMeter:
    """Lengths of prompts. Only a tokenizer needs transformers, and with it torch.

    Args:
        fields: of the rows.
        tokenizer_name: a PLM's tokenizer, as a path or hub id; words and punctuation marks are counted when `None`.
    """

    def __init__(self, fields: Sequence[FlipField], tokenizer_name: str | None = None):
        """`OSError` where there is no such tokenizer."""
        self.fields, self.tokenizer_name = [field for field in fields if field.on_text_side], tokenizer_name
        self.processor = None
        if tokenizer_name:
            from transformers import AutoTokenizer

            from flip_ctr.modeling_flip.feature_extraction_flip import FlipFeatureExtractor
            from flip_ctr.modeling_flip.processing_flip import FlipProcessor

            try:
                tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
            except (OSError, ValueError) as error:  # (a path that is no name of a repository is a ValueError)
                raise OSError(f"--tokenizer_name {tokenizer_name}: {str(error).splitlines()[0]}") from error
            tokenizer.model_max_length = 10**30  # longer prompts are counted, not refused
            self.processor = FlipProcessor(FlipFeatureExtractor(self.fields), tokenizer)

    def values(self, rows: pa.Table) -> tuple[np.ndarray, int]:
        """`(rows, text fields)` lengths of the values, before any is cut, and the length of the template."""
        columns = read_columns(rows, self.fields)
        if self.processor is not None:
            (pieces,) = self.processor.piece_builders(truncate=False)
            entries = pieces.add([columns[field.name] for field in self.fields])
            table = pieces.table(0)
            return table.offsets[entries + 1] - table.offsets[entries], int(table.offsets[table.num_fields + 1])
        lengths = [self._words(columns[field.name], field) for field in self.fields]
        empty = " ; ".join(f"{field.wording} is" for field in self.fields)
        return np.stack(lengths, axis=1), len(WORD.findall(empty)) + 2  # [CLS] and [SEP]

    def _words(self, column: Column, field: FlipField) -> np.ndarray:
        counts = [len(WORD.findall(field.value_text(value))) for value in column.values]
        return np.array(counts or [0], np.int64)[column.codes]


def prompt_lengths(files: dict[str, Sequence[Path]], meter: PromptMeter) -> dict:
    """What the report says of the lengths of prompts, and what the picture shows.

    Args:
        files: shards of each split.
        meter: of the fields.

    Returns:
        `unit`; `splits`: for each its sampled rows, and mean, median, 95th percentile and longest prompt, values cut to
        their budgets; `fields`: for each text field of the training rows the same of its values before they are cut,
        its `budget`, and (of tokens) the share of rows whose value is cut; `histogram`: `edges` and `rows` of the
        training split.
    """
    if not meter.fields:
        return {}
    unit = f"tokens of {Path(meter.tokenizer_name).name}" if meter.tokenizer_name else "words and punctuation"
    budgets = np.array([field.max_tokens for field in meter.fields])
    report = {"unit": unit, "splits": {}, "fields": {}}
    for split, paths in files.items():
        values, template = meter.values(sample_rows(paths, [field.name for field in meter.fields]))
        prompts = template + np.minimum(values, budgets).sum(1)
        report["splits"][split] = {"rows": len(prompts)} | _summary(prompts)
        if split == "train":
            counts, edges = np.histogram(
                prompts, bins=np.unique(np.linspace(prompts.min(), prompts.max() + 1, 41).astype(int))
            )
            report["histogram"] = {"edges": edges.tolist(), "rows": counts.tolist()}
            for column, field in enumerate(meter.fields):
                cut = (
                    {"cut_share": round(float((values[:, column] > field.max_tokens).mean()), 6)}
                    if meter.tokenizer_name
                    else {}
                )
                report["fields"][field.name] = _summary(values[:, column]) | {"budget": field.max_tokens} | cut
    return report


def _summary(lengths: np.ndarray) -> dict:
    middle, high = np.percentile(lengths, [50, 95]).tolist()
    return {"mean": round(float(lengths.mean()), 2), "median": middle, "p95": high, "longest": int(lengths.max())}
