"""`flip-ctr embed`: the vectors of items and users that a checkpoint has, equal to those that its model makes."""

import numpy as np
import past
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from serving import USER, made, parted, saved

from flip_ctr import FlipForPretraining
from flip_ctr.serve.embed import run
from flip_ctr.train.serve_arguments import EmbedArguments


@pytest.fixture(scope="module")
def rows():
    return tiny.toy_rows()


def embedded(folder, model, processor, rows, entity="item", **options) -> tuple[dict, str]:
    """The vectors by column, and the keys."""
    users, items = parted(rows)
    pq.write_table(pa.Table.from_pylist(items if entity == "item" else users), folder / "rows.parquet")
    given = {"model_name_or_path": saved(folder / "m", model, processor), "input": str(folder / "rows.parquet")}
    output = str(folder / "v.parquet")
    run(EmbedArguments(**given, output=output, entity=entity, overwrite_output=True, **options))
    table = pq.read_table(output)
    vectors = {}
    for name in table.column_names:
        values = table.column(name).combine_chunks()
        vectors[name] = np.stack(values.to_pylist()) if pa.types.is_fixed_size_list(values.type) else values.to_pylist()
    return vectors


def test_a_pretrained_model_has_both_sides_in_one_space(tmp_path, rows, tokenizer, text_config, capsys):
    _, processor = made(rows, tiny.FIELDS, tokenizer, text_config, prompts="entity")
    config = tiny.flip_config(processor.fields, text_config, prompts="entity")
    model = tiny.shake(FlipForPretraining(config)).eval()
    batch = processor(rows)
    with torch.no_grad():
        ids, texts = model.contrastive_views(batch["feature_ids"], batch["input_ids"], batch["attention_mask"])
    for place, entity, key in ((1, "user", "user_id"), (2, "item", "movie_id")):
        vectors = embedded(tmp_path, model, processor, rows, entity)
        assert len(vectors[key]) == len({row[key] for row in rows})
        for row, of_ids, of_text in zip(rows, ids[:, place], texts[:, place]):
            number = vectors[key].index(row[key])
            np.testing.assert_allclose(vectors["id_embeds"][number], of_ids, atol=1e-5)
            np.testing.assert_allclose(vectors["text_embeds"][number], of_text, atol=1e-5)
    assert "text_embeds: its prompt in the space that both sides share" in capsys.readouterr().out


def test_rows_of_one_key_are_counted(tmp_path, rows, tokenizer, text_config, caplog):
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, strategy="id")
    embedded(tmp_path, model, processor, rows)
    assert "different movie_id" not in caplog.text
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clicks.parquet")
    given = {"model_name_or_path": str(tmp_path / "m"), "output": str(tmp_path / "v.parquet"), "overwrite_output": True}
    run(EmbedArguments(**given, input=str(tmp_path / "clicks.parquet")))
    keys = len({row["movie_id"] for row in rows})
    assert f"{len(rows):,} rows have {keys:,} different movie_id, title, and each is written; a" in caplog.text


@pytest.mark.parametrize("strategy", ["id", "plm", "joint"])
def test_a_click_model_has_what_its_towers_have(tmp_path, rows, tokenizer, text_config, strategy, capsys):
    prompts = "row" if strategy == "id" else "entity"
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, prompts=prompts, strategy=strategy)
    vectors = embedded(tmp_path, model, processor, rows)
    assert {"id_features", "text_pooled"} & vectors.keys() == {
        "id": {"id_features"},
        "plm": {"text_pooled"},
        "joint": {"id_features", "text_pooled"},
    }[strategy]
    said = capsys.readouterr().out
    assert "id_embeds: none, as it was not trained to compare both sides (ICL)" in said or strategy == "plm"
    by_key = {row["movie_id"]: number for number, row in enumerate(rows)}
    batch = processor([rows[by_key[key]] for key in vectors["movie_id"]])
    with torch.no_grad():
        if strategy != "plm":
            embeds = model.flip.id_tower.embeddings(batch["feature_ids"])[:, 3:].flatten(1)
            np.testing.assert_allclose(vectors["id_features"], embeds, atol=1e-6)
        if strategy != "id":
            pooled = model.flip.pooled_text(batch["input_ids"][:, 1], batch["attention_mask"][:, 1])
            np.testing.assert_allclose(vectors["text_pooled"], pooled, atol=1e-5)


def test_items_of_a_dataset_folder(tmp_path, tokenizer, text_config):
    rows = past.past_rows(96)
    model, processor = made(rows, past.FIELDS, tokenizer, text_config, prompts="entity")
    data = past.write_past_dataset(tmp_path / "d")
    path = saved(tmp_path / "m", model, processor)
    options = {"model_name_or_path": path, "input": str(data)}
    sizes = run(EmbedArguments(**options, output=str(tmp_path / "i.parquet")))
    assert sizes == {"id_features": 12, "text_pooled": 16}
    assert pq.read_table(tmp_path / "i.parquet").num_rows == 9
    run(EmbedArguments(**options, output=str(tmp_path / "u.parquet"), entity="user"))
    assert pq.read_table(tmp_path / "u.parquet").column_names == ["user_id", "id_features", "text_pooled"]


def test_what_there_is_not_is_said(tmp_path, rows, tokenizer, text_config, capsys):
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, strategy="plm", prompts="row")
    with pytest.raises(ValueError, match="has no vectors of 'item'"):
        embedded(tmp_path, model, processor, rows)
    said = capsys.readouterr().out
    assert "id_features: none, as it has no ID tower" in said
    assert r"text_pooled: none, as 'item' has no prompt of its own (prompts: row)" in said
    model, processor = made(rows, tiny.FIELDS, tokenizer, text_config, prompts="entity")
    with pytest.raises(ValueError, match="--entity shop: the model's fields are of user, item"):
        embedded(tmp_path, model, processor, rows, "shop")
    given = {"model_name_or_path": str(tmp_path / "m"), "input": str(tmp_path / "rows.parquet")}
    with pytest.raises(ValueError, match="--output must be a .parquet file"):
        run(EmbedArguments(**given, output=str(tmp_path / "v.csv")))
    tiny.save_bert(tmp_path / "plm", tokenizer)
    with pytest.raises(ValueError, match="plm is a BertModel, not a FLIP model"):
        run(EmbedArguments(**given | {"model_name_or_path": str(tmp_path / "plm")}, output=str(tmp_path / "v.parquet")))
    (tmp_path / "there.parquet").write_text("x")
    with pytest.raises(ValueError, match="there.parquet is there already"):
        run(EmbedArguments(**given, output=str(tmp_path / "there.parquet")))
    users = pa.Table.from_pylist([{name: row[name] for name in USER} for row in rows])
    pq.write_table(users, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="'title'"):
        run(EmbedArguments(**given, output=str(tmp_path / "v.parquet")))
