"""Train a click model with transformers' Trainer: python trainer.py DATASET_DIR OUTPUT_DIR [--plm PLM]"""

from argparse import ArgumentParser

import torch
from datasets import load_dataset
from transformers import AutoTokenizer, TrainingArguments, set_seed

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
parser.add_argument("--plm", help="a PLM on the Hub or on disk; without one the model has ids alone")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch_size", type=int, default=1024)
args = parser.parse_args()
set_seed(42)

# rows -> model inputs
data = load_dataset(args.dataset_dir)
tokenizer = AutoTokenizer.from_pretrained(args.plm) if args.plm else None
processor = FlipProcessor.from_dataset(data["train"], DatasetSchema.load(args.dataset_dir), tokenizer)
data = data.map(processor, batched=True, remove_columns=data["train"].column_names)

config = FlipConfig(fields=processor.fields, strategy="joint" if args.plm else "id")
model = FlipForCTR.from_text_pretrained(args.plm, config) if args.plm else FlipForCTR(config)
trainer = FlipTrainer(
    model,
    TrainingArguments(
        args.output_dir,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        warmup_steps=0.05,  # a share of all steps
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="logloss",
        report_to="none",
    ),
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    data_collator=FlipCollator(processor, unk_rate=0.01),  # trains the id of unknown users and items
    processing_class=processor,
    compute_metrics=compute_metrics,
    optimizers=(torch.optim.Adam(parameter_groups(model)), None),
)
trainer.train()
trainer.save_model()  # the best
metrics = trainer.evaluate()
print(f"best: AUC {metrics['eval_auc']:.4f}, LogLoss {metrics['eval_logloss']:.4f}")
