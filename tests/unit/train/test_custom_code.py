"""`--custom_code`: an ID tower of the user's, named on the command line."""

import json
import sys

import pytest
import tiny

from flip_ctr.modeling_flip.id_tower import ID_TOWERS
from flip_ctr.train import cli
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.models.lora import load_adapter

TOWERS = """
from .id_tower import IdTower, register_id_tower

from .parts import times


@register_id_tower("product")
class Product(IdTower):
    def __init__(self, config, scale: float = 1.0):
        super().__init__(config)
        self.scale = scale
        self.output_dim += self.embedding_size

    def interact(self, embeds):
        return times(self.scale, embeds.prod(1))
"""


@pytest.fixture
def towers(tmp_path):
    """File of a tower, which imports another one."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "towers.py").write_text(TOWERS)
    (folder / "parts.py").write_text("def times(scale, x):\n    return scale * x\n")
    yield folder / "towers.py"
    ID_TOWERS.pop("product", None)


def command(*argv) -> None:
    assert cli.main([str(one) for one in argv]) == 0


def test_a_tower_of_a_file_is_trained_saved_and_used_again(towers, tmp_path, dataset_dir, capsys):
    small = [
        "--dataset_dir",
        dataset_dir,
        "--strategy",
        "id",
        "--max_train_samples",
        64,
        "--max_eval_samples",
        32,
        "--num_train_epochs",
        1,
    ]
    mine, model = ["--custom_code", towers], tmp_path / "m"
    command(
        "finetune", *small, *mine, "--id_tower", "product", "--id_tower_kwargs", '{"scale": 2}', "--output_dir", model
    )
    published = json.loads((model / "training_args.json").read_text())
    assert str(tmp_path) not in json.dumps(published)
    card = (model / "README.md").read_text()
    assert (
        "a copy of `towers.py`, its ID tower" in card
        and "`flip-ctr predict --custom_code towers.py --model_name_or_path" in card
    )
    first = json.loads((model / "all_results.json").read_text())
    for kept in (towers, model / "towers.py"):  # the user's, and the checkpoint's copy
        assert kept.exists() and kept.with_name("parts.py").exists()
        ID_TOWERS.pop("product", None)
        for name in [name for name in sys.modules if name.endswith(".towers")]:  # as in a new process
            del sys.modules[name]
        command(
            "evaluate",
            "--dataset_dir",
            dataset_dir,
            "--max_eval_samples",
            32,
            "--model_name_or_path",
            model,
            "--custom_code",
            kept,
            "--output_dir",
            tmp_path / kept.parent.name / "scored",
        )
        again = json.loads((tmp_path / kept.parent.name / "scored" / "all_results.json").read_text())
        assert again["test_auc"] == pytest.approx(first["test_auc"])
    further = tmp_path / "further"  # from the checkpoint, with its own copy: which travels on
    command(
        "finetune", *small, "--custom_code", model / "towers.py", "--model_name_or_path", model, "--output_dir", further
    )
    assert {"towers.py", "parts.py", "modeling_flip_custom.py"} <= {path.name for path in further.iterdir()}


def test_a_tower_that_nobody_imported(tmp_path, dataset_dir, capsys):
    argv = [
        "finetune",
        "--dataset_dir",
        str(dataset_dir),
        "--strategy",
        "id",
        "--id_tower",
        "product",
        "--output_dir",
        str(tmp_path / "m"),
    ]
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv)
    assert "got 'product'" in (said := capsys.readouterr().err) and "--custom_code" in said


def test_what_cannot_be_imported_is_said(towers, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))

    def says(name, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            import_custom_code([str(name)])

    says(tmp_path / "none.py", r"--custom_code .*none.py: FileNotFoundError: there is no such file")
    towers.with_name("my-towers.py").write_text("")
    says(towers.with_name("my-towers.py"), "letters, digits and _")
    towers.with_name("modeling_flip.py").write_text("")
    says(towers.with_name("modeling_flip.py"), "it has the name of a file of this package")
    towers.with_name("broken.py").write_text("import torch\n1 / 0\n")
    says(towers.with_name("broken.py"), r"broken.py \(line 2\): ZeroDivisionError")
    towers.with_name("plain.py").write_text("from parts import times\n")
    says(towers.with_name("plain.py"), r"No module named 'parts'. parts.py lies beside it: write `from .parts import")
    says("~/mine/towers", f"there is no such file; did you mean {tmp_path}/mine/towers.py?")
    towers.with_name("notes.txt").write_text("")
    says(towers.with_name("notes.txt"), r"it is no Python file \(\*.py\)")
    import_custom_code("~/mine/towers.py")
    assert "product" in ID_TOWERS


def test_an_adapter_with_a_tower_of_the_users_loads_as_its_card_says(towers, tmp_path, dataset_dir, plm):
    out = tmp_path / "m"
    tiny.finetune(
        dataset_dir,
        plm,
        out,
        strategy="joint",
        custom_code=[str(towers)],
        id_tower="product",
        id_tower_kwargs="{}",
        use_lora=True,
        lora_adapter_only=True,
        max_train_samples=64,
        max_eval_samples=32,
        num_train_epochs=1,
    )
    card = (out / "README.md").read_text()
    assert 'import_custom_code("towers.py")' in card
    ID_TOWERS.pop("product")
    for name in [name for name in sys.modules if name.endswith(".towers")]:
        del sys.modules[name]
    import_custom_code(str(out / "towers.py"))
    assert type(load_adapter(str(out), str(plm)).flip.id_tower).__name__ == "Product"
