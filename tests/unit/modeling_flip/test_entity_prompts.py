"""Entity prompts: what the PLM reads once is what a loop reads for every row; both forms are the same."""

import dataclasses
import math

import numpy as np
import pytest
import tiny
import torch
from torch import nn

from flip_ctr import FlipForCTR, FlipForPretraining, FlipModel, FlipPretrainingCollator, FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.modeling_flip.fields_flip import MASK_ID, PAD_ID
from flip_ctr.modeling_flip.histories_flip import Histories
from flip_ctr.modeling_flip.losses_flip import IGNORE_INDEX, entity_contrasts, masked_tabular_loss
from flip_ctr.modeling_flip.prompts_flip import distinct_prompts, prompt_keys

# the fields of the user and those of the item, as slots of feature_ids and as fields of the prompts
USER, ITEM = 0, 1


@pytest.fixture(scope="module")
def entity_processor(tokenizer, rows):
    return FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer, max_length=96, prompts="entity")


@pytest.fixture(scope="module")
def calm_config(text_config):
    """The tiny PLM's configuration without dropout: two ways of computing the same can be compared."""
    config = type(text_config).from_dict(text_config.to_dict())
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    return config


def entity_config(processor, text_config, **settings):
    return tiny.flip_config(processor.fields, text_config, prompts="entity", **settings)


def compact_batch(processor, rows) -> dict[str, torch.Tensor]:
    arrays = EncodedDataset(processor, rows).encoded.batch(np.arange(len(rows)))
    return {name: torch.from_numpy(values) for name, values in arrays.items() if name != "token_fields"}


def row_form(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A compact batch with each row's prompts written out."""
    index = batch["prompt_index"]
    prompts = ("input_ids", "attention_mask", "masked_input_ids", "mlm_labels")
    rows = {name: values[index] if name in prompts else values for name, values in batch.items()}
    if "mlm_pairs" in rows:
        rows["mlm_labels"] = torch.where(rows["mlm_pairs"][..., None], rows["mlm_labels"], IGNORE_INDEX)
    return {name: values for name, values in rows.items() if name not in ("prompt_index", "mlm_pairs", "mlm_scores")}


def gradients(model) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


# --- prompts


def test_each_entity_has_a_prompt_of_its_own_fields(tokenizer, rows):
    fields = [dataclasses.replace(field, max_tokens=60) for field in tiny.FIELDS]
    batch = FlipProcessor.from_dataset(rows, fields, tokenizer, prompts="entity")(rows)
    assert batch["input_ids"].shape[:2] == (len(rows), 2)
    texts = [f"age is {row['age']} ; zip code is {row['zip_code']}" for row in rows]
    texts_of_items = [f"title is {row['title']} ; genre is {row['genre'] or 'unknown'}" for row in rows]
    for entity, expected in ((USER, texts), (ITEM, texts_of_items)):
        for row, ids in enumerate(tokenizer(expected)["input_ids"]):
            kept = batch["input_ids"][row, entity][batch["attention_mask"][row, entity] == 1].tolist()
            assert kept == ids
    fields = batch["token_fields"]
    assert set(fields[:, USER].unique().tolist()) == {-1, 0, 1} and set(fields[:, ITEM].unique().tolist()) == {-1, 2, 3}


def test_the_compact_form_holds_each_distinct_prompt_once(entity_processor, rows):
    batch = compact_batch(entity_processor, rows)
    users, items = len({row["user_id"] for row in rows}), len({row["movie_id"] for row in rows})
    assert len(batch["input_ids"]) == users + items
    written_out = entity_processor(rows)
    length = written_out["input_ids"].shape[-1]
    torch.testing.assert_close(batch["input_ids"][batch["prompt_index"]][..., :length], written_out["input_ids"])


def test_prompts_are_the_same_where_their_tokens_are(tokenizer, rows):
    """Two keys with the same text share a prompt, and two texts that are cut to the same tokens too."""
    long = [row | {"title": f"{'Titanic (1997) ' * 9}{row['movie_id']}", "genre": "Drama"} for row in rows]
    processor = FlipProcessor.from_dataset(long, tiny.FIELDS, tokenizer, max_length=96, prompts="entity")
    prompts = EncodedDataset(processor, long).encoded.prompts
    assert len(np.unique(prompts.index[:, ITEM])) == 1 and len(np.unique(prompts.index[:, USER])) == 7


def test_rows_share_the_prompts_that_would_be_read_again_most(processor, entity_processor, rows):
    encoded = EncodedDataset(entity_processor, rows).encoded
    np.testing.assert_array_equal(encoded.shared_prompts(8), encoded.prompts.index[:, ITEM])
    alone = [row | {"title": f"Titanic {number}"} for number, row in enumerate(rows)]  # no two rows have an item's text
    prompts = EncodedDataset(entity_processor, alone).encoded
    np.testing.assert_array_equal(prompts.shared_prompts(8), prompts.prompts.index[:, USER])
    assert EncodedDataset(processor, rows).encoded.shared_prompts(8) is None
    items, outcomes = np.zeros((len(rows), 1), np.int32), np.zeros((len(rows), 1), np.int8)
    encoded.histories = Histories(items, outcomes, np.zeros((1, 1), np.int32), np.zeros(1, np.int32))
    assert encoded.shared_prompts(8) is None


def test_keys_tell_prompts_apart_whatever_the_padding():
    ids = torch.tensor([[5, 6, 0, 0], [5, 6, 0, 9], [6, 5, 0, 0], [5, 6, 0, 0]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]])
    keys = prompt_keys(ids, mask)
    assert keys[0] == keys[1] == prompt_keys(ids[:1, :2], mask[:1, :2])[0]
    assert len(set(keys.tolist())) == 3


def test_processor_and_model_of_other_prompts_refuse_each_other(processor, entity_processor, text_config, rows):
    model = FlipForCTR(entity_config(entity_processor, text_config)).eval()
    with pytest.raises(ValueError, match=r"prompts='entity'.*\(B, 2, L\).*got \(24, \d+\).*same `prompts`"):
        model(**processor(rows))
    by_row = FlipForCTR(tiny.flip_config(processor.fields, text_config)).eval()
    with pytest.raises(ValueError, match=r"prompts='row'.*\(B, L\).*got \(24, 2, \d+\)"):
        by_row(**entity_processor(rows))


def test_processor_says_what_prompts_may_be(rows, tokenizer):
    with pytest.raises(ValueError, match="`prompts` must be one of 'row', 'entity'; got 'user'"):
        FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer, prompts="user")


def test_a_saved_processor_and_model_keep_their_prompts(entity_processor, text_config, rows, tmp_path):
    model = tiny.shake(FlipForCTR(entity_config(entity_processor, text_config))).eval()
    model.save_pretrained(tmp_path)
    entity_processor.save_pretrained(tmp_path)
    again, processor = FlipForCTR.from_pretrained(tmp_path).eval(), FlipProcessor.from_pretrained(tmp_path)
    assert processor.prompts == again.config.prompts == "entity"
    torch.testing.assert_close(again(**processor(rows)).logits, model(**entity_processor(rows)).logits, rtol=0, atol=0)


# --- click prediction


def naive_logits(model: FlipForCTR, batch) -> torch.Tensor:
    """The logits of a loop that lets the PLM read the prompts of one row at a time."""
    logits = []
    for row in range(len(batch["feature_ids"])):
        pooled = []
        for prompt in batch["prompt_index"][row]:
            length = int(batch["attention_mask"][prompt].sum())
            ids = batch["input_ids"][prompt, :length][None]
            pooled.append(model.flip.text_encoder(input_ids=ids).last_hidden_state[:, 0])
        interaction = model.flip.text_interaction
        own = sum(layer(state) for layer, state in zip(interaction.own, pooled))
        first, second = (layer(state) for layer, state in zip(interaction.factors, pooled))
        state = own + interaction.product(first * second)
        text = model.text_classifier(state)
        ids = batch["feature_ids"][row][None]
        h_id = model.flip.id_tower(ids)
        joint, _ = model.fusion(model.id_classifier(h_id), text, h_id, state, ids)
        logits.append(torch.cat([joint, model.id_classifier(h_id), text], dim=1))
    return torch.cat(logits)


@pytest.mark.parametrize("shared", [True, False], ids=["many rows a prompt", "one prompt a row"])
def test_click_model_equals_a_loop_over_rows(entity_processor, calm_config, rows, shared):
    rows = rows if shared else rows[:7]
    batch = compact_batch(entity_processor, rows)
    model = tiny.shake(FlipForCTR(entity_config(entity_processor, calm_config, fusion="gate")))
    labels = torch.tensor([row["label"] for row in rows])

    output = model(**batch, labels=labels)
    output.loss.backward()
    compact = gradients(model)

    model.zero_grad()
    again = model(**row_form(batch), labels=labels)
    again.loss.backward()
    torch.testing.assert_close(again.logits, output.logits)
    assert_same_gradients(gradients(model), compact)

    model.zero_grad()
    expected = naive_logits(model, batch)
    torch.testing.assert_close(torch.cat([output.logits, output.id_logits, output.text_logits], dim=1), expected)
    targets = labels.float()[:, None].expand(-1, 3)
    nn.functional.binary_cross_entropy_with_logits(expected, targets, reduction="none").sum(1).mean().backward()
    assert_same_gradients(gradients(model), compact)


def test_known_pooled_states_are_not_read_again(entity_processor, calm_config, rows):
    batch = compact_batch(entity_processor, rows)
    model = tiny.shake(FlipForCTR(entity_config(entity_processor, calm_config, strategy="plm"))).eval()
    pooled = model.flip.pooled_text(batch["input_ids"], batch["attention_mask"])
    model.flip.text_encoder.forward = None  # would fail
    given = model(prompt_index=batch["prompt_index"], text_pooled=pooled).logits
    del model.flip.text_encoder.forward
    torch.testing.assert_close(given, model(**batch).logits)


def test_frozen_text_is_a_field_with_entity_prompts_too(entity_processor, calm_config, rows):
    batch = compact_batch(entity_processor, rows)
    model = tiny.shake(FlipForCTR(entity_config(entity_processor, calm_config, strategy="frozen")))
    output = model(**batch, labels=torch.tensor([row["label"] for row in rows]))
    torch.testing.assert_close(model(**row_form(batch)).logits, output.logits)
    output.loss.backward()
    assert model.flip.text_interaction.own[0].weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.flip.text_encoder.parameters())


def test_text_features_and_outputs_of_the_model_in_both_forms(entity_processor, calm_config, rows):
    batch = compact_batch(entity_processor, rows)
    model = tiny.shake(FlipModel(entity_config(entity_processor, calm_config))).eval()
    compact, written_out = model(**batch), model(**row_form(batch))
    index = batch["prompt_index"]
    assert compact.text_pooled.shape == (len(batch["input_ids"]), 16) and written_out.text_pooled.shape == (24, 2, 16)
    torch.testing.assert_close(compact.text_pooled[index], written_out.text_pooled)
    torch.testing.assert_close(compact.text_hidden_states[index], written_out.text_hidden_states)
    torch.testing.assert_close(compact.text_embeds, written_out.text_embeds)
    prompts = {name: batch[name] for name in ("input_ids", "attention_mask", "prompt_index")}
    torch.testing.assert_close(model.get_text_features(**prompts), compact.text_embeds)


# --- pretraining


def naive_pretraining(model: FlipForPretraining, batch) -> dict[str, torch.Tensor]:
    """The three losses by loops over rows, prompts and candidates."""
    flip, rows, index = model.flip, len(batch["feature_ids"]), batch["prompt_index"]
    slots = [[field.entity for field in model.config.id_fields][f] for f in model.config.slot_fields]

    def alone(row: int, entity: int) -> torch.Tensor:
        ids = batch["feature_ids"][row].clone()
        for slot, of in enumerate(slots):
            if of != ("user", "item")[entity] and ids[slot] != PAD_ID:
                ids[slot] = MASK_ID
        return ids

    def read(ids, prompt):
        length = int(batch["attention_mask"][prompt].sum())
        return flip.text_encoder(input_ids=ids[prompt, :length][None]).last_hidden_state[0]

    # MLM: each pair of a prompt and a row
    total, count = 0.0, 0
    for row, entity in batch["mlm_pairs"].nonzero().tolist():
        prompt = int(index[row, entity])
        at = (batch["mlm_labels"][prompt] != IGNORE_INDEX).nonzero()[:, 0]
        states = read(batch["masked_input_ids"], prompt)[at]
        h_id = flip.id_tower(alone(row, entity)[None]).expand(len(at), -1)
        logits = model.mlm_head(states, h_id)
        total = total + nn.functional.cross_entropy(logits, batch["mlm_labels"][prompt, at], reduction="sum")
        count += len(at)
    mlm = total / count

    # MTM: each row attends to the tokens of its own prompts
    total, count = 0.0, 0
    for row in range(rows):
        tokens = torch.cat([read(batch["input_ids"], int(prompt)) for prompt in index[row]])[None]
        h_id = flip.id_tower(batch["masked_feature_ids"][row][None])
        vectors = model.mtm_head.represent(
            h_id, tokens, torch.ones(1, tokens.shape[1]), torch.zeros(1, 1, dtype=torch.long)
        )
        labels = batch["mtm_labels"][row][None].clone()
        scores = model.mtm_head.scores(vectors, labels.clone(), batch["noise_uniform"][row][None])
        total, count = total + masked_tabular_loss(scores), count + int((labels != IGNORE_INDEX).sum())
    mtm = total / count

    # ICL: distinct entities, and rows of one user
    pooled = torch.stack([read(batch["input_ids"], prompt)[0] for prompt in range(len(batch["input_ids"]))])
    scale, terms = model.icl_scale(), []
    for entity in (USER, ITEM):
        first_rows = {tuple(alone(row, entity).tolist()): row for row in reversed(range(rows))}
        ids = list(first_rows)
        of_ids = flip.project(flip.id_tower(torch.tensor(ids)), flip.id_projection)
        prompts = sorted(set(index[:, entity].tolist()))
        of_texts = flip.project(flip.text_interaction.alone(pooled[prompts], entity), flip.text_projection)
        similar = scale * of_ids @ of_texts.T
        prompt_of = [prompts.index(int(index[first_rows[one], entity])) for one in ids]
        loss = 0.0
        for number, prompt in enumerate(prompt_of):
            loss = loss - similar[number].log_softmax(0)[prompt]
            positives = [other for other, theirs in enumerate(prompt_of) if theirs == prompt]
            loss = loss - similar[:, prompt].log_softmax(0)[positives].logsumexp(0)
        terms.append(loss / (2 * len(ids)))
    of_rows = flip.project(flip.id_tower(batch["feature_ids"]), flip.id_projection)
    of_texts = flip.project(flip.text_interaction(pooled, index), flip.text_projection)
    similar, loss, anchors = scale * of_rows @ of_texts.T, 0.0, 0
    for row in range(rows):
        user = [other for other in range(rows) if tuple(alone(other, USER)) == tuple(alone(row, USER))]
        same = [n for n, other in enumerate(user) if index[other].tolist() == index[row].tolist()]
        if len(same) < len(user):
            anchors += 1
            for line in (similar[row, user], similar[user, row]):
                loss = loss - line.log_softmax(0)[same].logsumexp(0) / 2
    terms.append(loss / anchors)
    return {"mlm_loss": mlm, "mtm_loss": mtm, "icl_loss": sum(terms) / 3}


@pytest.fixture(scope="module")
def pretraining_batch(entity_processor, rows):
    return tiny.pretraining_batch(entity_processor, rows, text_mask_ratio=0.5, id_mask_ratio=0.4)


@pytest.fixture(scope="module")
def pretraining_model(entity_processor, calm_config, rows):
    model = tiny.shake(FlipForPretraining(entity_config(entity_processor, calm_config)))
    model.set_feature_counts(torch.from_numpy(entity_processor.count_features(rows)))
    return model


def test_pretraining_equals_loops_over_rows_and_prompts(pretraining_model, pretraining_batch):
    model, batch = pretraining_model, pretraining_batch
    model.zero_grad()
    output = model(**batch)
    output.loss.backward()
    compact = gradients(model)
    expected = naive_pretraining(model, batch)
    for name, value in expected.items():
        torch.testing.assert_close(output[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")

    model.zero_grad()
    sum(expected.values()).backward()
    assert_same_gradients(gradients(model), compact, tolerance=1e-5)

    model.zero_grad()
    again = model(**row_form(batch))
    torch.testing.assert_close(again.loss, output.loss)
    again.loss.backward()
    assert_same_gradients(gradients(model), compact, tolerance=1e-5)


def test_known_token_states_are_not_read_again(pretraining_model, pretraining_batch):
    model, batch = pretraining_model, pretraining_batch
    clean, masked = (
        model.flip.encode_text(batch[name], batch["attention_mask"]) for name in ("input_ids", "masked_input_ids")
    )
    expected = model(**batch)
    given = model(**batch, text_hidden_states=clean, masked_text_hidden_states=masked)
    for name in ("mlm_loss", "mtm_loss", "icl_loss"):
        torch.testing.assert_close(given[name], expected[name])


def test_sums_of_parts_are_those_of_the_whole(pretraining_model, pretraining_batch):
    """What GradCache adds up: rows in parts, each with all prompts."""
    model, batch = pretraining_model, pretraining_batch
    whole = model(**batch, reduction="sum")
    sums = {"mlm_loss": 0.0, "mtm_loss": 0.0}
    by_row = [name for name, values in batch.items() if len(values) == len(batch["feature_ids"])]
    views = []
    for part in range(0, len(batch["feature_ids"]), 5):
        rows = slice(part, part + 5)
        output = model(**batch | {name: batch[name][rows] for name in by_row}, reduction="sum")
        sums = {name: total + output[name] for name, total in sums.items()}
        views.append(output.id_embeds)
    for name, total in sums.items():
        torch.testing.assert_close(total, whole[name])
    torch.testing.assert_close(torch.cat(views), whole.id_embeds)
    assert whole.id_embeds.shape == (24, 3, 8)


def test_accuracies_say_what_was_learned_of_each_entity(pretraining_model, pretraining_batch):
    model = pretraining_model.eval()
    with torch.no_grad():
        output = model(**pretraining_batch)
    model.train()
    for objective in ("mlm", "mtm"):
        parts = [output.by_entity[f"{objective}_{entity}_accuracy"] for entity in ("user", "item")]
        hits, targets = sum(parts).tolist()
        assert targets == output[f"num_{objective}_targets"]
        assert math.isclose(hits / targets, output[f"{objective}_accuracy"].item(), rel_tol=1e-6)
        for entity in ("user", "item"):
            assert output.by_entity[f"{objective}_{entity}_shuffled_accuracy"][1] > 0
    assert output.by_entity["icl_item_accuracy"][1] == 9 and output.by_entity["icl_user_accuracy"][1] == 7
    within = output.by_entity["icl_within_user_accuracy"]
    assert math.isclose((within[0] / within[1]).item(), output.icl_accuracy.item(), rel_tol=1e-6)


def test_losses_start_where_chance_is(entity_processor, calm_config, rows, pretraining_batch):
    """Without anything learned an entity is one of as many as are distinct in the batch."""
    model = FlipForPretraining(entity_config(entity_processor, calm_config, mlm_weight=0.0, mtm_weight=0.0)).eval()
    for layer in (model.flip.id_projection, model.flip.text_projection):
        nn.init.zeros_(layer.norm.weight)
        nn.init.ones_(layer.norm.bias)
    keys = model.view_keys(
        *(pretraining_batch[n] for n in ("feature_ids", "input_ids", "attention_mask", "prompt_index"))
    )
    ones = torch.ones(24, 3, 8) / math.sqrt(8)
    terms = entity_contrasts(ones, ones, keys, ["user", "item"], 1.0)
    assert math.isclose(terms["user"].loss, math.log(7), rel_tol=1e-5)
    assert math.isclose(terms["item"].loss, math.log(9), rel_tol=1e-5)


@pytest.mark.parametrize("off", ["mlm_weight", "mtm_weight", "icl_weight"])
def test_each_objective_can_be_off(entity_processor, calm_config, rows, pretraining_batch, off):
    model = FlipForPretraining(entity_config(entity_processor, calm_config, **{off: 0.0}))
    model.set_feature_counts(torch.from_numpy(entity_processor.count_features(rows)))
    output = model(**pretraining_batch)
    assert output.get(off.replace("weight", "loss")) is None
    output.loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []  # as DDP demands


@pytest.mark.parametrize("settings", [{"mtm_weight": 0, "icl_weight": 0}, {"mlm_weight": 0, "icl_weight": 0}])
def test_one_objective_alone(entity_processor, calm_config, rows, pretraining_batch, settings):
    for without in ({}, {"mlm_id_dropout": 1.0, "mtm_text_dropout": 1.0}):
        model = FlipForPretraining(entity_config(entity_processor, calm_config, **settings, **without))
        model.set_feature_counts(torch.from_numpy(entity_processor.count_features(rows)))
        model(**pretraining_batch).loss.backward()


def test_masks_are_of_prompts_and_pairs_are_of_rows(entity_processor, rows):
    """A prompt is masked alike in every batch of an epoch, at least one field and never all, and predicted once."""
    dataset, collator = EncodedDataset(entity_processor, rows), FlipPretrainingCollator(entity_processor, seed=3)
    seen: dict[int, tuple] = {}
    for picked in (range(24), range(5, 17), [3, 3 + 7, 3 + 14]):
        batch = collator(dataset.__getitems__(list(picked)))
        for ids, mask, masked in zip(batch["input_ids"], batch["attention_mask"], batch["masked_input_ids"]):
            kept = tuple(masked[mask == 1].tolist())
            assert seen.setdefault(int(prompt_keys(ids, mask)), kept) == kept
        labels = batch["mlm_labels"] != IGNORE_INDEX
        assert labels.any(1).all()
        pairs = batch["prompt_index"][batch["mlm_pairs"]]
        assert sorted(pairs.tolist()) == list(range(len(batch["input_ids"])))
    collator.set_epoch(1)
    again = collator(dataset.__getitems__(list(range(24))))
    kept = [tuple(m[a == 1].tolist()) for m, a in zip(again["masked_input_ids"], again["attention_mask"])]
    assert set(kept) != set(seen.values())


def test_distinct_prompts_of_no_rows():
    (ids,), index = distinct_prompts([torch.zeros(0, 2, 5, dtype=torch.long)])
    assert ids.shape == (0, 5) and index.shape == (0, 2)
