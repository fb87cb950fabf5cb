"""What a saved checkpoint must not hold: pickles, paths of this machine, tokens; and raw user values where hashing was
asked for."""

import getpass
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModel, AutoProcessor, BertConfig, BertModel

from flip_ctr import FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.modeling_flip.feature_extraction_flip import HASH_KEY_VARIABLE

HASHED = ["user_id", "age", "zip_code"]


@pytest.fixture(scope="module")
def everything(finetuned, pretrained, tmp_path_factory, dataset_dir):
    """Folders of each kind of checkpoint that the recipes write."""
    folder = tmp_path_factory.mktemp("safety")
    tiny.finetune(dataset_dir, pretrained, folder / "adapter", use_lora=True, lora_adapter_only=True)
    tiny.finetune(dataset_dir, pretrained, folder / "merged", use_lora=True)
    return [*(path for path, _ in finetuned.values()), pretrained, folder / "adapter", folder / "merged"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_path_and_no_name_of_this_machine(everything, dataset_dir, plm):
    places = {
        str(dataset_dir.parent),
        str(plm.parent),
        tempfile.gettempdir() + "/",
        os.getcwd(),
        str(Path.home()) + "/",
    }
    for folder in everything:
        for name, content in contents(folder).items():
            if name.endswith(".png"):
                continue
            for place in places | {str(folder), f"/{getpass.getuser()}/"}:
                assert place.encode() not in content, (folder, name, place)


def test_no_token_in_any_file(tmp_path, dataset_dir, monkeypatch):
    """Though the arguments are recorded; nor in a tracker's log."""
    monkeypatch.setenv("HF_TOKEN", "hf_from-the-environment")
    with pytest.raises(ConnectionError, match="was not published"):  # the tests have no network
        tiny.finetune(dataset_dir, None, tmp_path / "m", push_to_hub=True, hub_model_id="org/m")
    files = contents(tmp_path / "m")
    assert "training_args.json" in files
    assert not any(b"hf_from" in content for content in files.values())


def test_safetensors_and_text_only(everything):
    allowed = {".safetensors", ".json", ".py", ".md", ".png", ".log"}  # (a push leaves the log behind)
    for folder in everything:
        files = contents(folder)
        assert {Path(name).suffix for name in files} <= allowed
        # a pickle starts with its protocol, a zip (which torch.save writes) with PK
        assert not any(content[:2] in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK") for content in files.values())


def test_loading_unpickles_nothing(everything, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a pickle was loaded")

    monkeypatch.setattr("pickle.load", refuse)
    monkeypatch.setattr("pickle.loads", refuse)
    monkeypatch.setattr("torch.load", refuse)
    for folder in everything:
        AutoProcessor.from_pretrained(folder)
        if not (folder / "adapter_config.json").exists():
            AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("cls", [FlipForCTR, FlipForPretraining])
def test_a_pickled_checkpoint_is_refused(tmp_path, processor, text_config, cls):
    model = cls(tiny.flip_config(processor.fields, text_config))
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="model.safetensors is missing"):
        cls.from_pretrained(tmp_path)
    model.config.save_pretrained(tmp_path)  # without checksums
    with pytest.raises(OSError, match="model.safetensors"):
        cls.from_pretrained(tmp_path)


def test_the_path_of_the_plm_is_not_saved(tmp_path, processor):
    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=107)
    ).save_pretrained(tmp_path / "plm")
    text_config = BertConfig.from_pretrained(tmp_path / "plm")
    FlipForCTR(tiny.flip_config(processor.fields, text_config)).save_pretrained(tmp_path / "m")
    assert str(tmp_path) not in (tmp_path / "m" / "config.json").read_text()


# --- hashed user values


@pytest.fixture
def hashed(tokenizer, rows):
    return FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer, max_length=96, hash_user_values=True)


def relabelled(expected: torch.Tensor, got: torch.Tensor) -> bool:
    """Whether the columns of hashed fields hold the same values under other ids, special ids stay, and the other
    columns are equal."""
    pairs = [set(zip(*columns)) for columns in zip(expected.T.tolist(), got.T.tolist())]
    one_to_one = all(len(found) == len({a for a, _ in found}) == len({b for _, b in found}) for found in pairs)
    hashed_columns = [0, 1, 2]  # user_id, age, zip_code
    same = all(a == b for column, found in enumerate(pairs) for a, b in found if column not in hashed_columns or a < 4)
    return one_to_one and same


def test_hashing_relabels_and_nothing_else(processor, hashed, rows, tmp_path):
    unseen = [row | {"user_id": 999, "zip_code": None} for row in rows[:3]]
    hashed.save_pretrained(tmp_path)
    for one in (hashed, AutoProcessor.from_pretrained(tmp_path)):
        expected, got = processor(rows + unseen), one(rows + unseen)
        assert expected.keys() == got.keys() and relabelled(expected["feature_ids"], got["feature_ids"])
        assert all(torch.equal(expected[name], got[name]) for name in expected if name != "feature_ids")


def test_the_order_of_hashes_tells_nothing(hashed):
    named = dict(
        zip([field.name for field in hashed.feature_extractor.id_fields], hashed.feature_extractor.vocabularies)
    )
    assert all(named[name] == sorted(named[name]) for name in HASHED)  # not by frequency or value


def test_the_same_rows_give_the_same_ids(rows):
    """So that a seed still determines a run."""
    first, second = (FlipProcessor.from_dataset(rows, tiny.FIELDS, hash_user_values=True)(rows) for _ in range(2))
    assert torch.equal(first["feature_ids"], second["feature_ids"])


def test_raw_user_values_are_not_saved(hashed, rows, tmp_path):
    hashed.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())["feature_extractor"]
    assert saved["hashed_fields"] == HASHED
    named = dict(zip([field.name for field in hashed.feature_extractor.id_fields], saved["vocabularies"]))
    for field in HASHED:
        raw = {str(row[field]) for row in rows}
        assert (
            not raw & set(named[field])
            and all(len(value) == 32 for value in named[field])
            and len(named[field]) == len(raw)
        )
    assert named["title"] and not any(len(value) == 32 for value in named["title"])  # of items they stay readable
    assert all(
        zip_code not in (tmp_path / "processor_config.json").read_text()
        for zip_code in {row["zip_code"] for row in rows}
    )


def test_other_rows_other_hashes(rows):
    first, second = (FlipProcessor.from_dataset(part, tiny.FIELDS, hash_user_values=True) for part in (rows, rows[:5]))
    assert not set(first.feature_extractor.vocabularies[0]) & set(second.feature_extractor.vocabularies[0])


def test_a_secret_key_is_needed_where_one_was_used(rows, tmp_path, monkeypatch, id_processor):
    monkeypatch.setenv(HASH_KEY_VARIABLE, "a secret")
    FlipProcessor.from_dataset(rows, tiny.FIELDS, hash_user_values=True).save_pretrained(tmp_path)
    assert "a secret" not in (tmp_path / "processor_config.json").read_text()
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert relabelled(id_processor(rows)["feature_ids"], loaded(rows)["feature_ids"])
    monkeypatch.setenv(HASH_KEY_VARIABLE, "another")
    with pytest.raises(
        ValueError, match=f"column 'user_id': .*user_id, age, zip_code.*{HASH_KEY_VARIABLE} holds another key"
    ):
        loaded(rows)
    monkeypatch.delenv(HASH_KEY_VARIABLE)
    with pytest.raises(ValueError, match=f"{HASH_KEY_VARIABLE} is not set"):
        loaded(rows)
    nobody = [row | dict.fromkeys(HASHED) for row in rows]  # what it can still do: score items for an unknown user
    assert torch.equal(loaded(nobody)["feature_ids"], id_processor(nobody)["feature_ids"])


def test_no_user_field_nothing_to_hash(rows):
    with pytest.raises(ValueError, match="no field on the ID side has entity 'user'"):
        FlipProcessor.from_dataset(rows, [{"name": "title", "entity": "item"}], hash_user_values=True)


def test_the_recipe_hashes_and_scores_by_raw_values(tmp_path, dataset_dir):
    """Rows as people have them are scored; what a user's values are makes a difference, so they are recognised."""
    tiny.finetune(dataset_dir, None, tmp_path / "m", hash_user_values=True, learning_rate=0.05)
    rows = tiny.ml_rows(dataset_dir, 30)
    scores = []
    for number, batch in enumerate((rows, [row | {"user_id": -1, "zip_code": "unseen"} for row in rows])):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in batch))
        scores.append(tiny.predicted(tmp_path / "m", path).column("click_probability").to_numpy())
    assert np.abs(scores[0] - scores[1]).max() > 1e-4
    card = (tmp_path / "m" / "README.md").read_text()
    assert "the vocabulary holds hashes only: `user_id`, `gender`, `age`, `occupation`, `zip_code`" in card


def test_a_raw_vocabulary_is_not_hashed_afterwards(tmp_path, dataset_dir, pretrained):
    with pytest.raises(
        ValueError,
        match="--hash_user_values: the vocabulary of .* holds the values themselves; pretrain with that flag",
    ):
        tiny.finetune(dataset_dir, pretrained, tmp_path / "m", hash_user_values=True)
