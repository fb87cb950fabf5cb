# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Ranking the items of a catalogue for users: what the items say alone is computed once and kept."""

import threading
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from flip_ctr.modeling_flip.columns_flip import Column, read_columns
from flip_ctr.modeling_flip.containers_flip import factorize, plain_column
from flip_ctr.modeling_flip.fields_flip import PAD_ID, FlipField, check_choice, check_count, fields_of_items
from flip_ctr.modeling_flip.histories_flip import Histories
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.pipeline_flip import PROBABILITIES
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.prompt_tables_flip import EncodedRows
from flip_ctr.modeling_flip.rows_flip import RawRows, column_of, named_columns
from flip_ctr.serve.candidate_model import OUTPUTS, CandidateModel, TextParts
from flip_ctr.serve.catalogue import MANIFEST, Catalogue, key_field
from flip_ctr.serve.item_files import read_items
from flip_ctr.serve.request_reader import Candidates, RequestReader, Users
from flip_ctr.serve.row_side import RowSide
from flip_ctr.train.loop.leave_out import RowParts, scorer
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.models.digests import digest
from flip_ctr.train.outputs.run_log import logger
from flip_ctr.train.serve_arguments import BACKENDS

ROWS_AT_ONCE = 4096  # candidates that go through the model together
USERS_REMEMBERED = 10_000  # distinct texts
ROW_PROMPTS_AT_ONCE = 64  # the same of a model that reads their prompts


class FlipRanker:
    """Ranks items for users with a [`FlipForCTR`].

    ```python
    >>> from flip_ctr import FlipRanker
    >>> ranker = FlipRanker.from_pretrained("org/flip-ml-100k", items="items.parquet")
    >>> user = {"user_id": 12, "gender": "male", "age": 24, "occupation": "student", "zip_code": "94043"}
    >>> ranker.rank(user, top_k=1)  # rounded
    [{'movie_id': 313, 'click_probability': 0.982, 'id_probability': 0.987, 'text_probability': 0.959}]
    ```

    A row of the model is a user joined with an item: the columns that the items have come from the catalogue, all
    others from the user (or the context, or the candidate). The probabilities are those of the joined rows. With entity
    prompts (`config.prompts`) the PLM reads each item's text once, when it enters the catalogue, and in a request the
    user's alone; with row prompts it reads the text of every candidate in every request.

    Threads may share a ranker: a request sees one catalogue from its beginning to its end.

    Args:
        model, processor: of one checkpoint.
        items: a row an item, in any form that [`FlipProcessor`] takes, each of another key.
        item_key: the column that tells items apart, where the fields do not say it: the key of the items in histories,
            or the first field of the items that is a `key`.
        device: where the model computes and the catalogue lies; where the model is when not given.
        dtype: of what is kept of texts; as computed when not given. `torch.float16` takes half the memory.
        backend: what computes requests: `torch`, or on the CPU `onnx` (ONNX Runtime); the PLM is torch's.
        export_dir: folder that `flip-ctr export` has written for `onnx`, or where it is to be written; when not given
            the model is exported anew.

    Attributes:
        key: the field that tells items apart.
        catalogue: the items, see [`Catalogue`]; another one takes its place when items change.

    Raises:
        ValueError: a column is missing or a value has another type, names column and row; two items have one key; or
            items have some columns of an entity's prompt and lack others.
    """

    def __init__(
        self,
        model: FlipForCTR,
        processor: FlipProcessor,
        items: Any,
        item_key: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        backend: str = "torch",
        export_dir: str | Path | None = None,
    ):
        raw = RawRows.of(items)
        if raw.names is None:
            raise ValueError("items: there are none; give a row an item, or a table without rows but with its columns")
        names = named_columns(raw.names)
        every = processor.feature_extractor.all_fields
        fields = [one for one in every if not one.is_history and column_of(one, names)]
        key = key_field(every, [one.name for one in fields], item_key)
        if key not in every:
            key = FlipField(key.name, _type_of(raw, key))
        self._set_up(model, processor, fields, key, device, dtype, backend, export_dir)
        self.catalogue = self._encode_items(raw)

    def _set_up(self, model, processor, item_fields, key, device, dtype, backend, export_dir) -> None:
        check_choice("FlipRanker", "backend", backend, BACKENDS)
        if backend == "torch" and export_dir is not None:
            raise ValueError(f"FlipRanker: `export_dir` is for backend 'onnx'; got {export_dir} with 'torch'")
        processor.check_model(model.config, model.name_or_path or "FlipRanker")
        if device is not None:
            model.to(device)
        self.model, self.processor, self.key = model.eval(), processor, key
        self._changing = threading.Lock()  # of the catalogue: two changes at once would lose one
        fields = processor.feature_extractor.all_fields
        _check_items(processor, model, item_fields, key)
        others = [one for one in fields if one not in item_fields and not one.is_history]
        self._items = RowSide(model, processor, item_fields, True, dtype)
        self._users = RowSide(model, processor, others, remembers=USERS_REMEMBERED, lock=self._items.lock)
        self._item_slots = self._items.slots([one.name for one in item_fields])
        self._requests = RequestReader(fields, others, key, processor.history_field, self._items.keeps_text)
        of_history = self._items.slots([one.name for one in fields_of_items(fields)])
        self._history_slots = [self._item_slots.index(slot) for slot in of_history]  # among those of items
        # rows' prompts hold both sides: nothing of them can be kept
        self._reads_rows = model.flip.text_encoder is not None and not self._items.keeps_text
        self._compute: Callable = model if self._reads_rows else CandidateModel(model)
        if backend == "onnx":
            from flip_ctr.serve.onnx_graph import onnx_graph  # what it needs is an extra

            self._compute = onnx_graph(model, processor, export_dir)
        if self._reads_rows:
            logger.warning("this model has row prompts: its PLM reads the text of every candidate in every request")

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str,
        items: Any,
        item_key: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        base_model_name_or_path: str | None = None,
        backend: str = "torch",
        export_dir: str | Path | None = None,
    ) -> "FlipRanker":
        """A ranker of a checkpoint.

        Args:
            pretrained_model_name_or_path: folder or hub id of a fine-tuned model.
            items: as of [`FlipRanker`]; or a file of them, see [`read_items`]; or a dataset folder; or a
                folder that `save` has written, whose texts are not read again.
            item_key, device, dtype, backend, export_dir: as of [`FlipRanker`]; a saved catalogue has its own key and
                dtype.
            base_model_name_or_path: base of a LoRA adapter, where the one that it names cannot be found.

        Raises:
            ValueError: it is no fine-tuned click model; a saved catalogue is damaged, or of another model; or see
                [`FlipRanker`].
            OSError: there is no such checkpoint.
        """
        model, processor = load_click_model(str(pretrained_model_name_or_path), base_model_name_or_path)
        settings = device, dtype, backend, export_dir
        if not isinstance(items, str | Path):
            return cls(model, processor, items, item_key, *settings)
        if not (Path(items) / MANIFEST).is_file():
            return cls(model, processor, read_items(str(items), processor, item_key), item_key, *settings)
        ranker = cls.__new__(cls)
        if device is not None:
            model.to(device)
        catalogue = Catalogue.load(items, model_digest(model, processor), model.device)
        fields = [one for one in processor.feature_extractor.all_fields if one.name in catalogue.columns]
        kept = catalogue.text and catalogue.text.own.dtype
        ranker._set_up(model, processor, fields, catalogue.key, None, kept, backend, export_dir)
        ranker.catalogue = catalogue
        return ranker

    @property
    def user_fields(self) -> list[FlipField]:
        """The fields that items do not have: what a request says."""
        return self._users.fields

    @property
    def item_fields(self) -> list[FlipField]:
        """The fields that items have; the key is not among them where it is no field of the model."""
        return self._items.fields

    @property
    def probabilities(self) -> list[str]:
        """What answers say of an item beside its key."""
        names = list(PROBABILITIES.values())
        return names if self.model.fusion is not None else names[:1]

    @property
    def _outputs(self) -> tuple[str, ...]:
        return OUTPUTS if self.model.fusion is not None else OUTPUTS[:1]

    # --- items

    def __len__(self) -> int:
        """How many items are ranked."""
        return int(self.catalogue.shown.sum())

    def __contains__(self, key: Any) -> bool:
        try:
            return self._requests.canonical([key])[0] in self.catalogue.known
        except ValueError:  # a value of another type is no key
            return False

    def add_items(self, items: Any) -> None:
        """Adds items, or replaces those of the same key. Copies the catalogue: many at once are cheaper.

        Args:
            items: with the same columns, as of [`FlipRanker`].
        """
        encoded = self._encode_items(RawRows.of(items))
        with self._changing:
            self.catalogue = self.catalogue.with_items(encoded)

    def with_items(self, items: Any) -> "FlipRanker":
        """A ranker of the same model with these items too, as of `add_items`; this one stays as it is."""
        other = copy(self)
        other._changing = threading.Lock()
        other.catalogue = self.catalogue.with_items(self._encode_items(RawRows.of(items)))
        return other

    def remove_items(self, keys: Sequence) -> None:
        """Items that are not to be ranked any more; histories may still name them. `ValueError` where there is none of
        a key."""
        with self._changing:
            self.catalogue = self.catalogue.without(self._requests.keys(keys, "remove_items"))

    def save(self, folder: str | Path, overwrite: bool = False) -> None:
        """Writes the catalogue, so that `from_pretrained(..., items=folder)` reads no text again.

        Raises:
            FileExistsError: there is something already, and it is no catalogue or `overwrite` is off.
        """
        self.catalogue.save(folder, model_digest(self.model, self.processor), overwrite)

    def _encode_items(self, raw: RawRows) -> Catalogue:
        fields = {field.name: field for field in (*self._items.fields, self.key)}
        try:
            columns = read_columns(raw, list(fields.values()))
        except ValueError as error:
            raise ValueError(f"items: {error}") from None
        codes = columns[self.key.name].codes
        keys = columns[self.key.name].values
        if None in keys:
            raise ValueError(f"items: {self.key.name} of row {int((codes == keys.index(None)).argmax())} is null")
        counts = np.bincount(codes)
        if len(codes) and counts.max() > 1:
            twice = keys[int(counts.argmax())]
            raise ValueError(f"items: {self.key.name} {twice!r} has {counts.max():,} rows; each item must have one")
        rows = len(codes)
        ids, text = self._items.encode_ids(columns, rows), self._items.read_text(columns, rows)
        return Catalogue(self.key, columns, ids, text, np.ones(rows, bool))

    # --- ranking

    def rank(
        self,
        user: Any,
        candidates: Sequence | None = None,
        history: Sequence | None = None,
        context: Mapping | Sequence[Mapping] | None = None,
        top_k: int | None = None,
        exclude: Sequence | None = None,
    ) -> list[dict] | list[list[dict]]:
        """Items for a user, best first; ties stand in the order of the candidates.

        Args:
            user: the fields of a user as a dict; or many users, as a list of dicts or a table with a row a user.
            candidates: keys of items, all that the catalogue ranks when not given; or a dict an item, with the key and
                fields that belong to neither side alone (the user's clicks on the item's genre, say). Of many users one
                list for all, or one each.
            history: what the user had before, newest last: keys of clicked items, or dicts with the key and `clicked`
                (0 or 1). Of many users a list each. Where it is left out, and a user's dict has the field of the
                history, that is read.
            context: more fields of the request, a dict for all users or one each.
            top_k: how many are returned; all when not given.
            exclude: keys of items that are not to be returned, such as those the user has seen; those that the
                catalogue does not have are ignored. Of many users a list each.

        Returns: a dict an item, with its key, `click_probability`, and for strategy `joint` both towers' own
            `id_probability` and `text_probability`; of many users a list of such dicts each.

        Raises:
            ValueError: a field is missing, or a value has another type; an item is not in the catalogue; or the model
                reads no history, and one is given.
        """
        if top_k is not None:
            check_count("rank", "top_k", top_k, 1)
        if isinstance(user, list | tuple) and not user:
            return []
        catalogue = self.catalogue
        users, many = self._requests.users(catalogue, user, history, context)
        found = self._requests.candidates(catalogue, candidates, users)
        if not found.numbers.size:
            return [[] for _ in range(users.count)] if many else []
        excluded = self._requests.excluded(catalogue, exclude, many, users.count)
        logits = self._score(catalogue, users, found)
        answers = []
        numbers, lengths = (np.broadcast_to(part, (users.count, *part.shape[1:])) for part in found[:2])
        for row, length in enumerate(lengths.tolist()):
            order = np.argsort(-logits["logits"][row, :length], kind="stable")
            if excluded is not None:
                order = order[~np.isin(numbers[row, order], excluded[row])]
            order = order[:top_k]
            columns = [catalogue.answers[numbers[row, order]].tolist()]
            parts = [name for name in PROBABILITIES if name in logits]
            columns += [expit(logits[name][row, order].astype(np.float64)).tolist() for name in parts]
            names = [self.key.name, *(PROBABILITIES[name] for name in parts)]
            answers.append([dict(zip(names, values)) for values in zip(*columns)])
        return answers if many else answers[0]

    def score(
        self,
        users: Any,
        candidates: Sequence | None = None,
        history: Sequence | None = None,
        context: Mapping | Sequence[Mapping] | None = None,
    ) -> dict[str, np.ndarray]:
        """The log odds of candidates that all users share, as of `rank`, and for strategy `joint` the weight of the ID
        tower in them (`id_weight`): `(U, C)` by the names of the model's output, in the order of the candidates (of
        `catalogue.keys[catalogue.shown]` when not given). `ValueError` where users have lists of different lengths."""
        catalogue = self.catalogue
        read, _ = self._requests.users(catalogue, users, history, context)
        found = self._requests.candidates(catalogue, candidates, read)
        if len(set(found.lengths.tolist())) > 1:
            raise ValueError(f"candidates: users share one list here; got lists of {found.lengths.tolist()} items")
        return self._score(catalogue, read, found)

    def explain(
        self,
        user: Mapping,
        candidates: Sequence,
        history: Sequence | None = None,
        context: Mapping | None = None,
    ) -> list[dict]:
        """How much of the scores of some items each field and the history are, see [`flip_ctr.explain`]: a dict for
        each candidate, with its key.

        Args:
            user: the fields of one user.
            candidates, history, context: as of `rank`.

        Raises:
            ValueError: there is more than one user; or see `rank`.
        """
        catalogue = self.catalogue
        users, many = self._requests.users(catalogue, user, history, context)
        if many:
            raise ValueError(f"explain: one user is needed, a dict of their fields; got {users.count} users")
        found = self._requests.candidates(catalogue, candidates, users)
        numbers = found.numbers[0]
        of_user = {name: column.take(np.zeros(len(numbers), np.int64)) for name, column in users.columns.items()}
        columns = of_user | catalogue.take(numbers).columns | found.columns
        histories = users.history and (
            users.history[0].repeat(len(numbers), 0),
            users.history[1].repeat(len(numbers), 0),
            catalogue.columns,
        )
        parts = RowParts(self.model, self.processor, columns, histories)
        with self._items.lock:  # of the tokenizer
            answers = list(parts.explain(scorer(self.model, self.processor, ROWS_AT_ONCE)))
        keys = catalogue.answers[numbers].tolist()
        return [{self.key.name: key} | answer for key, answer in zip(keys, answers, strict=True)]

    # --- scoring

    @torch.no_grad()
    def _score(self, catalogue: Catalogue, users: Users, candidates: Candidates) -> dict[str, np.ndarray]:
        """The `OUTPUTS` of all candidates, `(U, C)` by the names of the model's output."""
        width = candidates.numbers.shape[1]
        if width == 0:
            return {name: np.empty((users.count, 0), np.float32) for name in self._outputs}
        numbers = np.broadcast_to(candidates.numbers, (users.count, width))
        slots = [*map(self._users.slots, (users.columns, candidates.columns))]
        ids = self._users.encode_ids(users.columns, users.count)
        own_ids = self._users.encode_ids(candidates.columns, candidates.numbers.size)
        own_ids = own_ids.unflatten(0, candidates.numbers.shape).expand(users.count, -1, -1)
        text = self._users.read_text(users.columns, users.count)
        found: dict[str, np.ndarray] = {}
        users_at_once = max(1, ROWS_AT_ONCE // width)
        for first in range(0, users.count, users_at_once):
            some = slice(first, min(first + users_at_once, users.count))
            for start in range(0, width, ROWS_AT_ONCE):
                block = some, slice(start, start + ROWS_AT_ONCE)
                picked = torch.from_numpy(numbers[block].copy()).to(self.model.device)
                feature_ids = picked.new_empty(*picked.shape, len(self.model.config.slot_fields))
                feature_ids[..., self._item_slots] = catalogue.ids[picked].long()
                feature_ids[..., slots[0]] = ids[some, None].long()
                feature_ids[..., slots[1]] = own_ids[block].long()
                history = users.history and (users.history[0][some], users.history[1][some])
                if self._reads_rows:
                    row_columns = self._row_columns(catalogue, users, candidates, numbers, block)
                    logits = self._read_rows(catalogue, feature_ids, row_columns, history)
                else:
                    of_users = text and TextParts(*(part if part is None else part[some] for part in text))
                    logits = self._compute(**self._inputs(catalogue, picked, feature_ids, of_users, history))
                for name in OUTPUTS:
                    if name in logits:
                        values = found.setdefault(name, np.empty(numbers.shape, np.float32))
                        of_rows = logits[name].float().expand(picked.numel(), 1)  # one weight may be for all rows
                        values[block] = of_rows.cpu().numpy().reshape(picked.shape)
        return found

    def _inputs(self, catalogue, picked, feature_ids, text, history) -> dict[str, torch.Tensor]:
        """What the [`CandidateModel`] reads, of U users with C candidates each."""
        inputs = {} if self.model.flip.id_tower is None else {"feature_ids": feature_ids.flatten(0, 1)}
        dtype = self.model.dtype
        if text is not None:
            of_items = catalogue.text
            inputs["feature_ids"] = feature_ids.flatten(0, 1)  # which the fusion reads
            inputs |= {"item_own": of_items.own[picked.flatten()], "item_factors": of_items.factors[picked.flatten()]}
            inputs |= {"user_own": text.own, "user_factors": text.factors}
        if history is not None:
            items, outcomes = (torch.from_numpy(part.astype(np.int64)).to(picked.device) for part in history)
            known = items.clamp(min=0)
            entries = catalogue.ids[known][..., self._history_slots].long()
            inputs["history_ids"] = entries.masked_fill((items < 0)[..., None], PAD_ID)
            inputs["history_outcomes"] = outcomes
            if text is not None and of_items.query is not None:
                inputs |= {"item_query": of_items.query[picked.flatten()], "history_entry": of_items.entry[known]}
        return {name: part.to(dtype) if part.is_floating_point() else part for name, part in inputs.items()}

    # --- models whose prompts hold both sides

    def _row_columns(self, catalogue, users, candidates, numbers, block) -> dict[str, Column]:
        """The columns of joined rows that prompts say."""
        some, part = block
        shape = numbers[block].shape
        rows = np.broadcast_to(np.arange(users.count)[some, None], shape).ravel()
        own = np.arange(candidates.numbers.size).reshape(candidates.numbers.shape)
        own = np.broadcast_to(own, numbers.shape)[block].ravel()
        sources = [(catalogue.columns, numbers[block].ravel()), (users.columns, rows), (candidates.columns, own)]
        names = [field.name for field in self.processor.text_fields]
        return {name: columns[name].take(picked) for columns, picked in sources for name in names if name in columns}

    def _read_rows(self, catalogue, feature_ids, columns, history) -> dict[str, torch.Tensor]:
        """The model's output for joined rows, `(U C, 1)`."""
        with self._users.lock:
            prompts = self.processor.encode_prompts(columns)
        ids = feature_ids.flatten(0, 1)
        histories = None
        if history is not None:
            each = [part.repeat(feature_ids.shape[1], axis=0) for part in history]
            histories = Histories(*each, catalogue.ids[:, self._history_slots].cpu().numpy())
        rows = EncodedRows(ids.cpu().numpy(), prompts, histories)
        order, found = rows.order(), []
        for start in range(0, len(order), ROW_PROMPTS_AT_ONCE):
            batch = rows.batch(order[start : start + ROW_PROMPTS_AT_ONCE])
            found.append(self._compute(**{name: torch.from_numpy(part).to(ids.device) for name, part in batch.items()}))
        back = torch.from_numpy(np.argsort(order)).to(ids.device)
        whole = {name: torch.cat([one[name].expand(len(one["logits"]), 1) for one in found]) for name in self._outputs}
        return {name: values[back] for name, values in whole.items()}


def model_digest(model: FlipForCTR, processor: FlipProcessor) -> str:
    """Of all that a catalogue's ids and texts are made by."""
    return digest(processor.fingerprint, [model.flip.text_encoder, model.flip.text_interaction])


def _check_items(processor: FlipProcessor, model: FlipForCTR, fields: list[FlipField], key: FlipField) -> None:
    """`ValueError` where the items lack a column that they need: those of histories, and all of a prompt's; or have one
    that says something of users, who would all have the item's value."""
    names = [field.name for field in fields]
    of_users = [
        repr(field.name) + (f" (or {field.column!r})" if field.column else "")
        for field in fields
        if field.entity == "user" != key.entity
    ]
    if of_users:
        raise ValueError(
            f"items: column(s) {', '.join(of_users)} are fields of users, which a request gives; leave them out of the "
            "items, or give them other names"
        )
    for field in fields_of_items(processor.feature_extractor.all_fields):
        if field.name not in names:
            raise ValueError(
                f"items: column '{field.name}' missing, which histories read; they have {', '.join(names)}"
            )
    for prompt in processor.prompt_fields if model.flip.text_interaction is not None else []:
        there = [field.name for field in prompt if field.name in names]
        missing = [field.name for field in prompt if field.name not in names]
        if there and missing:
            raise ValueError(
                f"items: column(s) {', '.join(map(repr, missing))} missing; '{there[0]}' is in one prompt with them"
            )


def _type_of(items: RawRows, key: FlipField) -> str:
    """The type of a key of which the model says nothing: that of its values."""
    try:
        values, _ = factorize(plain_column(items.columns([key])[key.name]))
    except ValueError as error:
        raise ValueError(f"items: {error}") from None
    kinds = {type(value) for value in values if value is not None}
    return "int" if kinds and all(issubclass(one, int | np.integer) and one is not bool for one in kinds) else "string"
