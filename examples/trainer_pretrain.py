"""Pretrain FLIP with transformers' Trainer: python trainer_pretrain.py DATASET_DIR OUTPUT_DIR PLM"""

from argparse import ArgumentParser

import torch
from datasets import load_dataset
from transformers import AutoTokenizer, TrainingArguments, set_seed

from flip_ctr import (
    DatasetSchema,
    FlipConfig,
    FlipForPretraining,
    FlipPretrainingCollator,
    FlipProcessor,
    FlipTrainer,
    parameter_groups,
)

parser = ArgumentParser(description=__doc__)
parser.add_argument("dataset_dir", help="a folder that `flip-ctr prepare` wrote")
parser.add_argument("output_dir")
parser.add_argument("plm", help="a PLM on the Hub or on disk")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--batch_size", type=int, default=128)
args = parser.parse_args()
set_seed(42)

data = load_dataset(args.dataset_dir)
tokenizer = AutoTokenizer.from_pretrained(args.plm)
processor = FlipProcessor.from_dataset(data["train"], DatasetSchema.load(args.dataset_dir), tokenizer)
data = data.map(processor, batched=True, remove_columns=data["train"].column_names)
model = FlipForPretraining.from_text_pretrained(args.plm, FlipConfig(fields=processor.fields))
trainer = FlipTrainer(
    model,
    TrainingArguments(
        args.output_dir,
        num_train_epochs=args.epochs,
        per_device_train_batch_size=args.batch_size,
        per_device_eval_batch_size=args.batch_size,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,  # a share of all steps
        logging_steps=50,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        report_to="none",
    ),
    train_dataset=data["train"],
    eval_dataset=data["validation"],
    data_collator=FlipPretrainingCollator(processor, unk_rate=0.01),  # masks anew each time
    processing_class=processor,
    optimizers=(torch.optim.Adam(parameter_groups(model, learning_rate=1e-3, embedding_l2=0.0)), None),
)
trainer.train()
trainer.save_model()  # the best
