# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Evaluation: the metrics of a fine-tuned checkpoint on one split of a dataset folder, or on rows of files.

flip-ctr evaluate --dataset_dir D --model_name_or_path M --split test
flip-ctr evaluate --dataset_dir D --model_name_or_path M --top_k 10
flip-ctr evaluate --dataset_dir D --model_name_or_path M --top_k 10 --candidates catalogue
flip-ctr evaluate --model_name_or_path M --input rows.csv --label "rating >= 4"
accelerate launch -m flip_ctr.train.cli evaluate --dataset_dir D --model_name_or_path M
"""

import os

import numpy as np
from accelerate import Accelerator, DistributedType
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

import flip_ctr
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.dataset_schema import SCHEMA_NAME
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import EvaluateArguments
from flip_ctr.train.loop.calibration import uncorrected
from flip_ctr.train.loop.file_scoring import RowsToScore, check_row_files, scored_batches
from flip_ctr.train.loop.loaders import check_clicks, encode_split
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.loop.split_catalogue import read_split_catalogue
from flip_ctr.train.models.build import check_fields, load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.metrics import score_metrics
from flip_ctr.train.outputs.plots import plot_reliability
from flip_ctr.train.outputs.ranking_metrics import catalogue_metrics, check_lists, ranking_metrics
from flip_ctr.train.outputs.record import warn_of_other_split
from flip_ctr.train.outputs.results import report
from flip_ctr.train.outputs.run_log import logger, set_up_logging


def run(args: EvaluateArguments) -> dict:
    """Returns the metrics of the joint prediction, for `joint` of each tower alone, and where the checkpoint corrects
    its log odds (negative sampling, calibration) what they are calibrated like before; with `top_k` also of its ranking
    for each user.

    Raises:
        ValueError: the output folder is a checkpoint, the dataset's fields are not the checkpoint's, the split does not
            exist, or has one class only; a row of a file cannot be read; there are no lists to rank for `top_k`; or
            Accelerate was started in a way that does not fit.
    """
    if (args.dataset_dir is None) == (args.input is None):
        raise ValueError("evaluate needs --dataset_dir, or --input with the files of rows, and not both")
    if (args.label is None) != (args.input is None):
        raise ValueError("--label says what a click is in the rows of --input: give both or none")
    check_row_files(args)
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
    if args.input is None:
        rows = SplitRows(args.dataset_dir, args.split, args.max_eval_samples, args.seed)
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    ranked: dict[str, float] = {}
    with uncorrected(model) as correct:
        if args.input is not None:
            prefix = "eval"
            found, labels, users = score_files(accelerator, model, processor, args)
        else:
            check_fields(processor, rows.schema, args.model_name_or_path)
            warn_of_other_split(args.model_name_or_path, rows.schema)
            if args.top_k is not None and rows.schema.user_column is None:
                raise ValueError(
                    f"--top_k ranks the rows of each user, and {os.path.join(args.dataset_dir, SCHEMA_NAME)} names no "
                    "user_column; prepare the dataset with one (`user` in a schema)"
                )
            check_clicks(processor, {args.split: rows})
            dataset = encode_split(accelerator, processor, rows)
            model, size = model.to(accelerator.device), args.per_device_eval_batch_size
            if args.candidates != "split":
                ranked = rank_catalogue(accelerator, model, processor, dataset, args)
            elif args.top_k is not None:
                check_lists(dataset.labels, dataset.users, args.top_k)
            found, labels, users = score(accelerator, model, dataset, size, True), dataset.labels, dataset.users
            prefix = {"validation": "eval"}.get(args.split, args.split)
    scores, uncalibrated = correct(found)
    if args.input is None and args.split == "validation" and model.config.calibration is not None:
        logger.warning(
            f"the calibration of {args.model_name_or_path} was fitted on validation, which these numbers flatter; its "
            "own all_results.json has cross-fitted ones"
        )
    results = score_metrics(scores, labels, users, prefix, uncalibrated)
    if args.top_k is not None and args.candidates == "split":
        ranked = ranking_metrics(scores["logits"], labels, users, args.top_k)
    results |= {f"{prefix}_{name}": value for name, value in ranked.items()}
    if args.output_dir is not None and accelerator.is_main_process:
        os.makedirs(args.output_dir, exist_ok=True)
    report(accelerator, results, args.output_dir)
    if args.output_dir is not None and accelerator.is_main_process:
        plot_reliability(scores, labels, args.output_dir, uncalibrated)
    return results


def rank_catalogue(
    accelerator: Accelerator,
    model: nn.Module,
    processor: FlipProcessor,
    dataset: EncodedDataset,
    args: EvaluateArguments,
) -> dict[str, float]:
    """Metrics of the items that are ranked for each user of a split, by names that say which items. Each process scores
    a part of the users.

    Raises:
        ValueError: the dataset has no catalogue, or none of use; or no user counts.
    """
    catalogue = read_split_catalogue(dataset.rows, dataset.labels, args.item_key)
    # by its public name, as what serves a model stands on what trains it
    ranker = flip_ctr.FlipRanker(model, processor, catalogue.items, catalogue.key)
    index, processes = accelerator.process_index, accelerator.num_processes

    def score_items(users: np.ndarray) -> np.ndarray:
        mine = np.array_split(users, processes)[index]
        with accelerator.autocast():
            found = [ranker.score(catalogue.users.take(mine))["logits"]] if len(mine) else []
        bar.update(len(users))
        return np.concatenate(gather_object(found) if processes > 1 else found)

    sampled = None
    if args.candidates == "sampled":
        sampled = args.num_sampled
        logger.warning(
            "metrics of sampled items are biased, and may order models otherwise than all items do (Krichene and "
            "Rendle, KDD 2020); --candidates catalogue ranks all items"
        )
    with tqdm(total=len(catalogue.users), unit="user", disable=not accelerator.is_main_process) as bar:
        results = catalogue_metrics(score_items, catalogue.clicked, catalogue.seen, args.top_k, sampled, args.seed)
    return {f"{args.candidates}_{name}": value for name, value in (results | catalogue.lost).items()}


def score_files(
    accelerator: Accelerator, model: nn.Module, processor: FlipProcessor, args: EvaluateArguments
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]:
    """Log odds by the names of the model's output, clicks and users `(N,)` of the rows of files; no users (None) where
    no field is the key of one.

    Raises:
        ValueError: a rule cannot be read, or a row cannot: no row is scored before that is known. There are no rows, or
            they have one class only.
    """
    import ibis  # an engine, which rules alone need

    from flip_ctr.data.prepare.rules import Rule

    label, drops = Rule(args.label), [Rule(rule) for rule in args.drop or []]
    types: dict[str, str | None] = {}
    for rule in (label, *drops):
        for name, kinds in rule.kinds().items():
            if len(kinds) > 1:
                raise ValueError(f"rule {rule.text!r} takes '{name}' for {' and '.join(sorted(kinds))}")
            types[name] = {"number": "float", "bool": "bool"}.get(next(iter(kinds), "text"), "string")
    rows = RowsToScore(processor, args, types)
    user = next((field for field in rows.fields if field.key and field.entity == "user"), None)
    if args.top_k is not None and user is None:
        names = ", ".join(field.name for field in rows.fields)
        raise ValueError(
            f"--top_k ranks the rows of each user, and no field of the model is the key of a user (its fields: {names})"
        )
    kept, clicks, users, numbers = [], [], [], {}
    for batch in rows:  # what cannot be scored is said before any row is
        if (error := rows.first_error(batch)) is not None:
            raise error
        table = ibis.memtable(batch.known.select(list(types)))
        dropped = [rule.of_rows(table).fill_null(False) for rule in drops]
        found = table.select(click=label.of_rows(table), drop=ibis.or_(*dropped)).to_pyarrow()
        kept.append(~found["drop"].to_numpy())
        unknown = kept[-1] & found["click"].is_null().to_numpy()
        if unknown.any():
            raise ValueError(f"{batch.where(int(unknown.argmax()))}: label rule {label.text!r} is null")
        clicks.append(found["click"].fill_null(False).to_numpy()[kept[-1]])
        if user is not None:
            column = Column.read(batch.known[user.name], user)
            of_values = [-1 if one is None else numbers.setdefault(one, len(numbers)) for one in column.values]
            users.append(np.array(of_values, np.int64)[column.codes][kept[-1]])
    labels = np.concatenate([np.empty(0, np.int64), *clicks]).astype(np.int64)
    if len(np.unique(labels)) < 2:
        raise ValueError(f"{', '.join(args.input)}: {len(labels):,} rows to score, which are not of both classes")
    users = np.concatenate(users) if users else None
    if args.top_k is not None:
        check_lists(labels, users, args.top_k)
    scores: dict[str, list[np.ndarray]] = {}
    size, total = args.per_device_eval_batch_size, sum(map(len, kept))
    for (_, found), keep in zip(scored_batches(accelerator, model, rows, size, total), kept, strict=True):
        for name, values in found.items():
            scores.setdefault(name, []).append(values[keep])
    together = {name: np.concatenate(parts) for name, parts in scores.items()}
    return together, labels, users
