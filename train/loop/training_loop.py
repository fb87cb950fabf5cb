# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The training loop of all recipes: steps, evaluations, the history, the best model, step checkpoints."""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from tqdm.auto import tqdm
from transformers import get_scheduler

from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.loop.attention import choose_attention
from flip_ctr.train.loop.distributed import (
    prepare,
)
from flip_ctr.train.loop.loaders import BatchLoader
from flip_ctr.train.loop.optimizer import keep_out_of_ddp, make_optimizer, use_sparse_tables
from flip_ctr.train.loop.resume import StepCheckpoints, step_checkpoints
from flip_ctr.train.loop.run import begin
from flip_ctr.train.loop.step import FiniteWatch, TrainingStep, weights_are_finite
from flip_ctr.train.models.lora import plain
from flip_ctr.train.outputs.results import HISTORY_FILE, write_json
from flip_ctr.train.outputs.run_log import file_logger, logger

MAX_SKIPPED = 25  # steps in a row that a scaler may skip while it looks for a scale whose gradients do not overflow


def grouped(loader: BatchLoader, steps: int) -> Iterator[list[dict]]:
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
    args: TrainingOptions,
    evaluate: Callable[[], dict[str, float]],
    criterion: Callable[[dict[str, float]], float] | None = None,
    on_best: Callable[[], None] | None = None,
    patience: int | None = None,
    progress: bool = True,
) -> list[dict]:
    """The training loop. Returns the history, which is also kept in `history.json`.

    Args:
        evaluate: measures the model on validation, called every `--eval_steps` or epoch; gives nothing where there are
            no such rows.
        criterion: what `evaluate` returns -> a number, the larger the better; None keeps no best.
        on_best: called after an evaluation that improved on all before.
        patience: stop after so many evaluations without improvement.
        progress: whether to show a bar, and what `evaluate` measures.

    Raises:
        FloatingPointError: the loss or its gradient is not finite; names the first such step, and what was saved before
            it.
        ValueError: `--resume_from_checkpoint` does not belong to this run.
        Preempted: the process was told to stop (SIGTERM) and has saved.
    """
    if len(loader) == 0:
        raise ValueError(f"{loader.dataset.num_rows} training rows give {accelerator.num_processes} processes no batch")
    steps_per_epoch = math.ceil(len(loader) / args.gradient_accumulation_steps)
    with checkpoints_of(accelerator, args, loader, steps_per_epoch) as checkpoints:
        if args.embedding_optimizer != "dense":
            use_sparse_tables(model)
        keep_out_of_ddp(model, plm=plain(model).config.prompts == "entity")
        optimizer = make_optimizer(model, args, accelerator.device)
        model, optimizer = prepare(accelerator, model, optimizer, args)
        training, finite = TrainingStep(accelerator, model, optimizer, args), FiniteWatch(accelerator)
        checkpoints.reader = training.reader
        accumulation = args.gradient_accumulation_steps
        total = args.max_train_steps if args.max_train_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
        warmup = math.ceil(args.warmup_ratio * total)
        # a plain scheduler stepped by hand: Accelerate's would step once a process
        scheduler = get_scheduler(
            args.lr_scheduler_type, training.optimizer, num_warmup_steps=warmup, num_training_steps=total
        )
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
        text_encoder = plain(accelerator.unwrap_model(model)).base_model.text_encoder
        attention = None if state is None else state.get("attention")
        if attention is not None:
            text_encoder.set_attn_implementation(attention)
            logger.info(f"the PLM's attention is {attention}, as it was")

        limit = None if args.max_minutes is None else 60 * args.max_minutes

        def spent() -> float:
            """Seconds of training; with `--max_minutes` the same on all processes, which stop together."""
            seconds = time.perf_counter() - started
            if limit is None or accelerator.num_processes == 1:
                return seconds
            return accelerator.reduce(torch.tensor(seconds, device=accelerator.device), "max").item()

        def fall_with_time() -> None:
            """Sets the learning rates to where the time is, if that is further than the steps are."""
            place = total * spent() / limit if limit else total
            if place > step:
                for group, rate, shape in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas):
                    group["lr"] = rate * shape(min(place, total))

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
                "attention": attention,
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
                    f"{bad / steps_per_epoch:.2f}). Kept in {args.output_dir}: {' and '.join(kept) or 'nothing yet'}. "
                    "Lower --learning_rate or --plm_learning_rate, or clip with --max_grad_norm"
                )

        def done() -> bool:
            return is_last or step >= total or (patience is not None and misses >= patience)

        shown: dict[str, str] = {}
        is_last, progress = False, progress and accelerator.is_main_process
        with tqdm(total=total, initial=step, disable=not progress, unit="step", dynamic_ncols=True) as bar:
            for epoch in range(step // steps_per_epoch, math.ceil(total / steps_per_epoch)):
                if done():
                    break
                loader.set_epoch(epoch, step % steps_per_epoch * accumulation)
                groups = grouped(loader, accumulation)
                if step == 0:
                    model.train()
                    first = next(groups)
                    lengths = getattr(loader.dataset, "lengths", None)  # a stream does not know them
                    attention = choose_attention(accelerator, text_encoder, args, first[0], lengths)
                    groups = chain([first], groups)
                for group in training.windows(groups, total - step):
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
                    if limit is not None:
                        fall_with_time()
                    if norm is not None and (accelerator.scaler is None or training.skipped > MAX_SKIPPED):
                        finite.watch(norm, step - max(0, training.skipped - 1))
                    bar.update()
                    late = limit is not None and training.closes and spent() >= limit
                    is_last = late or step == total
                    # also before an evaluation: it may be the last, and a loss that is not finite is named before
                    # metrics fail on it
                    if step % args.logging_steps == 0 or step % eval_steps == 0 or is_last:
                        stop_unless_finite(weights=step % eval_steps == 0 or is_last)
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
                        if late and step < total:
                            entry["planned_steps"] = total
                            logger.info(f"--max_minutes {args.max_minutes:g} are over: step {step:,} of {total:,}")
                        record(entry)
                        shown |= {name: f"{entry[name]:.4f}" for name in entry if name.endswith("loss")}
                        bar.set_postfix(shown)
                        sums, counted = {}, 0
                    if step % eval_steps == 0 or is_last:
                        metrics = evaluate()
                        if not all(math.isfinite(value) for name, value in metrics.items() if name.endswith("loss")):
                            finite.watch(torch.tensor(math.nan, device=accelerator.device), step)
                            stop_unless_finite(weights=False)
                        if metrics:  # none without validation rows
                            at = {"step": step, "epoch": step / steps_per_epoch}
                            record(at | metrics | {"seconds": time.perf_counter() - started})
                        write_json(accelerator, args.output_dir, HISTORY_FILE, history)
                        if metrics and progress:
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
                        step,
                        model,
                        optimizer,
                        scheduler,
                        loop,
                        before_saving=lambda: stop_unless_finite(weights=True),
                        between_windows=training.closes,
                    )
                    if done():
                        break
        return history


def how_long(history: list[dict]) -> dict[str, float]:
    """Of what [`train`] returns: `train_steps`, `train_seconds`, and `planned_steps` where `--max_minutes` ended it."""
    cut = next(({"planned_steps": one["planned_steps"]} for one in history if "planned_steps" in one), {})
    return {"train_steps": history[-1]["step"], "train_seconds": history[-1]["seconds"]} | cut


@contextmanager
def checkpoints_of(
    accelerator: Accelerator, args: TrainingOptions, loader: BatchLoader, steps_per_epoch: int
) -> Iterator[StepCheckpoints]:
    """The step checkpoints of a run; whatever ends it, nothing of it stays in this process."""
    checkpoints = StepCheckpoints(accelerator, args, loader.dataset, steps_per_epoch)
    try:
        yield checkpoints
    except BaseException:
        for tracker in accelerator.trackers:  # the next run of this process must not write into it
            tracker.finish()
        raise
    finally:
        checkpoints.close()


def in_words(entry: dict) -> str:
    """The numbers of an entry of the history in one line."""
    return " ".join(f"{name} {value:.4g}" for name, value in entry.items() if isinstance(value, float))
