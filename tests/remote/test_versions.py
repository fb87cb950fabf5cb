"""Checkpoints of this environment load, score and are saved anew with other versions of transformers, where this
package is not installed. `make remote-envs` builds the environments; without them these tests are skipped."""

from pathlib import Path

import pytest
import tiny
import torch
from remote_code import run_blocked
from transformers import AutoModel, AutoProcessor

from flip_ctr import FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.modeling_flip.id_tower import ID_TOWERS
from flip_ctr.train.models.custom_code import import_custom_code

ENVIRONMENTS = Path(__file__).parents[2] / ".venv-remote"
PYTHON = ENVIRONMENTS / "torch" / "bin" / "python"
FOLDERS = sorted(stamp.parent for stamp in ENVIRONMENTS.glob("[0-9]*/.installed"))
pytestmark = pytest.mark.skipif(not FOLDERS, reason="no environment there; `make remote-envs` builds them")

TOWER = '''
"""A tower of a user, in a file of its own."""
from .id_tower import IdTower, TowerLinear, register_id_tower
from .rescaling import rescaled


@register_id_tower("remote")
class RemoteTower(IdTower):
    def __init__(self, config):
        super().__init__(config)
        self.layer = TowerLinear(self.input_dim, 3)
        self.output_dim += 3

    def interact(self, embeds):
        return rescaled(self.layer(embeds.flatten(1)))
'''


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, processor, id_processor, text_config):
    """Folders of a checkpoint of each kind, by name."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (folder / "remote_tower.py").write_text(TOWER)
    (folder / "rescaling.py").write_text("def rescaled(x):\n    return x * 2\n")
    import_custom_code(str(folder / "remote_tower.py"))
    fields = processor.fields
    decoder_processor = FlipProcessor(processor.feature_extractor, tiny.gemma())
    models = {
        "id": FlipForCTR(tiny.flip_config(id_processor.fields, strategy="id")),
        "plm": FlipForCTR(tiny.flip_config(fields, text_config, strategy="plm")),
        "joint": FlipForCTR(tiny.flip_config(fields, text_config, fusion="gate")),
        "decoder": FlipForCTR(
            tiny.flip_config(
                decoder_processor.fields, tiny.DECODER_CONFIGS["gemma3_text"](vocab_size=len(tiny.gemma()))
            )
        ),
        "own_tower": FlipForCTR(tiny.flip_config(fields, text_config, id_tower="remote", id_tower_kwargs={})),
        "pretraining": FlipForPretraining(tiny.flip_config(fields, text_config)),
    }
    for name, model in models.items():
        tiny.shake(model).save_pretrained(folder / name)
        {"id": id_processor, "decoder": decoder_processor}.get(name, processor).save_pretrained(folder / name)
    yield {name: folder / name for name in models}
    ID_TOWERS.pop("remote")


@pytest.fixture(scope="module")
def plain_rows(rows):
    return [{name: value for name, value in row.items() if name != "label"} for row in rows]


@pytest.fixture(scope="module")
def expected(checkpoints, plain_rows):
    """What this environment gives: views of the pretraining model, outputs of the others."""
    outputs = {}
    for name, folder in checkpoints.items():
        model, inputs = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)(plain_rows)
        with torch.no_grad():
            outputs[name] = dict(model.flip(**inputs) if name == "pretraining" else model(**inputs))
    return outputs


@pytest.mark.parametrize("libraries", FOLDERS, ids=lambda folder: folder.name)
def test_checkpoints_score_the_same_with_another_transformers(libraries, checkpoints, expected, plain_rows, tmp_path):
    report = run_blocked(checkpoints, tmp_path, plain_rows, str(PYTHON), libraries)
    assert report.pop("versions")["transformers"] == libraries.name
    for name, classes in report.items():
        saved = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        scores = saved.pop("pipeline", None)
        heads = {
            "AutoModel",
            "AutoModelForPreTraining" if name == "pretraining" else "AutoModelForSequenceClassification",
        }
        assert saved.keys() == heads
        for head, outputs in saved.items():
            assert classes[head] == ("FlipForPretraining" if name == "pretraining" else "FlipForCTR")
            assert outputs.keys() == expected[name].keys(), (name, head)
            assert all(torch.equal(outputs[key], expected[name][key]) for key in outputs), (name, head)
        if scores is not None:
            torch.testing.assert_close(scores, expected[name]["logits"][:, 0].sigmoid())
            # saved anew there, it is read here
            again = AutoModel.from_pretrained(tmp_path / f"{name}-again").eval()
            inputs = AutoProcessor.from_pretrained(tmp_path / f"{name}-again")(plain_rows)
            with torch.no_grad():
                assert torch.equal(again(**inputs).logits, expected[name]["logits"])
    assert report.keys() == checkpoints.keys()
