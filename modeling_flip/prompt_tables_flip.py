# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Prompts as integers: tables of tokens that those of a batch are gathered from, and rows that are encoded so."""

from array import array
from collections.abc import Callable, Sequence

import numpy as np

from .columns_flip import Column, distinct_rows
from .histories_flip import Histories
from .values_flip import Value

NO_FIELD = -1  # template and special tokens, and padding, belong to no field


class PromptTable:
    """Token ids of template pieces and of distinct values, ragged; a prompt is a row of entry numbers.

    Attributes:
        tokens: `(all tokens,)` int32, one entry behind the other.
        offsets: `(entries + 1,)`: entry e is `tokens[offsets[e]:offsets[e + 1]]`.
        num_fields: text fields T. Entries 0 to T are the template: what stands before each value, and the end.
    """

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray, num_fields: int, pad_token_id: int):
        self.tokens, self.offsets, self.num_fields, self.pad_token_id = tokens, offsets, num_fields, pad_token_id

    def lengths(self, entries: np.ndarray) -> np.ndarray:
        """Number of tokens of each prompt, `(rows, T)` value entries -> `(rows,)` int32."""
        template = self.offsets[self.num_fields + 1]  # the template's pieces come first
        return (template + (self.offsets[entries + 1] - self.offsets[entries]).sum(1)).astype(np.int32)

    def compose(self, entries: np.ndarray) -> dict[str, np.ndarray]:
        """`(rows, T)` value entries -> int64 arrays `(rows, L)`, padded on the right to the longest row.

        Returns `input_ids`, `attention_mask`, and `token_fields`: the text field (0 to T - 1) of each value token, -1
        for template tokens, special tokens and padding.
        """
        rows, fields = entries.shape
        # template and values take turns: piece 0, value 0, piece 1, value 1, ..., last piece
        turns = np.empty((rows, 2 * fields + 1), np.int64)
        turns[:, 0::2] = np.arange(fields + 1)
        turns[:, 1::2] = entries
        turn_fields = np.full(2 * fields + 1, NO_FIELD)
        turn_fields[1::2] = np.arange(fields)

        starts = self.offsets[turns].ravel()
        lengths = (self.offsets[turns + 1] - self.offsets[turns]).ravel()
        ends = lengths.cumsum()
        source = np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)
        row_lengths = lengths.reshape(rows, 2 * fields + 1).sum(1)
        mask = np.arange(row_lengths.max(initial=0)) < row_lengths[:, None]
        input_ids = np.full(mask.shape, self.pad_token_id, np.int64)
        input_ids[mask] = self.tokens[source]
        token_fields = np.full(mask.shape, NO_FIELD, np.int64)
        token_fields[mask] = np.repeat(np.tile(turn_fields, rows), lengths)
        return {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "token_fields": token_fields}


class PromptTableBuilder:
    """Grows a [`PromptTable`] part by part of the rows: a value that was met before keeps its entry, a new one gets the
    next.

    Args:
        template: token ids of what stands before each value, and of the end.
        read: number of a text field and values of it -> their token ids.
    """

    def __init__(self, template: Sequence[Sequence[int]], read: Callable[[int, Sequence[Value]], list[list[int]]]):
        self.read, self.num_fields = read, len(template) - 1
        # arrays of machine integers: lists would take ten times as much for millions of values
        self.tokens, self.offsets = array("i"), array("q", [0])
        self._append(template)
        self.known: list[dict[Value, int]] = [{} for _ in range(self.num_fields)]

    def _append(self, pieces: Sequence[Sequence[int]]) -> None:
        for piece in pieces:
            self.tokens.extend(piece)
            self.offsets.append(len(self.tokens))

    def add(self, columns: Sequence[Column]) -> np.ndarray:
        """The entries of each row's values, `(rows, T)` int32, from the columns of the text fields."""
        entries = []
        for number, (column, known) in enumerate(zip(columns, self.known)):
            new, first = [value for value in column.values if value not in known], len(self.offsets) - 1
            self._append(self.read(number, new))
            known.update(zip(new, range(first, first + len(new))))
            entries.append(np.array([known[value] for value in column.values], np.int32)[column.codes])
        return np.stack(entries, axis=1)

    def lengths(self, entries: np.ndarray) -> np.ndarray:
        """Number of tokens of each prompt, `(rows, T)` entries -> `(rows,)` int32."""
        offsets = np.frombuffer(self.offsets, np.int64)  # no copy, and gone before the array grows again
        return PromptTable(np.empty(0, np.int32), offsets, self.num_fields, 0).lengths(entries)

    def table(self, pad_token_id: int) -> PromptTable:
        """The table of all values so far."""
        tokens, offsets = np.array(self.tokens, np.int32), np.array(self.offsets, np.int64)
        return PromptTable(tokens, offsets, self.num_fields, pad_token_id)


class RowPrompts:
    """The prompts of rows that have one each, as entries of a [`PromptTable`].

    Attributes:
        table: the pieces that prompts are composed of.
        entries: `(N, text fields)` int32 entries of it.
        lengths: `(N,)` int32 tokens of each prompt.
    """

    def __init__(self, table: PromptTable, entries: np.ndarray, lengths: np.ndarray | None = None):
        self.table, self.entries = table, entries
        self.lengths: np.ndarray | None = table.lengths(entries) if lengths is None else lengths

    @property
    def tokens(self) -> np.ndarray:
        """All tokens that prompts have, some of them several times."""
        return self.table.tokens

    def row_tokens(self) -> np.ndarray:
        """Number of tokens of each row's prompts, `(N,)`."""
        return self.lengths

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`input_ids`, `attention_mask` and `token_fields` of those rows, `(rows, L)` each."""
        return self.table.compose(self.entries[rows])


class EntityPrompts:
    """The prompts of rows that share them: each distinct prompt is kept once, as its tokens.

    Attributes:
        tokens, token_fields: `(all tokens,)` of the prompts, one behind the other: int32 token ids, and int16 numbers
            of the text field that a token is of, -1 for none.
        offsets: `(P + 1,)`: prompt p has the tokens `offsets[p]` to `offsets[p + 1]`.
        index: `(N, E)` int32, the prompt of each row and entity.
    """

    lengths: np.ndarray | None = None  # of rows: batches are not grouped by length, as rows share their prompts

    def __init__(
        self, tokens: np.ndarray, token_fields: np.ndarray, offsets: np.ndarray, index: np.ndarray, pad_token_id: int
    ):
        self.tokens, self.token_fields, self.offsets, self.index = tokens, token_fields, offsets, index
        self.pad_token_id = pad_token_id

    def row_tokens(self) -> np.ndarray:
        """Number of tokens of each row's prompts, `(N,)`."""
        return np.diff(self.offsets)[self.index].sum(1)

    def batch(self, rows: np.ndarray, history: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The compact form of those rows: `input_ids`, `attention_mask` and `token_fields` of their distinct prompts
        `(P, L)`, and `prompt_index` `(rows, E)`; with prompts of histories `(rows, n)` it has n more columns."""
        of_rows = self.index[rows]
        if history is not None:
            # behind a history stands any prompt that is read anyway
            of_rows = np.concatenate([of_rows, np.where(history < 0, of_rows[:, :1], history)], axis=1)
        numbers, index = np.unique(of_rows, return_inverse=True)
        starts, ends = self.offsets[numbers], self.offsets[numbers + 1]
        lengths = ends - starts
        mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
        places = (starts[:, None] + np.arange(mask.shape[1]))[mask]
        input_ids = np.full(mask.shape, self.pad_token_id, np.int64)
        token_fields = np.full(mask.shape, NO_FIELD, np.int64)
        input_ids[mask], token_fields[mask] = self.tokens[places], self.token_fields[places]
        prompts = {"input_ids": input_ids, "attention_mask": mask.astype(np.int64), "token_fields": token_fields}
        return prompts | {"prompt_index": index.reshape(of_rows.shape).astype(np.int64)}


class EntityPromptsBuilder:
    """Grows the distinct prompts part by part of the rows. Prompts are the same where their tokens are.

    Args:
        builders: of each entity's pieces.
        fields: of each entity the names of its text fields, and their numbers among all text fields.
        pad_token_id: what prompts are padded with.
    """

    def __init__(self, builders: list[PromptTableBuilder], fields: list[dict[str, int]], pad_token_id: int):
        self.builders, self.fields, self.pad_token_id = builders, fields, pad_token_id
        self.tokens, self.token_fields, self.offsets = array("i"), array("h"), array("q", [0])
        self.of_entries: list[dict[bytes, int]] = [{} for _ in builders]
        self.of_tokens: dict[bytes, int] = {}

    def add(self, columns: dict[str, Column]) -> np.ndarray:
        """The prompt of each row and entity, `(rows, E)` int32."""
        return np.stack([self.add_entity(columns, entity) for entity in range(len(self.builders))], axis=1)

    def add_entity(self, columns: dict[str, Column], entity: int) -> np.ndarray:
        """The prompt of each row of one entity, `(rows,)` int32."""
        builder, fields, known = self.builders[entity], self.fields[entity], self.of_entries[entity]
        entries = builder.add([columns[name] for name in fields])
        first, row_kinds = distinct_rows(entries, int(entries.max(initial=0)) + 1)
        kinds = np.ascontiguousarray(entries[first])
        keys = [kind.tobytes() for kind in kinds]
        new = [number for number, key in enumerate(keys) if key not in known]
        if new:
            composed = builder.table(0).compose(kinds[new])
            fields_of = np.array([*fields.values(), NO_FIELD], np.int16)[composed["token_fields"]]
            for row, number in enumerate(new):
                kept = composed["attention_mask"][row] == 1
                known[keys[number]] = self._prompt(composed["input_ids"][row, kept], fields_of[row, kept])
        return np.array([known[key] for key in keys], np.int32)[row_kinds]

    def _prompt(self, tokens: np.ndarray, fields: np.ndarray) -> int:
        tokens = tokens.astype(np.int32)
        number = self.of_tokens.setdefault(tokens.tobytes(), len(self.of_tokens))
        if number == len(self.offsets) - 1:
            self.tokens.extend(tokens.tolist())
            self.token_fields.extend(fields.tolist())
            self.offsets.append(len(self.tokens))
        return number

    def prompts(self, index: np.ndarray) -> EntityPrompts:
        """All prompts so far, with those of rows."""
        tokens, token_fields = np.array(self.tokens, np.int32), np.array(self.token_fields, np.int16)
        return EntityPrompts(tokens, token_fields, np.array(self.offsets, np.int64), index, self.pad_token_id)


class EncodedRows:
    """Rows as integers: batches are gathered from them, nothing is tokenised again.

    Attributes:
        feature_ids: `(N, slots)` int32.
        prompts: the textual view, or None.
        histories: what came before, or None.
    """

    def __init__(
        self,
        feature_ids: np.ndarray,
        prompts: RowPrompts | EntityPrompts | None = None,
        histories: Histories | None = None,
    ):
        self.feature_ids = feature_ids.astype(np.int32, copy=False)
        self.prompts, self.histories = prompts, histories

    def __len__(self) -> int:
        return len(self.feature_ids)

    @property
    def lengths(self) -> np.ndarray | None:
        """`(N,)` int32 tokens of each row's prompt; None without prompts, and where rows share them."""
        return None if self.prompts is None else self.prompts.lengths

    def shared_prompts(self, windows: int) -> np.ndarray | None:
        """`(N,)` int32 which prompt a row shares with others, of the entity whose texts would be read again most were
        the rows dealt out to so many windows at random; None where rows share none, and where they have the prompts of
        histories beside their own, which are those of nearly all items."""
        prompts = self.prompts
        if not isinstance(prompts, EntityPrompts):
            return None
        if self.histories is not None and self.histories.item_prompts is not None:
            return None
        lengths = np.diff(prompts.offsets)

        def read_again(of_entity: np.ndarray) -> int:  # tokens, at most
            rows = np.bincount(of_entity, minlength=len(lengths))
            return lengths @ (np.minimum(rows, windows) - (rows > 0))

        return max(prompts.index.T, key=read_again)

    def order(self) -> np.ndarray:
        """The rows by falling length of their prompts, `(N,)`: neighbours pad little, and too large a batch fails at
        once."""
        return np.arange(len(self)) if self.lengths is None else np.argsort(-self.lengths, kind="stable")

    def batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """`feature_ids` of those rows, their prompts, see [`RowPrompts.batch`] and [`EntityPrompts.batch`], and their
        histories, see [`Histories.batch`]."""
        batch, history = {"feature_ids": self.feature_ids[rows].astype(np.int64)}, None
        if self.histories is not None:
            of_rows, history = self.histories.batch(rows)
            batch |= of_rows
        if isinstance(self.prompts, EntityPrompts):
            batch |= self.prompts.batch(rows, history)
        elif self.prompts is not None:
            batch |= self.prompts.batch(rows)
        return batch
