"""Explanations: each part is left out as if the row had come without it, in few forward passes."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
from past import FIELDS, items_of, past_rows
from scipy.special import expit, logit

from flip_ctr import ClickThroughRatePipeline, FlipForCTR, FlipForPretraining, FlipProcessor, explain
from flip_ctr.train.outputs.metrics import auc_difference

PLATT = {"kind": "platt", **{head: {"slope": 0.5, "intercept": 0.2} for head in ("logits", "id_logits", "text_logits")}}
# what a key that training has not seen is called; the prompt says the same word for a null
UNSEEN = {"user_id": -1, "movie_id": -1, "title": "unknown"}
ROWS_OF = {
    "toy": lambda: tiny.toy_rows(4),
    "kinds": lambda: tiny.kind_rows(4),
    "past": lambda: newest(past_rows()[-4:]),
}


def newest(rows: list[dict]) -> list[dict]:
    """Rows of which a history has no entry that is not read: without one of it none comes in."""
    return [row | {"history": row["history"][-3:]} for row in rows]


def click_model(processor, text_config, **settings) -> FlipForCTR:
    settings = {"prompts": processor.prompts, **settings}
    return tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, **settings))).eval()


@pytest.fixture(scope="module")
def processors(tokenizer):
    """By the name of the rows and the form of the prompts."""
    learned = {"toy": (tiny.toy_rows(), tiny.FIELDS), "kinds": (tiny.kind_rows(), tiny.KIND_FIELDS)}
    learned["past"] = past_rows(), FIELDS
    return {
        (name, prompts): FlipProcessor.from_dataset(*of, tokenizer, max_length=160, prompts=prompts)
        for name, of in learned.items()
        for prompts in ("row", "entity")
    }


def by_hand(processor, row: dict, part: dict) -> dict:
    """A row without a part."""
    if part["kind"] == "entry":
        place = int(part["part"].removeprefix("history[").removesuffix("]"))
        entries = list(row["history"])
        del entries[place]
        return row | {"history": entries}
    if part["kind"] == "history":
        return row | {"history": []}
    keys = [field.name for field in processor.feature_extractor.key_fields.values()]
    return row | {part["part"]: UNSEEN[part["part"]] if part["part"] in keys else None}


@pytest.mark.parametrize("kind, prompts", [("toy", "row"), ("kinds", "entity"), ("past", "entity"), ("past", "row")])
@pytest.mark.parametrize("strategy", ["id", "plm", "joint", "frozen"])
def test_a_part_is_left_out_as_in_a_row_without_it(processors, text_config, kind, prompts, strategy):
    """Also of a model whose log odds are corrected, and whose weight of the ids differs by row."""
    if (kind, prompts, strategy) == ("past", "row", "plm"):
        return  # reads no history, see `without_unread_history`
    processor, rows = processors[kind, prompts], ROWS_OF[kind]()
    items = items_of(tiny.toy_rows()) if kind == "past" else None
    model = click_model(processor, text_config, strategy=strategy, fusion="gate")
    model.config.negative_sampling_rate = 0.1
    model.config.calibration = PLATT
    answers = explain(model, processor, rows, items=items, batch_size=7)
    score = ClickThroughRatePipeline(model=model, processor=processor)
    changed = 0
    for row, answer, whole in zip(rows, answers, score(rows, items=items), strict=True):
        assert answer["click_probability"] == pytest.approx(whole["click_probability"], abs=1e-5)
        assert expit(answer["log_odds"]) == pytest.approx(whole["click_probability"], abs=1e-5)
        scores = score([by_hand(processor, row, part) for part in answer["parts"]], items=items)
        for part, expected in zip(answer["parts"], scores, strict=True):
            assert expit(part["log_odds"]) == pytest.approx(expected["click_probability"], abs=1e-5), part
            assert part["change"] == pytest.approx(answer["log_odds"] - part["log_odds"], abs=1e-6)
            changed += abs(part["change"]) > 1e-3
            if strategy == "joint":
                for side in ("id", "text"):
                    without = answer[f"{side}_log_odds"] - part[f"{side}_change"]
                    assert expit(without) == pytest.approx(expected[f"{side}_probability"], abs=1e-5)
        everything = row
        for part in answer["parts"]:
            everything = everything if part["kind"] == "entry" else by_hand(processor, everything, part)
        base = score(everything, items=items)["click_probability"]
        assert expit(answer["base_log_odds"]) == pytest.approx(base, abs=1e-5)
        changes = sum(part["change"] for part in answer["parts"] if part["kind"] != "entry")
        assert answer["remainder"] == pytest.approx(answer["log_odds"] - logit(base) - changes, abs=1e-3)
        if strategy == "joint":
            assert expit(answer["id_log_odds"]) == pytest.approx(whole["id_probability"], abs=1e-5)
            assert 0 < answer["id_weight"] < 1
    assert changed > 2 * len(rows)  # nothing was compared with itself


@pytest.mark.parametrize("tower", tiny.TOWER_KWARGS)
def test_every_tower(id_processor, tower):
    model = click_model(id_processor, None, strategy="id", id_tower=tower)
    row = tiny.toy_rows(1)[0]
    answer = explain(model, id_processor, row)
    score = ClickThroughRatePipeline(model=model, processor=id_processor)
    genre = next(part for part in answer["parts"] if part["part"] == "genre")
    assert expit(genre["log_odds"]) == pytest.approx(score(row | {"genre": None})["click_probability"], abs=1e-5)
    assert [part["part"] for part in answer["parts"]] == [field.name for field in tiny.FIELDS]


def test_only_what_the_model_reads_is_a_part(processors, text_config):
    model = click_model(processors["toy", "row"], text_config, strategy="plm")
    answer = explain(model, processors["toy", "row"], tiny.toy_rows(1)[0])
    assert [part["part"] for part in answer["parts"]] == ["age", "zip_code", "title", "genre"]  # no ids
    assert "id_log_odds" not in answer and "id_change" not in answer["parts"][0]


def test_a_field_that_may_not_be_null_is_left_out_too(processors, tokenizer, text_config):
    """As where it may be: only people are forbidden to leave it out."""
    rows = tiny.toy_rows()
    fields = [field if field.name != "age" else replace(field, nullable=False) for field in tiny.FIELDS]
    strict = FlipProcessor.from_dataset(rows, fields, tokenizer, max_length=160)
    models = [click_model(one, text_config, strategy="joint") for one in (processors["toy", "row"], strict)]
    models[1].load_state_dict(models[0].state_dict())
    answers = [explain(models[0], processors["toy", "row"], rows[:2]), explain(models[1], strict, rows[:2])]
    ages = [[part["change"] for part in answer["parts"] if part["part"] == "age"] for one in answers for answer in one]
    assert ages[:2] == ages[2:] and all(change != 0 for (change,) in ages)


def test_parts_say_their_values(processors, text_config):
    processor, rows = processors["past", "entity"], newest(past_rows()[-4:])
    model = click_model(processor, text_config, strategy="joint")
    answer = explain(model, processor, rows[0] | {"genre": None}, items=items_of(tiny.toy_rows()))
    parts = {part["part"]: part for part in answer["parts"]}
    assert parts["genre"]["value"] is None and parts["title"]["value"] == rows[0]["title"]
    assert parts["history"]["value"] == "3 entries"
    newest_entry = rows[0]["history"][-1]
    title = next(row["title"] for row in tiny.toy_rows() if row["movie_id"] == newest_entry["movie_id"])
    clicked = "clicked" if newest_entry["clicked"] else "not clicked"
    assert parts["history[-1]"] | {"value": f"{title}, {clicked}", "kind": "entry"} == parts["history[-1]"]
    assert list(parts)[-3:] == ["history[-3]", "history[-2]", "history[-1]"]


def test_each_text_is_read_once(processors, text_config, monkeypatch):
    """And the model is as it was: it may be in training."""
    processor, rows = processors["toy", "entity"], tiny.toy_rows(8)
    model, read = click_model(processor, text_config, strategy="joint").train(), []
    encode = model.flip.encode_text
    monkeypatch.setattr(model.flip, "encode_text", lambda ids, mask: read.extend(ids.tolist()) or encode(ids, mask))
    answers = explain(model, processor, rows, batch_size=4)
    texts = {tuple(token for token in ids if token) for ids in read}
    assert len(texts) == len(read) < 2 * 8 * len(answers[0]["parts"]) / 2
    assert model.training and model.flip.text_encoder.training


def test_what_cannot_be_explained_is_refused(processors, text_config):
    processor = processors["toy", "row"]
    with pytest.raises(ValueError, match="explain: a FlipForCTR is needed, .* got FlipForPretraining"):
        explain(FlipForPretraining(tiny.flip_config(processor.fields, text_config)), processor, tiny.toy_rows(1))
    model = click_model(processor, text_config, strategy="joint")
    with pytest.raises(ValueError, match="column.* 'genre'.* missing"):
        explain(model, processor, [dict.fromkeys(("user_id", "age", "zip_code", "movie_id", "title"), 1)])
    with pytest.raises(ValueError, match="not of one checkpoint|not of this model"):
        explain(model, processors["kinds", "row"], tiny.kind_rows(1))
    assert explain(model, processor, []) == []


def test_the_error_of_a_difference_of_aucs_is_that_of_drawing_rows_again():
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 400)
    first = labels + random.normal(0, 1.0, 400)
    second = (first + random.normal(0, 1.0, 400)).round(1)  # with ties
    lost, error = auc_difference(first, second, labels)
    drawn = []
    for _ in range(150):
        picked = random.integers(0, 400, 400)
        drawn.append(auc_difference(first[picked], second[picked], labels[picked])[0])
    assert lost == pytest.approx(np.mean(drawn), abs=0.01)
    assert error == pytest.approx(np.std(drawn), rel=0.2)
