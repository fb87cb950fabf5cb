# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a request to a ranker says, read: users, histories, candidates, and what is left out."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flip_ctr.modeling_flip.columns_flip import Column, read_columns
from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField
from flip_ctr.modeling_flip.histories_flip import read_histories
from flip_ctr.modeling_flip.rows_flip import RawRows, column_of, named_columns
from flip_ctr.modeling_flip.values_flip import Value
from flip_ctr.serve.catalogue import Catalogue, joined
from flip_ctr.train.outputs.run_log import logger


class Users(NamedTuple):
    """U users as the model reads them.

    Args:
        count: how many they are.
        columns: of the fields that users and the context have.
        history: `(U, n)` numbers of the catalogue's items, -1 for none, and their outcomes; None for a model that reads
            no history.
    """

    count: int
    columns: dict[str, Column]
    history: tuple[np.ndarray, np.ndarray] | None


class Candidates(NamedTuple):
    """L lists of candidates: one for each user, or one for all.

    Args:
        numbers: `(L, C)` of the catalogue's items.
        lengths: `(L,)` how many of them are the list's; the rest fills up.
        columns: of fields that candidates themselves have, `(L C)` rows.
    """

    numbers: np.ndarray
    lengths: np.ndarray
    columns: dict[str, Column]


class RequestReader:
    """Reads requests for a model's fields.

    Args:
        fields: all of the model.
        user_fields: those that a request says, as items do not have them.
        key: the field that tells items apart.
        history: the history field; None for a model without.
        keeps_text: whether a catalogue keeps what is said of the items' texts.
    """

    def __init__(
        self,
        fields: list[FlipField],
        user_fields: list[FlipField],
        key: FlipField,
        history: FlipField | None,
        keeps_text: bool,
    ):
        self.fields, self.user_fields, self.key = fields, user_fields, key
        self.history, self.keeps_text = history, keeps_text
        self._said = False  # that a request gave no history

    def canonical(self, keys: Any) -> list[Value]:
        """Keys of items in canonical form; `ValueError` where one has another type."""
        column = Column.read(keys if hasattr(keys, "__len__") else list(keys), self.key)
        return [column.values[code] for code in column.codes]

    def _check_list(self, keys: Any, what: str) -> None:
        if isinstance(keys, str | bytes | Mapping) or not hasattr(keys, "__iter__"):  # text is no list of its letters
            raise ValueError(f"{what}: a list of keys ({self.key.name}) is needed; got {keys!r}")

    def keys(self, keys: Any, what: str) -> list[Value]:
        """A list of keys of items in canonical form; `ValueError` says `what` it is for."""
        self._check_list(keys, what)
        try:
            return self.canonical(keys)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None

    def users(self, catalogue: Catalogue, user, history, context) -> tuple[Users, bool]:
        """The users of a request, and whether they are many; arguments as of [`FlipRanker.rank`]."""
        many = not _is_row(user)
        user = list(user) if isinstance(user, Iterator) else user
        rows = RawRows.of(user if many else [user], self.fields)
        count = len(user) if many else 1
        of_all = context is None or _is_row(context)
        if not of_all and len(context) != count:
            raise ValueError(
                f"context: one for each of the {count} users is needed, or one for all; got {len(context)}"
            )
        contexts = RawRows.of([{} if context is None else context] if of_all else context)
        sides = {"user": named_columns(rows.names or []), "context": named_columns(contexts.names or [])}
        columns: dict[str, Column] = {}
        for side, raw in (("user", rows), ("context", contexts)):
            fields = [one for one in self.user_fields if column_of(one, sides[side])]
            twice = next((one.name for one in fields if one.name in columns), None)
            if twice is not None:
                raise ValueError(f"'{twice}' is given by both the user and the context")
            try:
                read = read_columns(raw, fields)
            except ValueError as error:
                raise ValueError(f"{side}: {error}") from None
            if side == "context" and of_all:
                read = {name: column.take([0] * count) for name, column in read.items()}
            columns |= read
        return Users(count, columns, self._history(catalogue, rows, history, many, count)), many

    def _history(self, catalogue: Catalogue, rows: RawRows, history, many: bool, count: int):
        field = self.history
        if field is None:
            if history is not None:
                raise ValueError("history: this model reads no histories; leave it out")
            return None
        if history is None and column_of(field, named_columns(rows.names or [])):
            source: Any = rows
        else:
            if history is None and not self._said:
                self._said = True
                logger.warning(
                    "this model reads histories, and none is given: users are ranked as new ones. Give `history`, or a "
                    f"column {field.name!r} of the users (flip-ctr rank: or --events)"
                )
            listed = [None] * count if history is None else history if many else [history]
            listed = listed.tolist() if hasattr(listed, "tolist") else listed
            if len(listed) != count:
                raise ValueError(f"history: one for each of the {count} users is needed; got {len(listed)}")
            source = {field.name: [self._entries(one) for one in listed]}
        numbers, outcomes, _ = read_histories(source, self.fields, catalogue)
        return numbers, outcomes

    def _entries(self, history: Any) -> list[Mapping]:
        """The entries of one history, of which those that are plain keys were clicked."""
        if history is None:
            return []
        self._check_list(history, "history")
        entries = history.tolist() if hasattr(history, "tolist") else history
        name = self.history.history_of
        return [one if isinstance(one, Mapping) else {name: one, CLICKED: 1} for one in entries]

    def excluded(self, catalogue: Catalogue, exclude, many: bool, count: int) -> list[list[int]] | None:
        """The numbers of the items that each user is not shown."""
        if exclude is None:
            return None
        lists = exclude if many else [exclude]
        if len(lists) != count:
            raise ValueError(f"exclude: a list for each of the {count} users is needed; got {len(lists)}")
        known = catalogue.known
        read = ([] if one is None else self.keys(one, "exclude") for one in lists)
        return [[known[key] for key in keys if key in known] for keys in read]

    def candidates(self, catalogue: Catalogue, candidates: Any, users: Users) -> Candidates:
        """The candidates of a request, as of [`FlipRanker.rank`]."""
        lists = _lists_of(candidates)
        if lists is not None and len(lists) != users.count:
            raise ValueError(f"candidates: one list for each of the {users.count} users is needed; got {len(lists)}")
        read = [self._list(catalogue, one, users) for one in ([candidates] if lists is None else lists)]
        own = [columns for numbers, columns in read if len(numbers)] or [{}]  # no candidate has no fields
        if any(columns.keys() != own[0].keys() for columns in own):
            raise ValueError("candidates: those of all users must have the same fields")
        missing = [one for one in self.user_fields if one.name not in {*users.columns, *own[0]}]
        lengths = np.array([len(numbers) for numbers, _ in read])
        if missing and lengths.any():
            raise ValueError(
                f"user: column(s) {', '.join(repr(field.name) for field in missing)} missing; give them in the user or "
                "the context, as None where they are unknown"
            )
        filled = np.arange(lengths.max()) < lengths[:, None]
        numbers, places = np.zeros((2, *filled.shape), np.int64)
        numbers[filled], places[filled] = np.concatenate([some for some, _ in read]), np.arange(lengths.sum())
        columns = {name: joined([columns[name] for columns in own]).take(places.ravel()) for name in own[0]}
        return Candidates(numbers, lengths, columns)

    def _list(self, catalogue: Catalogue, candidates: Any, users: Users) -> tuple[np.ndarray, dict[str, Column]]:
        """The numbers of some candidates, and the columns of fields that they themselves have."""
        if candidates is None:
            return np.flatnonzero(catalogue.shown), {}
        if not hasattr(candidates, "columns"):
            self._check_list(candidates, "candidates")
            keys = candidates.tolist() if hasattr(candidates, "tolist") else list(candidates)
            if not any(issubclass(kind, Mapping) for kind in set(map(type, keys))):
                numbers = catalogue.find_answers(keys)
                if numbers is None:  # an array says more of its values than Python's own do
                    whole = candidates if hasattr(candidates, "__len__") else keys
                    numbers = catalogue.find(self.keys(whole, "candidates"))
                return numbers, {}
            candidates = keys
        rows = RawRows.of(candidates)
        names = named_columns(rows.names or [])
        fields = [field for field in self.user_fields if column_of(field, names)]
        for field in fields:
            if field.name in users.columns:
                raise ValueError(f"'{field.name}' is given by both the candidates and the user or the context")
            if field.on_text_side and self.keeps_text:
                raise ValueError(
                    f"candidates: '{field.name}' is in a prompt, of which a request has one; give it in the context"
                )
        try:
            columns = read_columns(rows, [*fields, self.key])
        except ValueError as error:
            raise ValueError(f"candidates: {error}") from None
        keys = columns.pop(self.key.name)
        return catalogue.find([keys.values[code] for code in keys.codes]), columns


def _is_row(rows: Any) -> bool:
    """Whether this is one row: a dict, or a row of a pandas frame."""
    return isinstance(rows, Mapping) or (hasattr(rows, "iloc") and not hasattr(rows, "columns"))


def _lists_of(candidates: Any) -> list | None:
    """The lists of candidates, one a user; None where they are one list."""
    if candidates is None or hasattr(candidates, "columns") or not hasattr(candidates, "__len__"):
        return None
    listed = candidates.tolist() if hasattr(candidates, "tolist") else list(candidates)
    first = next((one for one in listed if one is not None), None)
    is_list = hasattr(first, "__iter__") and not isinstance(first, str | bytes | Mapping)
    return listed if is_list else None
