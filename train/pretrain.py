# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Pretraining: aligns an ID tower and a PLM on the training rows of a dataset folder, without their labels.

flip-ctr pretrain --dataset_dir D --model_name_or_path PLM --id_tower dcnv2 --output_dir P
accelerate launch -m flip_ctr.train.pretrain --config pretrain.yaml
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from flip_ctr.data.batches.collators import MASK_UNITS, FlipPretrainingCollator
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.train.arguments import OBJECTIVES, OWN_DROPOUT, TrainArguments, listed, option, parse_arguments
from flip_ctr.train.launch import launch_help
from flip_ctr.train.loop.training_loop import encode_split, make_loader, recipe, start, train, training_split
from flip_ctr.train.models.build import check_model, new_pretraining_model, new_processor, ready_to_train
from flip_ctr.train.models.lora import is_flip_checkpoint, merge, plain
from flip_ctr.train.outputs.card import training_record, write_card
from flip_ctr.train.outputs.checkpoint import save
from flip_ctr.train.outputs.hub import push
from flip_ctr.train.outputs.plots import plot_history
from flip_ctr.train.outputs.results import report
from flip_ctr.train.outputs.run_log import logger

DEFAULTS = {
    "pretraining": {
        "per_device_train_batch_size": 128,
        "num_train_epochs": 10,
        "learning_rate": 1e-3,
        "plm_learning_rate": 1e-4,
        "embedding_l2": 0.0,
        "mlm_vocabulary": "dataset",
    },
    "--preset paper": {
        "per_device_train_batch_size": 128,
        "num_train_epochs": 30,
        "learning_rate": 1e-4,
        "plm_learning_rate": 1e-4,
        "embedding_l2": 0.0,
        "mlm_vocabulary": "plm",
    },
}
# A tower that was pretrained on ids alone loses some of what it knows when a PLM is aligned to it, and the PLM learns
# no more of it: ml-100k,
# validation AUC of FLIP_ID .8750 with the tower as it is and .8725 with a rate of 1e-4, of FLIP_PLM .8094 and .8037.
DEFAULTS["a PLM is aligned to --id_model"] = DEFAULTS["pretraining"] | {"id_learning_rate": 0.0}


@dataclass(kw_only=True)
class PretrainArguments(TrainArguments):
    recipe: ClassVar[str] = "pretrain"

    model_name_or_path: str | None = option(
        None,
        "the PLM: a path or hub id of a masked language model; none where no objective uses "
        "one (--mtm_text_dropout 1 --mlm_weight 0 --icl_weight 0)",
    )
    lr_scheduler_type: str = option("cosine", "shape of the learning rate: linear, cosine, constant_with_warmup, ...")
    mlm_weight: float = option(1.0, "weight of masked language modelling; 0 switches it off")
    mtm_weight: float = option(1.0, "weight of masked tabular modelling; 0 switches it off")
    icl_weight: float = option(1.0, "weight of instance-level contrastive learning; 0 switches it off")
    mlm_id_dropout: float = option(
        0.0, "share of rows whose ids MLM does not see; 1: plain masked language modelling on the prompts"
    )
    mtm_text_dropout: float = option(
        0.0, "share of rows whose text MTM does not see; 1: ids are recovered from the other ids alone (MAP)"
    )
    text_mask_ratio: float = option(0.15, "share of the units (--mask_unit) masked in the text, at least one")
    id_mask_ratio: float = option(0.15, "share of the units masked on the ID side, at least one")
    mlm_vocabulary: str | None = option(
        None,
        "MLM's softmax is over the tokens that the training prompts have (dataset), or over all of the "
        "PLM's (plm): dataset, but plm with --streaming or --preset paper",
        choices=["dataset", "plm"],
    )
    mask_unit: str = option(
        "entity",
        "what is masked together: field, entity (all fields of the user, or of the item; of a view with fields of one "
        "entity only: field) or token (of the text; ids by field)",
        choices=list(MASK_UNITS),
    )
    mtm_noise: str = option(
        "field",
        "noise features come from the target's own field, or are global (the paper's)",
        choices=["field", "global"],
    )
    mtm_num_noise: int = option(25, "noise features per masked feature")
    mtm_full_softmax_size: int = option(
        128, "fields with at most so many values have no noise, but a softmax over all of them (not with global noise)"
    )
    icl_similarity: str = option(
        "cosine", "cosine with a learnable scale, or dot (the release)", choices=["cosine", "dot"]
    )
    icl_temperature: float | None = option(None, "start of the temperature of cosine (0.07), or that of dot (0.7)")
    projection_dim: int = option(128, "size of the space of contrastive learning")
    grad_cache_chunk_size: int | None = option(
        None,
        "rows of one forward pass of a batch, where the whole batch does not fit into memory: ICL "
        "still sees all its rows (GradCache)",
    )

    hub_pretraining_heads: bool = option(
        False, "publish the MLM and MTM heads too: they can return a user's demographics from an id"
    )

    @property
    def objectives(self) -> FlipConfig:
        """A configuration that says what the objectives use."""
        return FlipConfig(**{name: getattr(self, name) for name in OBJECTIVES})

    @property
    def uses_plm(self) -> bool:
        """Whether an objective uses the PLM."""
        return self.objectives.pretrains_text

    def recipe_defaults(self) -> dict:
        aligned = self.id_model is not None and self.objectives.aligns
        defaults = DEFAULTS[
            "--preset paper"
            if self.preset == "paper"
            else "a PLM is aligned to --id_model"
            if aligned
            else "pretraining"
        ]
        vocabulary = None if not self.mlm_weight else "plm" if self.streaming else defaults["mlm_vocabulary"]
        dropout = None if not self.uses_plm else OWN_DROPOUT if self.preset == "paper" else 0.0
        return defaults | {"mlm_vocabulary": vocabulary, "plm_dropout": dropout}

    def __post_init__(self):
        super().__post_init__()
        if not (self.mlm_weight or self.mtm_weight or self.icl_weight):
            raise ValueError("--mlm_weight, --mtm_weight and --icl_weight are all 0: nothing to learn")
        if self.uses_plm and self.model_name_or_path is None:
            raise ValueError(
                "an objective uses the PLM: --model_name_or_path must name it (without one only --mtm_text_dropout 1 "
                "--mlm_weight 0 --icl_weight 0)"
            )
        if self.prompt_fields is not None and not self.uses_plm:
            raise ValueError("no objective uses the PLM, which alone reads prompts: leave --prompt_fields out")
        if self.model_name_or_path is not None and not self.uses_plm:
            raise ValueError(f"no objective uses the PLM: leave --model_name_or_path {self.model_name_or_path} out")
        if self.id_model is not None and not self.objectives.pretrains_id_tower:
            raise ValueError(
                f"--id_model {self.id_model}: no objective uses the ID tower (--mtm_weight, --icl_weight, "
                "--mlm_id_dropout)"
            )
        if self.id_learning_rate is not None and not self.objectives.pretrains_id_tower:
            raise ValueError(
                f"--id_learning_rate {self.id_learning_rate}: no objective uses the ID tower; leave it out"
            )
        self.check_id_tower(new=True)
        if self.id_learning_rate == 0:
            self.check_effect(
                "on a tower that stays as it is (--id_learning_rate 0, the default where a PLM is aligned to "
                "--id_model)",
                embedding_l2=0.0,
                id_dropout=None,
                id_embedding_dropout=None,
            )
        if not self.mtm_weight:
            self.check_effect("with --mtm_weight 0", mtm_text_dropout=0.0)
        if not self.mlm_weight:
            self.check_effect("with --mlm_weight 0", mlm_id_dropout=0.0)
            self.check_effect("without MLM (--mlm_weight 0)", mlm_vocabulary=None)
        if self.mlm_vocabulary == "dataset" and self.streaming:
            raise ValueError(
                "--mlm_vocabulary dataset needs the rows encoded beforehand, to know which tokens they have; leave "
                "it, or "
                "--streaming, out"
            )
        if self.grad_cache_chunk_size is not None and self.grad_cache_chunk_size < 1:
            raise ValueError(f"--grad_cache_chunk_size must be at least 1; got {self.grad_cache_chunk_size}")
        if self.grad_cache_chunk_size is not None and not self.icl_weight:
            raise ValueError(
                "--grad_cache_chunk_size has no effect without ICL (--icl_weight 0): use --gradient_accumulation_steps"
            )


@recipe
def run(args: PretrainArguments) -> dict:
    """Pretrains and saves; returns the results that are also in `all_results.json`.

    Raises:
        ValueError: an argument, the dataset folder or the PLM does not fit; the message names it.
    """
    # 1. Accelerate, logging, seed
    accelerator = start(args)

    # 2. Rows and vocabularies: the training split only
    train_rows = SplitRows(args.dataset_dir, "train", args.max_train_samples, args.seed)
    eval_rows = SplitRows(args.dataset_dir, "validation", args.max_eval_samples, args.seed)
    schema = train_rows.schema
    if args.model_name_or_path is not None:
        check_model("model_name_or_path", args.model_name_or_path)
    record = training_record(args)
    if args.model_name_or_path is not None and is_flip_checkpoint(args.model_name_or_path):
        raise ValueError(
            f"--model_name_or_path {args.model_name_or_path} is a FLIP checkpoint; pretraining starts from a PLM"
        )
    processor = new_processor(train_rows, schema, args, args.model_name_or_path)

    # 3. Masks, of the views that an objective masks
    masks = {
        "text_mask_ratio": args.text_mask_ratio if args.mlm_weight else None,
        "id_mask_ratio": args.id_mask_ratio if args.mtm_weight else None,
        "mask_unit": args.mask_unit,
        "num_noise": args.mtm_num_noise,
    }
    collator, eval_collator = (
        FlipPretrainingCollator(processor, args.seed, rate, **masks) for rate in (args.unk_rate, 0.0)
    )
    train_set = training_split(accelerator, processor, train_rows, args, args.uses_plm)
    eval_set = encode_split(accelerator, processor, eval_rows, args.uses_plm)
    if len(eval_set) < accelerator.num_processes:
        raise ValueError(
            f"the split 'validation' has {len(eval_set)} rows for {accelerator.num_processes} processes; each needs one"
        )
    tokens = f"; {eval_set.lengths.mean():.1f} tokens a prompt on average" if args.uses_plm else "; no text"
    logger.info(f"{train_set.num_rows:,} training rows{tokens}")

    # 4. Model, and batches
    model = ready_to_train(new_pretraining_model(processor, args, train_set), processor, args)
    loader = make_loader(
        train_set,
        collator,
        args.per_device_train_batch_size,
        accelerator,
        args.seed,
        workers=args.dataloader_num_workers,
    )
    # negatives of a random batch, as in training
    eval_loader = make_loader(eval_set, eval_collator, args.per_device_train_batch_size, accelerator, complete=True)

    # 5. Train
    def evaluate() -> dict[str, float]:
        return evaluate_alignment(accelerator, model, eval_loader)

    history = train(accelerator, model, loader, args, evaluate)

    # 6. Save
    whole = merge(model) if args.use_lora and not args.lora_adapter_only else model
    save(accelerator, whole, processor, args, record)
    results = {name: value for name, value in history[-1].items() if name.startswith("eval_")}
    results |= {
        "train_rows": train_set.num_rows,
        "train_steps": history[-1]["step"],
        "train_seconds": history[-1]["seconds"],
        "num_processes": accelerator.num_processes,
    }
    report(accelerator, results, args.output_dir)
    if accelerator.is_main_process:
        plot_history(history, args.output_dir)
        write_card(args.output_dir, record, plain(whole), processor, schema, args.dataset_dir, train_rows, results)
    accelerator.end_training()

    # 7. The Hub, where asked for
    if accelerator.is_main_process and args.push_to_hub:
        push(args)
    return results


@torch.no_grad()
def evaluate_alignment(accelerator, model, loader) -> dict[str, float]:
    """Losses and accuracies on validation rows, each counted once; accuracies also with shuffled counterparts, the gap
    is alignment."""
    model.eval()
    sums, weights, counted = {}, {}, torch.zeros((), device=accelerator.device)
    for batch in loader:
        with accelerator.autocast():
            output = model(**{name: tensor.to(accelerator.device) for name, tensor in batch.items()})
        rows = torch.tensor(len(batch["feature_ids"]), device=accelerator.device)
        counted += rows
        counts = {"mlm": output.num_mlm_targets, "mtm": output.num_mtm_targets, "icl": rows, "loss": rows}
        for name, value in output.items():
            if name.endswith(("loss", "accuracy")):
                weight = counts[name.split("_")[0]]
                sums[name] = sums.get(name, 0) + value.float() * weight
                weights[name] = weights.get(name, 0) + weight
    means = {name: accelerator.reduce(total) / accelerator.reduce(weights[name]) for name, total in sums.items()}
    return {f"eval_{name}": mean.item() for name, mean in means.items()} | {
        "eval_rows": int(accelerator.reduce(counted).item())
    }


def parse(argv: list[str] | None = None) -> PretrainArguments:
    """The arguments from the command line; exits where one is wrong."""
    epilog = f"Defaults by case:\n{listed(DEFAULTS)}\n{launch_help()}"
    return parse_arguments(PretrainArguments, argv, "flip-ctr pretrain", __doc__.split("\n")[0], epilog)


def main(argv: list[str] | None = None) -> None:
    run(parse(argv))


if __name__ == "__main__":
    main()
