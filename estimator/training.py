# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A click model fine-tuned on rows in memory, by the recipe's own parts: nothing but a history is written."""

import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
from accelerate.utils import set_seed

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.finetune import check_models, criterion, processor_and_model
from flip_ctr.train.loop.calibration import NotCalibrated, calibrate, check_clicks_to_calibrate
from flip_ctr.train.loop.loaders import click_collator, training_loader
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.loop.training_loop import how_long, train
from flip_ctr.train.models.build import ready_to_train
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.models.lora import merge
from flip_ctr.train.outputs.card import write_card
from flip_ctr.train.outputs.metrics import click_metrics
from flip_ctr.train.outputs.record import training_record


@dataclass
class Trained:
    """What a training leaves.

    Attributes:
        history: see [`train`].
        value: validation AUC - LogLoss of the model; None without validation rows.
        record: see [`training_record`].
        card: text of the model card.
    """

    model: FlipForCTR
    processor: FlipProcessor
    history: list[dict]
    value: float | None
    record: dict
    card: str


class _Rows:
    """The rows of a frame as a card asks for them, see [`SplitRows`]."""

    def __init__(self, frame: pd.DataFrame):
        self._frame = frame

    def parts(self, columns):
        # as text, which every type is read from: a column may hold values of several types
        yield 0, pa.Table.from_pandas(self._frame[list(columns)].astype("string"), preserve_index=False)

    def take(self, rows):
        return pa.Table.from_pandas(self._frame.iloc[list(rows)], preserve_index=False)


def fit_model(
    args: FinetuneArguments,
    schema: DatasetSchema,
    train_rows: pd.DataFrame,
    eval_rows: pd.DataFrame | None,
    progress: bool = False,
) -> Trained:
    """Fine-tunes as [`flip_ctr.train.finetune.run`] does, and keeps the model that is best on validation.

    Args:
        args: `output_dir` is a folder for the history.
        schema: of the rows: fields, label and weight.
        eval_rows: of validation; without them the last model is kept.
        progress: as of [`train`].

    Raises:
        ValueError: an argument, a row or the checkpoint does not fit.
    """
    import_custom_code(args.custom_code)
    accelerator = make_accelerator(args.mixed_precision)
    args.mixed_precision = accelerator.mixed_precision
    set_seed(args.seed)
    check_models(args)
    record = training_record(args, schema)
    model, processor = processor_and_model(args, schema, train_rows)
    processor.label, processor.weight = schema.label, schema.weight_column  # a checkpoint may have others
    model = ready_to_train(model, processor, args)
    prompts, size = args.strategy != "id", args.per_device_eval_batch_size
    train_set = EncodedDataset(processor, train_rows, prompts)
    eval_set = None if eval_rows is None else EncodedDataset(processor, eval_rows, prompts)
    if args.calibration is not None:
        if eval_set is None:
            raise ValueError(f"--calibration {args.calibration} needs validation rows, and there are none")
        check_clicks_to_calibrate(args.calibration, eval_set.labels)
    collator = click_collator(processor, args)
    best: dict = {}

    def evaluate() -> dict[str, float]:
        if eval_set is None:
            return {}
        metrics = click_metrics(score(accelerator, model, eval_set, size)["logits"], eval_set.labels)
        return {f"eval_{name}": value for name, value in metrics.items()}

    def keep() -> None:
        best.update({name: tensor.detach().clone() for name, tensor in model.state_dict().items()})

    history = train(
        accelerator,
        model,
        training_loader(train_set, collator, accelerator, args),
        args,
        evaluate,
        None if eval_set is None else criterion,
        on_best=keep,
        patience=args.early_stopping_patience,
        progress=progress,
    )
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    if best:
        model.load_state_dict(best)
    model = (merge(model) if args.use_lora else model).eval().requires_grad_(False)
    evaluations = [entry for entry in history if "eval_auc" in entry]
    chosen = max(evaluations, key=criterion) if evaluations else history[-1]
    results = {name: value for name, value in chosen.items() if name.startswith("eval_")}
    if args.calibration is not None:
        try:
            results |= calibrate(accelerator, model, eval_set, args.calibration, args.seed, size)
        except NotCalibrated as error:  # of what was trained nothing is lost
            warnings.warn(f"{error}. The model is not calibrated", stacklevel=2)
    results |= {
        "best_epoch": chosen["epoch"],
        "train_rows": len(train_set),
        **how_long(history),
        "num_processes": accelerator.num_processes,
    }
    model.config.fingerprint = processor.fingerprint  # both may have changed since they were made
    with tempfile.TemporaryDirectory(prefix="flip-ctr-") as folder:
        path = write_card(folder, record, model, processor, schema, folder, _Rows(train_rows), results)
        card = Path(path).read_text(encoding="utf-8")
    return Trained(model, processor, history, criterion(chosen) if evaluations else None, record, card)
