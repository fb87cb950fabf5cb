# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The rows of a run: splits that are encoded or streamed, checked, and made into batches for this process."""

import logging
import math

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from flip_ctr.data.batches.collators import FlipCollator, FlipPretrainingCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.samplers import GlobalBatchSampler
from flip_ctr.data.batches.streaming import StreamedDataset
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.columns_flip import read_columns
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import FinetuneArguments, PretrainArguments, TrainingOptions

logger = logging.getLogger("flip_ctr")

FAR_OFF = 2.0  # ratio of two odds of a click that are not the same but for chance or drift


LEAST_BATCH, STEPS_PER_EPOCH = 32, 32  # of small data


def fitting_batch_size(rows: int, most: int) -> int:
    """Rows of a step: fewer than usual where an epoch of so few rows would have less than STEPS_PER_EPOCH steps."""
    return min(most, max(LEAST_BATCH, rows // STEPS_PER_EPOCH))


def say_no_validation(args: TrainingOptions) -> None:
    """Logs that nothing is chosen by validation. `ValueError` where the run asks for that, or for a calibration."""
    for name in ("early_stopping_patience", "calibration"):
        if name in args.given:
            raise ValueError(
                f"--{name} needs validation rows, which {args.dataset_dir} has not; leave it out, or prepare the "
                "dataset with some (--ratios 8 1 1)"
            )
    logger.warning(f"{args.dataset_dir} has no split 'validation': the last model is kept, and none is chosen by it")


def check_clicks(processor: FlipProcessor, splits: dict[str, SplitRows]) -> dict[str, float]:
    """The click rate of each split, by the rows' weights where they have some.

    Raises:
        ValueError: a split has no labels, labels other than 0 and 1 (in rows outside its sample too), or in the rows of
            the sample one class only; names the split.
    """
    rates = {}
    for split, rows in splits.items():
        if processor.label not in rows.column_names:
            raise ValueError(f"split '{split}' has no column '{processor.label}' to learn from")
        columns = [name for name in (processor.label, processor.weight) if name in rows.column_names]
        for _ in rows.whole().map_parts(processor.read_targets, columns):
            pass  # what cannot be read is an error
        clicks, weight, total = 0, 0.0, 0.0
        for labels, weights in rows.map_parts(processor.read_targets, columns):
            weights = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
            clicks, weight, total = clicks + int(labels.sum()), weight + labels @ weights, total + weights.sum()
        if clicks in (0, len(rows)):
            raise ValueError(
                f"split '{split}': all {len(rows):,} rows that were read have the label {int(clicks > 0)}; both "
                "classes are needed"
            )
        rates[split] = float(weight / total) if total else math.nan
    return rates


def check_sampling_rate(click_rates: dict[str, float], rate: float) -> None:
    """Warns where the training rows' click rate, brought back to its natural value by the share of the non-clicks that
    was kept (`rate`), is far from the one of validation, or else test."""
    other = next((split for split in ("validation", "test") if split in click_rates), None)
    ours, theirs = click_rates["train"], click_rates.get(other, math.nan)
    if not (0 < ours < 1 and 0 < theirs < 1):  # unknown, or of weights that leave one class
        return
    odds, others = ours / (1 - ours), theirs / (1 - theirs)
    natural = odds * rate / (1 + odds * rate)
    if not 1 / FAR_OFF < odds * rate / others < FAR_OFF:
        logger.warning(
            f"{ours:.3%} of the training rows are clicks, which is a natural rate of {natural:.3%} with "
            f"--negative_sampling_rate {rate:g}; but {theirs:.3%} of the {other} rows are clicks, which must be at the "
            f"natural rate. Where training rows alone lack non-clicks, --negative_sampling_rate "
            f"{min(1.0, others / odds):.3g} fits"
        )


def log_unknown_keys(processor: FlipProcessor, splits: dict[str, SplitRows], of: str = "") -> None:
    """Says what share of the rows has a user, an item or another key that the vocabulary lacks, by split and field.

    Args:
        of: whose vocabulary it is, where it is not that of the model in training.
    """
    extractor = processor.feature_extractor
    keys = list(extractor.key_fields.values())
    names = [field.name for field in keys]
    for split, rows in splits.items() if keys else ():
        unknown = dict.fromkeys(names, 0)
        for columns in rows.map_parts(lambda part: read_columns(part, keys), names):
            for name, of_rows in extractor.unknown_keys(columns).items():
                unknown[name] += int(of_rows.sum())
        shares = ", ".join(f"{number / len(rows):.2%} {name}" for name, number in unknown.items())
        logger.info(f"keys that the vocabulary{of and ' of ' + of} lacks ([UNK]), share of {split} rows: {shares}")


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
    accelerator: Accelerator, processor: FlipProcessor, rows: SplitRows, args: TrainingOptions, prompts: bool = True
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


def click_collator(processor: FlipProcessor, args: FinetuneArguments) -> FlipCollator:
    """Makes batches of a click model's training rows, some of whose ids are unknown, as the run's arguments say."""
    return FlipCollator(processor, args.seed, args.unk_rate, args.cold_rate, args.short_history_rate)


def pretraining_collator(
    processor: FlipProcessor, args: PretrainArguments, unknown_ids: bool = True
) -> FlipPretrainingCollator:
    """Makes pretraining's batches, masked where an objective reads the masked view; some ids are unknown, as the run's
    arguments say, or none (validation)."""
    return FlipPretrainingCollator(
        processor,
        args.seed,
        args.unk_rate if unknown_ids else 0.0,
        args.cold_rate if unknown_ids else 0.0,
        text_mask_ratio=args.text_mask_ratio if args.mlm_weight else None,
        id_mask_ratio=args.id_mask_ratio if args.mtm_weight else None,
        mask_unit=args.mask_unit,
    )


def training_loader(
    dataset: EncodedDataset | StreamedDataset, collator: FlipCollator, accelerator: Accelerator, args: TrainingOptions
) -> "BatchLoader":
    """Batches of the training rows, as the run's arguments say. Where a PLM that trains alone reads the prompts of
    several together, their rows share prompts, see [`GlobalBatchSampler`]. (An ID tower that sees few items at a time
    unlearns the others: measured in docs/entity-prompts.md.)"""
    size, workers = args.per_device_train_batch_size, args.dataloader_num_workers
    shares_prompts = getattr(args, "strategy", None) == "plm" and args.plm_every > 1 and not args.freeze_plm
    window = args.plm_every * args.gradient_accumulation_steps if shares_prompts else 1
    return make_loader(dataset, collator, size, accelerator, args.seed, workers=workers, window=window)


class BatchLoader(DataLoader):
    """A `DataLoader` of whole batches; which rows, masks and noise they hold is a pure function of (seed, epoch)."""

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """The epoch whose batches come next, and the first of them: a run that goes on leaves out those it has had."""
        self.dataset.set_epoch(epoch, first_batch)
        if isinstance(self.batch_sampler, GlobalBatchSampler):  # a stream plans its batches itself
            self.batch_sampler.set_epoch(epoch, first_batch)
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
    window: int = 1,
) -> BatchLoader:
    """Batches of a dataset for this process, see [`GlobalBatchSampler`] and [`EncodedDataset`], or [`StreamedDataset`],
    which plans them itself."""
    if isinstance(dataset, StreamedDataset):
        batches = {"batch_size": None}
    else:
        windows = math.ceil(len(dataset) / (batch_size * accelerator.num_processes * window))
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
                prompts=dataset.encoded.shared_prompts(windows) if window > 1 else None,
                window=window,
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
