"""A ranker gives the scores of the rows that users and items make together, in the right order, whatever is kept."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import past
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from serving import USER, made, parted, saved, scored

from flip_ctr import FlipField, FlipRanker, explain

KINDS = {
    "id": {"strategy": "id"},
    "id with first order": {"strategy": "id", "id_tower": "deepfm"},
    "plm": {"strategy": "plm"},
    "joint, scalar": {"fusion": "scalar"},
    "joint, gate": {"fusion": "gate"},
    "frozen": {"strategy": "frozen"},
}


def close(ranked: list[dict]) -> dict:
    return {key: pytest.approx(value, abs=1e-6) for key, value in by_key([dict(row) for row in ranked]).items()}


def by_key(ranked: list[dict], key="movie_id") -> dict:
    assert [row["click_probability"] for row in ranked] == sorted(
        (r["click_probability"] for r in ranked), reverse=True
    )
    return {row.pop(key): row for row in ranked}


def same(ranked: list[list[dict]], expected: list[list[dict]], items, tolerance=1e-5) -> None:
    for rows, scores in zip(ranked, expected, strict=True):
        found = by_key(rows)
        assert sorted(found) == sorted(item["movie_id"] for item in items)
        for item, score in zip(items, scores):
            assert found[item["movie_id"]].keys() == score.keys()
            for name, value in score.items():
                assert found[item["movie_id"]][name] == pytest.approx(value, abs=tolerance)


@pytest.mark.parametrize("prompts", ["entity", "row"])
def test_log_odds_are_corrected_as_those_of_rows(tokenizer, text_config, prompts):
    """For non-clicks that training lacked, and by a calibration."""
    rows = tiny.toy_rows()
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, prompts=prompts, fusion="gate")
    users, items = parted(rows)
    before = scored(model, processor, users, items)
    line = {"slope": 0.5, "intercept": -1.0}
    heads = ("logits", "id_logits", "text_logits")
    model.config.calibration = {"kind": "platt"} | dict.fromkeys(heads, line)
    model.config.negative_sampling_rate = 0.1
    expected = scored(model, processor, users, items)
    assert all(
        score[name] < first[name]
        for one, two in zip(expected, before)
        for score, first in zip(one, two)
        for name in first
    )
    same(FlipRanker(model, processor, items).rank(users), expected, items)


@pytest.mark.parametrize("prompts", ["entity", "row"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_joined_rows(tokenizer, text_config, kind, prompts):
    rows = tiny.toy_rows()
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, prompts=prompts, **KINDS[kind])
    users, items = parted(rows)
    users.append({"user_id": 999, "age": None, "zip_code": "never seen"})
    ranker, expected = FlipRanker(model, processor, items), scored(model, processor, users, items)
    assert len(ranker) == len(items)
    same(ranker.rank(users), expected, items)
    same([ranker.rank(user) for user in users], expected, items)
    same(ranker.rank(pd.DataFrame(users)), expected, items)
    logits = ranker.score(users[:2])
    probabilities = [[score["click_probability"] for score in scores] for scores in expected[:2]]
    np.testing.assert_allclose(1 / (1 + np.exp(-logits["logits"])), probabilities, atol=1e-5)
    assert ("id_weight" in logits) == (model.fusion is not None)
    if "id_weight" in logits:
        weighted = logits["id_weight"] * logits["id_logits"] + (1 - logits["id_weight"]) * logits["text_logits"]
        np.testing.assert_allclose(logits["logits"], weighted, atol=1e-5)
        assert logits["id_weight"].shape == logits["logits"].shape


@pytest.mark.parametrize("kind", ["id", "joint, gate", "plm", "frozen"])
@pytest.mark.parametrize("prompts", ["entity", "row"])
def test_histories_are_read(tokenizer, text_config, kind, prompts, caplog):
    rows = past.past_rows()
    model, processor = made(rows, past.FIELDS, tokenizer, text_config, prompts=prompts, **KINDS[kind])
    users, items = parted(rows)
    histories = [row["history"] for row in rows[-len(users) :]]
    users = [{name: row[name] for name in USER} for row in rows[-len(users) :]]
    assert not all(histories) and any(len(one) > 3 for one in histories)
    ranker = FlipRanker(model, processor, items)
    expected = scored(
        model, processor, [user | {"history": one} for user, one in zip(users, histories)], items, items=items
    )
    same(ranker.rank(users, history=histories), expected, items)
    same([ranker.rank(user, history=one) for user, one in zip(users, histories)], expected, items)
    same(ranker.rank([user | {"history": one} for user, one in zip(users, histories)]), expected, items)
    clicked = [{"movie_id": 101, "clicked": 1}, {"movie_id": 103, "clicked": 1}]
    assert ranker.rank(users[0], history=[101, 103]) == ranker.rank(users[0], history=clicked)
    assert "users are ranked as new ones" not in caplog.text
    assert ranker.rank(users[0], history=[]) == ranker.rank(users[0])
    assert ranker.rank(users[1]) and caplog.text.count("users are ranked as new ones") == 1
    joined = [users[-1] | item | {"history": histories[-1]} for item in items[3:5]]
    answers = ranker.explain(users[-1], [item["movie_id"] for item in items[3:5]], history=histories[-1])
    for item, answer, other in zip(items[3:5], answers, explain(model, processor, joined, items=items), strict=True):
        assert answer["movie_id"] == item["movie_id"] and len(answer["parts"]) == len(other["parts"])
        for part, expected_part in zip(answer["parts"], other["parts"], strict=True):
            assert (part["part"], part["value"]) == (expected_part["part"], expected_part["value"])
            assert part["change"] == pytest.approx(expected_part["change"], abs=1e-5)
    with pytest.raises(ValueError, match="explain: one user is needed, .*; got 7 users"):
        ranker.explain(users, [101])


@pytest.fixture(scope="module")
def joint(tokenizer, text_config):
    rows = past.past_rows()
    return *made(rows, past.FIELDS, tokenizer, text_config, prompts="entity", fusion="gate"), *parted(rows)


def test_candidates_are_those_asked_for(joint):
    model, processor, users, items = joint
    ranker = FlipRanker(model, processor, items)
    whole = by_key(ranker.rank(users[0]))
    some = ranker.rank(users[0], candidates=[104, 101, 107])
    assert by_key(some) == {key: pytest.approx(whole[key], abs=1e-6) for key in (101, 104, 107)}
    best = ranker.rank(users[0], candidates=np.array([104, 101, 107]), top_k=2)
    assert [row["movie_id"] for row in best] == sorted(
        (104, 101, 107), key=lambda key: -whole[key]["click_probability"]
    )[:2]
    several = ranker.rank(users[:3], candidates=[[104], [], [101, 102, 103]])
    assert [len(one) for one in several] == [1, 0, 3]
    assert several[0][0]["movie_id"] == 104
    for user, found in zip(users, ranker.rank(users[:2], candidates=[104, 101])):
        assert by_key(found) == close(ranker.rank(user, [104, 101]))
    assert ranker.rank([], candidates=None) == []
    assert ranker.rank(users[0], []) == [] and ranker.rank(users[:2], []) == [[], []]


def test_many_rows_go_through_the_model_in_parts(joint, monkeypatch):
    model, processor, users, items = joint
    ranker = FlipRanker(model, processor, items)
    whole = ranker.rank(users)
    for at_once in (1, 4, 20):
        monkeypatch.setattr("flip_ctr.serve.ranker.ROWS_AT_ONCE", at_once)
        for one, other in zip(ranker.rank(users), whole):
            assert by_key(one) == close(other)


def test_equal_scores_stand_in_the_order_of_the_candidates(tokenizer, text_config):
    rows = tiny.toy_rows()
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, strategy="id")
    model.id_classifier.weight.data.zero_()
    users, items = parted(rows)
    ranked = FlipRanker(model, processor, items).rank(users[0], candidates=[105, 100, 103])
    assert [row["movie_id"] for row in ranked] == [105, 100, 103]


CONTEXT = [*tiny.FIELDS, FlipField("device", entity="context", sides=("id",)), FlipField("rank", "int", sides=("id",))]


@pytest.mark.parametrize("prompts", ["entity", "row"])
def test_context_and_fields_of_candidates(tokenizer, text_config, prompts):
    rows = [row | {"device": "phone" if n % 2 else "tv", "rank": n % 4} for n, row in enumerate(tiny.toy_rows())]
    model, processor = made(rows, CONTEXT, tokenizer, text_config, prompts=prompts)
    users, items = parted(rows)
    ranker = FlipRanker(model, processor, items)
    candidates = [{"movie_id": item["movie_id"], "rank": n % 4} for n, item in enumerate(items)]
    joined = [item | {"device": "tv", "rank": n % 4} for n, item in enumerate(items)]
    expected = scored(model, processor, users, joined)
    same(ranker.rank(users, candidates, context={"device": "tv"}), expected, items)
    same([ranker.rank(one, candidates, context={"device": "tv"}) for one in users], expected, items)
    same([ranker.rank(one, candidates, context=pd.Series({"device": "tv"})) for one in users], expected, items)
    same(ranker.rank(users, candidates, context=pd.DataFrame([{"device": "tv"}] * len(users))), expected, items)
    contexts = [{"device": "tv"}] * len(users)
    same(ranker.rank(users, [candidates] * len(users), context=contexts), expected, items)
    same(ranker.rank([one | {"device": "tv"} for one in users], pd.DataFrame(candidates)), expected, items)
    found = ranker.rank(users[:2], [candidates, []], context={"device": "tv"})  # nobody says a rank of no candidate
    same(found[:1], expected[:1], items)
    assert found[1] == ranker.rank(users[0], [], context={"device": "tv"}) == []


def test_items_come_and_go(joint):
    model, processor, users, items = joint
    whole = FlipRanker(model, processor, items)
    ranker = FlipRanker(model, processor, items[:5])
    assert 100 in ranker and "100" in ranker and 108 not in ranker and "x" not in ranker
    ranker.add_items(items[5:])
    histories = [[108]] * len(users)
    for one, other in zip(ranker.rank(users, history=histories), whole.rank(users, history=histories)):
        assert by_key(one) == close(other)
    changed = items[2] | {"title": "Film 7", "genre": "Comedy"}
    ranker.add_items([changed, {"movie_id": 500, "title": "Film 8", "genre": None}])
    assert len(ranker) == len(items) + 1
    again = FlipRanker(
        model, processor, [*items[:2], changed, *items[3:], {"movie_id": 500, "title": "Film 8", "genre": None}]
    )
    assert by_key(ranker.rank(users[0])) == close(again.rank(users[0]))
    ranker.remove_items([500, 101])
    assert len(ranker) == len(items) - 1 and 101 not in ranker
    assert 101 not in by_key(ranker.rank(users[0], history=[101]))  # a history may still name it
    with pytest.raises(ValueError, match="no item of the catalogue has movie_id '101'"):
        ranker.rank(users[0], [100, 101])
    ranker.add_items([items[1]])
    expected = close(again.rank(users[0]))
    del expected[500]
    assert by_key(ranker.rank(users[0])) == expected


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_saved_catalogue_is_the_same(joint, tmp_path, dtype, monkeypatch):
    model, processor, users, items = joint
    saved(tmp_path / "m", model, processor)
    ranker = FlipRanker(model, processor, items, dtype=dtype)
    ranker.remove_items([103])
    ranker.save(tmp_path / "c")
    with pytest.raises(FileExistsError, match="is there already"):
        ranker.save(tmp_path / "c")
    ranker.save(tmp_path / "c", overwrite=True)
    exact = by_key(FlipRanker(model, processor, items).rank(users[0], history=[101]))
    for key, scores in by_key(ranker.rank(users[0], history=[101])).items():
        assert scores == pytest.approx(exact[key], abs=1e-5 if dtype is None else 2e-3)
    monkeypatch.setattr("flip_ctr.modeling_flip.modeling_flip.FlipModel.pooled_text", None)  # no text is read again
    again = FlipRanker.from_pretrained(tmp_path / "m", items=tmp_path / "c")
    assert again.catalogue.text.own.dtype == (dtype or torch.float32)
    monkeypatch.undo()
    histories = [[101]] * len(users)
    for one, other in zip(again.rank(users, history=histories), ranker.rank(users, history=histories)):
        assert by_key(one) == close(other)
    again.add_items([{"movie_id": 700, "title": "Film 1", "genre": "Drama, Romance"}])
    assert 700 in again and again.catalogue.text.own.dtype == (dtype or torch.float32)

    damaged = json.loads((tmp_path / "c" / "catalogue.json").read_text())
    (tmp_path / "c" / "catalogue.json").write_text(json.dumps(damaged | {"model": "another"}))
    with pytest.raises(ValueError, match="catalogue .*c: its texts were read by another model"):
        FlipRanker.from_pretrained(tmp_path / "m", items=tmp_path / "c")
    (tmp_path / "c" / "catalogue.json").write_text(json.dumps(damaged))
    states = (tmp_path / "c" / "states.safetensors").read_bytes()
    (tmp_path / "c" / "states.safetensors").write_bytes(states[: len(states) // 2])
    with pytest.raises(ValueError, match="catalogue .*c: "):
        FlipRanker.from_pretrained(tmp_path / "m", items=tmp_path / "c")


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_items_of_a_file(tokenizer, text_config, tmp_path, suffix):
    rows = tiny.toy_rows()
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, strategy="id")
    saved(tmp_path / "m", model, processor)
    users, items = parted(rows)
    table = pa.Table.from_pylist([item | {"more": "ignored"} for item in items])
    path = tmp_path / f"items.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path)
    elif suffix == "csv":
        table.to_pandas().to_csv(path, index=False)
    else:
        table.to_pandas().to_json(path, orient="records", lines=True)
    ranker = FlipRanker.from_pretrained(tmp_path / "m", items=path)
    same(ranker.rank(users), scored(model, processor, users, items), items)
    if suffix == "csv":  # also where the data of the model had another delimiter
        processor.feature_extractor.reading = {"delimiter": ";"}
        ranker = FlipRanker.from_pretrained(saved(tmp_path / "n", model, processor), items=path)
        same(ranker.rank(users), scored(model, processor, users, items), items)
        with pytest.raises(FileNotFoundError, match="items: no file fits '.*absent.csv'"):
            FlipRanker.from_pretrained(tmp_path / "n", items=tmp_path / "absent.csv")


def test_every_kind_of_field_is_kept(tokenizer, text_config, tmp_path):
    rows = tiny.kind_rows()
    model, processor = made(rows, tiny.KIND_FIELDS, tokenizer, text_config, prompts="entity")
    names = [field.name for field in tiny.KIND_FIELDS if field.entity == "item"]
    items = list({row["movie_id"]: {name: row[name] for name in names} for row in rows}.values())
    users = [{field.name: rows[0][field.name] for field in tiny.KIND_FIELDS if field.entity == "user"}]
    ranker, expected = FlipRanker(model, processor, items), scored(model, processor, users, items)
    same(ranker.rank(users), expected, items)
    ranker.save(tmp_path / "c")
    saved(tmp_path / "m", model, processor)
    same(FlipRanker.from_pretrained(tmp_path / "m", items=tmp_path / "c").rank(users), expected, items)


def test_items_without_a_key_among_the_fields(tokenizer, text_config, tmp_path):
    rows = [row | {"sku": f"S{row['movie_id']}"} for row in tiny.toy_rows()]
    fields = [field for field in tiny.FIELDS if field.name != "movie_id"]
    model, processor = made(rows, fields, tokenizer, text_config, prompts="entity")
    items = list({row["sku"]: {name: row[name] for name in ("sku", "title", "genre")} for row in rows}.values())
    user = {name: rows[0][name] for name in USER}
    ranked = FlipRanker(model, processor, items, item_key="sku").rank(user)
    assert sorted(row["sku"] for row in ranked) == sorted(item["sku"] for item in items)
    # the type of such a key is that of its values; a dataset folder may hold it beside the fields
    checkpoint = saved(tmp_path / "m", model, processor)
    whole = [row | {"sku": row["movie_id"]} for row in rows]
    folder = tiny.write_dataset(tmp_path / "d", whole, fields)
    frame = pd.DataFrame([item | {"sku": int(item["sku"][1:])} for item in items])
    frame.to_parquet(tmp_path / "items.parquet")
    for given in (frame, str(tmp_path / "items.parquet"), str(folder)):
        ranker = FlipRanker.from_pretrained(checkpoint, items=given, item_key="sku")
        (found,) = ranker.rank(user, candidates=[ranked[0]["sku"][1:]])
        assert found == ranked[0] | {name: pytest.approx(value) for name, value in found.items() if name != "sku"} | {
            "sku": int(ranked[0]["sku"][1:])
        }
    with pytest.raises(ValueError, match="d: no column 'ean'; there are user_id, .*sku"):
        FlipRanker.from_pretrained(checkpoint, items=str(folder), item_key="ean")
    with pytest.raises(ValueError, match="items: column.* 'ean'"):
        FlipRanker(model, processor, items, item_key="ean")


def test_threads_share_a_ranker_while_items_change(joint):
    model, processor, users, items = joint
    ranker = FlipRanker(model, processor, items)
    expected = [close(one) for one in ranker.rank(users)]
    new = {"movie_id": 900, "title": "Film 4", "genre": "Comedy"}

    def ask(number: int) -> None:
        found = by_key(ranker.rank(users[number % len(users)]))
        found.pop(900, None)
        assert found == expected[number % len(users)]

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, number) for number in range(24)]
        for _ in range(6):
            ranker.add_items([new])
            ranker.remove_items([900])
        for one in answers:
            one.result()


WRONG = {
    "no field of the user": (lambda r, u: r.rank({"user_id": 1}), r"user: column\(s\) 'age', 'zip_code' missing"),
    "a value of another type": (lambda r, u: r.rank(u | {"age": "old"}), "user: .*column 'age', row 0"),
    "an unknown candidate": (lambda r, u: r.rank(u, [100, 777, 778]), "has movie_id '777', and 1 more"),
    "a candidate of another type": (lambda r, u: r.rank(u, ["x"]), "column 'movie_id'"),
    "no top_k": (lambda r, u: r.rank(u, top_k=0), "rank: `top_k` must be a whole number of at least 1; got 0"),
    "half a top_k": (lambda r, u: r.rank(u, top_k=2.5), "rank: `top_k` must be a whole number of at least 1; got 2.5"),
    "an unknown item in a history": (lambda r, u: r.rank(u, history=[777]), "movie_id '777' is no known item"),
    "a history for one of two": (lambda r, u: r.rank([u, u], history=[[]]), "one for each of the 2 users"),
    "lists for others": (lambda r, u: r.rank([u, u], [[100]]), "candidates: one list for each of the 2 users"),
    "a context for one of two": (lambda r, u: r.rank([u, u], context=[{}]), "context: one for each of the 2 users"),
    "given twice": (lambda r, u: r.rank(u, context={"age": 3}), "'age' is given by both the user and the context"),
    "in the candidates too": (
        lambda r, u: r.rank(u, [{"movie_id": 100, "age": 3}]),
        "'age' is given by both the candidates and the user",
    ),
    "text of a candidate": (
        lambda r, u: r.rank({"user_id": 1, "zip_code": "1"}, [{"movie_id": 100, "age": 3}]),
        "candidates: 'age' is in a prompt",
    ),
    "a key in place of a list": (
        lambda r, u: r.rank(u, "102"),
        "candidates: a list of keys .movie_id. is needed; got '102'",
    ),
    "keys in place of lists": (lambda r, u: r.rank([u, u], exclude=["102", "105"]), "exclude: a list of keys"),
    "a history of one key": (lambda r, u: r.rank(u, history=102), "history: a list of keys"),
    "lists of two lengths": (
        lambda r, u: r.score([u, u], [[100], []]),
        r"users share one list here; .* of \[1, 0\] items",
    ),
    "removed twice": (lambda r, u: r.remove_items([777]), "no item of the catalogue has movie_id '777'"),
    "added without a title": (lambda r, u: r.add_items([{"movie_id": 1}]), "items: .*'title'"),
}


def test_lists_in_any_container(joint):
    """Of candidates, histories and what is left out; none of them has items too."""
    model, processor, users, items = joint
    ranker, lists, both = FlipRanker(model, processor, items), [[102, 105], [101]], users[:2]
    expected = [close(rows) for rows in ranker.rank(both, lists)]
    for each in (np.array, pd.Series, set, pa.array):
        assert [by_key(rows) for rows in ranker.rank(both, [each(one) for one in lists])] == expected
    for given in (pd.Series(lists), pa.array(lists)):
        assert [by_key(rows) for rows in ranker.rank(iter(both), given)] == expected
    one = close(ranker.rank(users[0], [102, 105]))
    for given in (
        np.array([[102, 105]]),
        np.array([102, 105]),
        [102.0, 105.0],
        ["102", "105"],
        {102: 1, 105: 1}.keys(),
    ):
        (found,) = ranker.rank(users[:1], given)
        assert by_key(found) == one
    assert ranker.rank(both, [None, [101]])[0] == ranker.rank(both)[0]
    for nothing in ([], np.array([]), [[], []]):
        assert ranker.rank(both, nothing) == [[], []] and ranker.score(both, nothing)["id_weight"].shape == (2, 0)
    left = [[row["movie_id"] for row in rows] for rows in ranker.rank(both, exclude=[None, pa.array([101])])]
    assert len(left[0]) == len(left[1]) + 1 == 9 and 101 not in left[1]
    past_of = [[102, 105], [104]]
    expected = [close(rows) for rows in ranker.rank(both, history=past_of)]
    for given in (pd.Series(past_of), pa.array(past_of), [np.array(one) for one in past_of]):
        assert [by_key(rows) for rows in ranker.rank(both, history=given)] == expected
    assert by_key(ranker.rank(users[0], history=np.array([102, 105]))) == expected[0]
    assert ranker.rank(pd.DataFrame(both)[:0]) == [] and len(ranker.with_items([])) == len(items)
    assert FlipRanker(model, processor, pd.DataFrame(items)[:0]).rank(both) == [[], []]
    ranker.remove_items(pd.Series([item["movie_id"] for item in items]))
    assert ranker.rank(users[0]) == [] and ranker.rank(both, top_k=3) == [[], []]


def test_keys_of_every_type(tokenizer, text_config):
    for kind, keys, shown in (
        ("bool", [True, False], [False]),
        ("string", np.array([3, 2**63 + 5], np.uint64), np.array([3], np.uint64)),
        ("float", [0.5, 1.0], [1]),
    ):
        fields = [FlipField("user_id", "int", entity="user", key=True), FlipField("sku", kind, entity="item", key=True)]
        items = pd.DataFrame({"sku": keys})
        model, processor = made(items.assign(user_id=1), fields, tokenizer, text_config, strategy="id")
        ranker = FlipRanker(model, processor, items)
        every = {row["sku"]: row for row in ranker.rank({"user_id": 1})}
        assert len(every) == 2
        (found,) = ranker.rank({"user_id": 1}, candidates=shown)
        assert found == pytest.approx(every[found["sku"]]) and found["sku"] in (False, "3", 1.0)
        (other,) = ranker.rank({"user_id": 1}, exclude=shown)
        assert other["sku"] != found["sku"]


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(joint, case):
    model, processor, users, items = joint
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call(FlipRanker(model, processor, items), users[0])


def test_wrong_items_are_named(joint, tokenizer, text_config):
    model, processor, _, items = joint
    for wrong, message in (
        ([*items, items[0]], "items: movie_id '100' has 2 rows; each item must have one"),
        ([{"movie_id": 1, "genre": None}], r"items: column\(?s?\)? ?'title' missing"),
        ([{"title": "x", "genre": None}], "items: column 'movie_id' missing, which histories read"),
        ([*items, items[0] | {"movie_id": None}], "items: movie_id of row 9 is null"),
        ([], "items: there are none"),
        ([{"user_id": n, "age": 3} | item for n, item in enumerate(items)], r"'user_id', 'age' are fields of users"),
    ):
        with pytest.raises(ValueError, match=message):
            FlipRanker(model, processor, wrong)
    rows = tiny.toy_rows()
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, prompts="entity")
    with pytest.raises(ValueError, match="items: no column of theirs is a key; say which one tells them apart"):
        FlipRanker(model, processor, [{"genre": "Comedy"}])
    with pytest.raises(ValueError, match=r"items: column\(s\) 'genre' missing; 'title' is in one prompt with"):
        FlipRanker(model, processor, [{"movie_id": 1, "title": "x"}])
    with pytest.raises(
        ValueError, match=r"items: column\(s\) 'user_id' are fields of users"
    ):  # no history says the key
        FlipRanker(model, processor, [{"user_id": n} | item for n, item in enumerate(items)])
    ranker = FlipRanker(model, processor, items)
    with pytest.raises(ValueError, match="history: this model reads no histories; leave it out"):
        ranker.rank({"user_id": 1, "age": 2, "zip_code": "3"}, history=[])


def test_the_text_of_users_is_remembered(joint, monkeypatch):
    model, processor, users, items = joint
    monkeypatch.setattr("flip_ctr.serve.ranker.USERS_REMEMBERED", 3)
    ranker, read = FlipRanker(model, processor, items), []
    whole = type(model.flip).pooled_text
    monkeypatch.setattr(type(model.flip), "pooled_text", lambda *args: (read.append(len(args[1])), whole(*args))[1])
    expected = close(ranker.rank(users[0]))
    many = [users[0], users[1], users[0]]
    assert by_key(ranker.rank(many)[2]) == expected and read == [1, 1]
    assert by_key(ranker.rank(users[0] | {"user_id": 5})) != expected and read == [1, 1]  # an id is not text
    ranker.rank(users)  # more than are remembered
    ranker.rank(users[2:5])
    assert by_key(ranker.rank(users[0])) == expected and read == [1, 1, len(users), 3, 1]
