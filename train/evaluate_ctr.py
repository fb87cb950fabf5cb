# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: the metrics of a fine-tuned checkpoint on one split of a dataset folder.

flip-ctr evaluate --dataset_dir D --model_name_or_path M --split test
accelerate launch -m flip_ctr.train.cli evaluate --dataset_dir D --model_name_or_path M
"""

import os

from accelerate import DistributedType

from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train.arguments import EvaluateArguments
from flip_ctr.train.loop.loaders import check_clicks, encode_split
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.models.build import check_fields, load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.metrics import score_metrics
from flip_ctr.train.outputs.plots import plot_reliability
from flip_ctr.train.outputs.results import report
from flip_ctr.train.outputs.run_log import set_up_logging


def run(args: EvaluateArguments) -> dict:
    """Returns the metrics of the joint prediction, and for `joint` of each tower alone.

    Raises:
        ValueError: the output folder is a checkpoint, the dataset's fields are not the checkpoint's, the split does not
            exist, or has one class only; or Accelerate was started in a way that does not fit.
    """
    if args.output_dir is not None and os.path.isfile(os.path.join(args.output_dir, "config.json")):
        raise ValueError(
            f"--output_dir {args.output_dir} is a checkpoint, whose own results would be replaced; choose another "
            "folder"
        )
    import_custom_code(args.custom_code)
    accelerator = make_accelerator(args.mixed_precision)
    if (
        accelerator.distributed_type == DistributedType.DEEPSPEED
    ):  # it would take --mixed_precision for itself and never use it
        raise ValueError(
            "evaluate has nothing for DeepSpeed to split; choose the Accelerate config multi_gpu or single_gpu"
        )
    set_up_logging(accelerator)
    rows = SplitRows(args.dataset_dir, args.split, args.max_eval_samples, args.seed)
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    check_fields(processor, rows.schema, args.model_name_or_path)
    check_clicks(processor, {args.split: rows})
    dataset = encode_split(accelerator, processor, rows)
    scores = score(accelerator, model.to(accelerator.device), dataset, args.per_device_eval_batch_size, progress=True)
    prefix = {"validation": "eval"}.get(args.split, args.split)
    results = score_metrics(scores, dataset.labels, dataset.users, prefix)
    if args.output_dir is not None and accelerator.is_main_process:
        os.makedirs(args.output_dir, exist_ok=True)
    report(accelerator, results, args.output_dir)
    if args.output_dir is not None and accelerator.is_main_process:
        plot_reliability(scores["logits"], dataset.labels, args.output_dir)
    return results
