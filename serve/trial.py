# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Trying a model by hand: whom it ranks for, what happens when an item's text changes, and where a new item would
stand. The page that asks and shows is [`build_page`].

Nothing here changes the ranker: an item that somebody changes is in a ranker of theirs, see [`FlipRanker.with_items`].
"""

import json
from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from flip_ctr.modeling_flip.columns_flip import Column, RowError
from flip_ctr.modeling_flip.fields_flip import CLICKED, UNK_ID, FlipField
from flip_ctr.modeling_flip.pipeline_flip import PROBABILITIES
from flip_ctr.modeling_flip.values_flip import Value
from flip_ctr.serve.catalogue import Catalogue
from flip_ctr.serve.ranker import FlipRanker
from flip_ctr.train.loop.leave_out import ENTRY

MAX_CHOICES = 200  # of a field; one with more values is typed
MAX_FOUND = 50  # items of a search
NEIGHBOURS = 3  # shown above an item, and below it
MOST_ENTRIES = 5  # of a history, that are shown beside what they do
NEW_ITEM = "new item"  # its key, where keys are text

History = list[tuple[str, int]]  # the canonical key of each item, and whether it was clicked; newest last


class Ranking(NamedTuple):
    """The N items of a catalogue, best first.

    Args:
        numbers: `(N,)` of the catalogue's items.
        scores: `(N,)` each: the probabilities, and for strategy `joint` the weight of the ID tower (`id_weight`).
    """

    catalogue: Catalogue
    numbers: np.ndarray
    scores: dict[str, np.ndarray]

    def place(self, key: str) -> int:
        """Where an item stands, from 0."""
        return int(np.flatnonzero(self.numbers == self.catalogue.numbers[key])[0])


class Trial:
    """What a page of a ranker knows, and what it computes.

    Args:
        users: rows to choose from, dicts with the users' fields.

    Attributes:
        label_field: the field that items are called by: the first text in their prompt, else their key.
    """

    def __init__(self, ranker: FlipRanker, users: Sequence[dict] = ()):
        self.ranker, self.users = copy(ranker), list(users)  # what becomes of the ranker is not seen here
        self.catalogue = self.ranker.catalogue
        self.item_fields = [field for field in ranker.item_fields if field.name != ranker.key.name]
        texts = [one for one in self.item_fields if one.on_text_side and one.type == "string"]
        self.label_field = next(iter(texts), ranker.key)
        self.history_field = ranker.processor.history_field
        self._labels = [self.label(self.catalogue, number) for number in range(len(self.catalogue))]
        self._searched = [label.casefold() for label in self._labels]

    # --- fields and their values

    def choices(self, field: FlipField) -> list[str] | None:
        """The values of a field as its input shows them; None where they are typed: they are too many, or hashed."""
        extractor = self.ranker.processor.feature_extractor
        if field.type == "bool":
            return ["true", "false"]
        names = [one.name for one in extractor.id_fields]
        if field.name not in names or field.name in extractor.hashed_fields:
            return None
        values = extractor.vocabularies[names.index(field.name)]
        if not 0 < len(values) <= MAX_CHOICES:
            return None
        ordered = sorted(values, key=float if field.type in ("int", "float") else str.casefold)
        return [value.replace(".", field.decimal) if field.type == "float" else value for value in ordered]

    def as_input(self, value: Value, field: FlipField) -> str | list[str] | None:
        """A canonical value as text that is read as this value again; a list where the field has choices."""
        if value is None:
            return None
        parts = [one.replace(".", field.decimal) if field.type == "float" else one for one in values_of(value)]
        if not field.is_multi_valued:
            return parts[0]
        if self.choices(field) is not None:
            return parts
        typed = field.separator.join(parts)
        return json.dumps(parts, ensure_ascii=False) if any(field.separator in one for one in parts) else typed

    @staticmethod
    def as_text(value: Value, field: FlipField) -> str:
        """A canonical value as people read it."""
        return field.null_wording if value is None else ", ".join(values_of(value))

    def read(self, fields: Sequence[FlipField], values: Sequence[Any]) -> dict[str, Any]:
        """What inputs hold, as a row; an empty one is null. `ValueError` says what is wrong with a value, by the
        field's wording."""
        row = {field.name: None if value in ("", []) else value for field, value in zip(fields, values, strict=True)}
        for field in fields:
            try:
                Column.read([row[field.name]], field)
            except RowError as error:
                reason = "must not be empty" if row[field.name] is None else error.reason
                raise ValueError(f"{field.wording}: {reason}") from None
        return row

    def user(self, number: int) -> tuple[list[Value], History]:
        """The canonical values of a user's fields, and their history."""
        row, history = self.users[number], []
        values = [self._canonical(row.get(field.name), field) for field in self.ranker.user_fields]
        if self.history_field is not None:
            for entry in row.get(self.history_field.name) or []:
                key = self._canonical(entry[self.history_field.history_of], self.ranker.key)
                if key in self.catalogue.numbers:  # others are no item of the model either
                    history.append((key, int(entry[CLICKED])))
        return values, history

    def user_label(self, number: int) -> str:
        fields = [one for one in self.ranker.user_fields if one.entity == "user"] or self.ranker.user_fields
        values = [self._canonical(self.users[number].get(field.name), field) for field in fields]
        return " · ".join(self.as_text(value, field) for value, field in zip(values, fields))

    def item(self, key: str) -> list[Value]:
        """The canonical values of an item's fields but its key."""
        number = self.catalogue.numbers[key]
        return [value_of(self.catalogue, field.name, number) for field in self.item_fields]

    @staticmethod
    def _canonical(value: Any, field: FlipField) -> Value:
        return Column.read([value], field).values[0]

    # --- items

    def label(self, catalogue: Catalogue, number: int) -> str:
        """What an item is called."""
        value = value_of(catalogue, self.label_field.name, number)
        if value is None or self.label_field is self.ranker.key:
            return f"{self.ranker.key.wording} {catalogue.keys[number]}"
        return self.as_text(value, self.label_field)

    def search(self, words: str) -> list[tuple[str, str]]:
        """Items that are called so, or whose key it is: what they are called, and their keys."""
        wanted, found = " ".join(words.split()).casefold(), []
        for number, text in enumerate(self._searched):
            key = self.catalogue.keys[number]
            if self.catalogue.shown[number] and (wanted in text or wanted == key.casefold()):
                found.append((self.choice(key), key))
                if len(found) == MAX_FOUND:
                    break
        return found

    def choice(self, key: str) -> str:
        """An item as lists of items show it."""
        label = self._labels[self.catalogue.numbers[key]]
        return label if self.label_field is self.ranker.key else f"{label} · {key}"

    def find(self, chosen: str | None) -> str:
        """The key of an item that was chosen, or typed: its key, or what it alone is called. `ValueError` where there
        is none."""
        said = " ".join(str(chosen or "").split())
        if not said:
            raise ValueError("Find an item first: type a part of its name")
        if said in self.catalogue.known:
            return said
        keys = [key for key, number in self.catalogue.known.items() if self._searched[number] == said.casefold()]
        if len(keys) != 1:
            why = "there are several items of that name" if keys else "there is no such item"
            raise ValueError(f"{said}: {why}; pick one from the list")
        return keys[0]

    def unused_key(self) -> Any:
        """A key that neither the catalogue nor the vocabulary has."""
        key, extractor = self.ranker.key, self.ranker.processor.feature_extractor
        names = [field.name for field in extractor.id_fields]
        known = set(self.catalogue.numbers)
        if key.name in names:
            known |= set(extractor.vocabularies[names.index(key.name)])
        if key.type in ("int", "float"):
            return 1 + max((int(float(one)) for one in known), default=0)
        if key.type == "bool":
            raise ValueError(f"{key.wording}: there is no third key, so that no item can be new")
        return next(name for n in range(len(known) + 1) if (name := f"{NEW_ITEM} {n}".removesuffix(" 0")) not in known)

    def unknown(self, ranking: Ranking, key: str) -> list[str]:
        """The wordings of an item's fields whose value has no id of its own."""
        if self.ranker.model.flip.id_tower is None:
            return []
        extractor = self.ranker.processor.feature_extractor
        columns = ranking.catalogue.take(np.array([ranking.catalogue.numbers[key]])).columns
        fields = [field for field in extractor.id_fields if field.name in columns]
        return [field.wording for field in fields if (extractor.encode(columns, [field.name]) == UNK_ID).any()]

    # --- rankings

    def rank(self, user: dict[str, Any], history: History, ranker: FlipRanker | None = None) -> Ranking:
        """All items for a user."""
        ranker = ranker or self.ranker
        catalogue, entries = ranker.catalogue, self._entries_of(history)
        scores = ranker.score([user], history=None if entries is None else [entries])
        order = np.argsort(-scores["logits"][0], kind="stable")
        of_order = {name: values[0, order].astype(np.float64) for name, values in scores.items()}
        return Ranking(
            catalogue,
            np.flatnonzero(catalogue.shown)[order],
            {PROBABILITIES.get(name, name): expit(v) if name in PROBABILITIES else v for name, v in of_order.items()},
        )

    def rank_with(self, user: dict[str, Any], history: History, item: dict[str, Any]) -> Ranking:
        """The same with an item that is new, or in the place of the one of its key."""
        return self.rank(user, history, self.ranker.with_items([item]))

    def why(self, user: dict[str, Any], history: History, key: str) -> dict[str, Any]:
        """What [`FlipRanker.explain`] says of an item for a user, its log odds also as probabilities
        (`base_probability`, ...); `parts` are those that are shown, the most telling first, each also with its
        `wording` and its `share` of the largest change."""
        (answer,) = self.ranker.explain(user, [key], history=self._entries_of(history))
        wordings = {field.name: field.wording for field in self.ranker.processor.feature_extractor.all_fields}
        ordered = sorted(answer["parts"], key=lambda part: -abs(part["change"]))
        entries = [part for part in ordered if part["kind"] == ENTRY][:MOST_ENTRIES]
        shown = [part for part in ordered if part["kind"] != ENTRY] + entries
        largest = max([abs(part["change"]) for part in shown]) or 1.0
        parts = [
            part | {"wording": wordings.get(part["part"], "before"), "share": abs(part["change"]) / largest}
            for part in shown
        ]
        log_odds = [name for name in answer if name.endswith("_log_odds")]
        found = {name.replace("log_odds", "probability"): float(expit(answer[name])) for name in log_odds}
        return answer | found | {"parts": parts, "label": self._labels[self.catalogue.numbers[key]]}

    def _entries_of(self, history: History) -> list[dict[str, Any]] | None:
        """A history as the ranker takes it; None where the model reads none."""
        field = self.history_field
        return None if field is None else [{field.history_of: key, CLICKED: clicked} for key, clicked in history]

    def rows(self, ranking: Ranking, places: Sequence[int], history: History = ()) -> list[dict[str, Any]]:
        """What is shown of the items at some places, from 0."""
        catalogue, clicked, rows = ranking.catalogue, dict(history), []
        for place in places:
            number = ranking.numbers[place]
            facts = [(field, value_of(catalogue, field.name, number)) for field in self.item_fields]
            key = catalogue.keys[number]
            rows.append(
                {
                    "place": place + 1,
                    "key": key,
                    "label": self.label(catalogue, number),
                    "facts": [
                        (field.wording, self.as_text(value, field))
                        for field, value in facts
                        if field is not self.label_field
                    ],
                    "had": {None: "", 0: "not clicked before", 1: "clicked before"}[clicked.get(key)],
                    **{name: float(values[place]) for name, values in ranking.scores.items()},
                }
            )
        return rows

    def around(self, ranking: Ranking, key: str) -> range:
        """The places of an item and its neighbours."""
        place = ranking.place(key)
        return range(max(place - NEIGHBOURS, 0), min(place + NEIGHBOURS + 1, len(ranking.numbers)))


def values_of(value: Value) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else () if value is None else (value,)


def value_of(catalogue: Catalogue, name: str, number: int) -> Value:
    column = catalogue.columns[name]
    return column.values[column.codes[number]]
