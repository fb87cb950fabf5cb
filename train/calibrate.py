# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Calibration of a finished click model: its probabilities are fitted to the clicks of validation.

    flip-ctr calibrate --dataset_dir D --model_name_or_path M --output_dir C

The weights stay as they are, and a calibration that the model had is replaced. `finetune --calibration` and `fuse
--calibration` do the same at the end of a run.
"""

import time

from flip_ctr.data.readers.shards import has_split, open_splits
from flip_ctr.train.arguments import CalibrateArguments
from flip_ctr.train.loop.calibration import calibrate, check_clicks_to_calibrate, score_test
from flip_ctr.train.loop.leave_out import measure_effects
from flip_ctr.train.loop.loaders import check_clicks, encode_split
from flip_ctr.train.loop.run import check_output_dir, claim_output_dir, make_accelerator, recipe
from flip_ctr.train.models.build import check_fields, load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.card import write_card
from flip_ctr.train.outputs.checkpoint import save
from flip_ctr.train.outputs.plots import plot_reliability
from flip_ctr.train.outputs.record import training_record
from flip_ctr.train.outputs.results import report
from flip_ctr.train.outputs.run_log import set_up_logging


@recipe
def run(args: CalibrateArguments) -> dict:
    """Saves the calibrated checkpoint, a LoRA adapter merged with its base, and scores the test split where there is
    one.

    Returns the results that are also in `all_results.json`; those of validation are cross-fitted by users.

    Raises:
        ValueError: an argument, the dataset folder or the checkpoint does not fit; validation has too few clicks, or
            more clicks where the model says fewer. The message names it.
    """
    started = time.perf_counter()
    import_custom_code(args.custom_code)
    check_output_dir(args, "model_name_or_path")
    accelerator = make_accelerator(args.mixed_precision)
    if accelerator.num_processes > 1:
        raise ValueError(f"calibrate works in one process; it was started in {accelerator.num_processes}")
    set_up_logging(accelerator)
    names = [name for name in ("validation", "test") if name == "validation" or has_split(args.dataset_dir, name)]
    rows = open_splits(args.dataset_dir, dict.fromkeys(names, args.max_eval_samples), args.seed)
    schema = rows["validation"].schema
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    check_fields(processor, schema, args.model_name_or_path)
    check_clicks(processor, rows)
    sets = {name: encode_split(accelerator, processor, one, not processor.id_only) for name, one in rows.items()}
    check_clicks_to_calibrate(args.calibration, sets["validation"].labels)

    model, size = model.to(accelerator.device), args.per_device_eval_batch_size
    results = calibrate(accelerator, model, sets["validation"], args.calibration, args.seed, size)
    if "test" in sets:
        test, scores, uncalibrated = score_test(accelerator, model, sets["test"], size)
        results |= test
    seconds = time.perf_counter() - started
    results |= {"train_rows": len(sets["validation"]), "num_processes": 1, "train_seconds": seconds}

    claim_output_dir(args)
    record = training_record(args, schema)
    save(accelerator, model, processor, args, record)
    report(accelerator, results, args.output_dir)
    if "test" in sets:
        plot_reliability(scores, sets["test"].labels, args.output_dir, uncalibrated)
    effects = measure_effects(accelerator, model, processor, rows["validation"], args.seed, size)
    of_data = schema, args.dataset_dir, rows["validation"]
    write_card(args.output_dir, record, model, processor, *of_data, results, effects)
    return results
