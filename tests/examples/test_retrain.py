"""`examples/retrain.py`: a day's rows grow the model, and the better one on the day's test rows is kept."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml

from flip_ctr import FlipProcessor
from flip_ctr.data.datasets.synthetic import CatalogueSettings, generate_catalogue
from flip_ctr.train import finetune, prepare
from flip_ctr.train.arguments import FinetuneArguments, PrepareArguments

SCRIPT = Path(__file__).parents[2] / "examples" / "retrain.py"


def test_a_day_is_learnt(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    log = generate_catalogue(CatalogueSettings(users=40, items=60, rows=900)).to_pandas().drop(columns="theme")
    is_new = log.item_id % 4 == 0
    log[~is_new].to_parquet("day1.parquet")
    log[is_new].to_parquet("day2.parquet")
    prepare.main(PrepareArguments(infer_schema=["day1.parquet"], schema="schema.yaml"))
    prepare.main(PrepareArguments(dataset="table", schema="schema.yaml", output_dir="D1"))
    finetune.run(FinetuneArguments(dataset_dir="D1", strategy="id", num_train_epochs=1, output_dir="models/day1"))
    capsys.readouterr()
    argv = ["day2.parquet", "--schema", "schema.yaml", "--model", "models/day1", "--output_dir", "models/day2"]
    monkeypatch.setattr(sys, "argv", ["retrain.py", *argv])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    said, kept = re.search(r"LogLoss (\{.*\}); kept: (\S+)", capsys.readouterr().out).groups()
    losses = yaml.safe_load(said)
    assert kept == min(losses, key=losses.get) and set(losses) == {"models/day1", "models/day2"}
    one, two = (FlipProcessor.from_pretrained(f"models/{day}").feature_extractor for day in ("day1", "day2"))
    place = [field.name for field in one.id_fields].index("item_id")
    known, grown = (set(extractor.vocabularies[place]) for extractor in (one, two))
    assert known < grown and all(int(item) % 4 == 0 for item in grown - known)
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", ["retrain.py", "day2.parquet"])
        runpy.run_path(str(SCRIPT), run_name="__main__")
