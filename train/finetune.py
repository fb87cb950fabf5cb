# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Fine-tuning: predicts clicks with the ID tower, the PLM, or both, from a pretrained checkpoint or without
pretraining.

flip-ctr finetune --dataset_dir D --model_name_or_path P --strategy joint --output_dir M
flip-ctr finetune --dataset_dir D --model_name_or_path PLM --strategy joint --output_dir M   # no pretraining
flip-ctr finetune --dataset_dir D --strategy id --id_tower deepfm --output_dir M             # no PLM anywhere
accelerate launch -m flip_ctr.train.finetune --config finetune.yaml
"""

from dataclasses import dataclass
from typing import ClassVar

from flip_ctr.data.batches.collators import FlipCollator
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.configuration_flip import FUSIONS, STRATEGIES
from flip_ctr.train.arguments import OWN_DROPOUT, TrainArguments, listed, option, parse_arguments
from flip_ctr.train.launch import launch_help
from flip_ctr.train.loop.training_loop import (
    check_clicks,
    encode_split,
    make_loader,
    recipe,
    score,
    start,
    train,
    training_split,
)
from flip_ctr.train.models.build import (
    check_model,
    load_checkpoint,
    new_click_model,
    new_processor,
    ready_to_train,
)
from flip_ctr.train.models.lora import is_flip_checkpoint, plain
from flip_ctr.train.outputs.card import training_record, write_card
from flip_ctr.train.outputs.checkpoint import best_model, save
from flip_ctr.train.outputs.hub import push
from flip_ctr.train.outputs.metrics import click_metrics, score_metrics
from flip_ctr.train.outputs.plots import plot_history, plot_reliability
from flip_ctr.train.outputs.results import report
from flip_ctr.train.outputs.run_log import logger

# One choice for all datasets. Validation preferred, of DCNv2's rates and l2s: ml-100k 1e-2 and 1e-3, BookCrossing 3e-3
# and 1e-3, ml-1m 3e-3 and
# 3e-4; AUC - LogLoss on ml-100k and ml-1m: 1e-2 and 1e-3 .503 and .591, 1e-2 and 3e-4 .494 and .596, 3e-3 and 3e-4 .484
# and .597.
DEFAULTS = {
    "id": {
        "per_device_train_batch_size": 1024,
        "num_train_epochs": 10,
        "learning_rate": 3e-3,
        "plm_learning_rate": 1e-4,
        "embedding_l2": 1e-3,
    },
    # a larger rate erases what pretraining learned: ml-100k from MAP, validation AUC .874 with 1e-3 and .864 with 3e-3
    "id from a checkpoint": {
        "per_device_train_batch_size": 1024,
        "num_train_epochs": 10,
        "learning_rate": 1e-3,
        "plm_learning_rate": 1e-4,
        "embedding_l2": 1e-3,
    },
    # one pass of PLM-only without dropout has a validation AUC of .770, with the PLM's own rates .752 (ml-100k)
    "plm": {
        "per_device_train_batch_size": 256,
        "num_train_epochs": 3,
        "learning_rate": 1e-3,
        "plm_learning_rate": 1e-4,
        "embedding_l2": 0.0,
        "plm_dropout": 0.0,
    },
    # one pass from a pretrained checkpoint, AUC / LogLoss on validation: .8528 / .3834, and with 1e-3 .8498 / .3879
    # (ml-100k)
    "joint": {
        "per_device_train_batch_size": 256,
        "num_train_epochs": 3,
        "learning_rate": 3e-3,
        "plm_learning_rate": 1e-4,
        "embedding_l2": 1e-3,
        "plm_dropout": 0.0,
    },
}
DEFAULTS["frozen"] = DEFAULTS["id"]
# The paper's fine-tuning (its published settings); passes over the rows end by early stopping.
PAPER = {
    "id from a checkpoint": DEFAULTS["id"] | {"learning_rate": 1e-3, "plm_learning_rate": 5e-5, "embedding_l2": 1e-3},
    "plm": DEFAULTS["plm"] | {"learning_rate": 5e-5, "plm_learning_rate": 5e-5, "plm_dropout": OWN_DROPOUT},
    "joint": DEFAULTS["joint"]
    | {"learning_rate": 5e-5, "plm_learning_rate": 5e-5, "embedding_l2": 1e-4, "plm_dropout": OWN_DROPOUT},
}
PAPER["id"] = PAPER["frozen"] = PAPER["id from a checkpoint"]


@dataclass(kw_only=True)
class FinetuneArguments(TrainArguments):
    recipe: ClassVar[str] = "finetune"

    model_name_or_path: str | None = option(
        None, "a pretrained FLIP checkpoint, or a bare PLM (no pretraining); none for an ID-only model from scratch"
    )
    base_model_name_or_path: str | None = option(
        None, "base of a pretrained LoRA adapter, where the one that it names cannot be found"
    )
    strategy: str = option(
        "joint",
        "which towers predict: id, plm or joint; or frozen: the ID tower, with the frozen PLM's text "
        "embedding as one more field",
        choices=list(STRATEGIES),
    )
    fusion: str = option(
        "scalar",
        "how joint weighs the towers: scalar, gate (each row its own weight) or raw (the release)",
        choices=list(FUSIONS),
    )
    classifier_dropout: float = option(0.0, "dropout before the PLM's click layer")
    early_stopping_patience: int | None = option(3, "stop after so many evaluations without a better AUC - LogLoss")

    def recipe_defaults(self) -> dict:
        started = self.strategy == "id" and (self.model_name_or_path or self.id_model) is not None
        return (PAPER if self.preset == "paper" else DEFAULTS)["id from a checkpoint" if started else self.strategy]

    def __post_init__(self):
        super().__post_init__()
        if self.model_name_or_path is None and self.strategy != "id":
            raise ValueError(f"--strategy {self.strategy} needs a PLM or a FLIP checkpoint: --model_name_or_path")
        if self.id_model is not None and self.strategy in ("plm", "frozen"):
            raise ValueError(
                f"--id_model {self.id_model} has an ID tower, and --strategy {self.strategy} none that could start "
                "from it"
            )
        if self.id_learning_rate is not None and self.strategy == "plm":
            raise ValueError(
                f"--id_learning_rate {self.id_learning_rate} has no effect with --strategy plm, which has no ID "
                "tower; leave it out"
            )
        self.check_id_tower(new=self.model_name_or_path is None)
        if self.strategy != "joint":
            self.check_effect(f"with --strategy {self.strategy}, of which one tower predicts", fusion="scalar")
        if self.strategy in ("id", "frozen"):
            self.check_effect(
                f"with --strategy {self.strategy}, in which the PLM has no click layer", classifier_dropout=0.0
            )
        if self.strategy == "id" and self.prompt_fields is not None:
            raise ValueError("--prompt_fields has no effect with --strategy id, which reads no prompts; leave it out")
        for name, without in {
            "use_lora": False,
            "freeze_plm_layers": 0,
            "gradient_checkpointing": False,
            "plm_dropout": None,
        }.items():
            if self.strategy == "frozen" and getattr(self, name) != without:
                raise ValueError(
                    f"--{name} has no place beside --strategy frozen, which trains nothing of the PLM; leave it out"
                )
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"--early_stopping_patience must be at least 1; got {self.early_stopping_patience}")


def criterion(metrics: dict[str, float]) -> float:
    """What the best checkpoint is chosen by, on validation: AUC - LogLoss (AUC alone keeps badly calibrated ones)."""
    return metrics["eval_auc"] - metrics["eval_logloss"]


@recipe
def run(args: FinetuneArguments) -> dict:
    """Fine-tunes, keeps the checkpoint that is best on validation, and scores the test split once with it.

    Returns the results that are also in `all_results.json`.

    Raises:
        ValueError: an argument, the dataset folder or the checkpoint does not fit; the message names it.
    """
    # 1. Accelerate, logging, seed
    accelerator = start(args)

    # 2. Rows
    train_rows = SplitRows(args.dataset_dir, "train", args.max_train_samples, args.seed)
    eval_rows = SplitRows(args.dataset_dir, "validation", args.max_eval_samples, args.seed)
    test_rows = SplitRows(args.dataset_dir, "test", args.max_eval_samples, args.seed)
    schema = train_rows.schema
    if args.model_name_or_path is not None:
        check_model("model_name_or_path", args.model_name_or_path)
    record = training_record(args)

    # 3. Processor and model: from a FLIP checkpoint, around a PLM, or ID-only from scratch
    source = args.model_name_or_path
    if source is not None and is_flip_checkpoint(source):
        settings = {name: getattr(args, name) for name in ("strategy", "fusion", "classifier_dropout")}
        model, processor = load_checkpoint(args, schema, **settings)
    elif source is not None and args.strategy == "id":
        raise ValueError(
            f"--strategy id uses no PLM, and {source} is no FLIP checkpoint; leave out --model_name_or_path"
        )
    else:
        args.check_id_tower(new=True)
        processor = new_processor(train_rows, schema, args, source)
        model = new_click_model(processor, args)
    check_clicks(processor, {"train": train_rows, "validation": eval_rows, "test": test_rows})
    model = ready_to_train(model, processor, args)
    prompts = args.strategy != "id"
    train_set = training_split(accelerator, processor, train_rows, args, prompts)
    # the test split too: a value in it that cannot be read is found now, and not after training
    eval_set, test_set = (encode_split(accelerator, processor, rows, prompts) for rows in (eval_rows, test_rows))
    logger.info(f"{args.strategy}: {train_set.num_rows:,} training rows")

    # 4. Train; validation decides what is kept
    collator = FlipCollator(processor, args.seed, args.unk_rate)
    loader = make_loader(
        train_set,
        collator,
        args.per_device_train_batch_size,
        accelerator,
        args.seed,
        workers=args.dataloader_num_workers,
    )

    def evaluate() -> dict[str, float]:
        scores = score(accelerator, model, eval_set, args.per_device_eval_batch_size)
        metrics = click_metrics(scores["logits"], eval_set.labels, eval_set.users)
        return {f"eval_{name}": value for name, value in metrics.items()}

    history = train(
        accelerator,
        model,
        loader,
        args,
        evaluate,
        criterion,
        patience=args.early_stopping_patience,
        on_best=lambda: save(accelerator, model, processor, args, record),
    )

    # 5. The test split, once, with the best checkpoint
    best = best_model(accelerator, model, processor, args, record)
    scores = score(accelerator, best, test_set, args.per_device_eval_batch_size)
    test = score_metrics(scores, test_set.labels, test_set.users, "test")

    # 6. Results
    evaluations = [entry for entry in history if "eval_auc" in entry]
    chosen = max(evaluations, key=criterion)
    results = {name: value for name, value in chosen.items() if name.startswith("eval_")}
    results |= test | {
        "best_step": chosen["step"],
        "best_epoch": chosen["epoch"],
        "train_rows": train_set.num_rows,
        "train_steps": history[-1]["step"],
        "train_seconds": history[-1]["seconds"],
        "num_processes": accelerator.num_processes,
    }
    report(accelerator, results, args.output_dir)
    if accelerator.is_main_process:
        plot_history(history, args.output_dir)
        plot_reliability(scores["logits"], test_set.labels, args.output_dir)
        write_card(args.output_dir, record, plain(best), processor, schema, args.dataset_dir, train_rows, results)
    accelerator.end_training()

    # 7. The Hub, where asked for
    if accelerator.is_main_process and args.push_to_hub:
        push(args)
    return results


def parse(argv: list[str] | None = None) -> FinetuneArguments:
    """The arguments from the command line; exits where one is wrong."""
    paper = {
        f"{case}, --preset paper": {name: value for name, value in PAPER[case].items() if value != DEFAULTS[case][name]}
        for case in PAPER
    }
    epilog = f"Defaults by case:\n{listed(DEFAULTS | paper)}\n{launch_help()}"
    return parse_arguments(FinetuneArguments, argv, "flip-ctr finetune", __doc__.split("\n")[0], epilog)


def main(argv: list[str] | None = None) -> None:
    run(parse(argv))


if __name__ == "__main__":
    main()
