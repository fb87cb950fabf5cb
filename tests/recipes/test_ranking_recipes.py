"""`evaluate --top_k` over the items of the dataset folder, against rows that are joined one by one."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from raw_table import SCHEMA, run, write_joined
from sklearn.metrics import ndcg_score

from flip_ctr import FlipForCTR, FlipProcessor
from flip_ctr.data.prepare.dataset_folder import read_split, shard_path
from flip_ctr.data.readers.dataset_schema import SPLITS, DatasetSchema
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train import evaluate_ctr
from flip_ctr.train.arguments import EvaluateArguments
from flip_ctr.train.loop.split_catalogue import read_split_catalogue


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Clicks with histories, statistics and an items table, and a model of them."""
    folder = tmp_path_factory.mktemp("rich")
    run(folder, **write_joined(folder), history=3, statistics=["item_id", "user_id"])
    tiny.finetune(folder / "out", None, folder / "m", learning_rate=0.05)
    return folder / "out", folder / "m"


def slow_lists(dataset_dir, model, key: str, split: str = "test"):
    """For each user of a split the scores and clicks of all unseen items, each joined with the user's first row."""
    schema = DatasetSchema.load(dataset_dir)
    of_key = next(field for field in schema.fields if field.name == key).entity
    of_items = [field.name for field in schema.fields if field.entity == of_key and not field.is_history]
    splits = {name: read_split(dataset_dir, name).to_pylist() for name in SPLITS}
    items = {row[key]: {name: row[name] for name in of_items} for name in SPLITS for row in splits[name]}
    seen = {(row["user_id"], row[key]) for name in SPLITS[: SPLITS.index(split)] for row in splits[name]}
    clicked = {(row["user_id"], row[key]) for row in splits[split] if row["label"]}
    model, processor = FlipForCTR.from_pretrained(model).eval(), FlipProcessor.from_pretrained(model)
    path = dataset_dir / "items.parquet"
    more = {"items": pq.read_table(path)} if path.exists() else {}
    for user, row in {row["user_id"]: row for row in reversed(splits[split])}.items():
        unseen = [name for name in items if (user, name) not in seen]
        with torch.no_grad():
            joined = pa.Table.from_pylist([row | items[name] for name in unseen])
            scores = model(**processor(joined, **more)).logits[:, 0].numpy()
        yield scores, np.array([(user, name) in clicked for name in unseen]), clicked & seen


@pytest.mark.parametrize("key", ["movie_id", "item_id"], ids=["plain", "histories and statistics"])
def test_all_unseen_items_are_ranked(request, dataset_dir, finetuned, key):
    dataset_dir, model = request.getfixturevalue("rich") if key == "item_id" else (dataset_dir, finetuned["id"][0])
    asked = EvaluateArguments(str(model), str(dataset_dir), top_k=3, candidates="catalogue")
    results = evaluate_ctr.run(asked)
    lists = list(slow_lists(dataset_dir, model, key))
    counted = [(scores, clicks) for scores, clicks, _ in lists if len(scores) > 3 and clicks.any()]
    assert results["test_catalogue_ranked_users"] == len(counted) > 5
    gains = [ndcg_score([clicks], [scores], k=3) for scores, clicks in counted]
    assert results["test_catalogue_ndcg@3"] == pytest.approx(np.mean(gains), abs=1e-6)
    hits = [clicks[np.argsort(-scores)[:3]].any() for scores, clicks in counted]
    assert results["test_catalogue_hit_rate@3"] == pytest.approx(np.mean(hits), abs=1e-6)
    assert results["test_catalogue_clicks_on_seen_items"] == len(lists[0][2])
    assert results["test_catalogue_rows_without_item"] == results["test_catalogue_rows_without_user"] == 0
    assert results["test_auc"] > 0 and "test_ndcg@3" not in results


def test_sampled_items_are_said_to_be_biased(caplog, dataset_dir, finetuned):
    asked = {"top_k": 2, "candidates": "sampled", "num_sampled": 3, "split": "validation"}
    model = str(finetuned["id"][0])
    first, second, other = (
        evaluate_ctr.run(EvaluateArguments(model, str(dataset_dir), **asked, seed=seed)) for seed in (1, 1, 2)
    )
    assert first == second and first["eval_sampled_ndcg@2"] != other["eval_sampled_ndcg@2"]
    assert first["eval_sampled_hit_rate@2_random"] == pytest.approx(2 / 4)
    assert "metrics of sampled items are biased" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidates": "catalogue"}, "--candidates catalogue has no effect without --top_k"),
        ({"top_k": 2, "item_key": "a"}, "--item_key a has no effect with --candidates split"),
        ({"top_k": 2, "num_sampled": 5}, "--num_sampled 5 has no effect without --candidates sampled"),
        ({"top_k": 9, "candidates": "sampled", "num_sampled": 5}, "--num_sampled must be at least --top_k 9; got 5"),
        (
            {"top_k": 9, "candidates": "catalogue", "input": ["r.csv"]},
            "--candidates catalogue takes the items of a dataset folder",
        ),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluateArguments("m", **options)


@pytest.mark.parametrize(
    ("changes", "fields", "message"),
    [
        ({"statistics": ["item_id+user_id"]}, SCHEMA["fields"], "'item_id_user_id_click_rate' counts rows by several"),
        (
            {},
            [one | {"key": False} for one in SCHEMA["fields"]],
            "--item_key must say which field is an item's key; keys in schema.json: none",
        ),
    ],
)
def test_datasets_without_a_catalogue(tmp_path, changes, fields, message):
    joined = write_joined(tmp_path)
    run(tmp_path, **joined | {"fields": [*fields, joined["fields"][-1]]}, **changes)
    tiny.finetune(tmp_path / "out", None, tmp_path / "m", num_train_epochs=1)
    with pytest.raises(ValueError, match=message):
        evaluate_ctr.run(EvaluateArguments(str(tmp_path / "m"), str(tmp_path / "out"), top_k=2, candidates="catalogue"))


def test_rows_of_nobody_and_of_nothing_are_counted(tmp_path):
    rows = tiny.toy_rows(24)
    rows[3]["user_id"] = rows[4]["movie_id"] = None
    folder = tiny.write_dataset(tmp_path / "d", rows, tiny.FIELDS)
    labels = np.array([row["label"] for row in rows])
    found = read_split_catalogue(SplitRows(folder, "test"), labels, "movie_id")
    assert found.lost == {"rows_without_user": 1, "rows_without_item": 1}
    known = [row for row in rows if row["user_id"] is not None]
    assert found.users["user_id"].to_pylist() == list(dict.fromkeys(row["user_id"] for row in known))
    assert (found.clicked != 0).sum() == len(
        {(row["user_id"], row["movie_id"]) for row in known if row["label"] and row["movie_id"] is not None}
    )
    pq.write_table(found.items.slice(1), folder / "items.parquet")
    with pytest.raises(ValueError, match=f"items.parquet lacks movie_id {found.items['movie_id'][0]}, which a row has"):
        read_split_catalogue(SplitRows(folder, "test"), labels, "movie_id")
    nobody = [row | {"user_id": None} for row in rows]
    table = pa.Table.from_pylist(nobody, pq.read_schema(shard_path(folder, "test")))
    pq.write_table(table, shard_path(folder, "test"))
    with pytest.raises(ValueError, match="column 'user_id' of split 'test' is null in every row"):
        read_split_catalogue(SplitRows(folder, "test"), labels, "movie_id")
