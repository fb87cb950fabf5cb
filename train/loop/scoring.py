# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Scores of every row of a split, each once, whatever the number of processes."""

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from tqdm.auto import tqdm

from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.train.loop.loaders import make_loader
from flip_ctr.train.loop.prompt_states import PromptReader, read_ahead
from flip_ctr.train.models.lora import plain
from flip_ctr.train.models.whole_weights import is_sharded

LOG_ODDS = ("logits", "id_logits", "text_logits")
ROWS_AHEAD = 65_536  # whose distinct prompts the PLM reads together, with entity prompts


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
    reader = PromptReader.of(accelerator, plain(accelerator.unwrap_model(model)), batch_size)
    batches = bar if reader is None else read_ahead(reader, bar, max(1, ROWS_AHEAD // batch_size))
    for batch in batches:
        filler = len(batch["feature_ids"]) == 0  # fewer rows than processes in the last batch
        if filler and not is_sharded(model):
            continue
        if filler:  # the other processes wait for this one: any row, whose scores are dropped
            batch = loader.collate_fn(dataset.__getitems__([0]))
        of_batch = _forward(accelerator, model, batch)
        for name, values in ({} if filler else of_batch).items():
            scores.setdefault(name, []).append(values)
    return in_row_order(accelerator, plan, {name: np.concatenate(parts) for name, parts in scores.items()})


def in_row_order(
    accelerator: Accelerator, plan: list[np.ndarray], mine: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Values of all rows in the rows' order, by name, on every process.

    Args:
        plan: the rows of each batch, of all processes together.
        mine: `(n, ...)` values of the rows that this process had, in the order of its batches; none where it had none.
    """
    index, processes = accelerator.process_index, accelerator.num_processes
    share = [(np.concatenate([part[index::processes] for part in plan]), mine)]
    count, result = sum(map(len, plan)), {}
    for rows, values in gather_object(share) if processes > 1 else share:
        for name, part in values.items():
            result.setdefault(name, np.empty((count, *part.shape[1:]), part.dtype))[rows] = part
    return result


def _forward(
    accelerator: Accelerator, model: nn.Module, batch: dict[str, torch.Tensor], outputs: Sequence[str] = LOG_ODDS
) -> dict[str, np.ndarray]:
    """What a model says of each row of a batch, `(B,)` by the names of its output."""
    batch.pop("labels", None)
    with accelerator.autocast():
        output = model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()})
    found = {name: output[name].float() for name in outputs if output.get(name) is not None}
    rows = len(output.logits)  # one weight of a fusion may be that of all rows
    return {name: values.reshape(-1, 1).expand(rows, 1)[:, 0].cpu().numpy() for name, values in found.items()}


def prompt_reader(accelerator: Accelerator, model: nn.Module, batch_size: int) -> PromptReader | None:
    """Makes a model ready to score, frozen so that what the PLM says of a text is kept; gives what lets the PLM read
    each entity prompt once, see [`score_rows`]."""
    model.to(accelerator.device).eval().requires_grad_(False)
    return PromptReader.of(accelerator, model, batch_size)


@torch.no_grad()
def score_rows(
    accelerator: Accelerator,
    model: nn.Module,
    dataset: EncodedDataset,
    batch_size: int,
    reader: PromptReader | None = None,
    outputs: Sequence[str] = LOG_ODDS,
) -> dict[str, np.ndarray]:
    """As [`score`], of rows that this process alone has; a `reader` lets the PLM read each entity prompt once, and
    `outputs` names what is wanted of the model's output."""
    collate, order = FlipCollator(dataset.processor), dataset.encoded.order()
    starts = range(0, len(order), batch_size)
    batches = (collate(dataset.__getitems__(order[start : start + batch_size])) for start in starts)
    if reader is not None:
        batches = read_ahead(reader, batches, len(starts))
    found = [_forward(accelerator, model, batch, outputs) for batch in batches]
    back = np.argsort(order)
    return {name: np.concatenate([one[name] for one in found])[back] for name in found[0]}
