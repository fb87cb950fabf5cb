"""Train a click model in a plain PyTorch loop: python pytorch_loop.py DATASET_DIR OUTPUT_DIR [--plm PLM]"""

import math
from argparse import ArgumentParser

import torch
from datasets import load_dataset
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, get_scheduler, set_seed

from flip_ctr import (
    DatasetSchema,
    FlipCollator,
    FlipConfig,
    FlipForCTR,
    FlipProcessor,
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
collator = FlipCollator(processor, unk_rate=0.01)  # trains the id of unknown users and items
train_loader = DataLoader(data["train"], args.batch_size, shuffle=True, collate_fn=collator)
eval_loader = DataLoader(data["validation"], args.batch_size, collate_fn=FlipCollator(processor))

# model, optimizer, schedule
config = FlipConfig(fields=processor.fields, strategy="joint" if args.plm else "id")
model = FlipForCTR.from_text_pretrained(args.plm, config) if args.plm else FlipForCTR(config)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model.to(device)
optimizer = torch.optim.Adam(parameter_groups(model))
steps = args.epochs * len(train_loader)
scheduler = get_scheduler("linear", optimizer, num_warmup_steps=math.ceil(0.05 * steps), num_training_steps=steps)

best = math.inf
for epoch in range(args.epochs):
    model.train()
    for batch in train_loader:
        loss = model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    model.eval()
    scores = []
    with torch.no_grad():
        for batch in eval_loader:
            logits = model(**{name: tensor.to(device) for name, tensor in batch.items()}).logits
            scores.append((logits.cpu(), batch["labels"]))
    metrics = compute_metrics(map(torch.cat, zip(*scores)))
    print(f"epoch {epoch + 1}: AUC {metrics['auc']:.4f}, LogLoss {metrics['logloss']:.4f}")
    if metrics["logloss"] < best:  # keep the best
        best = metrics["logloss"]
        model.save_pretrained(args.output_dir)
        processor.save_pretrained(args.output_dir)
