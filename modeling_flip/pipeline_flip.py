# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""`pipeline("click-through-rate")`: rows as people have them -> click probabilities."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from transformers import Pipeline

from .columns_flip import RowError

# transformers before 5.9 copies what is imported here, and no more
from .containers_flip import UnknownContainer  # noqa: F401
from .fields_flip import FlipField, check_count  # noqa: F401
from .rows_flip import row_batches
from .values_flip import Value  # noqa: F401

DEFAULT_BATCH_SIZE = 256
# name of the score in the model's output -> its name in an answer
PROBABILITIES = {"logits": "click_probability", "id_logits": "id_probability", "text_logits": "text_probability"}


class ClickThroughRatePipeline(Pipeline):
    """Scores rows with a [`FlipForCTR`].

    ```python
    >>> from transformers import pipeline
    >>> score = pipeline("click-through-rate", model="org/flip-ml-100k", trust_remote_code=True)
    >>> row = {"user_id": 12, "gender": "male", "age": 24, "occupation": "student", "zip_code": "94043"}
    >>> score(row | {"movie_id": 313, "title": "Titanic (1997)", "genre": "Action, Drama, Romance"})  # rounded
    {'click_probability': 0.982, 'id_probability': 0.987, 'text_probability': 0.959}
    ```

    An answer holds `click_probability`, and for strategy `joint` the towers' own `id_probability` and
    `text_probability`.
    """

    processor: Any  # a FlipProcessor, whose module this one must not import
    _load_processor: Any = True
    _load_tokenizer: Any = False
    _load_feature_extractor: Any = False
    _load_image_processor: Any = False
    _load_video_processor: Any = False

    def __init__(self, *args, **kwargs):
        """
        Raises:
            ValueError: the processor is not the model's, or the model has weights that were never trained.
        """
        super().__init__(*args, **kwargs)
        path = self.model.name_or_path or "pipeline"
        if self.processor is not None:
            self.processor.check_model(self.model.config, path)
        untrained: Any = self.model.untrained
        if untrained:
            raise ValueError(
                f"{path}: {', '.join(untrained[:5])} were never trained, as the checkpoint has none; "
                "fine-tune it first (flip-ctr finetune)."
            )

    def _sanitize_parameters(self, **parameters):
        if parameters:
            raise TypeError(
                f"unknown argument(s) {', '.join(parameters)}; those of a call are `batch_size` and `items`."
            )
        return {}, {}, {}

    def __call__(
        self, rows: Any, batch_size: int | None = None, items: Any = None, **kwargs
    ) -> dict | list[dict] | Iterator[dict]:
        """
        Args:
            rows: one row as a dict (single-valued fields are scalars in it) or a pandas Series; or rows in any other
                form that the processor takes, see [`FlipProcessor.__call__`]. Of a stream (a generator of rows or
                tables, a reader of Arrow batches, a streaming `datasets` dataset) only one batch is in memory. Columns
                that are no field of the model are ignored.
            batch_size: rows the model takes at once; the pipeline's own when not given, or 256.
            items: the items that histories name, one a row, in the same forms; not needed where the entries of the
                histories have all fields of their item.

        Returns:
            One dict for one row, a list in the order of the rows for many, an iterator for a stream.

        Raises:
            ValueError: a column is missing, or a value has another type: names column and row; or `batch_size` is below
                1.
            TypeError: `rows` has another form.
        """
        self._sanitize_parameters(**{name: value for name, value in kwargs.items() if name != "num_workers"})
        batch_size = next(size for size in (batch_size, self._batch_size, DEFAULT_BATCH_SIZE) if size is not None)
        check_count("pipeline", "batch_size", batch_size, 1)
        if self.processor is None:
            raise ValueError(
                "pipeline: `processor` is needed, which reads the rows; give the checkpoint's FlipProcessor."
            )
        batches = row_batches(rows, batch_size)
        if batches is not None:
            return self._stream(batches, batch_size, items)
        rows = self.processor.read_rows(rows)
        answers = self._score(rows, batch_size, items)
        return answers[0] if rows.is_one_row else answers

    def _stream(self, batches: Iterable, batch_size: int, items: Any) -> Iterator[dict]:
        items, done = self.processor.read_items(items), 0
        for batch in batches:
            try:
                answers = self._score(batch, batch_size, items)
            except RowError as error:  # rows are counted in the stream
                raise RowError(error.column, done + error.row, error.reason) from None
            yield from answers
            done += len(answers)

    def _score(self, rows: Any, batch_size: int, items: Any) -> list[dict]:
        # each distinct value is encoded once for all rows; rows of similar length share a batch
        encoded = self.preprocess(rows, items)
        answers: list[dict] = [{}] * len(encoded)
        order = encoded.order()
        for start in range(0, len(order), batch_size):
            picked = order[start : start + batch_size]
            for row, answer in zip(picked, self.postprocess(self.forward(encoded.batch(picked)))):
                answers[row] = answer
        return answers

    def preprocess(self, rows: Any, items: Any = None):
        return self.processor.encode(rows, cached=True, items=items)

    def _forward(self, inputs: Mapping[str, np.ndarray]):
        tensors = {name: torch.from_numpy(values).to(self.device) for name, values in inputs.items()}
        return self.model(**tensors)

    def postprocess(self, outputs) -> list[dict]:
        names = [name for name in PROBABILITIES if outputs.get(name) is not None]
        if self.model.config.strategy != "joint":  # the only tower's score is the answer itself
            names = ["logits"]
        columns = [outputs[name][:, 0].double().sigmoid().tolist() for name in names]
        return [dict(zip((PROBABILITIES[name] for name in names), values)) for values in zip(*columns)]

    def save_pretrained(self, save_directory, **kwargs) -> None:
        """Saves model and processor; the base class would leave the processor out."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)


__all__ = ["ClickThroughRatePipeline"]
