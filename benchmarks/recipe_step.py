# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A recipe's training step, as the recipe sets it up, for what measures steps."""

import gc

import torch

from flip_ctr.benchmarks.children import peak_gb
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train.arguments import FinetuneArguments, PretrainArguments
from flip_ctr.train.loop.attention import choose_attention
from flip_ctr.train.loop.loaders import click_collator, pretraining_collator, training_loader
from flip_ctr.train.loop.optimizer import make_optimizer, use_sparse_tables
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.step import TrainingStep
from flip_ctr.train.models.build import new_click_model, new_pretraining_model, new_processor, ready_to_train


class RecipeStep:
    """The step of `pretrain` or of `finetune`, and what its batches come from.

    Args:
        args: of the recipe.

    Attributes:
        accelerator, processor, dataset, loader: of the run.
        model: as Accelerate prepared it, training.
        step: takes a group of batches (`backward`, `update`).
        before_gb: the most memory that the process had before there was a model.
    """

    def __init__(self, args: PretrainArguments | FinetuneArguments):
        torch.manual_seed(args.seed)
        self.args = args
        self.accelerator = make_accelerator(args.mixed_precision)
        rows = SplitRows(args.dataset_dir, "train", args.max_train_samples, args.seed)
        self.processor = new_processor(rows, rows.schema, args, args.model_name_or_path)
        pretrains = isinstance(args, PretrainArguments)
        # no objective of pretraining reads what came before
        reader = self.processor.without_history() if pretrains else self.processor
        self.dataset = EncodedDataset(reader, rows, prompts=args.pretrains_text if pretrains else args.strategy != "id")
        gc.collect()
        self.before_gb = peak_gb()
        model = (
            new_pretraining_model(self.processor, args, self.dataset)
            if pretrains
            else new_click_model(self.processor, args)
        )
        model = ready_to_train(model, self.processor, args)
        if args.embedding_optimizer != "dense":
            use_sparse_tables(model)
        collator = (pretraining_collator if pretrains else click_collator)(reader, args)
        self.loader = training_loader(self.dataset, collator, self.accelerator, args)
        optimizer = make_optimizer(model, args, self.accelerator.device)
        self.model, optimizer = self.accelerator.prepare(model.train(), optimizer)
        self.step = TrainingStep(self.accelerator, self.model, optimizer, args)

    def choose_attention(self) -> str | None:
        """Gives the PLM the attention that a run would choose, and returns its name."""
        of_choice = self.args, next(iter(self.loader)), self.dataset.lengths
        return choose_attention(self.accelerator, self.model.flip.text_encoder, *of_choice)
