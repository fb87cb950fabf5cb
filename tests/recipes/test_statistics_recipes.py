"""Click rates of rows that are scored: made of events, they are those that `prepare` would have given the rows."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from raw_table import event_rows, run, without, write_csv, write_joined

from flip_ctr import FlipProcessor, FlipRanker
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.serve import rank
from flip_ctr.train import evaluate_ctr
from flip_ctr.train.arguments import EvaluateArguments
from flip_ctr.train.loop.event_columns import EventColumns, statistics_of
from flip_ctr.train.serve_arguments import RankArguments

DELAY = 5
STATISTICS = ["item_id", "user_id", "user_id+tags"]
OF_TIME = {"time_column": "at", "label_delay": DELAY}


def case(folder, **changes):
    """A dataset folder, a model of ids, the test rows, and the training rows as events."""
    run(folder, **changes)
    tiny.finetune(folder / "out", None, folder / "m", learning_rate=0.05)
    events, test = (read_split(folder / "out", name) for name in ("train", "test"))
    # in a split by time rows of training count by the same rule
    rows = pa.concat_tables([test, events]) if changes.get("split") == "time" else test
    tables = {"whole": rows, "rows": bare(rows), "test": bare(test)}
    tables["events"] = bare(events).append_column("clicked", events["label"])
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


def bare(rows: pa.Table) -> pa.Table:
    made = [name for name in rows.column_names if name.endswith(("_click_rate", "_rows")) or name == "history"]
    return rows.drop_columns(made)


@pytest.fixture(scope="module")
def by_time(tmp_path_factory):
    """Ties in time, lists and nulls, crossed keys, and histories beside them."""
    statistics = ["user_id", "tags", "user_id+tags", "zip+new"]
    options = {"split": "time", "label_delay": DELAY, "statistics": statistics, "history": 3}
    folder = tmp_path_factory.mktemp("time")
    times = [(7 * row["uid"] + 13 * int(row["item_id"][1:])) % 97 for row in event_rows()]
    write_csv(folder / "clicks.csv", [row | {"at": at} for row, at in zip(event_rows(), times)])
    return case(folder, **options)


@pytest.fixture(scope="module")
def at_random(tmp_path_factory):
    """Without times, with columns of side tables."""
    folder = tmp_path_factory.mktemp("random")
    return case(folder, **write_joined(folder), statistics=STATISTICS, time=...)


def scores(folder, name: str, **options) -> list[float]:
    return tiny.predicted(folder / "m", folder / name, **options).column("click_probability").to_pylist()


def test_rates_of_events_are_those_of_prepare(by_time):
    folder = by_time
    rows, events = (pq.read_table(folder / f"{name}.parquet") for name in ("whole", "events"))
    processor = FlipProcessor.from_pretrained(folder / "m")
    columns = EventColumns(str(folder / "events.parquet"), processor, None, "at", DELAY)
    made = columns.with_rates(bare(rows), columns.statistics)
    assert len(columns.statistics) == 4
    for name in (name for one in columns.statistics for name in one.columns):
        assert made[name].to_pylist() == rows[name].to_pylist() and len(set(rows[name].to_pylist())) > 3

    items = {"items": str(folder / "out" / "items.parquet")}
    expected = scores(folder, "whole.parquet", **items)
    of_events = {"events": str(folder / "events.parquet"), **items, **OF_TIME}
    assert scores(folder, "rows.parquet", **of_events) == expected
    others = {**of_events, "time_column": None, "label_delay": 0}
    assert scores(folder, "rows.parquet", **others) != expected
    # of the same rules: what is known only later does not count, and items say what events lack
    pq.write_table(events.drop_columns(["tags", "new"]), folder / "keys.parquet")
    with pytest.raises(
        ValueError, match=r"keys.parquet: column\(s\) 'new' missing; .* \(events have `clicked`, and the"
    ):
        scores(folder, "rows.parquet", **of_events | {"events": str(folder / "keys.parquet")})
    pq.write_table(events.drop_columns(["tags"]), folder / "keys.parquet")
    assert scores(folder, "rows.parquet", **of_events | {"events": str(folder / "keys.parquet")}) == expected
    found = evaluate_ctr.run(
        EvaluateArguments(str(folder / "m"), input=[str(folder / "test.parquet")], label="label", **of_events)
    )
    by_split = evaluate_ctr.run(EvaluateArguments(str(folder / "m"), str(folder / "out")))
    assert found["eval_auc"] == by_split["test_auc"]


def test_all_events_count_without_times(at_random):
    folder = at_random
    expected = scores(folder, "whole.parquet")
    assert scores(folder, "rows.parquet", events=str(folder / "events.parquet")) == expected
    # side tables give raw rows and events what they lack
    test = {(row["user_id"], row["item_id"]) for row in pq.read_table(folder / "rows.parquet").to_pylist()}
    train = {
        (row["user_id"], row["item_id"]): row["clicked"] for row in pq.read_table(folder / "events.parquet").to_pylist()
    }
    raw = without(event_rows(), "title", "tags", "price", "new")
    write_csv(folder / "rows.csv", [row for row in raw if (row["uid"], row["item_id"]) in test])
    pairs = [{"uid": user, "item_id": item, "clicked": click} for (user, item), click in train.items()]
    write_csv(folder / "events.csv", pairs)
    sides = ["items=items.jsonl", "makers=brands.parquet"]
    sides = [one.replace("=", f"={folder}/") for one in sides]
    assert sorted(scores(folder, "rows.csv", events=str(folder / "events.csv"), side=sides)) == sorted(expected)


def test_rank_makes_the_rates_of_users_and_of_items(at_random):
    """But not those of both together, which are a column of the users or not there."""
    folder = at_random
    rows = pq.read_table(folder / "whole.parquet").to_pylist()
    of_items = ["item_id", "title", "tags", "price", "brand_name"]
    both = [name for one in statistics_of(FlipProcessor.from_pretrained(folder / "m"))[2:] for name in one.columns]
    users = list(
        {row["user_id"]: {name: row[name] for name in ("user_id", "zip", "new", *both)} for row in rows}.values()
    )
    items = list({row["item_id"]: {name: row[name] for name in of_items} for row in rows}.values())
    made = {name: {} for name in ("item_id", "user_id")}
    for row in rows:
        for key, of_key in made.items():
            of_key[row[key]] = {f"{key}{end}": row[f"{key}{end}"] for end in ("_click_rate", "_rows")}
    whole = [[row | made[key][row[key]] for row in some] for key, some in (("user_id", users), ("item_id", items))]
    expected = FlipRanker.from_pretrained(str(folder / "m"), whole[1]).rank(whole[0], top_k=3)

    def ranked(users, items) -> list[dict]:
        for name, table in (("users", users), ("items", items)):
            pq.write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
        files = {name: str(folder / f"{name}.parquet") for name in ("items", "events")}
        files |= {"users": [str(folder / "users.parquet")], "output": str(folder / "best.parquet")}
        rank.run(RankArguments(str(folder / "m"), **files, top_k=3, overwrite_output=True))
        return pq.read_table(folder / "best.parquet").to_pylist()

    names = ["item_id", "click_probability"]
    expected = [[row[name] for name in names] for best in expected for row in best]
    assert [[row[name] for name in names] for row in ranked(users, items)] == expected
    assert [[row[name] for name in names] for row in ranked(whole[0], items)] == expected  # what is there is read
    with pytest.raises(ValueError, match="--events: the model reads no histories, and no click rates that are to be"):
        ranked(*whole)
    FlipRanker.from_pretrained(str(folder / "m"), items).save(folder / "saved")
    saved = {"items": str(folder / "saved"), "events": str(folder / "events.parquet"), "output": "o.csv"}
    with pytest.raises(ValueError, match="saved: its items have no 'item_id_click_rate', and --events adds none to"):
        rank.run(RankArguments(str(folder / "m"), users=[str(folder / "users.parquet")], **saved))
    with pytest.raises(ValueError, match="'user_id_tags_click_rate' counts rows by user_id and tags, which users and"):
        ranked(without(users, *both), items)


def test_what_is_wrong_is_named(at_random, tmp_path):
    folder = at_random
    events = str(folder / "events.parquet")
    with pytest.raises(ValueError, match=r"'user_id_tags_rows' missing; .* \(--events FILE makes the click rates\)"):
        scores(folder, "rows.parquet")
    with pytest.raises(
        ValueError, match="has a column 'item_id_click_rate' already, and --events is given, which makes"
    ):
        scores(folder, "whole.parquet", events=events)
    table = pq.read_table(events)
    wrong = table.set_column(table.column_names.index("clicked"), "clicked", pa.array([2] * len(table)))
    pq.write_table(wrong, tmp_path / "wrong.parquet")
    with pytest.raises(ValueError, match=r"wrong.parquet: column 'clicked', row 0: expected 0 or 1"):
        scores(folder, "rows.parquet", events=str(tmp_path / "wrong.parquet"))


def test_a_checkpoint_knows_the_click_rate_of_the_rows_that_it_was_trained_on_last(at_random, tmp_path):
    run(at_random, "later", **write_joined(at_random), statistics=STATISTICS, split_seed=7, time=...)
    tiny.finetune(at_random / "later", at_random / "m", tmp_path / "n", strategy="id", num_train_epochs=1)
    known = [
        FlipProcessor.from_pretrained(path).feature_extractor.reading for path in (at_random / "m", tmp_path / "n")
    ]
    schemas = [DatasetSchema.load(at_random / name).reading for name in ("out", "later")]
    assert known[0] == schemas[0] and known[1] == schemas[1]
    assert known[0]["statistics"]["clicks"] != known[1]["statistics"]["clicks"]
    # one that says nothing of them takes columns
    path = tmp_path / "n" / "processor_config.json"
    values = json.loads(path.read_text())
    del values["feature_extractor"]["reading"]["statistics"]
    path.write_text(json.dumps(values))
    tiny.changed_on_purpose(tmp_path / "n", "processor_config.json")
    files = str(at_random / "whole.parquet"), tmp_path / "scores.parquet"
    assert len(tiny.predicted(tmp_path / "n", *files)) > 40
    with pytest.raises(ValueError, match="the model reads no histories, and no click rates that"):
        tiny.predicted(tmp_path / "n", *files, events=str(at_random / "events.parquet"))
