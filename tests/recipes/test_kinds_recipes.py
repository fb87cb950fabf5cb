"""Rows with a field of each kind through the recipes: three towers, files in every format, the pipeline, the card."""

import copy
import json
import math
import re

import datasets
import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from odd_rows import ROWS
from transformers import AutoModel, AutoProcessor, pipeline

from flip_ctr import FlipField, FlipForCTR
from flip_ctr.data.prepare.split_statistics import split_statistics
from flip_ctr.data.readers.row_files import lists_as_text
from flip_ctr.train.fuse import FuseArguments, joint_model
from flip_ctr.train.models.warm_start import start_id_tower
from flip_ctr.train.predict import PredictArguments, run

TOWERS = {
    "dcnv2": {"id_tower_kwargs": '{"low_rank": 3, "num_experts": 2}'},
    "deepfm": {"id_tower_kwargs": "{}", "embedding_optimizer": "lazy_adam"},
    "autoint": {"id_tower_kwargs": '{"num_layers": 2, "attention_size": 4}'},
}


@pytest.fixture(scope="module")
def kinds_dir(tmp_path_factory):
    return tiny.write_dataset(tmp_path_factory.mktemp("kinds") / "data", tiny.kind_rows(120), tiny.KIND_FIELDS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, kinds_dir, plm):
    """Tower -> folder and results of pretraining, and of fine-tuning from it."""
    folder, made = tmp_path_factory.mktemp("kinds-trained"), {}
    for tower, options in TOWERS.items():
        chunks = {"grad_cache_chunk_size": 16} if tower == "deepfm" else {}
        aligned = tiny.pretrain(kinds_dir, plm, folder / f"{tower}-p", id_tower=tower, **options | chunks)
        options = {name: value for name, value in options.items() if name != "id_tower_kwargs"}
        clicks = tiny.finetune(
            kinds_dir,
            folder / f"{tower}-p",
            folder / tower,
            strategy="joint",
            fusion="gate",
            learning_rate=0.02,
            **options,
        )
        made[tower] = folder / f"{tower}-p", aligned, folder / tower, clicks
    return made


@pytest.fixture(scope="module")
def joint(trained):
    return trained["dcnv2"][2]


@pytest.mark.parametrize("tower", TOWERS)
def test_every_tower_trains(trained, tower):
    _, aligned, _, clicks = trained[tower]
    assert all(math.isfinite(value) for value in aligned.values()) and 0 < aligned["eval_mtm_accuracy"] <= 1
    assert 0 <= clicks["test_auc"] <= 1 and math.isfinite(clicks["test_logloss"])


@pytest.mark.parametrize("tower", TOWERS)
def test_checkpoints_load_through_the_auto_classes(trained, tower):
    pretraining, _, folder, _ = trained[tower]
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(ROWS)
    assert inputs["feature_ids"].shape == (len(ROWS), 13) == (len(ROWS), model.config.num_slots)
    with torch.no_grad():
        logits = model(**inputs).logits
    assert len(set(logits[:, 0].tolist())) == len(ROWS)
    views = AutoModel.from_pretrained(pretraining).eval().flip(**AutoProcessor.from_pretrained(pretraining)(ROWS))
    assert views.id_embeds.isfinite().all()


# --- the same rows, whatever they come in


def as_text(row: dict) -> dict:
    separators = {field.name: field.separator for field in tiny.KIND_FIELDS}
    return {k: separators[k].join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()}


def scores(model, path) -> list[float]:
    return tiny.predicted(model, path)["click_probability"].to_pylist()


@pytest.fixture(scope="module")
def expected(joint, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    values = scores(joint, path)
    assert len(set(values)) == len(ROWS)
    return values


WRITERS = {
    "lists.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "text.jsonl": lambda path: path.write_text("".join(json.dumps(as_text(row)) + "\n" for row in ROWS)),
    "ours.csv": lambda path: pacsv.write_csv(lists_as_text(pa.Table.from_pylist(ROWS), tiny.KIND_FIELDS), path),
    "pandas.csv": lambda path: pd.DataFrame([as_text(row) for row in ROWS]).to_csv(path, index=False),
    "pandas.parquet": lambda path: pd.DataFrame(ROWS).to_parquet(path),
    "text.parquet": lambda path: pd.DataFrame([as_text(row) for row in ROWS]).to_parquet(path),
    "pandas.jsonl": lambda path: pd.DataFrame(ROWS).convert_dtypes().to_json(path, orient="records", lines=True),
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_file_has_no_say(joint, expected, tmp_path, name):
    WRITERS[name](tmp_path / name)
    assert scores(joint, tmp_path / name) == expected


FORMS = {
    "list": lambda: ROWS,
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas with array cells": lambda: pa.Table.from_pylist(ROWS).to_pandas(),
    "arrow": lambda: pa.Table.from_pylist(ROWS),
    "columns": lambda: {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "streaming dataset": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "rows one by one": lambda: None,
    "rows of a frame": lambda: None,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_pipeline_takes_lists(joint, expected, form):
    scorer = pipeline("click-through-rate", model=str(joint))
    frame = pd.DataFrame(ROWS)
    singles = {"rows one by one": ROWS, "rows of a frame": [frame.iloc[row] for row in range(len(ROWS))]}.get(form)
    answers = [scorer(row) for row in singles] if singles else list(scorer(FORMS[form]()))
    assert [answer["click_probability"] for answer in answers] == pytest.approx(expected, abs=1e-6)


# --- files of lists


def test_a_csv_of_lists_reads_back(joint, tmp_path):
    pq.write_table(pa.Table.from_pylist([row | {"note": [1, None, 2]} for row in ROWS]), tmp_path / "rows.parquet")
    run(PredictArguments(str(joint), str(tmp_path / "rows.parquet"), str(tmp_path / "scores.csv")))
    written = pyarrow.csv.read_csv(tmp_path / "scores.csv").to_pylist()
    assert [row["genres"] for row in written] == ["|".join(row["genres"] or []) for row in ROWS]
    assert [str(row["history"]) for row in written] == [" ".join(map(str, row["history"] or [])) for row in ROWS]
    assert {row["note"] for row in written} == {"1,2"}  # no field: a comma


def test_a_value_with_the_separator_is_no_csv(joint, tmp_path, monkeypatch):
    rows = [ROWS[0], ROWS[1] | {"genres": ["Drama|Crime"]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    monkeypatch.setattr(
        "flip_ctr.train.loop.file_scoring.score_rows",
        lambda *args, **kwargs: pytest.fail("scored before it was refused"),
    )
    message = (
        "rows.parquet: column 'genres', row 1: 'Drama\\|Crime' contains the separator '\\|'.*write Parquet or "
        "JSON lines"
    )
    with pytest.raises(ValueError, match=message):
        run(PredictArguments(str(joint), str(tmp_path / "rows.parquet"), str(tmp_path / "scores.csv")))


def test_tables_without_lists_are_written_as_they_are():
    table = pa.table({"a": ["x,y"], "b": [1]})
    assert lists_as_text(table, []) is table


# --- schema, statistics, card


@pytest.mark.parametrize(
    ("name", "change"), [("genres", {"separator": ";"}), ("movie_id", {"kind": "hashed", "num_buckets": 9})]
)
def test_a_dataset_of_other_kinds_is_refused(trained, tmp_path, name, change):
    fields = [
        FlipField.from_dict(field.to_dict() | (change if field.name == name else {})) for field in tiny.KIND_FIELDS
    ]
    other = tiny.write_dataset(tmp_path / "data", tiny.kind_rows(60), fields)
    with pytest.raises(
        ValueError,
        match=rf"the dataset's fields .*{name} \(.*(hashed|multi-valued by ';').*are not those of the checkpoint",
    ):
        tiny.finetune(other, trained["dcnv2"][0], tmp_path / "m", strategy="joint")


def test_a_tower_without_numbers_starts_and_joins_models_with_them(kinds_dir, joint, tmp_path):
    """As checkpoints are whose config has no `bucket_numbers`: the new tower has the same scores."""
    processor = AutoProcessor.from_pretrained(joint)
    config = FlipForCTR.from_pretrained(joint).config
    config.strategy = "id"
    started = FlipForCTR(copy.deepcopy(config)).eval()
    for field in config.fields:
        field.pop("bucket_numbers", None)
    old = FlipForCTR(config).eval()
    assert started.flip.id_tower.numbers is not None and old.flip.id_tower.numbers is None
    old.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    ids = processor(ROWS)["feature_ids"]
    with torch.no_grad():
        expected = old(feature_ids=torch.as_tensor(ids)).logits
        start_id_tower(started, processor, str(tmp_path))
        assert torch.equal(started(feature_ids=torch.as_tensor(ids)).logits, expected)
        folders = {"id_model": str(tmp_path), "plm_model": str(joint)}
        fused, _ = joint_model(FuseArguments(dataset_dir=str(kinds_dir), output_dir=str(tmp_path / "o"), **folders))
        assert fused.flip.id_tower.numbers is None
        assert torch.equal(fused.flip.id_tower(torch.as_tensor(ids)), old.flip.id_tower(torch.as_tensor(ids)))


def test_statistics_of_lists():
    fields = [FlipField("g", kind="multi-valued"), FlipField("f")]
    train = pa.concat_tables(
        [
            pa.table({"g": [["a", "b"], None], "f": ["x", None], "label": [0, 1]}),
            pa.table({"g": [["b", None], []], "f": ["y", "x"], "label": [0, 1]}).cast(
                pa.schema([("g", pa.list_(pa.string())), ("f", pa.string()), ("label", pa.int64())])
            ),
        ]
    )
    test = pa.table({"g": [["a", "c", "d"], ["b"], None, ["c"]], "f": ["z", "x", None, "x"], "label": [0, 1, 0, 1]})
    codes = [pa.array([code] * len(part)) for code, part in ((0, train), (2, test))]
    rows = pa.concat_tables([part.append_column("_split", code) for part, code in zip((train, test), codes)])
    found = split_statistics(ibis.memtable(rows), fields)
    assert found["train"]["fields"] == {"g": {"values": 2, "nulls": 2}, "f": {"values": 2, "nulls": 1}}
    assert found["test"]["fields"] == {
        "g": {"values": 4, "nulls": 1, "unseen_share": 0.5},
        "f": {"values": 2, "nulls": 1, "unseen_share": 0.25},
    }


def test_the_card_says_what_the_fields_are(joint, expected):
    text = ModelCard.load(joint / "README.md").text
    assert "| `user_id` | int | hashed | user | id | 16 buckets |" in text
    assert "| `genres` | string | multi-valued | item | id + text | 5, up to 3 a row |" in text
    assert "| `age` | int | numeric | user | id + text | 4 buckets |" in text
    assert "lists the values of these fields of users: `history`." in text
    assert "no value is stored, on the ID side they are hashed into buckets: `user_id`." in text
    assert (
        "only bounds of buckets over all training rows are stored: `age` (quantiles, numbers that occur in the rows)."
        in text
    )
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(block.replace("path/or/hub-id", str(joint)), scope)
    assert isinstance(scope["row"]["genres"], list) and isinstance(scope["row"]["history"], list)
    assert scope["row"]["user_id"] is None and scope["row"]["age"] is None  # of no user
    assert 0 < scope["probability"].item() < 1


def test_hashed_lists_of_users_are_scored_by_their_raw_values(kinds_dir, tmp_path):
    tiny.finetune(kinds_dir, None, tmp_path / "m", hash_user_values=True, learning_rate=0.05)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (ROWS[3], ROWS[3] | {"history": [1, 2, 3]})))
    known, unknown = scores(tmp_path / "m", path)
    assert abs(known - unknown) > 1e-5
    assert "holds hashes only: `history`" in (tmp_path / "m" / "README.md").read_text()
    saved = json.loads((tmp_path / "m" / "processor_config.json").read_text())["feature_extractor"]
    assert saved["vocabularies"][1] and all(len(value) == 32 for value in saved["vocabularies"][1])
