"""The text side reads numbers that no prompt says, in every way to scores alike."""

import dataclasses

import numpy as np
import past
import pytest
import tiny
import torch
from serving import USER, made, scored

from flip_ctr import FlipForCTR, FlipProcessor, FlipRanker
from flip_ctr.serve import export
from flip_ctr.train.loop.leave_out import explain
from flip_ctr.train.models.build import load_click_model

CASES = {
    "plm, entity prompts": ({"strategy": "plm", "prompts": "entity"}, True),
    "joint, row prompts": ({"fusion": "gate", "prompts": "row"}, False),
}


@pytest.mark.parametrize("case", CASES)
def test_ranker_pipeline_and_onnx_agree(tokenizer, text_config, tmp_path, case):
    settings, of_text = CASES[case]
    rows = past.number_rows()
    fields = [*tiny.FIELDS, *past.NUMBERS, *([dataclasses.replace(past.HISTORY, sides=("text",))] if of_text else [])]
    model, processor = made(rows, fields, tokenizer, text_config, text_numbers=True, **settings)
    names = (*USER, "user_rate", *(["history"] if of_text else []))
    users = [{name: row[name] for name in names} for row in rows[-7:]]
    items = past.items_of(rows)
    candidates = [
        [{"movie_id": one["movie_id"], "pair_rows": past.pair_rows(user["user_id"], one["movie_id"])} for one in items]
        for user in users
    ]
    joined = [user | item | one for user, ones in zip(users, candidates) for item, one in zip(items, ones)]
    more = {"items": items} if of_text else {}
    expected = [one["click_probability"] for one in scored(model, processor, [{}], joined, **more)[0]]
    for backend in ("torch", "onnx"):
        ranker = FlipRanker(model, processor, items, backend=backend)
        found = [
            {one["movie_id"]: one["click_probability"] for one in ranker.rank(user, ones)}
            for user, ones in zip(users, candidates)
        ]
        ranked = [one[item["movie_id"]] for one in found for item in items]
        np.testing.assert_allclose(ranked, expected, atol=1e-5, err_msg=backend)
    assert "feature_ids" in export.graphs_of(model)["model"].inputs
    # the numbers count, each of them
    for name in ("user_rate", "pair_rows"):
        moved = [row | {name: 0} for row in joined]
        assert not np.allclose(
            [one["click_probability"] for one in scored(model, processor, [{}], moved, **more)[0]], expected
        )
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = scored(*load_click_model(str(tmp_path)), [{}], joined, **more)[0]
    np.testing.assert_allclose([one["click_probability"] for one in again], expected, atol=1e-6)


def test_a_model_that_gets_the_layer_starts_with_its_scores(tokenizer, text_config, tmp_path):
    rows, fields = past.number_rows(), [*tiny.FIELDS, *past.NUMBERS]
    model, processor = made(rows, fields, tokenizer, text_config, strategy="plm", prompts="entity")
    model.save_pretrained(tmp_path)
    more, info = FlipForCTR.from_pretrained(tmp_path, text_numbers=True, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"text_numbers"}
    batch = processor(rows)
    with torch.no_grad():
        torch.testing.assert_close(more.eval()(**batch).logits, model(**batch).logits)
    more(**batch).loss.backward()
    assert more.text_numbers.output.weight.grad.abs().sum() > 0


def test_places_of_buckets_and_unknown_numbers(tokenizer, text_config):
    rows, fields = past.number_rows(), [*tiny.FIELDS, *past.NUMBERS]
    model, processor = made(rows, fields, tokenizer, text_config, strategy="plm", text_numbers=True)
    seen = []
    model.text_numbers.numbers.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(**processor(rows))
    for row, (rate, pairs, rate_known, _) in zip(rows, seen[0].tolist()):
        assert rate_known == (row["user_rate"] is not None) and -1 <= min(rate, pairs) <= max(rate, pairs) <= 1
        assert row["user_rate"] is not None or rate == 0
    order = np.argsort([row["pair_rows"] for row in rows], kind="stable")
    assert (np.diff(seen[0][:, 1].numpy()[order]) >= 0).all() and set(seen[0][:, 1].tolist()) >= {-1.0, 1.0}


def test_it_reads_rows_of_a_vocabulary_that_grew(tokenizer, text_config):
    rows, fields = past.number_rows(), [*tiny.FIELDS, *past.NUMBERS]
    model, processor = made(rows, fields, tokenizer, text_config, strategy="plm", text_numbers=True)
    with torch.no_grad():
        before = model(**processor(rows)).logits
    new = [row | {"user_id": 500 + number, "user_rate": 0.9} for number, row in enumerate(rows)]
    processor.grow(new)
    with pytest.raises(ValueError, match="`feature_ids`: row 0 has"):
        model(**processor(new))
    model.grow(processor.fields)
    with torch.no_grad():
        assert torch.equal(model(**processor(rows)).logits, before)
        assert model(**processor(new)).logits.isfinite().all()


def test_an_explanation_says_what_the_numbers_do(tokenizer, text_config):
    rows, fields = past.number_rows(), [*tiny.FIELDS, *past.NUMBERS]
    model, processor = made(rows, fields, tokenizer, text_config, strategy="plm", text_numbers=True)
    changes = {one["part"]: one["change"] for one in list(explain(model, processor, rows[:1]))[0]["parts"]}
    assert changes["user_rate"] and changes["pair_rows"] and "user_id" not in changes


def test_what_is_wrong_is_named(tokenizer, text_config):
    rows, fields = past.number_rows(), [*tiny.FIELDS, *past.NUMBERS]
    with pytest.raises(ValueError, match="`text_numbers` needs a field of kind 'numeric' on the ID side alone"):
        made(rows, tiny.FIELDS, tokenizer, text_config, strategy="plm", text_numbers=True)
    model, processor = made(rows, fields, tokenizer, text_config, strategy="plm", text_numbers=True)
    batch = processor(rows)
    with pytest.raises(ValueError, match="`feature_ids` is needed: `config.text_numbers`"):
        model(**{name: part for name, part in batch.items() if name != "feature_ids"})
    with pytest.raises(ValueError, match="`feature_ids` must have the shape"):
        model(**batch | {"feature_ids": batch["feature_ids"][:, :3]})
    with pytest.raises(ValueError, match="`feature_ids`: row 0 has 999 in column 0"):
        model(**batch | {"feature_ids": torch.full_like(batch["feature_ids"], 999)})
    assert FlipForCTR(
        tiny.flip_config(FlipProcessor.from_dataset(rows, fields).fields, strategy="id", text_numbers=True)
    )
