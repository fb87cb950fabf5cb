# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Late fusion: a joint model from an ID-based and a PLM-based click model that were fine-tuned apart.

    flip-ctr fuse --dataset_dir D --id_model FLIP_ID --plm_model FLIP_PLM --output_dir M

Both towers stay as they are; only the weight of each, `--fusion`, is fitted, on the validation split: of the training
rows each tower knows too much for their weights to be told there.
"""

import copy
import time

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.shards import has_split, open_splits
from flip_ctr.modeling_flip.heads_flip import FlipFusion
from flip_ctr.modeling_flip.losses_flip import click_loss
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import FuseArguments
from flip_ctr.train.loop.calibration import NotCalibrated, check_clicks_to_calibrate, fit_calibration, score_test
from flip_ctr.train.loop.folds import FOLDS, folds
from flip_ctr.train.loop.leave_out import measure_effects
from flip_ctr.train.loop.loaders import check_clicks, encode_split, make_loader
from flip_ctr.train.loop.run import check_output_dir, claim_output_dir, make_accelerator, recipe
from flip_ctr.train.loop.scoring import in_row_order
from flip_ctr.train.models.build import check_fields, load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.models.warm_start import ID_SHAPE, id_model_config, join_ids, set_sampling_rate
from flip_ctr.train.outputs.card import write_card
from flip_ctr.train.outputs.checkpoint import save
from flip_ctr.train.outputs.metrics import score_metrics
from flip_ctr.train.outputs.plots import plot_reliability
from flip_ctr.train.outputs.record import training_record
from flip_ctr.train.outputs.results import report
from flip_ctr.train.outputs.run_log import logger, set_up_logging

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3)  # of a gate's squared weights, as a share of the mean loss; tried in this order
MAX_ITERATIONS = 100  # of L-BFGS


@recipe
def run(args: FuseArguments) -> dict:
    """Fits the fusion on validation, saves the joint model, and scores the test split once.

    The numbers on validation are cross-fitted: each row's weights were fitted on other users' rows.

    Returns the results that are also in `all_results.json`.

    Raises:
        ValueError: an argument, the dataset folder or a checkpoint does not fit, or the two have other ids; the message
            names it.
    """
    started = time.perf_counter()
    import_custom_code(args.custom_code)
    check_output_dir(args, "id_model", "plm_model")
    accelerator = make_accelerator(args.mixed_precision)
    accelerator.wait_for_everyone()  # nobody writes into the folder before all have seen it empty
    set_up_logging(accelerator)
    there = ["validation", *(["test"] if has_split(args.dataset_dir, "test") else [])]
    rows = open_splits(args.dataset_dir, dict.fromkeys(there, args.max_eval_samples), args.seed)
    schema = rows["validation"].schema
    model, processor = joint_model(args)
    check_fields(processor, schema, args.plm_model)
    check_clicks(processor, rows)
    sets = {name: encode_split(accelerator, processor, one) for name, one in rows.items()}
    eval_set, test_set = sets["validation"], sets.get("test")
    if args.calibration is not None:
        check_clicks_to_calibrate(args.calibration, eval_set.labels)

    model.to(accelerator.device)
    inputs = fusion_inputs(accelerator, model, eval_set, args.per_device_eval_batch_size)
    scores = {name: logits[:, 0].cpu().numpy() for name, logits in zip(("id_logits", "text_logits"), inputs)}
    labels = torch.tensor(eval_set.labels)
    weights = None if eval_set.weights is None else torch.tensor(eval_set.weights)
    fusion, fold = copy.deepcopy(model.fusion).cpu(), folds(eval_set.users, len(labels), args.seed)
    scores["logits"], penalty = fit(fusion, inputs, labels, fold, weights)
    model.fusion.load_state_dict(fusion.state_dict())
    before = None
    if args.calibration is not None:
        try:
            model.config.calibration, calibrated = fit_calibration(
                args.calibration, "joint", scores, eval_set.labels, fold, eval_set.weights
            )
            before, scores = scores, calibrated
        except NotCalibrated as error:  # of what was fused nothing is lost
            logger.warning(f"{error}. The checkpoint is not calibrated")
    results = score_metrics(scores, eval_set.labels, eval_set.users, "eval", before)
    if test_set is not None:
        measured, test, uncalibrated = score_test(accelerator, model, test_set, args.per_device_eval_batch_size)
        results |= measured
    results |= {"id_weight": mean_id_weight(fusion, inputs)} | ({"penalty": penalty} if args.fusion == "gate" else {})
    results |= {
        "train_rows": len(eval_set),
        "num_processes": accelerator.num_processes,
        "train_seconds": time.perf_counter() - started,
    }

    if accelerator.is_main_process:
        claim_output_dir(args)
    accelerator.wait_for_everyone()
    record = training_record(args, schema, args.plm_model)
    save(accelerator, model, processor, args, record)
    report(accelerator, results, args.output_dir)
    size = args.per_device_eval_batch_size
    effects = measure_effects(accelerator, model, processor, rows["validation"], args.seed, size)
    if accelerator.is_main_process:
        if test_set is not None:
            plot_reliability(test, test_set.labels, args.output_dir, uncalibrated)
        of_data = schema, args.dataset_dir, rows["validation"]
        write_card(args.output_dir, record, model, processor, *of_data, results, effects)
    return results


def joint_model(args: FuseArguments) -> tuple[FlipForCTR, FlipProcessor]:
    """The joint model of the two checkpoints' towers and click layers, its fusion new; and its processor, the PLM's.
    What corrects a tower for negative sampling goes into the bias of its click layer."""
    id_model_config(args.id_model)  # its error says what is wrong
    (id_model, id_processor), (plm_model, processor) = (
        load_click_model(getattr(args, flag), args.base_model_name_or_path, flag) for flag in ("id_model", "plm_model")
    )
    if plm_model.text_classifier is None:
        raise ValueError(
            f"--plm_model {args.plm_model} has strategy {plm_model.config.strategy!r}: its PLM does not predict"
        )
    join_ids(processor.feature_extractor, id_processor.feature_extractor, args.id_model)
    for one in (id_model, plm_model):
        one.grow(processor.fields)  # the one may have grown after the other
        set_sampling_rate(one, 1.0)  # the fusion weighs log odds at the natural rate
    config = copy.deepcopy(plm_model.config)
    config.strategy, config.fusion, config.architectures, config.calibration = "joint", args.fusion, None, None
    for name in (*ID_SHAPE, "id_dropout", "id_embedding_dropout", "id_initializer_range"):
        setattr(config, name, copy.deepcopy(getattr(id_model.config, name)))
    numbers = {field["name"]: field.get("bucket_numbers") for field in id_model.config.fields}
    for field in config.fields:
        field["bucket_numbers"] = numbers.get(field["name"])  # what its tower reads
    model = FlipForCTR(config)
    parts = {
        "flip.id_tower": id_model,
        "id_classifier": id_model,
        "flip.text_encoder": plm_model,
        "text_classifier": plm_model,
    }
    if model.first_order is not None:
        parts["first_order"] = id_model
    if model.text_numbers is not None:
        parts["text_numbers"] = plm_model
    if model.flip.text_interaction is not None:
        parts["flip.text_interaction"] = plm_model
    for name, source in parts.items():
        model.get_submodule(name).load_state_dict(source.get_submodule(name).state_dict())
    return model.eval(), processor


@torch.no_grad()
def fusion_inputs(
    accelerator: Accelerator, model: FlipForCTR, dataset: EncodedDataset, batch_size: int
) -> list[torch.Tensor]:
    """What the fusion is given for every row, in the rows' order and on the CPU: `[id_logits, text_logits, h_id,
    pooled, feature_ids]`, `(N, ...)`; the last three None where it is no gate, which alone looks at them."""
    loader = make_loader(dataset, FlipCollator(dataset.processor), batch_size, accelerator, shuffle=False)
    batches: list[list[np.ndarray]] = []
    used = 5 if model.fusion.kind == "gate" else 2
    hook = model.fusion.register_forward_pre_hook(
        lambda module, inputs: batches.append(
            [(one.float() if one.is_floating_point() else one).cpu().numpy() for one in inputs[:used]]
        )
    )
    for batch in tqdm(loader, disable=not accelerator.is_main_process, unit="batch", dynamic_ncols=True):
        if not len(batch["feature_ids"]):  # fewer rows than processes in the last batch
            continue
        with accelerator.autocast():
            model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()})
    hook.remove()
    mine = {str(number): np.concatenate(parts) for number, parts in enumerate(zip(*batches))}
    whole = in_row_order(accelerator, loader.batch_sampler.plan(), mine)
    return [torch.from_numpy(whole[str(number)]) for number in range(used)] + [None] * (5 - used)


def rows_of(inputs: list[torch.Tensor | None], picked: torch.Tensor) -> list[torch.Tensor | None]:
    return [None if one is None else one[picked] for one in inputs]


def fit(
    fusion: FlipFusion,
    inputs: list[torch.Tensor | None],
    labels: torch.Tensor,
    fold: np.ndarray,
    weights: torch.Tensor | None = None,
) -> tuple[np.ndarray, float]:
    """Fits the fusion's weights to the rows' clicks, its loss that of the joint logit; a gate's squared weights have
    the penalty that is best across the folds.

    Args:
        labels, fold, weights: `(N,)` clicks, folds and, where rows have them, sample weights.

    Returns the cross-fitted log odds `(N,)`, each row's from weights that were fitted on the other folds, and the
    penalty.
    """
    tried = []
    for penalty in PENALTIES if fusion.kind == "gate" else (0.0,):
        logits = torch.empty(len(labels))
        for number in range(FOLDS):
            out = torch.from_numpy(fold == number)
            fitted = fit_once(
                copy.deepcopy(fusion), rows_of(inputs, ~out), labels[~out], penalty, *rows_of([weights], ~out)
            )
            with torch.no_grad():
                logits[out] = fitted(*rows_of(inputs, out))[0][:, 0]
        tried.append((click_loss(logits[:, None], labels, weights).item(), penalty, logits.numpy()))
    _, penalty, logits = min(tried, key=lambda one: one[0])
    fit_once(fusion, inputs, labels, penalty, weights)
    return logits, penalty


def fit_once(
    fusion: FlipFusion,
    inputs: list[torch.Tensor | None],
    labels: torch.Tensor,
    penalty: float,
    weights: torch.Tensor | None,
) -> FlipFusion:
    """Minimises the loss with L-BFGS, from the start that the weights have."""
    trained = [fusion.gate.weight, fusion.gate.bias] if fusion.kind == "gate" else [fusion.alpha]
    optimizer = torch.optim.LBFGS(trained, max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = click_loss(fusion(*inputs)[0], labels, weights)
        if penalty:
            value = value + penalty * fusion.gate.weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    return fusion


@torch.no_grad()
def mean_id_weight(fusion: FlipFusion, inputs: list[torch.Tensor]) -> float:
    """The weight alpha of the ID tower, the mean over the rows."""
    return fusion(*inputs)[1].mean().item()


def main(args: FuseArguments) -> None:
    result = run(args)
    logger.info(f"weight of the ID tower {result['id_weight']:.3f}")
