"""Histories in the recipes: every way from the dataset to scores."""

import json

import numpy as np
import past
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from flip_ctr import FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.streaming import StreamedDataset
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train import evaluate_ctr, explain, fuse, predict
from flip_ctr.train.arguments import EvaluateArguments, ExplainArguments, FuseArguments, PredictArguments

COUNT = 96


@pytest.fixture(scope="module")
def past_dir(tmp_path_factory):
    return past.write_past_dataset(tmp_path_factory.mktemp("past") / "d", COUNT)


@pytest.fixture(scope="module")
def click_models(tmp_path_factory, past_dir, plm):
    """Strategy -> folder and results; the joint model goes on from a pretraining."""
    folder = tmp_path_factory.mktemp("clicks")
    by_entity = {"prompts": "entity", "plm_every": 2}
    tiny.pretrain(past_dir, plm, folder / "p", **by_entity)
    options = {"joint": {"fusion": "gate", "plm_every": 2}, "plm": by_entity, "id": {"short_history_rate": 0.5}}
    starts = {"joint": folder / "p", "plm": plm, "id": None}
    return {
        strategy: (
            folder / strategy,
            tiny.finetune(past_dir, starts[strategy], folder / strategy, strategy=strategy, **more),
        )
        for strategy, more in options.items()
    }


@pytest.mark.parametrize("strategy", ["joint", "plm", "id"])
def test_every_way_to_scores_gives_the_same(tmp_path, past_dir, click_models, strategy):
    folder, results = click_models[strategy]
    again = evaluate_ctr.run(
        EvaluateArguments(dataset_dir=str(past_dir), model_name_or_path=str(folder), max_eval_samples=64)
    )
    assert again["test_auc"] == pytest.approx(results["test_auc"], abs=1e-6)

    rows, whole = past.past_rows(COUNT), past.past_rows(COUNT, whole=True)
    items = past.items_of(rows)
    (tmp_path / "whole.jsonl").write_text("".join(json.dumps(row) + "\n" for row in whole))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")

    def predicted(name: str, **options) -> list[float]:
        return tiny.predicted(folder, tmp_path / name, **options).column("click_probability").to_pylist()

    by_items = predicted("rows.parquet", items=str(past_dir / "items.parquet"))
    assert predicted("whole.jsonl") == pytest.approx(by_items, abs=1e-6)
    scorer = pipeline("click-through-rate", model=str(folder))
    answers = [
        [one["click_probability"] for one in scorer(given, 7, items=of)] for given, of in ((rows, items), (whole, None))
    ]
    streamed = [one["click_probability"] for one in scorer(iter(rows), 7, items=items)]
    for scores in (*answers, streamed):
        assert scores == pytest.approx(by_items, abs=1e-5)
    assert scorer(whole[-1])["click_probability"] == pytest.approx(by_items[-1], abs=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(**FlipProcessor.from_pretrained(folder)(rows, items=items)).logits
    assert logits.sigmoid()[:, 0].tolist() == pytest.approx(by_items, abs=1e-5)


def test_events_beside_the_rows_make_their_histories(tmp_path, past_dir, click_models):
    """A user whom the model has never seen is scored by what came before."""
    folder, _ = click_models["joint"]
    events = [{"user_id": 999, "movie_id": 100 + n, "clicked": int(n > 2), "at": n} for n in range(6)]
    row = {name: value for name, value in past.past_rows(1)[0].items() if name not in ("history", "label")}
    rows = [row | {"user_id": user, "at": at} for user in (999, 998) for at in (0, 3, 6)]
    for name, table in (("events", events), ("rows", rows)):
        pq.write_table(pa.Table.from_pylist(table), tmp_path / f"{name}.parquet")
    of_rows = {"items": str(past_dir / "items.parquet"), "events": str(tmp_path / "events.parquet")}
    with pytest.raises(ValueError, match=r"'history' missing.* \(--events FILE makes the histories\)"):
        tiny.predicted(folder, tmp_path / "rows.parquet")
    scored = tiny.predicted(folder, tmp_path / "rows.parquet", time_column="at", **of_rows)
    assert "history" not in scored.column_names  # what was made for scoring alone
    none, early, late, *others = scored.column("click_probability").to_pylist()
    delayed = tiny.predicted(folder, tmp_path / "rows.parquet", time_column="at", label_delay=3, **of_rows)
    # of the events at 0 to 5 none is known at 3, and those at 0 to 2 are at 6: what stands at 3 without a delay
    assert delayed.column("click_probability").to_pylist()[:3] == pytest.approx([none, none, early], abs=1e-6)
    assert len({round(one, 7) for one in (none, early, late)}) == 3 and others == pytest.approx([none] * 3, abs=1e-6)


def test_entries_of_histories_are_explained(tmp_path, past_dir, click_models):
    folder, _ = click_models["joint"]
    pq.write_table(pa.Table.from_pylist(past.past_rows(COUNT)[-2:]), tmp_path / "rows.parquet")
    output = tmp_path / "parts.parquet"
    of_items = {"items": str(past_dir / "items.parquet")}
    changes = explain.run(ExplainArguments(str(folder), [str(tmp_path / "rows.parquet")], str(output), **of_items))
    assert list(changes)[0] in [field.name for field in past.FIELDS] and "history" in changes
    lines = pq.read_table(output).to_pylist()
    entries = [line for line in lines if line["kind"] == "entry"]
    assert [line["part"] for line in entries] == 2 * ["history[-3]", "history[-2]", "history[-1]"]
    assert all(line["value"].endswith("clicked") and line["id_change"] and line["text_change"] for line in entries)


def test_towers_that_were_trained_apart_are_fused(tmp_path, past_dir, click_models):
    results = fuse.run(
        FuseArguments(
            dataset_dir=str(past_dir),
            id_model=str(click_models["id"][0]),
            plm_model=str(click_models["plm"][0]),
            output_dir=str(tmp_path / "fused"),
            fusion="scalar",
        )
    )
    assert 0 < results["test_auc"] <= 1
    rows, items = past.past_rows(COUNT), past.items_of(past.past_rows(COUNT))
    fused = AutoModelForSequenceClassification.from_pretrained(tmp_path / "fused").eval()
    batch = FlipProcessor.from_pretrained(tmp_path / "fused")(rows, items=items)
    alone = AutoModelForSequenceClassification.from_pretrained(click_models["id"][0]).eval()
    with torch.no_grad():
        output = fused(**batch)
        torch.testing.assert_close(output.id_logits, alone(**batch).logits)


def test_a_card_says_that_the_model_reads_histories(click_models):
    folder, _ = click_models["joint"]
    card = (folder / "README.md").read_text()
    assert "It reads what a user had before, which comes with each row as `history`" in card
    assert "of `movie_id`, the last 3" in card
    example = card[card.index("row = {") : card.index("}]") + 2]
    assert example.count("clicked") == 1  # the row's own item, and no user's past


def test_streamed_rows_are_the_encoded_ones(past_dir, click_models):
    processor, rows = FlipProcessor.from_pretrained(click_models["joint"][0]), SplitRows(past_dir, "train")
    encoded, seen = EncodedDataset(processor, rows), 0
    for batch in StreamedDataset(processor, rows, 16):
        expected = encoded.__getitems__(batch["rows"].tolist())
        assert batch.keys() == expected.keys()
        seen += len(batch["rows"])
        for name in ("feature_ids", "history_ids", "history_outcomes"):
            np.testing.assert_array_equal(batch[name], expected[name])
        lengths = [one["attention_mask"].sum(1)[one["prompt_index"]] for one in (batch, expected)]
        np.testing.assert_array_equal(*lengths)
    assert seen == COUNT


def test_streamed_and_encoded_runs_train_an_adapter(tmp_path, past_dir, plm):
    options = {"strategy": "joint", "prompts": "entity", "plm_every": 2, "use_lora": True, "num_train_epochs": 1}
    for streaming in (False, True):
        results = tiny.finetune(past_dir, plm, tmp_path / str(streaming), streaming=streaming, **options)
        assert results["train_rows"] == COUNT and 0 < results["test_auc"] <= 1


def test_what_reads_no_history_asks_for_none(tmp_path, past_dir, plm, caplog):
    tiny.finetune(past_dir, plm, tmp_path / "m", strategy="plm", num_train_epochs=1)
    assert "strategy plm with prompts 'row' reads no histories" in caplog.text
    processor = FlipProcessor.from_pretrained(tmp_path / "m")
    assert processor.history_field is None and "history" not in (tmp_path / "m" / "config.json").read_text()
    assert "what a user had before" not in (tmp_path / "m" / "README.md").read_text()


def test_prompt_fields_leave_the_history(tmp_path, past_dir, plm):
    options = {"strategy": "joint", "prompts": "entity", "prompt_fields": ["age", "title"], "num_train_epochs": 1}
    tiny.finetune(past_dir, plm, tmp_path / "m", **options)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "m")
    assert model.flip.id_tower.history is not None and model.flip.text_interaction.history is not None


def test_checkpoint_and_dataset_with_one_history_between_them(tmp_path, past_dir, click_models, plm, caplog):
    rows = [{name: value for name, value in row.items() if name != "history"} for row in past.past_rows(COUNT)]
    bare = tiny.write_dataset(tmp_path / "d", rows, tiny.FIELDS)
    tiny.finetune(bare, None, tmp_path / "m", num_train_epochs=1)
    tiny.finetune(past_dir, tmp_path / "m", tmp_path / "n", strategy="id", num_train_epochs=1)
    assert "reads no histories: those of the dataset have no effect" in caplog.text
    with pytest.raises(ValueError, match="the dataset's fields .* are not those of the checkpoint .*history"):
        tiny.finetune(bare, click_models["id"][0], tmp_path / "o", strategy="id", num_train_epochs=1)
    given = {"id_model": str(click_models["id"][0]), "strategy": "joint", "prompts": "entity"}
    with pytest.raises(ValueError, match="are not those of this run: field 7, nothing, is history"):
        tiny.finetune(bare, plm, tmp_path / "p", **given)


def test_items_are_needed_beside_the_splits(tmp_path):
    folder = past.write_past_dataset(tmp_path / "d", 24)
    damaged = pa.Table.from_pylist(
        [row | {"movie_id": f"m{row['movie_id']}"} for row in past.items_of(past.past_rows())]
    )
    pq.write_table(damaged, folder / "items.parquet")
    with pytest.raises(ValueError, match="items.parquet: column 'movie_id', row 0: expected int"):
        tiny.finetune(folder, None, tmp_path / "m")
    (folder / "items.parquet").unlink()
    with pytest.raises(ValueError, match="has no items.parquet, which says what items the histories name"):
        tiny.finetune(folder, None, tmp_path / "m")
    late = {"events": "e.csv", "label_delay": 3}
    with pytest.raises(
        ValueError, match="--label_delay is between the times of events and rows; name their --time_column"
    ):
        predict.run(PredictArguments(model_name_or_path="m", input="r.csv", output="s.csv", **late))
    with pytest.raises(ValueError, match="--time_column says which of the --events count"):
        predict.run(PredictArguments(model_name_or_path="m", input="r.csv", output="s.csv", time_column="at"))
