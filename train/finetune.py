# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning: predicts clicks with the ID tower, the PLM, or both, from a pretrained checkpoint or without
pretraining.

flip-ctr finetune --dataset_dir D --model_name_or_path P --strategy joint --output_dir M
flip-ctr finetune --dataset_dir D --model_name_or_path PLM --strategy joint --output_dir M   # no pretraining
flip-ctr finetune --dataset_dir D --strategy id --id_tower deepfm --output_dir M             # no PLM anywhere
flip-ctr finetune --dataset_dir D --strategy id --teacher T --output_dir M                   # learns from a teacher
accelerate launch -m flip_ctr.train.cli finetune --config finetune.yaml
"""

from typing import Any

from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import has_split, open_splits
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.loop.calibration import NotCalibrated, calibrate, check_clicks_to_calibrate, score_test
from flip_ctr.train.loop.leave_out import measure_effects
from flip_ctr.train.loop.loaders import (
    check_clicks,
    check_sampling_rate,
    click_collator,
    encode_split,
    log_unknown_keys,
    say_no_validation,
    training_loader,
    training_split,
)
from flip_ctr.train.loop.run import end_trackers, recipe, start
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.loop.teacher import fields_of_pairs, load_teacher, teach
from flip_ctr.train.loop.training_loop import how_long, train
from flip_ctr.train.models.build import (
    check_model,
    load_checkpoint,
    new_click_model,
    new_processor,
    ready_to_train,
    without_unread_history,
)
from flip_ctr.train.models.lora import is_flip_checkpoint, plain
from flip_ctr.train.outputs.card import write_card
from flip_ctr.train.outputs.checkpoint import best_model, save
from flip_ctr.train.outputs.hub import push
from flip_ctr.train.outputs.metrics import click_metrics
from flip_ctr.train.outputs.plots import plot_history, plot_reliability
from flip_ctr.train.outputs.record import training_record
from flip_ctr.train.outputs.results import report
from flip_ctr.train.outputs.run_log import logger


def criterion(metrics: dict[str, float]) -> float:
    """What the best checkpoint is chosen by, on validation: AUC - LogLoss (AUC alone keeps badly calibrated ones)."""
    return metrics["eval_auc"] - metrics["eval_logloss"]


def check_models(args: FinetuneArguments) -> None:
    """Raises `OSError` where one of the models that the run starts from is not there."""
    for flag in ("model_name_or_path", "id_model", "teacher"):
        if getattr(args, flag) is not None:
            check_model(flag, getattr(args, flag))


def starts_with_ids(args: FinetuneArguments) -> bool:
    """Whether the run starts with the vocabulary of a checkpoint."""
    source = args.model_name_or_path
    return args.id_model is not None or (source is not None and is_flip_checkpoint(source))


def processor_and_model(
    args: FinetuneArguments, schema: DatasetSchema, train_rows: Any
) -> tuple[FlipForCTR, FlipProcessor]:
    """The click model that a run starts with, and its processor: from a FLIP checkpoint, around a PLM, or ID-only from
    scratch.

    Args:
        train_rows: the training rows, on disk ([`SplitRows`]) or in any form that [`FlipProcessor`] takes.

    Raises:
        ValueError: an argument, the rows or the checkpoint does not fit.
    """
    source = args.model_name_or_path
    if source is not None and is_flip_checkpoint(source):
        settings = {"strategy": args.strategy, "fusion": args.fusion} | (
            {"text_numbers": True} if args.text_numbers else {}
        )
        model, processor = load_checkpoint(args, schema, train_rows, **settings)
    elif source is not None and args.strategy == "id":
        raise ValueError(
            f"--strategy id uses no PLM, and {source} is no FLIP checkpoint; leave out --model_name_or_path"
        )
    else:
        args.check_id_tower(new=True)
        processor = new_processor(train_rows, schema, args, source)
        model = new_click_model(processor, args)
    return model, without_unread_history(model, processor)


@recipe
def run(args: FinetuneArguments) -> dict:
    """Fine-tunes, keeps the checkpoint that is best on validation, and scores the test split once with it.

    Returns the results that are also in `all_results.json`.

    Raises:
        ValueError: an argument, the dataset folder or the checkpoint does not fit; the message names it.
    """
    # 1. Accelerate, logging, seed
    accelerator = start(args)

    # 2. Rows
    there = [name for name in ("validation", "test") if has_split(args.dataset_dir, name)]
    wanted = {"train": args.max_train_samples} | dict.fromkeys(there, args.max_eval_samples)
    held_out = open_splits(args.dataset_dir, wanted, args.seed)
    train_rows = held_out.pop("train")
    if "validation" not in held_out:
        say_no_validation(args)
    schema = train_rows.schema
    check_models(args)
    record = training_record(args, schema)

    # 3. Processor and model: from a FLIP checkpoint, around a PLM, or ID-only from scratch
    model, processor = processor_and_model(args, schema, train_rows)
    check_sampling_rate(check_clicks(processor, {"train": train_rows, **held_out}), model.config.negative_sampling_rate)
    if starts_with_ids(args):
        log_unknown_keys(processor, {"training": train_rows} | {n: rows for n, rows in held_out.items() if n == "test"})
    model = ready_to_train(model, processor, args)
    teacher = None
    if args.teacher is not None:
        fields_of_pairs(args, schema)
        teacher = load_teacher(args, train_rows)
    prompts = args.strategy != "id"
    train_set = training_split(accelerator, processor, train_rows, args, prompts)
    # the test split too: a value in it that cannot be read is found now, and not after training
    sets = {name: encode_split(accelerator, processor, rows, prompts) for name, rows in held_out.items()}
    eval_set, test_set = sets.get("validation"), sets.get("test")
    if args.calibration is not None:
        check_clicks_to_calibrate(args.calibration, eval_set.labels)
    logger.info(f"{args.strategy}: {train_set.num_rows:,} training rows")

    # 4. Train, where there is a teacher on what it says; validation decides what is kept
    if teacher is not None:
        train_set = teach(accelerator, args, teacher, train_rows, train_set, model.config.negative_sampling_rate)
        teacher = None  # its memory is free
    loader = training_loader(train_set, click_collator(processor, args), accelerator, args)

    def evaluate() -> dict[str, float]:
        if eval_set is None:
            return {}
        scores = score(accelerator, model, eval_set, args.per_device_eval_batch_size)
        metrics = click_metrics(scores["logits"], eval_set.labels, eval_set.users)
        return {f"eval_{name}": value for name, value in metrics.items()}

    history = train(
        accelerator,
        model,
        loader,
        args,
        evaluate,
        None if eval_set is None else criterion,
        patience=args.early_stopping_patience,
        on_best=lambda: save(accelerator, model, processor, args, record),
    )

    # 5. The best checkpoint, without validation the last, is calibrated
    if eval_set is None:
        save(accelerator, model, processor, args, record)
    best = best_model(accelerator, model, processor, args, record)
    size, calibrated = args.per_device_eval_batch_size, {}
    if args.calibration is not None:
        try:
            calibrated = calibrate(accelerator, best, eval_set, args.calibration, args.seed, size)
        except NotCalibrated as error:  # of what was trained for hours nothing is lost
            logger.warning(f"{error}. The checkpoint is not calibrated")
        else:
            if best is not model:
                best.requires_grad_(False)  # it has no optimizer, where DeepSpeed would look for what trains
            save(accelerator, best, processor, args, record)

    # 6. It scores the test split once
    test = {}
    if test_set is not None:
        test, scores, uncalibrated = score_test(accelerator, best, test_set, size)

    # 7. Results
    evaluations = [entry for entry in history if "eval_auc" in entry]
    chosen = max(evaluations, key=criterion) if evaluations else history[-1]
    if len(evaluations) > 1 and chosen is evaluations[-1]:
        more = "--num_train_epochs" if args.max_minutes is None else "--max_minutes or --num_train_epochs"
        logger.info(f"validation was best at the end of training: more {more} may be better")
    results = {name: value for name, value in chosen.items() if name.startswith("eval_")}
    results |= calibrated | test
    results |= {
        "best_step": chosen["step"],
        "best_epoch": chosen["epoch"],
        "train_rows": train_set.num_rows,
        **how_long(history),
        "num_processes": accelerator.num_processes,
    }
    report(accelerator, results, args.output_dir)
    effects = None
    if eval_set is not None:
        effects = measure_effects(accelerator, best, processor, held_out["validation"], args.seed, size)
    if accelerator.is_main_process:
        plot_history(history, args.output_dir)
        if test:
            plot_reliability(scores, test_set.labels, args.output_dir, uncalibrated)
        of_data = schema, args.dataset_dir, train_rows
        write_card(args.output_dir, record, plain(best), processor, *of_data, results, effects)
    end_trackers(accelerator)

    # 8. The Hub, where asked for
    if accelerator.is_main_process and args.push_to_hub:
        push(args)
    return results
