# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a server serves: a model with a catalogue, which never change. Another pair takes their place in one step, and a
request is answered by the pair that it came to."""

import asyncio
import copy
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from flip_ctr.modeling_flip.fields_flip import fields_of_items
from flip_ctr.modeling_flip.histories_flip import HistoryItems
from flip_ctr.modeling_flip.pipeline_flip import ClickThroughRatePipeline
from flip_ctr.modeling_flip.values_flip import value_reader
from flip_ctr.serve.batching import BatchingThread, Job
from flip_ctr.serve.ranker import FlipRanker
from flip_ctr.serve.request_types import RankRequest, RequestTypes, UnknownItems
from flip_ctr.train.options import public_name
from flip_ctr.train.serve_arguments import ServeArguments

# of a configuration: where, how and by what it was saved
NOT_OF_A_MODEL = ("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version")


class Served:
    """A model with a catalogue.

    Args:
        ranker: whose catalogue stays what it is.
        source: the names or paths of model and items that it was read from.
        before: the pair that this one takes the place of, where only the catalogue is another.
    """

    def __init__(self, ranker: FlipRanker, source: tuple[str, str], before: "Served | None" = None):
        self.ranker, self.source = ranker, source
        self.types = RequestTypes(ranker) if before is None else before.types
        self.pipeline = (
            ClickThroughRatePipeline(model=ranker.model, processor=ranker.processor)
            if before is None
            else before.pipeline
        )
        self.model_version = model_version(ranker) if before is None else before.model_version
        self._read_key = value_reader(ranker.key)
        # made here, and not while the first request waits
        catalogue = ranker.catalogue
        self._plain = {False: frozenset(catalogue.answers), True: frozenset(catalogue.answers[catalogue.shown])}
        self._canonical = {False: catalogue.numbers, True: catalogue.known}
        self.versions = {
            "model": {"name": public_name(source[0]), "version": self.model_version},
            "catalogue": catalogue.version,
        }

    @classmethod
    def load(cls, args: ServeArguments, source: tuple[str, str]) -> "Served":
        """Reads model and items, which `source` names; see [`FlipRanker.from_pretrained`] for what is raised."""
        device = args.device or ("cuda" if torch.cuda.is_available() else None)
        base = args.base_model_name_or_path
        return cls(
            FlipRanker.from_pretrained(
                *source, args.item_key, device, base_model_name_or_path=base, backend=args.backend
            ),
            source,
        )

    def changed(self, change: Callable[[FlipRanker], Any]) -> "Served":
        """The pair with the same model and another catalogue."""
        ranker = copy.copy(self.ranker)
        change(ranker)
        return Served(ranker, self.source, self)

    def unknown(self, keys: Sequence, ranked: bool) -> list:
        """Those of some keys that no item has: none that is ranked, or none at all. `ValueError` where one is of
        another type."""
        lacking = []
        for key in dict.fromkeys(keys):
            if key in self._plain[ranked]:
                continue
            try:
                value = self._read_key(key)
            except ValueError as error:
                raise ValueError(f"{self.ranker.key.name}: {error}") from None
            if value not in self._canonical[ranked]:
                lacking.append(key)
        return lacking

    def rank(self, requests: Sequence[RankRequest]) -> list[list[list[dict]]]:
        """What each request gets: a list of items for each of its users. They have the same `own`, and all of them
        candidates or none."""
        first = requests[0]
        candidates: Any = first.candidates
        if len(requests) == 1 and candidates is not None and first.shared:
            candidates = candidates[0]
        elif candidates is not None:
            candidates = [some for one in requests for some in one.candidates]
        histories = None if first.histories is None else [some for one in requests for some in one.histories]
        excluded = [some for one in requests for some in one.excluded]
        counts = [one.top_k for one in requests]
        ranked = iter(
            self.ranker.rank(
                [user for one in requests for user in one.users],
                candidates,
                histories,
                top_k=None if None in counts else max(counts),
                exclude=excluded if any(excluded) else None,
            )
        )
        return [[next(ranked)[: one.top_k] for _ in one.users] for one in requests]

    def predict(self, requests: Sequence[tuple[list[dict], list[dict] | None]]) -> list[list[dict]]:
        """What the pipeline says of the rows of each request. Where histories name items by their keys alone, and the
        request has no items, they are the catalogue's."""
        return [
            self.pipeline(rows, items=self._items if items is None and self._names_items(rows) else items)
            for rows, items in requests
        ]

    def _names_items(self, rows: list[dict]) -> bool:
        history = self.ranker.processor.history_field
        if history is None:
            return False
        needed = {field.name for field in fields_of_items(self.ranker.processor.feature_extractor.all_fields)}
        return not all(needed <= entry.keys() for row in rows for entry in row.get(history.name) or [])

    @cached_property
    def _items(self) -> HistoryItems:
        return HistoryItems(self.ranker.catalogue.columns, self.ranker.key.name)


def model_version(ranker: FlipRanker) -> str:
    """A digest of weights, configuration and processor."""
    config = {name: value for name, value in ranker.model.config.to_dict().items() if name not in NOT_OF_A_MODEL}
    told = json.dumps([config, ranker.processor.fingerprint], sort_keys=True, default=str)
    digest = blake2b(told.encode(), digest_size=6)
    for tensor in ranker.model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class TooManyChanges(Exception):
    """As many changes wait as may wait."""


class Service:
    """What is served at the moment, the thread that computes, and the one that makes what is served next.

    Attributes:
        current: what is served; None while it is read.
        stopping: whether the server is about to end.
        failure: why there is nothing to serve.
    """

    def __init__(self, args: ServeArguments, on_batch: Callable[[int], Any], current: Served | None = None):
        self.args, self.current, self.stopping = args, current, False
        self.failure: Exception | None = None
        self.thread = BatchingThread(args.max_batch_size, args.max_wait_ms / 1000, args.max_queue, on_batch)
        self._changes, self._waiting_changes = ThreadPoolExecutor(1, "flip-ctr-changes"), 0

    @property
    def ready(self) -> bool:
        return self.current is not None and not self.stopping

    def load(self) -> Served:
        return Served.load(self.args, (self.args.model_name_or_path, self.args.items))

    def reload(self, model_name_or_path: str | None, items: str | None) -> Served:
        """The pair of another model or other items; those that are not named are read again.

        Raises:
            PermissionError: a path is not in a folder of `--reload_from`.
        """
        model, catalogue = self.current.source
        model = model if model_name_or_path is None else self._allowed(model_name_or_path)
        return Served.load(self.args, (model, catalogue if items is None else self._allowed(items)))

    def _allowed(self, path: str) -> str:
        if path in (self.args.model_name_or_path, self.args.items):
            return path
        place = Path(path).resolve()
        if not any(place.is_relative_to(Path(folder).resolve()) for folder in self.args.reload_from or []):
            raise PermissionError(f"{path} is in no folder of --reload_from")
        return path

    async def change(self, make: Callable[[], Served]) -> Served:
        """Makes what is served next, one after the other, and puts it in its place. `TooManyChanges` where too many
        wait for that already."""
        if self._waiting_changes >= self.args.max_queue:
            raise TooManyChanges

        def work() -> Served:
            self.current = make()
            return self.current

        self._waiting_changes += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._changes, work)
        finally:
            self._waiting_changes -= 1

    def rank_job(self, served: Served, request: RankRequest) -> Job:
        """`ValueError` where it has too many candidates."""
        width = len(served.ranker) if request.candidates is None else max(map(len, request.candidates))
        self._check_rows(len(request.users) * width)
        together = (served, request.candidates is None, request.own)
        return Job(served.rank, request, together, len(request.users), width)

    def predict_job(self, served: Served, rows: list[dict], items: list[dict] | None) -> Job:
        """`ValueError` where it has too many rows."""
        self._check_rows(len(rows))
        return Job(served.predict, (rows, items), None, len(rows))

    def _check_rows(self, rows: int) -> None:
        if rows > self.args.max_candidates:
            raise ValueError(
                f"{rows:,} rows (users times candidates) are more than a request may have, {self.args.max_candidates:,}"
            )

    def close(self) -> None:
        """Returns when all that was taken is computed."""
        self.thread.close()
        self._changes.shutdown()


def without_unknown(served: Served, keys: list, skip: bool) -> tuple[list, list]:
    """The keys of items that are ranked, and those of none. `UnknownItems` where there are such, and they are not to be
    skipped."""
    lacking = served.unknown(keys, True)
    if lacking and not skip:
        raise UnknownItems("keys", served.ranker.key.name, lacking)
    gone = set(lacking)
    return [key for key in keys if key not in gone], lacking
