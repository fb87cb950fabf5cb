"""Vocabularies that grow: new values get ids behind those that are there, and no score of a row moves until they
learn."""

import pytest
import tiny
import torch

from flip_ctr import FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.modeling_flip.fields_flip import NUM_RESERVED_IDS, UNK_ID, FlipField
from flip_ctr.modeling_flip.id_tower import IdTower, register_id_tower

FIELDS = [FlipField("user_id", "int", entity="user", key=True, sides=("id",)), *tiny.KIND_FIELDS[1:]]


def day(number: int) -> list[dict]:
    """Rows of a day; the second has users, films and genres that the first has not."""
    rows = tiny.kind_rows(24)
    if number == 2:
        rows = [
            row | {"user_id": row["user_id"] + 5, "movie_id": row["movie_id"] + 7, "genres": ["Western", "Drama"]}
            for row in rows
        ]
    return rows


def processor_of(rows, tokenizer=None, **settings) -> FlipProcessor:
    return FlipProcessor.from_dataset(rows, FIELDS, tokenizer, **settings)


def test_new_values_come_behind_those_that_are_there():
    processor = processor_of(day(1))
    before = processor.feature_extractor.encode(processor.feature_extractor.read(day(1)))
    old = [list(words) for words in processor.feature_extractor.vocabularies]
    added = processor.grow(day(2) + [day(2)[0] | {"user_id": 99}], min_frequency=2)
    extractor = processor.feature_extractor
    assert {name: number for name, number in added.items() if number} == {"user_id": 5, "movie_id": 7, "genres": 1}
    assert all(new[: len(words)] == words for words, new in zip(old, extractor.vocabularies))
    assert (extractor.encode(extractor.read(day(1))) == before).all()
    users = dict(zip([field.name for field in extractor.id_fields], extractor.vocabularies))["user_id"]
    counts = {user: sum(row["user_id"] == int(user) for row in day(2)) for user in users[7:]}
    assert users[7:] == sorted(counts, key=lambda user: (-counts[user], user)) and len(counts) == 5
    assert "99" not in users  # seen once
    assert processor.grow(day(2), min_frequency=2) == dict.fromkeys(added, 0)


def test_grown_on_two_days_or_on_none(tmp_path):
    """What was saved and loaded grows as what was not; unknown keys are counted by field."""
    processor = processor_of(day(1))
    unknown = processor.feature_extractor.unknown_keys(processor.feature_extractor.read(day(2)))
    assert unknown["user_id"].sum() == sum(row["user_id"] > 7 for row in day(2)) > 0
    processor.save_pretrained(tmp_path)
    again = FlipProcessor.from_pretrained(tmp_path)
    for one in (processor, again):
        one.grow(day(2))
    assert again.feature_extractor.vocabularies == processor.feature_extractor.vocabularies
    assert not any(
        rows.any() for rows in again.feature_extractor.unknown_keys(again.feature_extractor.read(day(2))).values()
    )


def test_hashed_vocabularies_grow_with_their_key(monkeypatch):
    monkeypatch.setenv("FLIP_HASH_KEY", "secret")
    processor = processor_of(day(1), hash_user_values=True)
    added = processor.grow(day(2))
    users = processor.feature_extractor.vocabularies[0]
    assert added["user_id"] == 5 and users[7:] == sorted(users[7:]) and not any(user.isdigit() for user in users)
    assert not processor.feature_extractor.unknown_keys(processor.feature_extractor.read(day(2)))["user_id"].any()
    monkeypatch.setenv("FLIP_HASH_KEY", "another")
    with pytest.raises(ValueError, match="column 'user_id'.*FLIP_HASH_KEY holds another key"):
        processor.grow(day(2))


@pytest.mark.parametrize("tower", tiny.ALL_TOWERS)
def test_scores_stay_bit_for_bit_and_new_rows_learn(tower):
    name, kwargs = tiny.ALL_TOWERS[tower]
    fields = {"f0": "user_id", "f1": "age", "f2": "movie_id"}
    kwargs = {key: [fields[one] for one in value] if "context" in key else value for key, value in kwargs.items()}
    processor = processor_of(day(1))
    config = tiny.flip_config(processor.fields, id_tower=name, id_tower_kwargs=kwargs, strategy="id")
    model = tiny.shake(FlipForCTR(config)).eval()
    rows = day(1) + day(2)
    before, ids = model(**processor(rows)).logits, processor(rows)["feature_ids"]
    processor.grow(day(2))
    model.grow(processor.fields)
    inputs = processor(rows)
    assert torch.equal(model(**inputs).logits, before)
    assert torch.equal(inputs["feature_ids"][:24], ids[:24]) and not torch.equal(inputs["feature_ids"], ids)
    table, size = model.flip.id_tower.embeddings, ids[:, 0].max()
    new = inputs["feature_ids"][:, 0].max()
    assert new > size and all(torch.equal(getattr(table, name), now) for name, now in table._numbers().items())
    model.train()(**inputs).loss.backward()
    assert table.weight.grad[new].abs().sum() > 0  # a user of the second day
    with torch.no_grad():
        table.weight -= table.weight.grad
    assert not torch.equal(table.weight[new], table.weight[UNK_ID])


def test_a_grown_model_is_saved_and_loaded(tmp_path, tokenizer, text_config):
    processor = processor_of(day(1), tokenizer, max_length=128)
    model = tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, id_tower="deepfm"))).eval()
    processor.grow(day(2))
    model.grow(processor.fields)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    inputs = FlipProcessor.from_pretrained(tmp_path)(day(2))
    assert torch.equal(FlipForCTR.from_pretrained(tmp_path).eval()(**inputs).logits, model(**inputs).logits)


def test_pretraining_goes_on_with_what_has_grown(tokenizer, text_config):
    processor = processor_of(day(1), tokenizer, max_length=128)
    config = tiny.flip_config(processor.fields, text_config, mtm_full_softmax_size=3)
    model = tiny.shake(FlipForPretraining(config), 0.1)
    batch = tiny.pretraining_batch(processor, day(1))
    draws = {"mtm_noise_uniform": torch.rand(24, batch["feature_ids"].shape[1], config.mtm_num_noise).double()}
    before = model.eval()(**batch, **draws)
    processor.grow(day(2))
    model.grow(processor.fields)
    head = model.mtm_head
    sizes = [field["vocab_size"] for field in processor.fields if "id" in field["sides"]]
    assert head.field_sizes == model.flip.id_tower.embeddings.field_sizes == sizes
    assert len(head.embeddings.weight) == len(head.bias.weight) == len(head.feature_counts) == sum(sizes)
    lowest = head.bias.weight[: sizes[0]].amin()
    assert (head.bias.weight[NUM_RESERVED_IDS + 7 : sizes[0]] == lowest).all()
    after = model(**batch, **draws)  # of the first day's values, with that day's noise
    torch.testing.assert_close(after.mtm_loss, before.mtm_loss)
    model.set_feature_counts(processor.count_features(day(1) + day(2)))
    loss = model.train()(**tiny.pretraining_batch(processor, day(2))).loss
    loss.backward()
    assert torch.isfinite(loss) and head.embeddings.weight.grad[sizes[0] - 1].abs().sum() > 0


def test_what_does_not_grow():
    processor = processor_of(day(1))
    model = FlipForCTR(tiny.flip_config(processor.fields, strategy="id"))
    smaller = processor_of(day(1)[:5])
    with pytest.raises(ValueError, match="field 'user_id' has 11 ids in the model and was given 9; a vocabulary never"):
        model.grow(smaller.fields)
    with pytest.raises(ValueError, match="the model has the ID-side fields user_id, .*, and was given f0, f1"):
        model.grow(tiny.sized_fields(5, 6))


def test_an_own_table_is_named():
    @register_id_tower("own_table")
    class OwnTable(IdTower):
        def __init__(self, config):
            super().__init__(config)
            self.weights = torch.nn.Embedding(sum(config.field_sizes), 1)

        def interact(self, embeds):
            return embeds[:, :0, 0]

    processor = processor_of(day(1))
    model = FlipForCTR(tiny.flip_config(processor.fields, id_tower="own_table", strategy="id"))
    processor.grow(day(2))
    with pytest.raises(ValueError, match="OwnTable: `weights.weight` has the shape .*; make it a FeatureEmbedding"):
        model.grow(processor.fields)
