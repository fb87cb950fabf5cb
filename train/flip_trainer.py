# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""`transformers.Trainer` with what FLIP adds: the parts of the loss of pretraining, evaluations of rows as they are,
and what may be published."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.trainer_pt_utils import find_batch_size
from transformers.trainer_utils import EvalLoopOutput, HubStrategy

from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.models.lora import plain
from flip_ctr.train.outputs.card import CARD, TAGS, limits_section
from flip_ctr.train.outputs.hub import push_checkpoint

PARTS = ("mlm_loss", "mtm_loss", "icl_loss")


class FlipTrainer(Trainer):
    """A `Trainer` for [`FlipForPretraining`] and [`FlipForCTR`].

    * In its logs, and in the metrics of an evaluation, `mlm_loss`, `mtm_loss` and `icl_loss` stand beside `loss`, means
      over the same batches and processes as that.
    * The ids that a [`FlipCollator`] drops (`unk_rate`, `cold_rate`, `short_history_rate`) it drops in training alone.
    * It publishes what `flip-ctr push` does.

    Raises:
        ValueError: `push_to_hub` is set with another `hub_strategy` than `end`.
    """

    def __init__(self, model=None, args: TrainingArguments | None = None, *others, **kwargs):
        # before the repository is made
        if args is not None and args.push_to_hub and args.hub_strategy != HubStrategy.END:
            raise ValueError(
                f"hub_strategy={args.hub_strategy.value!r} publishes checkpoints without their code, and with the "
                "heads of pretraining; set hub_strategy='end'"
            )
        super().__init__(model, args, *others, **kwargs)
        self._sums: dict[str, torch.Tensor] = {}  # of the losses since the last log
        self._evaluated: dict[str, torch.Tensor] = {}  # of the losses of an evaluation

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        collator = self.data_collator
        if isinstance(collator, FlipCollator):
            self.data_collator = collator.for_evaluation()
        try:
            yield
        finally:
            self.data_collator = collator

    def get_eval_dataloader(self, *args, **kwargs) -> DataLoader:
        with self._evaluating():
            return super().get_eval_dataloader(*args, **kwargs)

    def get_test_dataloader(self, *args, **kwargs) -> DataLoader:
        with self._evaluating():
            return super().get_test_dataloader(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs):
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        parts = {name: outputs[name].detach() for name in PARTS if outputs.get(name) is not None}
        if parts:
            # as a Trainer weighs the loss: steps alike in training, rows in an evaluation
            weight = 1 / self.current_gradient_accumulation_steps if model.training else find_batch_size(inputs)
            sums = self._sums if model.training else self._evaluated
            for name, value in (parts | {"weight": torch.ones_like(loss)}).items():
                sums[name] = sums.get(name, 0.0) + weight * value.detach()
        return (loss, outputs) if return_outputs else loss

    def _means(self, sums: dict[str, torch.Tensor], prefix: str = "") -> dict[str, float]:
        """The means over all processes, by name, of sums that are then empty."""
        if not sums:
            return {}
        totals = dict(zip(sums, self.accelerator.reduce(torch.stack(list(sums.values()))).tolist()))
        sums.clear()
        weight = totals.pop("weight")
        return {f"{prefix}{name}": total / weight for name, total in totals.items()}

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= self._means(self._sums)
        super().log(logs, *args, **kwargs)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        self._evaluated.clear()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics.update(self._means(self._evaluated, f"{metric_key_prefix}_"))
        return output

    def create_model_card(self, *, tags: str | list[str] | None = None, **kwargs) -> None:
        """As that of a `Trainer`, by keywords, and what the checkpoint tells about people."""
        super().create_model_card(tags=TAGS + ([tags] if isinstance(tags, str) else tags or []), **kwargs)
        if self.is_world_process_zero() and isinstance(self.processing_class, FlipProcessor):
            model = plain(self.accelerator.unwrap_model(self.model))
            with open(os.path.join(self.args.output_dir, CARD), "a", encoding="utf-8") as file:
                file.write("\n" + limits_section(model, self.processing_class))

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        pretraining_heads: bool = False,
        **kwargs,
    ) -> str | None:
        """Saves the model in the output folder and publishes it with `push_checkpoint`: weights, code, processor, the
        Trainer's card, and a `handler.py` where the model predicts. `training_args.bin`, a pickle with paths of the
        machine, is not published.

        Args:
            pretraining_heads: publish the heads of a pretrained model too, which can return a user's demographics.
            kwargs: of `Trainer.create_model_card`.

        Returns:
            The address of the repository, on the main process.

        Raises:
            ValueError: a `revision` is given; or see `push_checkpoint`.
            ConnectionError: see `push_checkpoint`.
        """
        if revision is not None:
            raise ValueError(f"a checkpoint is published in the main branch; leave out the revision {revision!r}")
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        args = self.args
        repository = args.hub_model_id or Path(args.output_dir).name
        self.create_model_card(model_name=repository.split("/")[-1], **kwargs)
        private = args.hub_private_repo if private is None else private
        return push_checkpoint(
            args.output_dir, repository, bool(private), token or args.hub_token, pretraining_heads, commit_message
        )
