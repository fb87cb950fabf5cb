"""`flip-ctr demo`: the generated catalogue, the small PLM made on the spot, and the whole pipeline."""

import contextlib
import json
import shutil
import subprocess
from collections import Counter

import pytest
import tiny
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoProcessor, AutoTokenizer

from flip_ctr.data.datasets.synthetic import (
    THEMES,
    CatalogueSettings,
    TinyPlmSettings,
    generate_catalogue,
    generate_texts,
    make_tiny_plm,
    make_tokenizer,
)
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.train import cli, demo, finetune, pretrain
from flip_ctr.train.demo import METHODS, DemoArguments

SMALL = CatalogueSettings(users=40, items=60, rows=900)
TINY = TinyPlmSettings(hidden_size=16, layers=1, heads=2, steps=3, batch_size=16)


@pytest.fixture(scope="module")
def plm(tmp_path_factory):
    return make_tiny_plm(tmp_path_factory.mktemp("plm") / "plm", generate_texts(300), 0, TINY)


def test_same_seed_same_catalogue():
    first = generate_catalogue(SMALL, seed=1)
    assert first.equals(generate_catalogue(SMALL, seed=1))
    assert not first.equals(generate_catalogue(SMALL, seed=2))


def test_pairs_are_unique_and_titles_name_one_item():
    rows = generate_catalogue(SMALL).to_pandas()
    assert len(rows) == 900 and not rows.duplicated(["user_id", "item_id"]).any()
    assert rows.groupby("title").item_id.nunique().max() == rows.groupby("item_id").title.nunique().max() == 1
    assert rows.genre.isna().any() and rows.genre.notna().any()


def test_more_rows_than_pairs_is_an_error():
    with pytest.raises(ValueError, match="11 rows need as many pairs; 2 users and 5 items have 10"):
        generate_catalogue(CatalogueSettings(users=2, items=5, rows=11))


def test_title_tells_the_theme_and_genre_does_not():
    items = generate_catalogue().to_pandas().drop_duplicates("item_id")
    theme_of = {word: theme for theme, words in THEMES.items() for word in words.split()}
    for title, theme in zip(items.title, items.theme):
        found = [theme_of[word] for word in title.lower().replace(",", "").replace(":", "").split() if word in theme_of]
        assert set(found) == {theme} and len(found) == 2, title
    by_genre = (
        items.dropna(subset="genre").groupby("genre").theme.agg(lambda themes: Counter(themes).most_common(1)[0][1])
    )
    assert by_genre.sum() / items.genre.notna().sum() < 0.4


def test_what_people_think_of_a_theme_carries_over_to_other_items():
    """The demo's premise: the click rate of a group for a theme on some items predicts clicks on other items."""
    rows = generate_catalogue().to_pandas()
    cell, new = rows.gender + rows.age.astype(str) + rows.occupation + rows.theme, rows.item_id % 2 == 0
    rates = rows[~new].label.groupby(cell[~new]).mean()
    known = rows[new].assign(rate=cell[new].map(rates)).dropna(subset="rate")
    assert known.label[known.rate > 0.5].mean() > known.label[known.rate < 0.5].mean() + 0.2


def test_plm_loads_through_the_auto_classes(plm):
    tokenizer, model = AutoTokenizer.from_pretrained(plm), AutoModelForMaskedLM.from_pretrained(plm)
    inputs = tokenizer("title is The Comet and the Orbit (1987)", return_tensors="pt")
    assert tokenizer.unk_token_id not in inputs["input_ids"]
    assert model(**inputs).logits.shape == (*inputs["input_ids"].shape, len(tokenizer))
    assert AutoModel.from_pretrained(plm)(**inputs).last_hidden_state.shape[-1] == TINY.hidden_size
    assert tokenizer.unk_token_id not in tokenizer("Quixotic 42")["input_ids"], "unknown words are spelled"


def test_tokenizer_is_the_same_in_another_process(warm):
    code = (
        "from flip_ctr.data.datasets.synthetic import *; print(make_tokenizer(generate_texts(50), "
        "64).get_vocab()['comet'])"
    )
    other = subprocess.run([warm, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(other) == make_tokenizer(generate_texts(50), 64).get_vocab()["comet"]


def test_making_the_plm_leaves_the_random_state_alone(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    make_tiny_plm(tmp_path / "plm", generate_texts(20), 0, TINY)
    assert torch.equal(torch.rand(3), expected)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawing):
    """A whole run, as small as can be, in this process. Of the single runs two are drawn, those whose curves it shows;
    the pictures of all take as long as all else."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    args = DemoArguments(output_dir=str(folder), num_pretrain_epochs=1, num_train_epochs=1)
    shown = {str(folder / "models" / "random" / "flip" / "stages" / name) for name in ("align", "joint")}

    def drawn(function, wanted=lambda *given: True):
        def call(*given):
            with drawing() if wanted(*given) else contextlib.nullcontext():
                return function(*given)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for recipe in (pretrain, finetune):
            patch.setattr(recipe, "run", drawn(recipe.run, lambda args: args.output_dir in shown))
        patch.setattr(demo, "draw", drawn(demo.draw))
        patch.setattr(demo, "PARALLEL", False)
        patch.setattr(demo, "RESAMPLES", 5)
        return folder, demo.run(args, SMALL, TINY)


def test_demo_writes_table_pictures_and_checkpoint(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == results
    assert [one["method"] for one in results["methods"]] == [method.name for method in METHODS]
    for one in results["methods"]:
        low, high = one["cold_item_auc_interval"]
        assert 0 <= one["auc"] <= 1 and one["logloss"] > 0 and low <= high
    for name in ("curves_pretraining.png", "curves_finetuning.png", "comparison.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    table = (folder / "results.md").read_text()
    assert all(f"| {method.name} " in table for method in METHODS)
    kept = next(method.stage for method in METHODS if method.name == results["kept"])
    assert json.loads((folder / "models/cold_items/flip/train.json").read_text())["kept"] == kept
    model, processor = (auto.from_pretrained(folder / "models/random/flip") for auto in (AutoModel, AutoProcessor))
    row = read_split(folder / "data/random", "test").slice(0, 1).to_pylist()[0]
    assert model(**processor(row)).logits.shape == (1, 1)


def test_cold_items_are_never_seen_in_training(finished):
    folder, results = finished
    rows = {split: read_split(folder / "data/cold_items", split).to_pandas() for split in ("train", "test")}
    assert not set(rows["train"].item_id) & set(rows["test"].item_id)
    assert results["cold_items"] == rows["test"].item_id.nunique() and results["cold_item_rows"] == len(rows["test"])
    assert "theme" not in rows["train"]
    both = [
        sum(len(read_split(folder / "data" / split, part)) for part in ("train", "validation", "test"))
        for split in ("random", "cold_items")
    ]
    assert both == [SMALL.rows, SMALL.rows]


def test_only_a_former_demo_is_overwritten(finished, tmp_path):
    former = tmp_path / "former"
    shutil.copytree(finished[0], former)
    with pytest.raises(
        FileExistsError, match="not empty; name another folder, or replace it with --overwrite_output_dir"
    ):
        demo.empty_output_dir(DemoArguments(output_dir=str(former)), former)
    again = DemoArguments(output_dir=str(former), overwrite_output_dir=True)
    (former / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="also holds notes.txt"):
        demo.empty_output_dir(again, former)
    assert (former / "models").is_dir()
    (former / "notes.txt").unlink()
    demo.empty_output_dir(again, former)
    assert [path.name for path in former.iterdir()] == [demo.MARKER]

    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text("{}")
    with pytest.raises(FileExistsError, match="was not written by a demo"):
        demo.empty_output_dir(DemoArguments(output_dir=str(other), overwrite_output_dir=True), other)
    assert (other / "results.json").exists()


def test_real_data_needs_a_plm(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--dataset", "ml-100k"])
    assert "--dataset ml-100k needs a PLM: --model_name_or_path" in capsys.readouterr().err


def test_raw_files_need_the_name_of_their_dataset(capsys):
    with pytest.raises(SystemExit):
        cli.main(["demo", "--data_dir", "ml-100k.zip"])
    assert "needs --dataset ml-100k or ml-1m" in capsys.readouterr().err


def test_real_data_is_prepared_with_both_splits(tmp_path):
    raw = tiny.write_raw_100k(tmp_path / "raw")
    args = DemoArguments(dataset="ml-100k", model_name_or_path="m", data_dir=str(raw))
    assert demo.prepare_data(args, tmp_path, CatalogueSettings(), TinyPlmSettings()) == "m"
    for split in demo.SPLITS:
        plain, with_histories = (DatasetSchema.load(tmp_path / "data" / name) for name in (split, f"{split}_histories"))
        assert plain.protocol["split"] == with_histories.protocol["split"] == split
        assert [field.name for field in with_histories.fields] == [*(field.name for field in plain.fields), "history"]
    known, *new = demo.sample_rows(tmp_path, "ml-100k")
    assert known["movie_id"] < 10**6 <= min(row["movie_id"] for row in new)
    for dataset in ("ml-100k", "ml-1m"):
        assert demo.item_column(dataset) == "movie_id"
