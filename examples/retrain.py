"""A day's retraining: new users and items get ids, the model goes on, and is kept if the day's test rows say so.

python retrain.py day2.parquet --schema schema.yaml --model models/day1 --output_dir models/day2
"""

from argparse import ArgumentParser
from pathlib import Path

from flip_ctr.train import prepare
from flip_ctr.train.arguments import EvaluateArguments, FinetuneArguments, PrepareArguments
from flip_ctr.train.evaluate_ctr import run as evaluate
from flip_ctr.train.finetune import run as finetune
from flip_ctr.train.outputs.hub import push_checkpoint

parser = ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("day", nargs="+", help="files of the day; add a sample of earlier days, or the model forgets them")
parser.add_argument("--schema", required=True, help="the YAML file that the first day was prepared with")
parser.add_argument("--model", required=True, help="yesterday's checkpoint")
parser.add_argument("--strategy", default="id", help="id, plm or joint, as the checkpoint was fine-tuned")
parser.add_argument("--output_dir", required=True, help="for the day's checkpoint, and its dataset beside it")
parser.add_argument("--hub_model_id", help="publish there what is kept")
args = parser.parse_args()

# the day's rows, by the schema of the first day
dataset = str(Path(args.output_dir).with_name(f"{Path(args.output_dir).name}-data"))
prepare.main(PrepareArguments(dataset="table", schema=args.schema, data_files=args.day, output_dir=dataset))

# new values get ids; one epoch from the weights that are there
finetune(
    FinetuneArguments(
        dataset_dir=dataset,
        model_name_or_path=args.model,
        strategy=args.strategy,
        grow=True,
        num_train_epochs=1,
        output_dir=args.output_dir,
    )
)

# yesterday's model and today's, on the day's own test rows
loss = {
    model: evaluate(EvaluateArguments(model_name_or_path=model, dataset_dir=dataset))["test_logloss"]
    for model in (args.model, args.output_dir)
}
kept = min(loss, key=loss.get)
print(f"LogLoss {loss}; kept: {kept}")
if args.hub_model_id and kept == args.output_dir:
    push_checkpoint(kept, args.hub_model_id)
