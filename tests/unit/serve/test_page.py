"""The page to try a model, without a browser: what its functions answer, and that no visitor disturbs another."""

import json
import re
from copy import copy

import past
import pyarrow.parquet as pq
import pytest
import tiny
from serving import made, parted

from flip_ctr import FlipField, FlipRanker
from flip_ctr.serve.item_files import read_items
from flip_ctr.serve.page import build_page
from flip_ctr.serve.space import items_table
from flip_ctr.serve.trial import NEW_ITEM, Trial

SCRIPT = "<script>alert(1)</script>"
STRANGE = f"{SCRIPT} ${{7*7}} {{{{7*7}}}} & <img src=x onerror=alert(2)>"


def page_of(ranker, users=(), **more):
    """The functions of a page by their names, each called with the values of its inputs."""
    blocks = build_page(ranker, users, **more)
    return {one.fn.__name__: one.fn for one in blocks.fns.values()}, blocks


def strange_items(tokenizer, text_config):
    """A ranker of a model that reads histories, users with histories, and the items; a title and a zip code look like
    code."""
    rows = past.past_rows()
    model, processor = made(rows, past.FIELDS, tokenizer, text_config, prompts="entity", fusion="gate")
    _, items = parted(rows)
    items[0] = items[0] | {"title": STRANGE}
    of_user = ("user_id", "age", "zip_code", "history")
    users = list({row["user_id"]: {name: row[name] for name in of_user} for row in rows}.values())
    users[0]["zip_code"] = STRANGE
    return FlipRanker(model, processor, items), users, items


@pytest.fixture(scope="module")
def shown(tokenizer, text_config):
    ranker, users, items = strange_items(tokenizer, text_config)
    return ranker, users, items, page_of(ranker, users)[0]


def places(html: str) -> dict[str, str]:
    """Rank by the label of an item."""
    rows = re.findall(r'class="flip-rank">([\d,]+)</td>\s*<td class="flip-item"><b>(.*?)</b>', html, re.S)
    return {label: place for place, label in rows}


def test_a_user_of_the_sample_is_ranked_for(shown):
    ranker, users, items, page = shown
    history, listed, *values = page["on_user"](1)
    assert values == ["2", "23", users[1]["zip_code"]] and len(history) == len(users[1]["history"])
    assert listed.count("<li>") == len(history) and "reads the newest 3" in listed
    html = page["on_rank"](100, history, *values)
    expected = ranker.rank(users[1])
    titles = {item["movie_id"]: item["title"] for item in items}
    wanted = [titles[row["movie_id"]] for row in expected]
    assert len(places(html)) == len(items) and f"The best {len(items)} of {len(items)}" in html
    assert [label for label in places(html) if "&" not in label] == [one for one in wanted if one != STRANGE]
    for row in expected:
        for name in ("click_probability", "id_probability", "text_probability"):
            assert f"{100 * row[name]:.1f} %" in html
    weights = ranker.score([users[1]])["id_weight"][0]
    assert all(f">{weight:.2f}</span>" in html for weight in weights) and len(set(weights.round(4))) > 1
    assert "clicked before" in html and html.count("<tr") == 1 + len(items)
    assert page["on_rank"](2, history, *values).count("<tr") == 1 + 2
    assert page["on_rank"](None, history, *values).count("<tr") == 1 + len(items)  # of an input that was emptied
    assert len(page["on_user"](None)) == 2 + len(values)


def test_a_history_is_clicked_together(shown):
    ranker, _, items, page = shown
    found = page["on_search"]("FILM 2")
    assert found["value"] == "102" and found["choices"] == [("Film 2 · 102", "102")]
    assert page["on_search"]("103")["value"] == "103"
    assert page["on_search"](" ")["choices"] == [] and "none" in page["on_search"]("nothing like it")["label"]
    history, listed = page["on_add"]([], found["value"], 1)
    history, listed = page["on_add"](history, "film 5", 0)
    assert history == [("102", 1), ("105", 0)]
    assert re.findall(r"flip-(yes|no).*?</span> (.*?)</li>", listed) == [
        ("no", "Film 5 · 105"),
        ("yes", "Film 2 · 102"),
    ]
    read = [{"movie_id": 102, "clicked": 1}, {"movie_id": 105, "clicked": 0}]
    user = {"user_id": 1, "age": 20, "zip_code": "00139"}
    best = ranker.rank(user, history=read)[0]
    assert f"{100 * best['click_probability']:.1f} %" in page["on_rank"](1, history, "1", "20", "00139")
    assert page["on_undo"](history)[0] == [("102", 1)] and page["on_clear"]()[0] == []
    assert "without a history" in page["on_clear"]()[1] and page["on_undo"]([])[0] == []


def test_a_changed_title_moves_an_item_for_its_visitor_alone(shown):
    ranker, users, items, page = shown
    catalogue, before = ranker.catalogue, ranker.rank(users[1])
    history, _, *values = page["on_user"](1)
    _, title, genre = page["on_item"]("104")
    assert (title, genre) == ("Cité des enfants perdus, La (1995) 4", "Drama, Romance")
    assert "the same place" in page["on_change"]("104", history, *values, title, genre)
    html = page["on_change"]("104", history, *values, "Another film", genre)
    changed = ranker.with_items([{"movie_id": 104, "title": "Another film", "genre": "Drama, Romance"}]).rank(users[1])
    was, now = ([row["movie_id"] for row in one].index(104) + 1 for one in (before, changed))
    assert f"rank {was} → {now} of {len(items)}" in html and "lack this title:" in html
    assert re.search(r'flip-chosen"><td class="flip-rank">(\d+)</td>\s*<td class="flip-item"><b>Another', html)[
        1
    ] == str(now)
    for one, name in ((before, was), (changed, now)):
        assert f"{100 * one[name - 1]['text_probability']:.1f} %" in html
    assert ranker.catalogue is catalogue and ranker.rank(users[1]) == before
    assert page["on_item"]("104")[1] == title  # another visitor, or the same one later


def test_a_score_is_explained(shown):
    ranker, users, items, page = shown
    history, _, *values = page["on_user"](1)
    html = page["on_why"]("104", history, *values)
    (answer,) = ranker.explain(users[1], [104])
    assert f"{100 * answer['click_probability']:.1f} %; by the ids alone" in html
    by_part = {part["part"]: part["change"] for part in answer["parts"]}
    for wording, name in (("movie id", "movie_id"), ("genre", "genre"), ("history", "history")):
        number = re.escape(f"{by_part[name]:+.3f}")
        assert re.search(rf"<td>{wording}</td>(?:(?!<tr>).)*>{number}</span>", html, re.S)
    entries = [part for part in answer["parts"] if part["kind"] == "entry"]
    assert html.count("<td>before</td>") == len(entries) == 3
    assert html.count("<tr><td>") == len(answer["parts"]) and 'style="width:100.0%"' in html


def test_a_new_item_is_placed_by_its_text(shown):
    ranker, users, items, page = shown
    history, _, *values = page["on_user"](2)
    html = page["on_new"](history, *values, "A film that nobody knows", "Comedy")
    new = ranker.with_items([{"movie_id": 109, "title": "A film that nobody knows", "genre": "Comedy"}])
    place = [row["movie_id"] for row in new.rank(users[2])].index(109) + 1
    assert f"would be number {place} of {len(items) + 1}" in html and "lack this movie id and title:" in html
    assert 4 <= len(places(html)) <= 7 and places(html)["A film that nobody knows"] == str(place)
    assert len(ranker) == len(items)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("on_rank", (5, [], "1", "old", "0"), "age: expected int, got str &#39;old&#39;"),
        ("on_rank", (5, [], "1", f"{SCRIPT}", "0"), "&lt;script&gt;"),
        ("on_add", ([], None, 1), "Find an item first"),
        ("on_add", ([], SCRIPT, 1), "there is no such item"),
        ("on_item", ("999",), "999: there is no such item"),
        ("on_why", (None, [], "1", "20", "0"), "Find an item first"),
        ("on_change", (None, [], "1", "20", "0", "A", "B"), "Find an item first"),
        ("on_new", ([], "1", "20", "0", "", ""), "Write at least the new item&#39;s title"),
    ],
)
def test_what_is_wrong_is_said(shown, name, arguments, message):
    answer = shown[3][name](*arguments)
    html = answer if isinstance(answer, str) else next(one for one in answer if isinstance(one, str))
    assert message in html and 'role="alert"' in html and "<script" not in html


def test_nothing_becomes_html(shown):
    ranker, users, _, page = shown
    history, _, *values = page["on_user"](0)
    answers = [
        page["on_rank"](100, history, *values),
        page["on_add"]([], "100", 1)[1],
        page["on_change"]("100", [], *values, STRANGE, STRANGE),
        page["on_why"]("100", [], *values),
        page["on_new"]([], *values, STRANGE, STRANGE),
        build_page(ranker, title=STRANGE).get_config_file()["components"][0]["props"]["value"],
    ]
    for html in answers:
        tags = set(re.findall(r"<(\w+)", html))
        assert "&lt;script&gt;" in html and not tags & {"script", "img"}
        assert "${7*7} {{7*7}}" in html


def test_models_of_one_tower_have_no_columns_of_two(tokenizer, text_config):
    rows = tiny.toy_rows()
    for kind in ({"strategy": "id"}, {"strategy": "plm", "prompts": "entity"}):
        ranker = FlipRanker(*made(rows, tiny.FIELDS, tokenizer, text_config, **kind), parted(rows)[1])
        page, blocks = page_of(ranker)
        html = page["on_rank"](3, [], "1", "20", "00139")
        assert html.count("<th>") == 3 and "weight" not in html and html.count("flip-click") == 3
        labels = [one["props"].get("label") for one in blocks.get_config_file()["components"]]
        assert "What they had before" in labels and "on_user" in page
        assert "would be number" in page["on_new"]([], "1", "20", "00139", "x", "y")
        assert ("vocabularies lack" in page["on_new"]([], "1", "20", "00139", "x", "y")) == (kind["strategy"] == "id")


def test_inputs_are_made_from_fields_and_vocabularies(tokenizer, text_config):
    rows = tiny.kind_rows()
    user = ("user_id", "history", "age")
    model, processor = made(rows, tiny.KIND_FIELDS, tokenizer, text_config, prompts="entity")
    items = list({row["movie_id"]: {n: row[n] for n in row if n not in (*user, "label")} for row in rows}.values())
    ranker = FlipRanker(model, processor, items)
    users = [{name: row[name] for name in user} for row in rows]
    page, blocks = page_of(ranker, users)
    config = {
        (props := one["props"]).get("elem_id"): (
            one["type"],
            props.get("multiselect"),
            [v for _, v in props.get("choices", [])],
        )
        for one in blocks.get_config_file()["components"]
    }
    assert config["flip-user-user_id"][0] == "textbox" and config["flip-user-age"][0] == "number"
    assert config["flip-user-history"] == ("dropdown", True, [str(100 + n) for n in range(9)])
    genres = ["Comedy", "Crime", "Drama", "Romance", "Thriller"]  # Horror is beyond `max_values`
    assert config["flip-change-genres"] == ("dropdown", True, genres) and config["flip-change-tags"][0] == "textbox"
    for number, row in enumerate(users):
        _, _, *values = page["on_user"](number)
        answer = page["on_rank"](1, [], *values)
        assert f"{100 * ranker.rank(row)[0]['click_probability']:.1f} %" in answer
    for item in items:  # what inputs show is read as the same item
        _, *values = page["on_item"](str(item["movie_id"]))
        assert "the same place" in page["on_change"](str(item["movie_id"]), [], *page["on_user"](0)[2:], *values)


@pytest.fixture(scope="module")
def shop(tokenizer, text_config):
    """A ranker of items with decimal commas, a separator inside a value, booleans and nulls, and their fields."""
    fields = [
        FlipField("who", entity="user", key=True, sides=("id",)),
        FlipField("code", entity="item", key=True, sides=("id",)),
        FlipField("price", "float", decimal=",", entity="item", nullable=False, max_tokens=8),
        FlipField("tags", kind="multi-valued", separator="|", num_buckets=8, entity="item", max_tokens=12),
        FlipField("sold", "bool", entity="item", max_tokens=4),
    ]
    items = [{"code": f"c{n}", "price": n / 2, "tags": ["a|b", "c"], "sold": bool(n % 2)} for n in range(4)]
    items.append({"code": NEW_ITEM, "price": 3.0, "tags": None, "sold": None})
    rows = [item | {"who": f"u{n}"} for n, item in enumerate(items)]
    return FlipRanker(*made(rows, fields, tokenizer, text_config, prompts="entity"), items), items, fields


def test_values_survive_their_inputs(shop):
    ranker, items, fields = shop
    trial = Trial(ranker)
    assert trial.choices(fields[2]) == ["0", "0,5", "1", "1,5", "3"] and trial.choices(fields[4]) == ["true", "false"]
    assert trial.unused_key() == f"{NEW_ITEM} 1"
    for item in items:
        inputs = [trial.as_input(value, field) for value, field in zip(trial.item(item["code"]), trial.item_fields)]
        again = ranker.with_items([trial.read(trial.item_fields, inputs) | {"code": item["code"]}]).catalogue
        assert again.as_table().to_pylist() == ranker.catalogue.as_table().to_pylist()
    assert json.loads(trial.as_input(("a|b", "c"), fields[3])) == ["a|b", "c"]
    with pytest.raises(ValueError, match="price: must not be empty"):
        trial.read(trial.item_fields, ["", [], None])
    with pytest.raises(ValueError, match="price: expected float"):
        trial.read(trial.item_fields, ["cheap", [], None])


def test_a_space_has_the_same_items(shop, tmp_path):
    """As typed columns: text with the decimals' sign of canonical values would be read otherwise."""
    ranker = copy(shop[0])
    ranker.remove_items(["c0"])
    pq.write_table(items_table(ranker), tmp_path / "items.parquet")
    again = FlipRanker(ranker.model, ranker.processor, read_items(str(tmp_path / "items.parquet"), ranker.processor))
    assert again.catalogue.as_table().to_pylist() == shop[0].catalogue.as_table().to_pylist()[1:]
    assert again.catalogue.ids.tolist() == shop[0].catalogue.ids.tolist()[1:]


def test_items_of_one_name_are_told_apart(shown):
    ranker = shown[0].with_items([{"movie_id": key, "title": "Twice", "genre": None} for key in (500, 501)])
    trial = Trial(ranker)
    assert trial.search("twice") == [("Twice · 500", "500"), ("Twice · 501", "501")]
    assert trial.find("500") == "500"
    with pytest.raises(ValueError, match="Twice: there are several items of that name"):
        trial.find("Twice")
    ranker.remove_items([500])  # the trial does not see it
    assert "500" in trial.catalogue.known and Trial(ranker).search("twice") == [("Twice · 501", "501")]
