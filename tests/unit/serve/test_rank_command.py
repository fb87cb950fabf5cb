"""`flip-ctr rank`: what a ranker says, for the users of files."""

import json

import pandas as pd
import past
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from serving import USER, made, parted, saved

from flip_ctr import FlipRanker
from flip_ctr.serve.rank import run
from flip_ctr.train.serve_arguments import RankArguments


@pytest.fixture(scope="module")
def case(tmp_path_factory, tokenizer, text_config):
    """A checkpoint that reads histories, a dataset folder, and users with what they had before."""
    folder, rows = tmp_path_factory.mktemp("rank"), past.past_rows(96)
    model, processor = made(rows, past.FIELDS, tokenizer, text_config, prompts="entity")
    path = saved(folder / "m", model, processor)
    data = past.write_past_dataset(folder / "d")
    _, items = parted(rows)
    users = [{name: row[name] for name in (*USER, "history")} for row in rows[-7:]]
    return folder, path, data, FlipRanker(model, processor, items), users


def ranked(case, users, name="best.parquet", **options) -> list[dict]:
    folder, path, data, _, _ = case
    source = folder / "users.parquet"
    if isinstance(users, list):
        pq.write_table(pa.Table.from_pylist(users), source)
    output = folder / name
    run(RankArguments(**{"model_name_or_path": path, "items": str(data), "users": [str(source)], "output": str(output),
                         "overwrite_output": True, **options}))  # fmt: skip
    if name.endswith("parquet"):
        return pq.read_table(output).to_pylist()
    return (pd.read_csv(output) if name.endswith("csv") else pd.read_json(output, lines=True)).to_dict("records")


def expected(ranker, users, **options) -> list[dict]:
    found = []
    for user, best in zip(users, ranker.rank(users, **options)):
        for rank, row in enumerate(best, 1):
            found.append({"user_id": user["user_id"], "rank": rank, "movie_id": row.pop("movie_id"), **close(row)})
    return found


def close(row: dict) -> dict:
    return {name: pytest.approx(value, abs=1e-6) for name, value in row.items()}


@pytest.mark.parametrize("name", ["best.parquet", "best.csv", "best.jsonl"])
def test_a_row_for_each_user_and_item(case, name, capsys):
    *_, ranker, users = case
    rows = ranked(case, users, name, top_k=4)
    assert rows == expected(ranker, users, top_k=4) and len(rows) == 28
    assert "28 items for 7 users written to" in capsys.readouterr().out


def test_few_users_at_a_time_are_ranked_alike(case, monkeypatch):
    monkeypatch.setattr("flip_ctr.serve.rank.SCORES_AT_ONCE", 20)
    *_, ranker, users = case
    assert ranked(case, users) == expected(ranker, users, top_k=10)
    lists = [[], [], [101], *[[] for _ in users[3:]]]  # the first part has no rows
    asked = [user | {"retrieved": some} for user, some in zip(users, lists)]
    assert ranked(case, asked, candidates="retrieved") == expected(ranker, users, candidates=lists)


def test_users_without_a_key(case, tokenizer, text_config, tmp_path):
    """Their fields say who they are; and rows without a user leave nothing out for others without one."""
    rows = tiny.toy_rows()
    model, processor = made(rows, tiny.FIELDS[1:], tokenizer, text_config, strategy="id")
    users = [{name: row[name] for name in ("age", "zip_code")} for row in rows[:2]]
    items = tmp_path / "items.csv"
    pd.DataFrame(rows[:9])[["movie_id", "title", "genre"]].to_csv(items, index=False)
    path = saved(tmp_path / "m", model, processor)
    best = ranked(case, users, "best.csv", model_name_or_path=path, items=str(items), top_k=1)
    assert [(row["age"], row["rank"]) for row in best] == [(user["age"], 1) for user in users]
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, strategy="id")
    pd.DataFrame([{"user_id": None, "movie_id": 100}]).to_csv(tmp_path / "seen.csv", index=False)
    users = [user | {"user_id": None} for user in users]
    path = saved(tmp_path / "n", model, processor)
    options = {"model_name_or_path": path, "items": str(items), "exclude": str(tmp_path / "seen.csv")}
    assert len(ranked(case, users, **options)) == 18


def test_candidates_and_what_is_left_out(case):
    folder, *_, ranker, users = case
    lists = [[100 + (row + n) % 9 for n in range(row % 4)] for row in range(len(users))]
    asked = [user | {"retrieved": some} for user, some in zip(users, lists)]
    assert ranked(case, asked, candidates="retrieved") == expected(ranker, users, candidates=lists)
    asked[1]["retrieved"] = lists[1] = []
    asked[2]["retrieved"], lists[2] = None, []  # nothing was found for them
    assert ranked(case, asked, candidates="retrieved") == expected(ranker, users, candidates=lists)
    for one, some in zip(asked, lists):
        one["retrieved"] = ",".join(map(str, some))  # as CSV files have lists
    assert ranked(case, asked, candidates="retrieved") == expected(ranker, users, candidates=lists)
    seen = [{"user_id": users[0]["user_id"], "movie_id": 100}, {"user_id": users[0]["user_id"], "movie_id": 105}]
    seen += [{"user_id": users[1]["user_id"], "movie_id": 777}, {"user_id": 12345, "movie_id": 101}]
    pd.DataFrame(seen).to_csv(folder / "seen.csv", index=False)
    left_out = [[100, 105], *[[] for _ in users[1:]]]
    rows = ranked(case, users, exclude=str(folder / "seen.csv"))
    assert rows == expected(ranker, users, exclude=left_out) and len(rows) == 7 * 9 - 2


def test_histories_of_events(case, caplog):
    folder, *_, ranker, users = case
    events = [
        {"user_id": user["user_id"], **{name: entry[name] for name in ("movie_id", "clicked")}}
        for user in users
        for entry in user["history"]
    ]
    with open(folder / "events.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(one) + "\n" for one in events)
    plain = [{name: user[name] for name in USER} for user in users]
    rows = ranked(case, plain, events=str(folder / "events.jsonl"))
    assert rows == expected(ranker, users)
    assert "reads histories" not in caplog.text
    assert ranked(case, plain) == expected(ranker, plain) != rows  # as empty histories
    assert (
        "reads histories, and none is given: users are ranked as new ones. Give `history`, or a column" in caplog.text
    )


def test_rows_of_one_user_are_counted(case, capsys):
    *_, ranker, users = case
    ranked(case, [*users, users[0]], top_k=2)
    several = len({user["user_id"] for user in users})
    assert f"16 items for 8 rows of {several} users written to" in capsys.readouterr().out


def test_items_may_be_the_side_table_that_prepare_joined(case, tokenizer, text_config, tmp_path):
    """Its key and its columns have names of their own there."""
    rows = tiny.toy_rows()
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, strategy="id")
    join = {
        "name": "films",
        "on": {"movie_id": "id"},
        "columns": {"title": "name", "genre": "genre"},
        "missing": "null",
    }
    processor.feature_extractor.reading = {"joins": [{"types": {"id": "int"}, "duplicates": "reject", **join}]}
    path = saved(tmp_path / "m", model, processor)
    users, items = parted(rows)
    pd.DataFrame(items).rename(columns={"movie_id": "id", "title": "name"}).to_csv(tmp_path / "films.csv", index=False)
    pd.DataFrame(items).to_csv(tmp_path / "items.csv", index=False)
    best = [
        ranked(case, users, "best.csv", model_name_or_path=path, items=str(tmp_path / name), top_k=3)
        for name in ("films.csv", "items.csv")
    ]
    assert best[0] == best[1] and len(best[0]) == 3 * len(users)


def test_a_saved_catalogue_is_ranked(case):
    folder, *_, ranker, users = case
    ranker.save(folder / "c", overwrite=True)
    assert ranked(case, users, items=str(folder / "c")) == expected(ranker, users)


def test_what_is_wrong_is_named(case, tmp_path):
    folder, *_, users = case
    for wrong, options, message in (
        ([{"user_id": 1}], {}, r"users.parquet: column\(s\) 'age', 'zip_code' missing"),
        ([users[0] | {"age": "old"}], {}, "users.parquet, row .*age"),
        (users, {"candidates": "absent"}, r"users.parquet: column\(s\) 'absent' missing"),
        ([users[0] | {"some": [777]}], {"candidates": "some"}, "no item of the catalogue has movie_id '777'"),
        ([], {}, "users.parquet has no users"),
        (users, {"items": str(tmp_path / "absent.parquet")}, "absent.parquet"),
        (users, {"overwrite_output": False}, "best.parquet is there already"),
        (users, {"output": str(tmp_path)}, "is a folder; name a file"),
        (users, {"escape_formulas": True}, "--escape_formulas is for a .csv output"),
    ):
        pq.write_table(pa.Table.from_pylist(wrong or users, None).slice(0, len(wrong)), folder / "users.parquet")
        with pytest.raises((ValueError, OSError), match=message):
            ranked(case, None, **options)
