# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Prediction: click probabilities for the rows of a Parquet, CSV or JSON-lines file.

flip-ctr predict --model_name_or_path M --input rows.parquet --output scores.parquet
"""

import numpy as np
import pyarrow as pa
from scipy.special import expit

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.events import with_histories
from flip_ctr.data.readers.row_files import file_format, lists_as_text, read_rows, write_rows
from flip_ctr.modeling_flip.columns_flip import RowError
from flip_ctr.modeling_flip.pipeline_flip import PROBABILITIES
from flip_ctr.train.arguments import PredictArguments
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.run_log import set_up_logging

COUNTED = " Rows are counted from 0, the first one after a header."


def run(args: PredictArguments) -> pa.Table:
    """Returns the rows with their probabilities, as written: `click_probability`, and for `joint` both towers' own.

    Raises:
        ValueError: the input has no rows, lacks a column, or holds a value of another type (names column and row).
    """
    file_format(args.output)  # before any work
    import_custom_code(args.custom_code)
    if args.time_column is not None and args.events is None:
        raise ValueError("--time_column says which of the --events count, and there are none")
    accelerator = make_accelerator(args.mixed_precision)
    set_up_logging(accelerator)
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    fields = processor.feature_extractor.all_fields
    rows = read_rows(args.input, fields)
    if len(rows) == 0:
        raise ValueError(f"{args.input} has no rows")
    scored = rows  # with what they are scored by
    try:
        path = args.items
        items = None if path is None else processor.read_items(read_rows(path, fields))
        path = args.events
        if path is not None:
            scored = with_histories(rows, read_rows(path, fields), fields, args.time_column)
    except RowError as error:
        raise ValueError(f"{path}: {error}{COUNTED}") from None
    try:
        # the fields alone: a label in the file is not needed here, and need not be valid
        known = scored.select([field.name for field in fields if field.name in scored.column_names])
        dataset = EncodedDataset(processor, known, not processor.id_only, items)
        if file_format(args.output) == ".csv":  # what cannot be written is known before the work
            rows = lists_as_text(rows, fields)
    except ValueError as error:
        raise ValueError(f"{args.input}: {error}{COUNTED if isinstance(error, RowError) else ''}") from None
    scores = score(accelerator, model.to(accelerator.device), dataset, args.per_device_eval_batch_size, progress=True)
    for name, logits in scores.items():
        if name == "logits" or model.config.strategy == "joint":
            probabilities = pa.array(expit(logits.astype(np.float64)))
            if PROBABILITIES[name] in rows.column_names:
                raise ValueError(f"{args.input} already has a column '{PROBABILITIES[name]}'; rename it")
            rows = rows.append_column(PROBABILITIES[name], probabilities)
    if accelerator.is_main_process:
        write_rows(rows, args.output)
    accelerator.print(f"{len(rows):,} rows scored, written to {args.output}")
    return rows
