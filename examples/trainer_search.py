"""Search hyperparameters of a click model on ids with Optuna: python trainer_search.py DATASET_DIR OUTPUT_DIR"""

from argparse import ArgumentParser

import torch
from datasets import load_dataset
from transformers import TrainingArguments

from flip_ctr import (
    DatasetSchema,
    FlipCollator,
    FlipConfig,
    FlipForCTR,
    FlipProcessor,
    FlipTrainer,
    compute_metrics,
    parameter_groups,
)

parser = ArgumentParser(description=__doc__)
parser.add_argument("dataset_dir", help="a folder that `flip-ctr prepare` wrote")
parser.add_argument("output_dir")
parser.add_argument("--trials", type=int, default=20)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--batch_size", type=int, default=1024)
args = parser.parse_args()

data = load_dataset(args.dataset_dir)
processor = FlipProcessor.from_dataset(data["train"], DatasetSchema.load(args.dataset_dir))
data = data.map(processor, batched=True, remove_columns=data["train"].column_names)


def model_init(trial=None):  # a Trainer makes a first model without a trial
    dropout = 0.0 if trial is None else trial.suggest_float("id_dropout", 0.0, 0.4)
    return FlipForCTR(FlipConfig(fields=processor.fields, strategy="id", id_dropout=dropout))


def hp_space(trial):  # what TrainingArguments has
    return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2, log=True)}


class SearchTrainer(FlipTrainer):
    def create_optimizer(self, model=None):
        self.optimizer = torch.optim.Adam(parameter_groups(self.model, self.args.learning_rate))
        return self.optimizer


trainer = SearchTrainer(
    args=TrainingArguments(
        args.output_dir,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        warmup_steps=0.05,  # a share of all steps
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
    ),
    model_init=model_init,
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    data_collator=FlipCollator(processor, unk_rate=0.01),
    processing_class=processor,
    compute_metrics=compute_metrics,
)
best = trainer.hyperparameter_search(
    hp_space, lambda metrics: metrics["eval_logloss"], n_trials=args.trials, direction="minimize", backend="optuna"
)
print(f"LogLoss {best.objective:.4f} with {best.hyperparameters}")
