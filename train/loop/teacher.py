# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Distillation: a fine-tuned FLIP checkpoint scores the training rows, and pairs that are drawn from them, for a
student that learns from its log odds.

It scores all of them once, before training: with entity prompts its PLM reads each text once, and a run that goes on
sees the same numbers.
"""

import math
import time

import numpy as np
import torch
from accelerate import Accelerator
from scipy.special import expit

from flip_ctr.data.batches.cache import processor_digest
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.pairs import RowPairs, TaughtRows
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.loop.loaders import encode_split, log_unknown_keys
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.loop.split_catalogue import item_field
from flip_ctr.train.models.build import check_fields, load_click_model
from flip_ctr.train.models.digests import digest
from flip_ctr.train.outputs.run_log import logger


def load_teacher(args: FinetuneArguments, rows: SplitRows) -> tuple[FlipForCTR, FlipProcessor]:
    """The teacher of a run, and the processor that reads the training rows for it. Logs what share of them has keys
    that it does not know.

    Raises:
        OSError: there is no such checkpoint.
        ValueError: it is no fine-tuned click model, or reads other fields than the dataset has.
    """
    path = str(args.teacher)
    teacher, processor = load_click_model(path, args.base_model_name_or_path, "teacher")
    check_fields(processor, rows.schema, path)
    entities = {field.name: field.entity for field in rows.schema.fields}
    for field in processor.feature_extractor.all_fields:
        if field.entity != entities[field.name]:
            raise ValueError(
                f"--teacher {path}: {field.name} is of the {field.entity} there, and of the {entities[field.name]} in "
                f"the dataset"
            )
    log_unknown_keys(processor, {"training": rows}, f"--teacher {path}")
    return teacher, processor


def fields_of_pairs(args: FinetuneArguments, schema: DatasetSchema) -> list[str]:
    """The fields that a pair has from the row of its item; none without pairs.

    Raises:
        ValueError: the dataset does not say what an item is, all its fields are of one, or some count rows by user and
            item together.
    """
    if args.pairs_per_row == 0:
        return []
    unknown = f"--pairs_per_row {args.pairs_per_row} draws items, and one key must be that of an item"
    entity = item_field(schema, unknown=unknown).entity
    found = [field.name for field in schema.fields if field.entity == entity and not field.is_history]
    if len(found) == len(schema.fields):
        raise ValueError(
            f"--pairs_per_row {args.pairs_per_row}: all fields are of the {entity}, and a pair has others, such as a "
            "user's; --pairs_per_row 0 draws none"
        )
    return found


@torch.no_grad()
def teach(
    accelerator: Accelerator,
    args: FinetuneArguments,
    teacher: tuple[FlipForCTR, FlipProcessor],
    rows: SplitRows,
    dataset: EncodedDataset,
    negative_sampling_rate: float,
) -> TaughtRows:
    """The training rows with what the teacher says of them and of their pairs. Each process scores a part.

    Args:
        teacher: see [`load_teacher`].
        rows, dataset: the training rows, as they are and encoded for the student.
        negative_sampling_rate: the share of the non-clicks that they have: log odds are brought to it, those of the
            teacher are of the natural rate.
    """
    started = time.perf_counter()
    model, processor = teacher
    items = fields_of_pairs(args, rows.schema)
    read = encode_split(accelerator, processor, rows, model.config.strategy != "id")
    to_score, to_learn = (RowPairs(one, items, args.pairs_per_row, args.seed) for one in (read, dataset))
    made_by = digest_of(model, processor)
    logger.info(f"the teacher scores {len(dataset):,} training rows and {len(to_score) - len(dataset):,} drawn pairs")
    model.to(accelerator.device).requires_grad_(False)  # what a frozen PLM says of a text is kept
    log_odds = score(accelerator, model, to_score, args.per_device_eval_batch_size, progress=True)["logits"]
    probabilities = expit(log_odds.astype(np.float64) - math.log(negative_sampling_rate)).astype(np.float32)
    logger.info(f"the teacher took {time.perf_counter() - started:.0f} seconds")
    return TaughtRows(dataset, to_learn, probabilities, args.teacher_weight, made_by)


def digest_of(model: FlipForCTR, processor: FlipProcessor) -> str:
    """Of all that log odds depend on: weights, configuration and processor. A run that goes on must have the same
    teacher."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    read_by = processor_digest(processor, model.config.strategy != "id")
    return digest({"config": config, "processor": read_by}, [model])
