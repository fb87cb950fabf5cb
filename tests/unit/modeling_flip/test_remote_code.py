"""Checkpoints load with `trust_remote_code=True` where only transformers and torch are installed, and score the
same."""

import json
import logging
import os
import subprocess
import sys

import pytest
import tiny
import torch
from remote_code import run_blocked
from transformers import AutoModel, AutoProcessor
from transformers.dynamic_module_utils import get_relative_imports

from flip_ctr import FlipForCTR, FlipProcessor
from flip_ctr.modeling_flip.id_tower import DNN, ID_TOWERS, IdTower, TowerLinear, register_id_tower
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.hub import published_files

STRATEGIES = ("id", "plm", "joint")
CLICK_MODELS = (*STRATEGIES, "decoder")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, finetuned, pretrained):
    extractor, decoder = AutoProcessor.from_pretrained(pretrained).feature_extractor, tmp_path_factory.mktemp("decoder")
    processor = FlipProcessor(extractor, tiny.qwen())
    text_config = tiny.DECODER_CONFIGS["qwen3"](vocab_size=len(processor.tokenizer), dtype="float32")
    tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config))).save_pretrained(decoder)
    processor.save_pretrained(decoder)
    strategies = {strategy: finetuned[strategy][0] for strategy in STRATEGIES}
    return strategies | {"decoder": decoder, "pretraining": pretrained}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, folders, dataset_dir):
    """What a process without the package saw of each checkpoint: (classes, folder of its outputs)."""
    out = tmp_path_factory.mktemp("elsewhere")
    return run_blocked(folders, out, tiny.ml_rows(dataset_dir)), out


@pytest.mark.parametrize("strategy", CLICK_MODELS)
def test_click_checkpoints_score_the_same_without_the_package(strategy, folders, elsewhere, dataset_dir):
    classes, out = elsewhere
    expected_classes = {
        "config": "FlipConfig",
        "processor": "FlipProcessor",
        "AutoModel": "FlipForCTR",
        "AutoModelForSequenceClassification": "FlipForCTR",
    }
    tokenizers = {"id": {}, "decoder": {"tokenizer": "Qwen2Tokenizer"}}
    assert classes[strategy] == expected_classes | tokenizers.get(strategy, {"tokenizer": "BertTokenizer"})
    inputs = AutoProcessor.from_pretrained(folders[strategy])(tiny.ml_rows(dataset_dir))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folders[strategy]).eval()(**inputs)
    saved = torch.load(out / f"{strategy}.pt", weights_only=True)
    for head in ("AutoModel", "AutoModelForSequenceClassification"):
        assert saved[head].keys() == expected.keys()
        assert all(torch.equal(saved[head][name], expected[name]) for name in expected)
    torch.testing.assert_close(saved["pipeline"], expected.logits[:, 0].sigmoid())


def test_a_pretraining_checkpoint_loads_without_the_package(folders, elsewhere, dataset_dir):
    classes, out = elsewhere
    assert (
        classes["pretraining"]["AutoModel"] == classes["pretraining"]["AutoModelForPreTraining"] == "FlipForPretraining"
    )
    inputs = AutoProcessor.from_pretrained(folders["pretraining"])(tiny.ml_rows(dataset_dir))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folders["pretraining"]).eval().flip(**inputs)
    saved = torch.load(out / "pretraining.pt", weights_only=True)["AutoModel"]
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


@pytest.mark.parametrize("strategy", CLICK_MODELS)
def test_a_checkpoint_saved_elsewhere_is_as_complete(strategy, folders, elsewhere):
    """Saved from the copy of the code: same files, and the package reads it."""
    again = elsewhere[1] / f"{strategy}-again"
    code = {path.name for path in folders[strategy].glob("*.py")}
    assert {path.name for path in again.glob("*.py")} == code and "pipeline_flip.py" in code
    for name in ("config.json", "processor_config.json"):
        assert json.loads((again / name).read_text()) == json.loads((folders[strategy] / name).read_text())
    state, saved = (AutoModel.from_pretrained(folder).state_dict() for folder in (folders[strategy], again))
    assert state.keys() == saved.keys() and all(torch.equal(state[name], saved[name]) for name in state)


def test_every_tower_loads_without_the_package(tmp_path, id_processor, rows):
    """Its code travels with the checkpoint, and registers it."""
    models, plain = {}, [{name: value for name, value in row.items() if name != "label"} for row in rows]
    for name in tiny.TOWER_KWARGS:
        models[name] = tiny.shake(
            FlipForCTR(tiny.flip_config(id_processor.fields, id_tower=name, strategy="id"))
        ).eval()
        models[name].save_pretrained(tmp_path / name)
        id_processor.save_pretrained(tmp_path / name)
        code = {path.name for path in (tmp_path / name).glob("*.py")}
        assert {"id_tower_lr.py", "id_tower_dcnv2.py", "gather_flip.py"} < code
        assert code <= set(published_files(str(tmp_path / name))) and "modeling_flip_custom.py" not in code
    (tmp_path / "out").mkdir()
    run_blocked({name: tmp_path / name for name in models}, tmp_path / "out", plain)
    for name, model in models.items():
        with torch.no_grad():
            expected = model(**id_processor(plain)).logits
        assert torch.equal(
            torch.load(tmp_path / "out" / f"{name}.pt", weights_only=True)["AutoModel"]["logits"], expected
        ), name
        again = tmp_path / "out" / f"{name}-again"
        assert {path.name for path in again.glob("*.py")} == {path.name for path in (tmp_path / name).glob("*.py")}


def test_code_of_a_checkpoint_runs_only_when_trusted(folders, tmp_path):
    script = f"""
import sys
from transformers import AutoModel, AutoProcessor
for auto_class in (AutoModel, AutoProcessor):
    try:
        auto_class.from_pretrained({str(folders["joint"])!r}, trust_remote_code=False)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    else:
        sys.exit(1)
"""
    environment = os.environ | {"HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.rglob("modeling_flip.py"))


# --- a user's own tower

TOWER = '''
"""A tower of a user, in a file of its own."""
import torch
from .id_tower import (
    DNN,
    IdTower,
    TowerLinear,
    register_id_tower,
)
from .layers import gate


@register_id_tower("gated")
class GatedTower(IdTower):
    """`h_id = [gate * fields; deep]`."""

    def __init__(self, config, width: int = 3):
        from .fields_flip import NUM_RESERVED_IDS

        super().__init__(config)
        self.gate, self.extra = TowerLinear(self.input_dim, width), DNN(width, [NUM_RESERVED_IDS], 0.0)
        self.output_dim += NUM_RESERVED_IDS

    def interact(self, embeds):
        return self.extra(gate(self.gate(embeds.flatten(1))))
'''
LAYERS = "import torch\nfrom .further import identity\n\n\ndef gate(x):\n    return identity(torch.sigmoid(x))\n"


@pytest.fixture
def tower_file(tmp_path):
    """File of a tower, which imports a file beside it, which imports a third one."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "gated_tower.py").write_text(TOWER)
    (folder / "layers.py").write_text(LAYERS)
    (folder / "further.py").write_text("def identity(x):\n    return x\n")
    yield folder / "gated_tower.py"
    ID_TOWERS.pop("gated", None)


def test_a_checkpoint_carries_a_users_own_tower(tmp_path, tower_file, processor, text_config, rows):
    import_custom_code(str(tower_file))
    config = tiny.flip_config(processor.fields, text_config, id_tower="gated", id_tower_kwargs={"width": 2})
    model = tiny.shake(FlipForCTR(config)).eval()
    folder = tmp_path / "id"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    known = json.loads((folder / "config.json").read_text())["auto_map"]
    assert known["AutoModel"] == known["AutoModelForSequenceClassification"] == "modeling_flip_custom.FlipForCTR"
    own = {"gated_tower.py", "layers.py", "further.py"}
    assert all((folder / name).read_text() == tower_file.with_name(name).read_text() for name in own)
    assert own | {"modeling_flip_custom.py", "pipeline_flip.py"} <= set(published_files(str(folder)))
    plain = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    (tmp_path / "out").mkdir()
    assert run_blocked({"joint": folder}, tmp_path / "out", plain)["joint"]["AutoModel"] == "FlipForCTR"
    with torch.no_grad():
        expected = model(**processor(plain))
    saved = torch.load(tmp_path / "out" / "joint.pt", weights_only=True)
    assert all(torch.equal(saved["AutoModel"][name], expected[name]) for name in expected)
    again = tmp_path / "out" / "joint-again"
    assert {path.name for path in again.glob("*.py")} == {path.name for path in folder.glob("*.py")}
    # with the package the registered class is the one that is used
    assert type(AutoModel.from_pretrained(folder).flip.id_tower).__name__ == "GatedTower"
    FlipForCTR.from_pretrained(folder, strategy="plm").save_pretrained(
        tmp_path / "plm"
    )  # without the tower none of it is left
    assert "modeling_flip_custom" not in (tmp_path / "plm" / "config.json").read_text()
    assert not (tmp_path / "plm" / "gated_tower.py").exists()


def test_the_entry_module_names_every_file(tmp_path, tower_file, processor):
    """transformers before 5.9 copies what an entry module itself imports, and no more."""
    import_custom_code(str(tower_file))
    FlipForCTR(tiny.flip_config(processor.fields, strategy="id", id_tower="gated", id_tower_kwargs={})).save_pretrained(
        tmp_path
    )
    files = {path.stem for path in tmp_path.glob("*.py")}
    for entry in ("modeling_flip_custom", "modeling_flip"):
        needed = (
            files
            - {entry}
            - (
                set()
                if entry == "modeling_flip_custom"
                else {"modeling_flip_custom", "gated_tower", "layers", "further"}
            )
        )
        assert set(get_relative_imports(tmp_path / f"{entry}.py")) == needed


def test_a_tower_without_a_file_is_said_to_stay_behind(tmp_path, processor, caplog):
    namespace = {"__name__": "__main__", "IdTower": IdTower, "register_id_tower": register_id_tower}
    body = (
        TOWER[TOWER.index("@register") :]
        .replace('"gated"', '"loose"')
        .replace("from .fields_flip import NUM_RESERVED_IDS", "NUM_RESERVED_IDS = 4")
    )
    exec(body, namespace | {"TowerLinear": TowerLinear, "DNN": DNN})
    config = tiny.flip_config(processor.fields, strategy="id", id_tower="loose")
    with caplog.at_level("WARNING"):
        logging.getLogger("transformers").propagate = True
        FlipForCTR(config).save_pretrained(tmp_path)
        logging.getLogger("transformers").propagate = False
    assert "the ID tower GatedTower: it is defined in __main__, which is no file" in caplog.text
    ID_TOWERS.pop("loose")


PLAIN = """
import torch
from flip_ctr.modeling_flip.id_tower import IdTower, register_id_tower
{line}

@register_id_tower("{name}")
class Plain(IdTower):
    def interact(self, embeds):
        return embeds[:, :0].flatten(1)
"""


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        (
            "of_package",
            PLAIN.format(line="", name="of_package"),
            "of_package.py, line 3: write `from .id_tower import …` instead of an import of flip_ctr",
        ),
        (
            "bare_relative",
            PLAIN.replace("flip_ctr.modeling_flip.id_tower", ".id_tower").format(
                line="if False:\n    from . import parts", name="bare_relative"
            ),
            "bare_relative.py, line 5: only files beside it travel: write `from .name import …`",
        ),
        (
            "absolute",
            PLAIN.replace("flip_ctr.modeling_flip.id_tower", ".id_tower").format(
                line="if False:\n    import beside", name="absolute"
            ),
            "absolute.py, line 5: write `from .beside import …` for beside, a file of yours",
        ),
    ],
)
def test_code_that_would_mean_nothing_elsewhere_is_named(tmp_path, processor, caplog, name, source, message):
    (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "beside.py").write_text("")
    import_custom_code(str(tmp_path / f"{name}.py"))
    model = FlipForCTR(tiny.flip_config(processor.fields, strategy="id", id_tower=name))
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        model.save_pretrained(tmp_path / "m")
    logging.getLogger("transformers").propagate = False
    assert message in caplog.text
    assert "modeling_flip_custom" not in (tmp_path / "m" / "config.json").read_text()
    ID_TOWERS.pop(name)
