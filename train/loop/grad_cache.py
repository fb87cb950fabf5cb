# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Large contrastive batches on small memory (GradCache: Gao et al., "Scaling deep contrastive learning batch size under
memory limited setup", 2021).

ICL learns from the negatives of the batch, and accumulating gradients adds none. Here a batch goes through the towers
in chunks: once without gradients for the embeddings of all rows, from which ICL's loss and its gradients by the
embeddings follow; then once more chunk by chunk with gradients, where ICL's share of the loss is the product of
embeddings and these gradients. Only one chunk's activations are ever held. The result is that of the whole batch, at
the price of one more forward pass of the clean view.
"""

from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from torch import nn

from flip_ctr.modeling_flip.gather_flip import share_of_total
from flip_ctr.modeling_flip.losses_flip import IGNORE_INDEX
from flip_ctr.train.loop.distributed import accumulating
from flip_ctr.train.loop.prompt_states import row_names
from flip_ctr.train.models.lora import plain

# what ICL's views are made of
VIEWS = ("feature_ids", "input_ids", "attention_mask", "prompt_index", "text_hidden_states")


def chunked_losses(
    accelerator: Accelerator,
    model: nn.Module,
    batch: dict[str, torch.Tensor],
    chunk_size: int,
    backward: Callable,
    sync: bool,
) -> dict[str, torch.Tensor]:
    """Adds the gradients of one batch, chunk by chunk; returns its losses, detached.

    Exact to the plain computation where there is no dropout; with dropout exact to its own chunks: a chunk's clean view
    has the same dropout in both passes.

    Args:
        model: a [`FlipForPretraining`] with ICL, as Accelerate prepared it.
        batch: as the collator makes it; what entity prompts have for each prompt goes into every chunk.
        chunk_size: rows of one forward pass.
        backward: is called with the loss of each chunk; they sum up to the loss of the batch.
        sync: whether the last chunk's backward exchanges gradients between processes.
    """
    by_row = row_names(batch)
    of_prompts = {name: tensor for name, tensor in batch.items() if name not in by_row}
    chunks = [
        of_prompts | dict(zip(by_row, parts)) for parts in zip(*(batch[name].split(chunk_size) for name in by_row))
    ]
    seeds = torch.randint(2**62, (len(chunks),)).tolist()
    flip_model = plain(accelerator.unwrap_model(model))

    # 1. the embeddings of all rows, without gradients
    embeds = []
    for chunk, _ in _with_dropout_of(chunks, seeds, accelerator.device):
        with torch.no_grad(), accelerator.autocast():
            views = flip_model.contrastive_views(**{name: chunk[name] for name in VIEWS if name in chunk})
        embeds.append([view.float() for view in views])
    id_embeds, text_embeds = (torch.cat(parts).requires_grad_() for parts in zip(*embeds))

    # 2. ICL over the global batch, and its gradients by embeddings and scale
    scale = flip_model.icl_scale()
    learned = isinstance(scale, torch.Tensor)
    scale = scale.detach().requires_grad_() if learned else scale
    keys = flip_model.view_keys(**{name: batch[name] for name in VIEWS[:-1] if name in batch})
    icl = flip_model.contrast(id_embeds, text_embeds, keys, scale)
    icl_loss = icl["icl_loss"]
    inputs = [id_embeds, text_embeds] + [scale] * learned
    gradients = torch.autograd.grad(flip_model.config.icl_weight * icl_loss, inputs)
    of_rows = zip(*(gradient.split(chunk_size) for gradient in gradients[:2]))
    of_scale = [gradient / len(chunks) for gradient in gradients[2:]]

    # 3. chunk by chunk with gradients; sums of losses are divided by the counts of the whole batch
    config, objectives = (
        flip_model.config,
        [name for name in ("mlm", "mtm") if getattr(flip_model.config, f"{name}_weight") > 0],
    )
    counts = {name: _targets(batch, name) for name in objectives}
    divisors = {name: share_of_total(count, training=True) for name, count in counts.items()}
    losses = {"icl_loss": icl_loss.detach(), "icl_accuracy": icl["icl_accuracy"]}
    losses["loss"] = config.icl_weight * losses["icl_loss"]
    for (chunk, last), rows in zip(_with_dropout_of(chunks, seeds, accelerator.device), of_rows):
        with accumulating(accelerator, model, last and sync):
            output = model(**chunk, reduction="sum")
            loss = torch.zeros((), device=accelerator.device)
            for name in objectives:
                part = output[f"{name}_loss"] / divisors[name]
                loss = loss + getattr(config, f"{name}_weight") * part
                losses[f"{name}_loss"] = losses.get(f"{name}_loss", 0) + part.detach()
                losses["loss"] = losses["loss"] + getattr(config, f"{name}_weight") * part.detach()
            views = [output["id_embeds"], output["text_embeds"]] + [flip_model.icl_scale()] * learned
            backward(loss + sum((view * gradient).sum() for view, gradient in zip(views, (*rows, *of_scale))))
    return losses


def _targets(batch: dict[str, torch.Tensor], objective: str) -> torch.Tensor:
    """How many tokens, or features, an objective predicts in a batch."""
    labelled = batch[f"{objective}_labels"] != IGNORE_INDEX
    if objective == "mtm" or "mlm_pairs" not in batch:
        return labelled.sum()
    return labelled.sum(-1)[batch["prompt_index"]][batch["mlm_pairs"]].sum()


def _with_dropout_of(chunks: list, seeds: list[int], device: torch.device) -> Iterator[tuple[dict, bool]]:
    """The chunks, each with random numbers from its own seed while it is used, and whether it is the last; the random
    state outside is as before."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        for number, (chunk, seed) in enumerate(zip(chunks, seeds)):
            torch.manual_seed(seed)
            yield chunk, number == len(chunks) - 1
