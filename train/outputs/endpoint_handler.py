# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""`handler.py` of a repository, for Hugging Face Inference Endpoints: rows are scored, and where the repository has an
`items.parquet`, its items are ranked for a user. It needs transformers and torch, and for items pyarrow.

{"inputs": [{"user_id": 12, ..., "movie_id": 313, "title": "Titanic (1997)", ...}]}
{"inputs": {"user": {"user_id": 12, ...}, "candidates": [313, 50], "top_k": 10}}
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import pipeline

ITEMS = "items.parquet"


class EndpointHandler:
    """
    Args:
        path: folder of the repository's files.
    """

    def __init__(self, path: str = ""):
        self.score = pipeline(
            "click-through-rate", model=path, trust_remote_code=True, device=0 if torch.cuda.is_available() else -1
        )
        self.items: dict[Any, dict] = {}
        self.key, self.known = "", None
        if os.path.isfile(os.path.join(path, ITEMS)):
            import pyarrow.parquet as pq

            items = pq.read_table(os.path.join(path, ITEMS)).to_pylist()
            fields = self.score.processor.feature_extractor.all_fields
            keys = [field.history_of for field in fields if field.is_history]
            keys += [field.name for field in fields if field.key and items and field.name in items[0]]
            if not keys:
                raise ValueError(f"{ITEMS}: no column is a key of the model's items")
            self.key = keys[0]
            self.items = {item[self.key]: item for item in items}
            if len(self.items) < len(items):
                raise ValueError(f"{ITEMS}: {self.key} must be another one in each row")
            self.known = self.score.processor.read_items(items)

    def __call__(self, data: dict[str, Any]) -> Any:
        """
        Args:
            data: `inputs`: rows or one row, each a user joined with an item; or a dict with the `user`'s fields,
                `candidates` (keys of items, all of the repository's when left out) and `top_k` (all).

        Returns: the probabilities of each row, see the pipeline; or the items with their probabilities, best first.

        Raises:
            ValueError: a field is missing or has another type, or an item is not in the repository.
        """
        inputs = data["inputs"]
        if isinstance(inputs, Mapping) and "user" in inputs:
            return self.rank(**inputs)
        return self.score(inputs, items=self.known)

    def rank(self, user: Mapping, candidates: Sequence | None = None, top_k: int | None = None) -> list[dict]:
        if not self.items:
            raise ValueError(f"to rank items the repository needs {ITEMS}, a row an item; it has none")
        keys = list(self.items) if candidates is None else list(candidates)
        unknown = [key for key in keys if key not in self.items]
        if unknown:
            raise ValueError(f"no item of {ITEMS} has {self.key} {', '.join(map(repr, unknown[:10]))}")
        if not keys:
            return []
        scores = self.score([self.items[key] | dict(user) for key in keys], items=self.known)
        found = [{self.key: key, **score} for key, score in zip(keys, scores)]
        return sorted(found, key=lambda one: -one["click_probability"])[:top_k]
