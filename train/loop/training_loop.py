# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the training recipes share: start-up, data, optimizer, the training loop, scoring, results."""

import importlib.util
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.samplers import GlobalBatchSampler
from flip_ctr.data.batches.streaming import StreamedDataset
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import TrainArguments
from flip_ctr.train.loop.distributed import (
    check_accelerator,
    check_launch,
    check_run,
    prepare,
    splits_states,
)
from flip_ctr.train.loop.optimizer import make_optimizer, use_sparse_tables
from flip_ctr.train.loop.resume import Preempted, StepCheckpoints, step_checkpoints
from flip_ctr.train.loop.step import FiniteWatch, TrainingStep, weights_are_finite
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.models.whole_weights import is_sharded
from flip_ctr.train.outputs.checkpoint import clear_reports
from flip_ctr.train.outputs.hub import check_hub_arguments
from flip_ctr.train.outputs.results import HISTORY_FILE, write_json
from flip_ctr.train.outputs.run_log import LOG_FILE, close_log, file_logger, logger, open_log, set_up_logging, write_log


def make_accelerator(mixed_precision: str, **kwargs) -> Accelerator:
    """An `Accelerator` with that precision, whatever the recipe that ran before in this process had.

    Raises:
        ValueError: Accelerate was started with settings that contradict the recipe's, or that it cannot keep here.
    """
    check_launch(mixed_precision)
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # of the precision alone: the processes and the device stay
    # no buffer changes in training, and one has a number for each feature: DDP would send it before every forward pass
    handlers = [DistributedDataParallelKwargs(broadcast_buffers=False)]
    accelerator = Accelerator(mixed_precision=mixed_precision, kwargs_handlers=handlers, **kwargs)
    check_accelerator(accelerator)
    return accelerator


def check_output_dir(args: Any, *sources: str, goes_on: bool = False) -> None:
    """Raises `ValueError` where the output folder is a file, holds files that the run was not told to overwrite, or is
    the checkpoint that one of the arguments `sources` names, whose place the new one would take."""
    folder = args.output_dir
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ValueError(f"--output_dir {folder} is a file; name a folder")
    for name in sources:
        source = getattr(args, name)
        if source and os.path.exists(source) and os.path.exists(folder) and os.path.samefile(source, folder):
            raise ValueError(
                f"--output_dir {folder} is --{name}: the new checkpoint would take the place of what it is made from"
            )
    if os.path.isdir(folder) and os.listdir(folder) and not (args.overwrite_output_dir or goes_on):
        raise ValueError(f"--output_dir {folder} is not empty; choose another or add --overwrite_output_dir")


def clear_output_dir(folder: str, goes_on: bool = False) -> None:
    """Makes the output folder where it is not there, and takes out of it what a former run left."""
    os.makedirs(folder, exist_ok=True)
    clear_reports(folder)
    for checkpoint in [] if goes_on else step_checkpoints(folder):  # of a former run: `latest` must not find them
        shutil.rmtree(checkpoint)


def start(args: TrainArguments) -> Accelerator:
    """Checks the output folder and the Hub's arguments, starts Accelerate and logging, and sets the seed. Writes
    nothing yet, not even the folder, see [`begin`].

    Raises:
        ValueError: the output folder holds files and `--overwrite_output_dir` was not given, or is what a LoRA run
            starts from; or nothing could be pushed; or the tracker, or the user's own code, cannot be imported; or
            Accelerate was started in a way that does not fit the run.
    """
    import_custom_code(args.custom_code)
    check_hub_arguments(args)
    goes_on = args.resume_from_checkpoint is not None
    check_output_dir(args, *(["model_name_or_path"] if args.use_lora else []), goes_on=goes_on)
    log_with = None if args.report_to == "none" else args.report_to
    if log_with and importlib.util.find_spec(log_with) is None:
        raise ValueError(
            f"--report_to {log_with}: the package {log_with} is not installed (pip install 'flip-ctr[{log_with}]')"
        )
    accelerator = make_accelerator(args.mixed_precision, log_with=log_with, project_dir=args.output_dir)
    check_run(accelerator, args)
    accelerator.wait_for_everyone()  # nobody writes into the folder before all have seen it empty
    set_up_logging(accelerator)
    if accelerator.is_main_process:
        open_log(os.path.join(args.output_dir, LOG_FILE), append=goes_on)
    if args.embedding_optimizer != "dense" and splits_states(accelerator):
        logger.warning(
            f"--embedding_optimizer {args.embedding_optimizer} works on one process and under DDP; "
            f"{accelerator.distributed_type.value} splits dense gradients: the feature tables are trained as dense ones"
        )
        args.use_dense_tables()
    file_logger.info(
        f"{args.recipe} on {accelerator.num_processes} process(es), {accelerator.device.type}, "
        f"{accelerator.mixed_precision}"
    )
    file_logger.info(f"arguments: {json.dumps({name: str(value) for name, value in args.published().items()})}")
    set_seed(args.seed)
    return accelerator


def begin(accelerator: Accelerator, args: TrainArguments) -> None:
    """All was checked, and training begins: what a former run left in the output folder goes, the log is a file from
    here on, and the tracker starts."""
    if accelerator.is_main_process:
        # not before: a run that is refused leaves nothing behind
        clear_output_dir(args.output_dir, goes_on=args.resume_from_checkpoint is not None)
    accelerator.wait_for_everyone()
    write_log()
    if args.report_to != "none":
        name = os.path.basename(os.path.abspath(args.output_dir))
        where = {"wandb": {"name": name, "dir": args.output_dir}, "trackio": {"name": name}}
        published = {name: str(value) for name, value in args.published().items()}
        accelerator.init_trackers(
            f"flip-ctr-{args.recipe}", published, {key: where[key] for key in where.keys() & {args.report_to}}
        )


def recipe(run: Callable[[TrainArguments], dict]) -> Callable[[TrainArguments], dict]:
    """Decorator of a recipe's `run`: what ends it is in its log too, which is then closed."""

    @wraps(run)
    def logged(args: TrainArguments) -> dict:
        close_log()
        try:
            return run(args)
        except BaseException as error:
            if isinstance(error, Preempted):
                file_logger.info("stopped")
            else:
                file_logger.error(
                    f"stopped by {type(error).__name__}", exc_info=error if isinstance(error, Exception) else None
                )
            raise
        finally:
            close_log()

    return logged


# --- data


def check_clicks(processor: FlipProcessor, splits: dict[str, SplitRows]) -> None:
    """Raises `ValueError` where a split has no labels, labels other than 0 and 1 (in rows outside its sample too), or
    in the rows of the sample one class only; names the split."""
    for split, rows in splits.items():
        if processor.label not in rows.column_names:
            raise ValueError(f"split '{split}' has no column '{processor.label}' to learn from")
        columns = [name for name in (processor.label, processor.weight) if name in rows.column_names]
        for _ in rows.whole().map_parts(processor.read_targets, columns):
            pass  # what cannot be read is an error
        clicks = sum(int(labels.sum()) for labels, _ in rows.map_parts(processor.read_targets, columns))
        if clicks in (0, len(rows)):
            raise ValueError(
                f"split '{split}': all {len(rows):,} rows that were read have the label {int(clicks > 0)}; both "
                "classes are needed"
            )


def encode_split(
    accelerator: Accelerator, processor: FlipProcessor, rows: SplitRows, prompts: bool = True
) -> EncodedDataset:
    """A split as integers: the main process of each machine encodes it, where that was not done before, and all map
    what it wrote."""
    failure = None
    if accelerator.is_local_main_process:
        try:
            dataset = EncodedDataset(processor, rows, prompts)
        except (ValueError, OSError) as error:
            failure = error  # not before the others, who would wait for ever
    accelerator.wait_for_everyone()
    if failure is not None:
        raise failure
    return dataset if accelerator.is_local_main_process else EncodedDataset(processor, rows, prompts)


def training_split(
    accelerator: Accelerator, processor: FlipProcessor, rows: SplitRows, args: TrainArguments, prompts: bool = True
) -> EncodedDataset | StreamedDataset:
    """The training rows, encoded beforehand or with `--streaming` while they are read."""
    if not args.streaming:
        return encode_split(accelerator, processor, rows, prompts)
    return StreamedDataset(
        processor,
        rows,
        args.per_device_train_batch_size,
        args.seed,
        prompts,
        accelerator.num_processes,
        accelerator.process_index,
    )


class BatchLoader(DataLoader):
    """A `DataLoader` of whole batches; which rows, masks and noise they hold is a pure function of (seed, epoch)."""

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The epoch whose batches come next, and the first of them: a run that goes on leaves out those it has had."""
        plan = self.dataset if isinstance(self.dataset, StreamedDataset) else self.batch_sampler
        plan.set_epoch(epoch, first_batch)
        self.collate_fn.set_epoch(epoch)


def make_loader(
    dataset: EncodedDataset | StreamedDataset,
    collator: FlipCollator,
    batch_size: int,
    accelerator: Accelerator,
    seed: int = 0,
    shuffle: bool = True,
    workers: int = 0,
    complete: bool = False,
) -> BatchLoader:
    """Batches of a dataset for this process, see [`GlobalBatchSampler`] and [`EncodedDataset`], or [`StreamedDataset`],
    which plans them itself."""
    if isinstance(dataset, StreamedDataset):
        batches = {"batch_size": None}
    else:
        batches = {
            "batch_sampler": GlobalBatchSampler(
                len(dataset),
                batch_size,
                seed,
                dataset.lengths,
                shuffle,
                accelerator.num_processes,
                accelerator.process_index,
                complete=complete,
            )
        }
    return BatchLoader(
        dataset,
        **batches,
        collate_fn=collator,
        num_workers=workers,
        generator=torch.Generator(),
        pin_memory=accelerator.device.type == "cuda",
    )


# --- optimisation

MAX_SKIPPED = 25  # steps in a row that a scaler may skip while it looks for a scale whose gradients do not overflow


def _accumulated(loader: BatchLoader, steps: int) -> Iterator[list[dict]]:
    """Groups of `steps` batches; the epoch's last group may be smaller."""
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == steps:
            yield group
            group = []
    if group:
        yield group


def train(
    accelerator: Accelerator,
    model: nn.Module,
    loader: BatchLoader,
    args: TrainArguments,
    evaluate: Callable[[], dict[str, float]],
    criterion: Callable[[dict[str, float]], float] | None = None,
    on_best: Callable[[], None] | None = None,
    patience: int | None = None,
) -> list[dict]:
    """The training loop. Returns the history, which is also kept in `history.json`.

    Args:
        evaluate: measures the model on validation; called every `--eval_steps` or epoch.
        criterion: what `evaluate` returns -> a number, the larger the better; None keeps no best.
        on_best: called after an evaluation that improved on all before.
        patience: stop after so many evaluations without improvement.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; names the first such step, and what was saved before
            it.
        ValueError: `--resume_from_checkpoint` does not belong to this run.
        Preempted: the process was told to stop (SIGTERM) and has saved.
    """
    if len(loader) == 0:
        raise ValueError(f"{loader.dataset.num_rows} training rows give {accelerator.num_processes} processes no batch")
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    checkpoints = StepCheckpoints(accelerator, args, loader.dataset, steps_per_epoch)
    try:
        return _train(
            accelerator, model, loader, args, evaluate, criterion, on_best, patience, steps_per_epoch, checkpoints
        )
    except BaseException:
        for tracker in accelerator.trackers:  # the next run of this process must not write into it
            tracker.finish()
        raise
    finally:
        checkpoints.close()


def _train(
    accelerator, model, loader, args, evaluate, criterion, on_best, patience, steps_per_epoch, checkpoints
) -> list[dict]:
    if args.embedding_optimizer != "dense":
        use_sparse_tables(model)
    optimizer = make_optimizer(model, args, accelerator.device)
    model, optimizer = prepare(accelerator, model, optimizer, args)
    training, finite = TrainingStep(accelerator, model, optimizer, args), FiniteWatch(accelerator)
    accumulation = args.gradient_accumulation_steps
    total = args.max_train_steps if args.max_train_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    warmup = math.ceil(args.warmup_ratio * total)
    # a plain scheduler stepped by hand: Accelerate's would step once a process
    scheduler = get_scheduler(args.lr_scheduler_type, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    eval_steps = args.eval_steps or steps_per_epoch
    set_seed(args.seed + accelerator.process_index)  # dropout differs between processes, initial weights do not

    history: list[dict] = []
    best, misses, step = -math.inf, 0, 0
    sums: dict[str, torch.Tensor] = {}
    counted, started = 0, time.perf_counter()
    state = checkpoints.load(model, optimizer, scheduler)
    begin(accelerator, args)
    if state is not None:
        history, best, misses, step, counted = (
            state[name] for name in ("history", "best", "misses", "step", "counted")
        )
        sums = {name: value.to(accelerator.device) for name, value in state["sums"].items()}
        started -= state["seconds"]
        write_json(accelerator, args.output_dir, HISTORY_FILE, history)

    def over_processes() -> dict[str, float]:
        """The sums as they are on average over the processes, whose shares of global means they are."""
        means = accelerator.reduce(torch.stack(list(sums.values())), "mean") if sums else []
        return dict(zip(sums, torch.as_tensor(means).tolist()))

    def loop() -> dict:
        means = {name: torch.tensor(value) for name, value in over_processes().items()}
        return {
            "history": history,
            "best": best,
            "misses": misses,
            "step": step,
            "counted": counted,
            "sums": means,
            "seconds": time.perf_counter() - started,
        }

    def record(entry: dict) -> None:
        history.append(entry)
        accelerator.log({name: value for name, value in entry.items() if name != "step"}, step=entry["step"])
        file_logger.info(f"step {entry['step']}/{total}: {in_words(entry)}")

    def stop_unless_finite(weights: bool) -> None:
        bad = finite.first_bad_step()
        if bad is None and weights and not weights_are_finite(model):
            bad = step
        if bad is not None:
            kept = [os.path.basename(folder) for folder in step_checkpoints(args.output_dir)[-1:]] + [
                "the best model"
            ] * (best > -math.inf)
            raise FloatingPointError(
                f"the loss, its gradient or the weights are not finite at step {bad} (epoch "
                f"{bad / steps_per_epoch:.2f}). Kept in {args.output_dir}: "
                f"{' and '.join(kept) or 'nothing yet'}. Lower --learning_rate or --plm_learning_rate, or clip with "
                "--max_grad_norm"
            )

    def done() -> bool:
        return step >= total or (patience is not None and misses >= patience)

    shown: dict[str, str] = {}
    with tqdm(
        total=total, initial=step, disable=not accelerator.is_main_process, unit="step", dynamic_ncols=True
    ) as bar:
        for epoch in range(step // steps_per_epoch, math.ceil(total / steps_per_epoch)):
            if done():
                break
            loader.set_epoch(epoch, step % steps_per_epoch * accumulation)
            for group in _accumulated(loader, accumulation):
                model.train()
                for output in training.backward(group):
                    for name, value in output.items():
                        sums[name] = sums.get(name, 0) + value
                    counted += 1
                    finite.watch(output["loss"], step + 1)
                norm = training.update()
                step += 1
                if training.skipped == 0:
                    scheduler.step()
                if norm is not None and (accelerator.scaler is None or training.skipped > MAX_SKIPPED):
                    finite.watch(norm, step - max(0, training.skipped - 1))
                bar.update()
                # also before an evaluation: it may be the last, and a loss that is not finite is named before metrics
                # fail on it
                if step % args.logging_steps == 0 or step % eval_steps == 0 or step == total:
                    stop_unless_finite(weights=step % eval_steps == 0 or step == total)
                    entry = {name: value / counted for name, value in over_processes().items()}
                    group = optimizer.param_groups[0]  # all have the same share of their own rate
                    entry |= {"learning_rate": args.learning_rate * group["lr"] / group["initial_lr"]} | (
                        {} if norm is None else {"grad_norm": norm.item()}
                    )
                    entry = {
                        "step": step,
                        "epoch": step / steps_per_epoch,
                        **entry,
                        "seconds": time.perf_counter() - started,
                    }
                    record(entry)
                    shown |= {name: f"{entry[name]:.4f}" for name in entry if name.endswith("loss")}
                    bar.set_postfix(shown)
                    sums, counted = {}, 0
                if step % eval_steps == 0 or step == total:
                    metrics = evaluate()
                    if not all(math.isfinite(value) for name, value in metrics.items() if name.endswith("loss")):
                        finite.watch(torch.tensor(math.nan, device=accelerator.device), step)
                        stop_unless_finite(weights=False)
                    record(
                        {
                            "step": step,
                            "epoch": step / steps_per_epoch,
                            **metrics,
                            "seconds": time.perf_counter() - started,
                        }
                    )
                    write_json(accelerator, args.output_dir, HISTORY_FILE, history)
                    if accelerator.is_main_process:
                        bar.write(f"epoch {step / steps_per_epoch:.2f}: {in_words(metrics)}")
                    if "eval_auc" in metrics:
                        shown["auc"] = f"{metrics['eval_auc']:.4f}"
                    if criterion is not None:
                        if criterion(metrics) > best:
                            best, misses = criterion(metrics), 0
                            on_best()
                        else:
                            misses += 1
                checkpoints.after_step(
                    step, model, optimizer, scheduler, loop, before_saving=lambda: stop_unless_finite(weights=True)
                )
                if done():
                    break
    return history


def in_words(entry: dict) -> str:
    """The numbers of an entry of the history in one line."""
    return " ".join(f"{name} {value:.4g}" for name, value in entry.items() if isinstance(value, float))


# --- scoring


@torch.no_grad()
def score(
    accelerator: Accelerator, model: nn.Module, dataset: EncodedDataset, batch_size: int, progress: bool = False
) -> dict[str, np.ndarray]:
    """Log odds of every row in the rows' order, each row exactly once whatever the number of processes.

    Returns `logits`, and `id_logits` and `text_logits` where the strategy has them, `(N,)` float32 each.
    """
    model.eval()
    loader = make_loader(dataset, FlipCollator(dataset.processor), batch_size, accelerator, shuffle=False)
    plan = loader.batch_sampler.plan()
    scores: dict[str, list[np.ndarray]] = {}
    bar = tqdm(loader, disable=not (progress and accelerator.is_main_process), unit="batch", dynamic_ncols=True)
    for batch in bar:
        filler = len(batch["feature_ids"]) == 0  # fewer rows than processes in the last batch
        if filler and not is_sharded(model):
            continue
        if filler:  # the other processes wait for this one: any row, whose scores are dropped
            batch = loader.collate_fn(dataset.__getitems__([0]))
        batch.pop("labels", None)
        with accelerator.autocast():
            output = model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()})
        if filler:
            continue
        for name in ("logits", "id_logits", "text_logits"):
            if output.get(name) is not None:
                scores.setdefault(name, []).append(output[name][:, 0].float().cpu().numpy())
    index, processes = accelerator.process_index, accelerator.num_processes
    mine = [
        (
            np.concatenate([part[index::processes] for part in plan]),
            {name: np.concatenate(parts) for name, parts in scores.items()},
        )
    ]
    result = {}
    for rows, values in gather_object(mine) if processes > 1 else mine:
        for name, part in values.items():
            result.setdefault(name, np.empty(len(dataset), np.float32))[rows] = part
    return result
