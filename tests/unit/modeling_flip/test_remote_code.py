"""Checkpoints load with `trust_remote_code=True` where only transformers and torch are installed, and score the
same."""

import json
import logging

import pytest
import tiny
import torch
from odd_rows import ROWS
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
def plain_rows(rows):
    return [{name: value for name, value in row.items() if name != "label"} for row in rows]


@pytest.fixture(scope="module")
def towers(tmp_path_factory, id_processor):
    """A model with each ID tower, and its folder. All folders have one name: transformers then finds that their code is
    the same, and imports it once."""
    parent, models = tmp_path_factory.mktemp("towers"), {}
    for name in tiny.TOWER_KWARGS:
        config, folder = tiny.flip_config(id_processor.fields, id_tower=name, strategy="id"), parent / name / "tower"
        models[name] = tiny.shake(FlipForCTR(config)).eval(), folder
        models[name][0].save_pretrained(folder)
        id_processor.save_pretrained(folder)
    return models


@pytest.fixture(scope="module")
def gated(tmp_path_factory, tower_file, processor, text_config):
    """A model with a user's own tower, and its folder."""
    config = tiny.flip_config(processor.fields, text_config, id_tower="gated", id_tower_kwargs={"width": 2})
    model, folder = tiny.shake(FlipForCTR(config)).eval(), tmp_path_factory.mktemp("gated") / "own"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def kinds(tmp_path_factory, kind_processor, text_config):
    """A model of rows with a field of each kind, and its folder."""
    config = tiny.flip_config(kind_processor.fields, text_config, fusion="gate")
    model, folder = tiny.shake(FlipForCTR(config)).eval(), tmp_path_factory.mktemp("kinds")
    model.save_pretrained(folder)
    kind_processor.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory, folders, towers, gated, kinds, dataset_dir, plain_rows):
    """What a process without the package, in which importing takes longer than all else, saw of all checkpoints:
    (classes, folder of its outputs)."""
    out = tmp_path_factory.mktemp("elsewhere")
    others = {name: folder for name, (_, folder) in (towers | {"gated": gated}).items()}
    own_rows = dict.fromkeys(folders, tiny.ml_rows(dataset_dir)) | dict.fromkeys(others, plain_rows) | {"kinds": ROWS}
    return run_blocked(folders | others | {"kinds": kinds[1]}, out, own_rows), out


@pytest.mark.parametrize("strategy", CLICK_MODELS)
def test_click_checkpoints_score_the_same_without_the_package(strategy, folders, elsewhere, dataset_dir):
    classes, out = elsewhere
    expected_classes = {
        "config": "FlipConfig",
        "processor": "FlipProcessor",
        "refused": ["AutoModel", "AutoProcessor"],
        "AutoModel": "FlipForCTR",
        "AutoModelForSequenceClassification": "FlipForCTR",
    }
    found = dict(classes[strategy])
    tokenizers = {"id": {None}, "decoder": {"Qwen2Tokenizer", "TokenizersBackend"}}  # the latter in transformers 5.2
    assert found.pop("tokenizer", None) in tokenizers.get(strategy, {"BertTokenizer", "TokenizersBackend"})
    assert found == expected_classes
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
        ours, theirs = (json.loads((folder / name).read_text()) for folder in (folders[strategy], again))
        for values in (ours, theirs):  # transformers says in the tokenizer's settings how it was loaded
            values["sha256"].pop("tokenizer_config.json", None)
        assert ours == theirs
    state, saved = (AutoModel.from_pretrained(folder).state_dict() for folder in (folders[strategy], again))
    assert state.keys() == saved.keys() and all(torch.equal(state[name], saved[name]) for name in state)


def test_every_tower_loads_without_the_package(towers, elsewhere, id_processor, plain_rows):
    """Its code travels with the checkpoint, and registers it."""
    out = elsewhere[1]
    for name, (model, folder) in towers.items():
        code = {path.name for path in folder.glob("*.py")}
        assert {"id_tower_lr.py", "id_tower_dcnv2.py", "gather_flip.py"} < code
        assert code <= set(published_files(str(folder))) and "modeling_flip_custom.py" not in code
        with torch.no_grad():
            expected = model(**id_processor(plain_rows)).logits
        saved = torch.load(out / f"{name}.pt", weights_only=True)
        assert torch.equal(saved["AutoModel"]["logits"], expected), name
        assert {path.name for path in (out / f"{name}-again").glob("*.py")} == code


def test_every_kind_of_field_is_read_without_the_package(kinds, elsewhere, kind_processor):
    with torch.no_grad():
        expected = kinds[0](**kind_processor(ROWS)).logits
    assert len(set(expected[:, 0].tolist())) == len(ROWS)
    saved = torch.load(elsewhere[1] / "kinds.pt", weights_only=True)
    assert torch.equal(saved["AutoModel"]["logits"], expected)
    torch.testing.assert_close(saved["pipeline"], expected[:, 0].sigmoid())


def test_code_of_a_checkpoint_runs_only_when_trusted(elsewhere):
    """(Nor is it copied, as the process itself asserts.)"""
    for name, classes in elsewhere[0].items():
        assert name == "versions" or classes["refused"] == ["AutoModel", "AutoProcessor"], name


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


@pytest.fixture(scope="module")
def tower_file(tmp_path_factory):
    """File of a tower, which imports a file beside it, which imports a third one; the tower is registered."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "gated_tower.py").write_text(TOWER)
    (folder / "layers.py").write_text(LAYERS)
    (folder / "further.py").write_text("def identity(x):\n    return x\n")
    import_custom_code(str(folder / "gated_tower.py"))
    yield folder / "gated_tower.py"
    ID_TOWERS.pop("gated", None)


def test_a_checkpoint_carries_a_users_own_tower(tmp_path, gated, tower_file, elsewhere, processor, plain_rows):
    model, folder = gated
    known = json.loads((folder / "config.json").read_text())["auto_map"]
    assert known["AutoModel"] == known["AutoModelForSequenceClassification"] == "modeling_flip_custom.FlipForCTR"
    own = {"gated_tower.py", "layers.py", "further.py"}
    assert all((folder / name).read_text() == tower_file.with_name(name).read_text() for name in own)
    assert own | {"modeling_flip_custom.py", "pipeline_flip.py"} <= set(published_files(str(folder)))
    classes, out = elsewhere
    assert classes["gated"]["AutoModel"] == "FlipForCTR"
    with torch.no_grad():
        expected = model(**processor(plain_rows))
    saved = torch.load(out / "gated.pt", weights_only=True)
    assert all(torch.equal(saved["AutoModel"][name], expected[name]) for name in expected)
    again = out / "gated-again"
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
