"""`flip-ctr space` writes a folder that runs as it stands, and holds of users what was asked for and no more."""

import runpy
from importlib.metadata import version

import pandas as pd
import past
import pyarrow.parquet as pq
import pytest
import tiny
from huggingface_hub import RepoCard

from flip_ctr import FlipRanker
from flip_ctr.data.prepare.dataset_folder import read_split, shard_path
from flip_ctr.train import cli
from flip_ctr.train.models.build import load_click_model

TITLE = """Try "it's" <script>alert(1)</script> \\"""
USER = ["user_id", "age", "zip_code"]


def space(folder, model, items, *more) -> int:
    return cli.main(
        ["space", *map(str, ("--model_name_or_path", model, "--items", items, "--output_dir", folder, *more))]
    )


def card_of(folder) -> RepoCard:
    return RepoCard.load(folder / "README.md", ignore_metadata_errors=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A dataset folder with histories, and a joint model of it."""
    return past.write_past_dataset(tmp_path_factory.mktemp("past") / "d")


@pytest.fixture(scope="module")
def model(tmp_path_factory, data, plm):
    folder = tmp_path_factory.mktemp("model") / "private-name"
    tiny.finetune(data, plm, folder, strategy="joint", prompts="entity", num_train_epochs=1)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory, data, model):
    folder = tmp_path_factory.mktemp("space")
    (folder / "my_code.py").write_text("from .other import VALUE\n")
    (folder / "other.py").write_text("VALUE = 1\n")
    users = shard_path(data, "test")
    more = ("--users", users, "--num_users", 3, "--space_title", TITLE, "--custom_code", folder / "my_code.py")
    assert space(folder / "s", model, data, *more, "--license", "mit") == 0
    return folder / "s"


def test_the_app_starts_from_the_folder_alone(made, data, model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    shown = []
    monkeypatch.setattr("gradio.Blocks.launch", lambda self: shown.append(self))
    state = runpy.run_path(str(made / "app.py"), run_name="__main__")
    assert shown == [state["demo"]]
    user = pq.read_table(made / "users.parquet").to_pylist()[0]
    expected = FlipRanker.from_pretrained(str(model), items=str(data)).rank(user)
    assert state["ranker"].rank(user) == expected and len(expected) == 9
    functions = {one.fn.__name__: one.fn for one in state["demo"].fns.values()}
    history, _, *values = functions["on_user"](0)
    assert f"{100 * expected[0]['click_probability']:.1f} %" in functions["on_rank"](1, history, *values)


def test_what_is_in_the_folder(made, model, data):
    names = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    own = {"README.md", "app.py", "requirements.txt", "items.parquet", "users.parquet"}
    assert own | {"custom_code/my_code.py", "custom_code/other.py"} == {name for name in names if "model/" not in name}
    assert (made / "model" / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert (made / "requirements.txt").read_text() == f"flip-ctr[space]=={version('flip-ctr')}\n"
    for path in made.rglob("*"):
        for private in (str(model.parent), str(data), str(made.parent)):
            assert path.is_dir() or private.encode() not in path.read_bytes(), path


def test_the_readme_is_that_of_a_space_and_names_what_is_personal(made):
    card = card_of(made)
    about = card.data.to_dict()
    assert about["title"] == TITLE and about["sdk"] == "gradio" and about["sdk_version"] == version("gradio")
    assert about["app_file"] == "app.py" and about["license"] == "mit" and "models" not in about
    assert tuple(map(int, about["python_version"].split("."))) >= (3, 11)
    text = " ".join(card.text.split())
    assert "a sample of 3 users with what the model reads of them: user_id, age, zip_code, history" in text
    assert "<script" not in card.text and "**" in text


def test_the_sample_has_each_user_once_as_their_last_row_has_them(made, data):
    users = pq.read_table(made / "users.parquet")
    assert users.column_names == [*USER, "history"] and len(users) == 3
    last = {row["user_id"]: row for row in read_split(str(data), "test").to_pylist()}
    for row in users.to_pylist():
        assert row == {name: last[row["user_id"]][name] for name in row}
    assert len(set(users.column("user_id").to_pylist())) == 3


def test_without_users_there_are_none(tmp_path, data, model, capsys):
    assert space(tmp_path / "s", model, data / "items.parquet") == 0
    assert not (tmp_path / "s" / "users.parquet").exists() and not (tmp_path / "s" / "custom_code").exists()
    card = card_of(tmp_path / "s")
    assert "This Space holds no users." in card.text and card.data.title == "private-name"
    assert f"python {tmp_path / 's' / 'app.py'}" in capsys.readouterr().out
    assert "import_custom_code" not in (tmp_path / "s" / "app.py").read_text()


def test_an_adapter_becomes_a_whole_model(tmp_path, data, model):
    tiny.finetune(data, model, tmp_path / "a", use_lora=True, lora_adapter_only=True, max_train_steps=2)
    assert space(tmp_path / "s", tmp_path / "a", data, "--base_model_name_or_path", model) == 0
    names = {path.name for path in (tmp_path / "s" / "model").iterdir()}
    assert "model.safetensors" in names and not any("adapter" in name for name in names)
    whole, _ = load_click_model(str(tmp_path / "s" / "model"))
    merged, _ = load_click_model(str(tmp_path / "a"), str(model))
    assert all((one == other).all() for one, other in zip(whole.parameters(), merged.parameters(), strict=True))


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path, data, model, capsys, monkeypatch):
    monkeypatch.setattr("flip_ctr.serve.space.get_token", lambda: None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    pd.DataFrame({"user_id": [1], "age": [20]}).to_csv(tmp_path / "users.csv", index=False)
    pd.DataFrame({"movie_id": [1], "title": ["x"]}).to_csv(tmp_path / "items.csv", index=False)
    for output, items, more, message in (
        ("mine", data, (), "is there already; name another folder, or --overwrite_output_dir"),
        ("mine", data, ("--overwrite_output_dir",), "is no Space (it has no app.py and items.parquet)"),
        ("s", data, ("--users", tmp_path / "users.csv"), "column(s) 'zip_code' missing"),
        ("s", tmp_path / "items.csv", (), "column 'genre' missing"),
        ("s", data, ("--num_users", "3"), "--num_users 3 has no effect without --users"),
        ("s", data, ("--hub_model_id", "a/b"), "--hub_model_id a/b has no effect without --push_to_hub"),
        ("s", data, ("--push_to_hub", "--hub_model_id", "a b"), "--hub_model_id a b: "),
        ("s", data, ("--push_to_hub", "--hub_model_id", "a/b"), "--push_to_hub needs a token"),
    ):
        try:
            code = space(tmp_path / output, model, items, *more)
        except SystemExit as stop:
            code = stop.code
        assert code == 2 and message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "users.csv", "items.csv"}
    assert (tmp_path / "mine" / "notes.txt").read_text() == "x"


def test_a_space_is_replaced_where_that_is_asked(tmp_path, data, model):
    assert space(tmp_path / "s", model, data, "--users", shard_path(data, "test")) == 0
    assert space(tmp_path / "s", model, data, "--overwrite_output_dir") == 0
    assert not (tmp_path / "s" / "users.parquet").exists()
