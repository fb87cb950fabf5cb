"""Checkpoints load with `trust_remote_code=True` where only transformers and torch are installed, and score the same."""

import importlib.util
import json
import logging
import os
import subprocess
import sys

import pytest
import tiny
import torch
from transformers import AutoModel, AutoProcessor

from flip_ctr import FlipForCTR
from flip_ctr.modeling_id_tower import ID_TOWERS
from flip_ctr.train.custom_code import import_custom_code
from flip_ctr.train.hub import published_files

STRATEGIES = ("id", "plm", "joint")
BLOCKED = ("flip_ctr", "pandas", "pyarrow", "datasets", "accelerate", "peft", "evaluate", "sklearn")

SCRIPT = """
import sys
for name in sys.argv[3].split(","):
    sys.modules[name] = None  # importing it fails from now on
import json, os
import torch
from transformers import (AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoProcessor,
                          AutoFeatureExtractor, AutoTokenizer, pipeline)
folders, out, rows = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[4])
remote = {"trust_remote_code": True}
report = {}
for name, folder in folders.items():
    config = AutoConfig.from_pretrained(folder, **remote)
    processor = AutoProcessor.from_pretrained(folder, **remote)
    AutoFeatureExtractor.from_pretrained(folder, **remote)
    inputs = processor(rows)
    outputs, classes = {}, {"config": type(config).__name__, "processor": type(processor).__name__}
    heads = [AutoModel] + ([AutoModelForPreTraining] if name == "pretraining" else [AutoModelForSequenceClassification])
    for head in heads:
        model, info = head.from_pretrained(folder, output_loading_info=True, **remote)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        classes[head.__name__] = type(model).__name__
        with torch.no_grad():
            views = model.eval().flip(**inputs) if name == "pretraining" else model.eval()(**inputs)
        outputs[head.__name__] = dict(views)
    if name != "pretraining":
        scorer = pipeline("click-through-rate", model=folder, **remote)
        outputs["pipeline"] = torch.tensor([answer["click_probability"] for answer in scorer(rows, batch_size=4)])
        scorer.save_pretrained(os.path.join(out, name + "-again"))  # code and all, from the copy of the code
    if config.text_config is not None:
        classes["tokenizer"] = type(AutoTokenizer.from_pretrained(folder)).__name__
    torch.save(outputs, os.path.join(out, name + ".pt"))
    report[name] = classes
assert not any(module.split(".")[0] in sys.argv[3].split(",") and sys.modules[module] for module in sys.modules)
json.dump(report, open(os.path.join(out, "report.json"), "w"))
"""


def run_blocked(folders: dict, out, rows: list[dict]) -> dict:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(out / "home"), "HF_HUB_OFFLINE": "1"}
    arguments = [
        json.dumps({name: str(folder) for name, folder in folders.items()}),
        str(out),
        ",".join(BLOCKED),
        json.dumps(rows),
    ]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True,
                          cwd=out, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((out / "report.json").read_text())


@pytest.fixture(scope="module")
def folders(finetuned, pretrained):
    return {strategy: finetuned[strategy][0] for strategy in STRATEGIES} | {"pretraining": pretrained}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, folders, dataset_dir):
    """What a process without the package saw of each checkpoint: (classes, folder of its outputs)."""
    out = tmp_path_factory.mktemp("elsewhere")
    return run_blocked(folders, out, tiny.ml_rows(dataset_dir)), out


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_click_checkpoints_score_the_same_without_the_package(strategy, folders, elsewhere, dataset_dir):
    classes, out = elsewhere
    expected_classes = {"config": "FlipConfig", "processor": "FlipProcessor", "AutoModel": "FlipForCTR",
                        "AutoModelForSequenceClassification": "FlipForCTR"}  # fmt: skip
    assert classes[strategy] == expected_classes | ({} if strategy == "id" else {"tokenizer": "BertTokenizer"})
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
    assert classes["pretraining"]["AutoModel"] == classes["pretraining"]["AutoModelForPreTraining"] == "FlipForPretraining"
    inputs = AutoProcessor.from_pretrained(folders["pretraining"])(tiny.ml_rows(dataset_dir))
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folders["pretraining"]).eval().flip(**inputs)
    saved = torch.load(out / "pretraining.pt", weights_only=True)["AutoModel"]
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


@pytest.mark.parametrize("strategy", STRATEGIES)
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
        models[name] = tiny.shake(FlipForCTR(tiny.flip_config(id_processor.fields, id_tower=name, strategy="id"))).eval()
        models[name].save_pretrained(tmp_path / name)
        id_processor.save_pretrained(tmp_path / name)
        code = {path.name for path in (tmp_path / name).glob("*.py")}
        assert {"modeling_id_towers_pairs.py", "modeling_id_towers_cross.py", "modeling_id_towers_deep.py"} < code
        assert code <= set(published_files(str(tmp_path / name))) and "modeling_flip_custom.py" not in code
    (tmp_path / "out").mkdir()
    run_blocked({name: tmp_path / name for name in models}, tmp_path / "out", plain)
    for name, model in models.items():
        with torch.no_grad():
            expected = model(**id_processor(plain)).logits
        assert torch.equal(torch.load(tmp_path / "out" / f"{name}.pt", weights_only=True)["AutoModel"]["logits"], expected), name
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
from flip_ctr import IdTower, register_id_tower
from flip_ctr.modeling_id_tower import (
    TowerLinear as Linear,
    DNN,
)


@register_id_tower("gated")
class GatedTower(IdTower):
    """`h_id = [gate * fields; deep]`."""

    def __init__(self, config, width: int = 3):
        from flip_ctr.configuration_flip import NUM_RESERVED_IDS

        super().__init__(config)
        self.gate, self.extra = Linear(self.input_dim, width), DNN(width, [NUM_RESERVED_IDS], 0.0)
        self.output_dim += NUM_RESERVED_IDS

    def interact(self, embeds):
        return self.extra(torch.sigmoid(self.gate(embeds.flatten(1))))
'''


def test_a_checkpoint_carries_a_users_own_tower(tmp_path, monkeypatch, processor, text_config, rows):
    (tmp_path / "gated_tower.py").write_text(TOWER)
    monkeypatch.syspath_prepend(str(tmp_path))
    __import__("gated_tower")
    config = tiny.flip_config(processor.fields, text_config, id_tower="gated", id_tower_kwargs={"width": 2})
    model = tiny.shake(FlipForCTR(config)).eval()
    folder = tmp_path / "id"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    known = json.loads((folder / "config.json").read_text())["auto_map"]
    assert known["AutoModel"] == known["AutoModelForSequenceClassification"] == "modeling_flip_custom.FlipForCTR"
    assert "flip_ctr" not in (folder / "gated_tower.py").read_text()
    assert {"gated_tower.py", "modeling_flip_custom.py", "pipeline_flip.py"} <= set(published_files(str(folder)))
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
    FlipForCTR.from_pretrained(folder, strategy="plm").save_pretrained(tmp_path / "plm")  # without the tower none of it is left
    assert "modeling_flip_custom" not in (tmp_path / "plm" / "config.json").read_text()
    assert not (tmp_path / "plm" / "gated_tower.py").exists()


def test_a_tower_without_a_file_is_said_to_stay_behind(tmp_path, processor, caplog):
    namespace = {"__name__": "__main__"}
    exec(TOWER.replace('"gated"', '"loose"'), namespace)
    config = tiny.flip_config(processor.fields, strategy="id", id_tower="loose")
    with caplog.at_level("WARNING"):
        logging.getLogger("transformers").propagate = True
        FlipForCTR(config).save_pretrained(tmp_path)
        logging.getLogger("transformers").propagate = False
    assert "the ID tower GatedTower: it is defined in __main__, which is no file" in caplog.text
    ID_TOWERS.pop("loose")


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("plain_import", TOWER.replace("import torch\n", "import torch\nimport flip_ctr\n"), "line 4: write `from flip_ctr import …`"),
        ("unknown_name", TOWER.replace("import torch\n", "import torch\nfrom flip_ctr.data.files import read_rows\n"),
         "line 4: `read_rows` of flip_ctr.data.files is not part of what a checkpoint carries"),
        ("same_line", TOWER.replace("import torch\n", "import torch; from flip_ctr import FlipConfig\n"),
         "line 3: write the import from flip_ctr on a line of its own"),
        ("bare_relative", TOWER.replace("import torch\n", "import torch\nif False:\n    from . import parts\n"),
         "line 5: write `from .parts import …` instead of `from . import parts`"),
        ("absolute", TOWER.replace("import torch\n", "import torch\nif False:\n    from beside.parts import a\n"),
         "line 5: write `from .parts import …` for beside.parts, a file of yours"),
        ("modeling_flip", TOWER, "its file has the name of a file of this package, modeling_flip.py"),
    ],
)  # fmt: skip
def test_code_that_would_mean_nothing_elsewhere_is_named(tmp_path, processor, caplog, name, source, message):
    path = tmp_path / f"{name}.py"
    path.write_text(source.replace('"gated"', f'"{name}"'))
    (tmp_path / "beside.py").write_text("")
    spec = importlib.util.spec_from_file_location(f"users_{name}", path)
    module = sys.modules[f"users_{name}"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = FlipForCTR(tiny.flip_config(processor.fields, strategy="id", id_tower=name))
    logging.getLogger("transformers").propagate = True
    with caplog.at_level("WARNING"):
        model.save_pretrained(tmp_path / "m")
    logging.getLogger("transformers").propagate = False
    assert message in caplog.text
    assert "modeling_flip_custom" not in (tmp_path / "m" / "config.json").read_text()
    ID_TOWERS.pop(name)


LAYERS = "from flip_ctr.modeling_id_tower import TowerLinear as Linear\nfrom flip_ctr.modeling_id_towers_cross import CrossLayer\n"


def test_files_that_a_tower_imports_travel_too(tmp_path, processor):
    package = tmp_path / "users_towers"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "layers.py").write_text(LAYERS)
    towers = TOWER.replace("from flip_ctr.modeling_id_tower import (\n    TowerLinear as Linear,\n    DNN,\n)",
                           "from flip_ctr.modeling_id_tower import DNN\nfrom .layers import Linear")  # fmt: skip
    (package / "mine.py").write_text(towers.replace('"gated"', '"packaged"'))
    sys.path.insert(0, str(tmp_path))
    importlib.import_module("users_towers.mine")
    FlipForCTR(tiny.flip_config(processor.fields, strategy="id", id_tower="packaged")).save_pretrained(tmp_path / "m")
    sys.path.remove(str(tmp_path))
    assert (tmp_path / "m" / "layers.py").read_text() == LAYERS.replace("flip_ctr", "")
    assert "from .layers import Linear" in (tmp_path / "m" / "mine.py").read_text()
    ID_TOWERS.pop("packaged")


def test_what_stands_beside_an_import_stays(tmp_path, processor):
    """More on the import's line, and letters of several bytes before it."""
    start = "from flip_ctr import IdTower, FlipConfig; WIDTH = 1  # é\nif WIDTH:\n    'é'; import math\n    from flip_ctr import register_id_tower\n"
    body = start + """
@register_id_tower("odd")
class Odd(IdTower):
    def interact(self, embeds):
        return WIDTH * embeds[:, :0].flatten(1)
"""
    (tmp_path / "odd_tower.py").write_text(body)
    import_custom_code(str(tmp_path / "odd_tower.py"))
    FlipForCTR(tiny.flip_config(processor.fields, strategy="id", id_tower="odd", id_tower_kwargs={})).save_pretrained(tmp_path / "m")
    ID_TOWERS.pop("odd")
    written = (tmp_path / "m" / "odd_tower.py").read_text()
    assert written.startswith("from .modeling_id_tower import IdTower\nfrom .configuration_flip import FlipConfig; WIDTH = 1  # é\n")
    assert "\n    'é'; import math\n    from .modeling_id_tower import register_id_tower\n" in written
