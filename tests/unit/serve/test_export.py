"""Exported graphs give the probabilities of the torch model, for any number of rows, users, candidates and tokens."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import past
import pytest
import tiny
import torch
from scipy.special import expit
from serving import USER, made, saved
from sklearn.metrics import roc_auc_score
from torch import nn

from flip_ctr import FlipForCTR, FlipProcessor, FlipRanker, IdTower, register_id_tower
from flip_ctr.modeling_flip.id_tower import ID_TOWERS
from flip_ctr.serve import export
from flip_ctr.serve.candidate_model import CandidateModel
from flip_ctr.train import cli


def computed(path: Path, **inputs) -> dict[str, np.ndarray]:
    """The outputs of a graph, which reads all inputs that it is given."""
    session = onnxruntime.InferenceSession(str(path))
    names = [one.name for one in session.get_outputs()]
    given = {name: np.asarray(values) for name, values in inputs.items()}
    return dict(zip(names, session.run(names, {one.name: given[one.name] for one in session.get_inputs()})))


def batch_of(processor, rows, **more) -> dict[str, np.ndarray]:
    return processor.encode(rows, **more).batch(np.arange(len(rows)))


class Together(nn.Module):
    """The log odds of several models, whose graph takes less time than one for each."""

    def __init__(self, models: dict[str, nn.Module]):
        super().__init__()
        self.names, self.models = list(models), nn.ModuleList(models.values())

    def forward(self, **inputs):
        return {name: model(**inputs)["logits"] for name, model in zip(self.names, self.models)}


@torch.no_grad()
def same_together(models: dict[str, nn.Module], folder: Path, inputs: dict[str, export.Input], batches) -> None:
    together = Together(models).eval()
    path = export.write_graph("all", export.Graph(together, inputs), folder)
    for batch in batches:
        found, expected = computed(path, **batch), together(**batch)
        assert found.keys() == models.keys()
        for name, values in found.items():
            assert values.shape == expected[name].shape
            np.testing.assert_allclose(expit(values), expected[name].sigmoid(), atol=1e-5, err_msg=name)


def test_all_id_towers_and_what_corrects_log_odds(tmp_path):
    fields = tiny.sized_fields(50, 20, 9)
    fields[1] |= {"kind": "multi-valued", "max_values": 3, "separator": "|"}
    models = {}
    forms = [*tiny.TOWER_KWARGS, "dcnv2, full", "afn, batch norm", "finalmlp, contexts"]  # of operators of their own
    for form, (name, kwargs) in ((form, tiny.ALL_TOWERS[form]) for form in forms):
        config = tiny.flip_config(fields, id_tower=name, id_tower_kwargs=kwargs, strategy="id")
        models[form] = CandidateModel(tiny.shake(FlipForCTR(config), 0.03))
    isotonic = {"log_odds": [-0.5, 0.0, 0.1], "calibrated": [-2.0, -1.5, 1.0]}
    for name, calibration in (
        ("isotonic", {"kind": "isotonic", "id_logits": isotonic}),
        ("platt", {"kind": "platt", "id_logits": {"slope": 1.5, "intercept": -2.0}}),
    ):
        more = {"calibration": calibration, "negative_sampling_rate": 0.25}
        models[name] = CandidateModel(tiny.shake(FlipForCTR(tiny.flip_config(fields, strategy="id", **more))))
    batches = [{"feature_ids": torch.randint(0, 9, (rows, 5))} for rows in (0, 1, 7, 1000)]
    same_together(models, tmp_path, {"feature_ids": export.ids("rows", 5)}, batches)


def test_plms(tmp_path):
    models = {}
    for name in ("distilbert", "modernbert", "deberta-v2", "qwen3"):
        text_config = (tiny.PLM_CONFIGS | tiny.DECODER_CONFIGS)[name]()
        if name != "modernbert":  # of which not all layers are alike
            text_config.num_hidden_layers = 1
        config = tiny.flip_config(tiny.sized_fields(9, 9), text_config, strategy="plm")
        models[name] = tiny.shake(FlipForCTR(config), 0.1)
    batches = []
    for rows, tokens in ((1, 9), (7, 40), (5, 1)):
        lengths = torch.randint(1, tokens + 1, (rows, 1))
        mask = (torch.arange(tokens) < lengths).long()
        batches.append({"input_ids": torch.randint(5, 50, (rows, tokens)), "attention_mask": mask})
    inputs = dict.fromkeys(("input_ids", "attention_mask"), export.ids("rows", "tokens"))
    same_together(models, tmp_path, inputs, batches)


# --- whole folders


@pytest.fixture(scope="module")
def joint(tokenizer, text_config, tmp_path_factory):
    """A model with histories of texts, its processor and rows, and what was exported."""
    rows, fields = past.past_rows(), [*tiny.FIELDS, dataclasses.replace(past.HISTORY, sides=("text",))]
    model, processor = made(rows, fields, tokenizer, text_config, prompts="entity", fusion="gate")
    folder = tmp_path_factory.mktemp("exports") / "joint"
    return model, processor, rows, folder, export.export_model(model, processor, folder)


def test_rows_are_scored_from_their_texts(joint):
    model, _, rows, folder, _ = joint
    processor, items = FlipProcessor.from_pretrained(folder), past.items_of(rows)  # which came along
    for some in (rows[:1], rows[:7], rows * 20):
        found = computed(folder / "model.onnx", **batch_of(processor, some, items=items))
        with torch.no_grad():
            expected = model(**processor(some, items=items))
        for name in ("click", "id", "text"):
            logits = expected["logits" if name == "click" else f"{name}_logits"]
            np.testing.assert_allclose(found[f"{name}_probability"], logits.sigmoid(), atol=1e-5)
        np.testing.assert_allclose(found["id_weight"], expected.id_weight, atol=1e-5)


def test_candidates_are_scored_from_what_was_kept_of_texts(joint):
    model, processor, rows, folder, _ = joint
    items = past.items_of(rows)
    users = list({row["user_id"]: row for row in rows}.values())
    # each text once: the prompts of users, then those of items, as each row has one of both
    encoded = {}
    for side, those, other in (("user", users, items[0]), ("item", items, users[0])):
        batch = batch_of(processor, [other | one | {"history": []} for one in those], items=items)
        index = batch["prompt_index"][:, :2].copy()
        index[:, 1 if side == "user" else 0] = -1
        texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
        encoded[side] = computed(folder / "texts.onnx", prompt_index=index, **texts)
    numbers = {item["movie_id"]: number for number, item in enumerate(items)}
    ranker = FlipRanker(model, processor, items)
    for some, picked in (([0], [4]), ([3], range(9)), ([5, 1, 6], [8, 0, 3, 1, 2]), (range(7), range(9))):
        those, shown = [users[user] for user in some], [items[item] for item in picked]
        joined = [user | item for user in those for item in shown]
        ids = batch_of(processor, joined, items=items)
        history = batch_of(processor, those, items=items)
        named = [[numbers[one["movie_id"]] for one in user["history"][-3:]] for user in those]
        entries = np.array([one + [0] * (history["history_outcomes"].shape[1] - len(one)) for one in named], int)
        item_rows = list(picked) * len(those)
        found = computed(
            folder / "candidates.onnx",
            feature_ids=ids["feature_ids"],
            history_outcomes=history["history_outcomes"],
            history_entry=encoded["item"]["entry"][entries],
            user_own=encoded["user"]["own"][list(some)],
            user_factors=encoded["user"]["factors"][list(some)],
            item_own=encoded["item"]["own"][item_rows],
            item_factors=encoded["item"]["factors"][item_rows],
            item_query=encoded["item"]["query"][item_rows],
        )
        keys = [item["movie_id"] for item in shown]
        expected = ranker.score([{name: user[name] for name in (*USER, "history")} for user in those], keys)
        for name, values in expected.items():
            np.testing.assert_allclose(expit(found[name]), expit(values).reshape(-1, 1), atol=1e-5)
        np.testing.assert_allclose(found["click_probability"], expit(found["logits"]), atol=1e-6)


def test_the_folder_says_what_it_holds(joint):
    *_, folder, about = joint
    assert about == json.loads((folder / "export.json").read_text())
    assert about["opset"] == export.OPSET and about["quantization"] is None
    inputs = about["graphs"]["candidates"]["inputs"]
    assert inputs["feature_ids"] == {"dtype": "int64", "shape": ["rows", 6]}
    assert inputs["history_entry"] == {"dtype": "float32", "shape": ["users", "entries", 128]}
    assert about["graphs"]["texts"]["inputs"]["prompt_index"]["shape"] == ["sets", 2]
    assert about["graphs"]["model"]["inputs"]["input_ids"]["shape"] == ["prompts", "tokens"]
    assert about["graphs"]["model"]["outputs"]["click_probability"]["dtype"] == "float32"
    for name in about["graphs"]:
        assert {one.domain: one.version for one in onnx.load(folder / f"{name}.onnx").opset_import}[""] == export.OPSET
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
        said = {one.name: one.shape for one in session.get_inputs()}
        assert said == {one: values["shape"] for one, values in about["graphs"][name]["inputs"].items()}
        content = (folder / f"{name}.onnx").read_bytes()  # whose machine it was made on is nobody's business
        assert not any(str(Path(module.__file__).parent).encode() in content for module in (export, torch))


# --- the ranker


def ranked_alike(model, processor, rows, torch_ranker=None, **options) -> FlipRanker:
    users = [{name: row[name] for name in USER} for row in rows[-7:]]
    items = past.items_of(rows)
    more = {"history": [row["history"] for row in rows[-7:]]} if processor.history_field is not None else {}
    ranker, other = FlipRanker(model, processor, items, backend="onnx", **options), FlipRanker(model, processor, items)
    for some in (slice(0, 1), slice(0, 7)):
        those = {name: values[some] for name, values in more.items()}
        found, expected = (one.score(users[some], **those) for one in (ranker, other))
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(expit(found[name]), expit(values), atol=1e-5)
    assert [row.keys() for row in ranker.rank(users[0])] == [row.keys() for row in other.rank(users[0])]
    return ranker


RANKED = {
    "id": ("row", {"strategy": "id"}, True),
    "plm": ("entity", {"strategy": "plm"}, False),
    "joint, scalar": ("entity", {"fusion": "scalar"}, False),
    "frozen": ("entity", {"strategy": "frozen"}, False),
    "row prompts": ("row", {"fusion": "scalar"}, True),
}


@pytest.mark.parametrize("kind", RANKED)
def test_the_ranker_computes_with_onnx(tokenizer, text_config, kind):
    prompts, settings, reads_history = RANKED[kind]
    rows = past.past_rows()
    fields = past.FIELDS if reads_history else tiny.FIELDS
    model, processor = made(rows, fields, tokenizer, text_config, prompts=prompts, **settings)
    ranked_alike(model, processor, rows)


def test_the_ranker_reads_and_writes_an_export(joint, tmp_path, monkeypatch):
    model, processor, rows, folder, _ = joint
    ranked_alike(model, processor, rows, export_dir=folder)
    checkpoint, items = saved(tmp_path / "m", model, processor), past.items_of(rows)
    monkeypatch.setattr(export, "write_graph", None)  # nothing is exported again
    options = {"items": items, "backend": "onnx", "export_dir": folder}
    ranker = FlipRanker.from_pretrained(checkpoint, **options)
    user = {name: rows[0][name] for name in USER}
    assert len(ranker.rank(user)) == len(items)
    about = json.loads((folder / "export.json").read_text())
    for wrong, message in (
        ({"checkpoint": "another"}, "its graphs are of another checkpoint"),
        ({"runtime": "openvino"}, "its graphs are for openvino"),
        ({"format": 99}, "format 99, and this code reads"),
    ):
        (tmp_path / "export.json").write_text(json.dumps(about | wrong))
        with pytest.raises(ValueError, match=message):
            FlipRanker.from_pretrained(checkpoint, **options | {"export_dir": tmp_path})
    with pytest.raises(ValueError, match="`backend` must be one of 'torch', 'onnx'"):
        FlipRanker.from_pretrained(checkpoint, items, backend="tensorrt")
    with pytest.raises(ValueError, match="`export_dir` is for backend 'onnx'"):
        FlipRanker.from_pretrained(checkpoint, items, export_dir=folder)


# --- the command


def test_the_command(tmp_path, capsys):
    random = np.random.default_rng(0)
    rows = [{"user_id": int(u), "movie_id": int(m)} for u, m in random.integers(0, 400, (4000, 2))]
    fields = [one for one in tiny.FIELDS if one.name in ("user_id", "movie_id")]
    settings = {"strategy": "id", "id_embedding_size": 16, "id_tower": "deepfm"}
    model, processor = made(rows, fields, None, None, **settings)
    argv = ["export", "--model_name_or_path", saved(tmp_path / "m", model, processor), "--output_dir"]
    assert cli.main([*argv, str(tmp_path / "s")]) == 0
    assert f"{tmp_path / 's' / 'model.onnx'}: 0." in capsys.readouterr().out
    with torch.no_grad():
        expected = model(**processor(rows)).logits.sigmoid().numpy()
    batch = batch_of(processor, rows)
    np.testing.assert_allclose(
        computed(tmp_path / "s" / "model.onnx", **batch)["click_probability"], expected, atol=1e-5
    )

    whole = (tmp_path / "s" / "model.onnx").stat().st_size
    assert cli.main([*argv, str(tmp_path / "s")]) == 2
    assert "is not empty; name another folder" in capsys.readouterr().err
    assert cli.main([*argv, str(tmp_path / "s"), "--quantize", "int8", "--overwrite_output_dir"]) == 0
    assert (tmp_path / "s" / "model.onnx").stat().st_size < whole / 2
    assert json.loads((tmp_path / "s" / "export.json").read_text())["quantization"] == "int8"
    small = computed(tmp_path / "s" / "model.onnx", **batch)["click_probability"]
    clicked = random.random((len(rows), 1)) < expected
    assert abs(roc_auc_score(clicked, small) - roc_auc_score(clicked, expected)) < 0.002

    assert cli.main([*argv, str(tmp_path / "m"), "--overwrite_output_dir"]) == 2
    assert "is no export (it has no export.json)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main([*argv, str(tmp_path / "o"), "--format", "openvino", "--quantize", "int8"])
    assert "--quantize int8 is for --format onnx" in capsys.readouterr().err


def test_what_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "openvino" else name)
    assert cli.main(["export", "--model_name_or_path", "m", "--output_dir", "o", "--format", "openvino"]) == 2
    assert "openvino is not installed: pip install 'flip-ctr[openvino]'" in capsys.readouterr().err


def test_openvino(tmp_path):
    openvino = pytest.importorskip("openvino")  # of an extra that the tests do without
    rows = tiny.toy_rows()
    model, processor = made(rows, tiny.FIELDS, None, None, strategy="id")
    export.export_model(model, processor, tmp_path / "s", format="openvino")
    compiled = openvino.compile_model(tmp_path / "s" / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(batch_of(processor, rows))["click_probability"]
    with torch.no_grad():
        np.testing.assert_allclose(found, model(**processor(rows)).logits.sigmoid(), atol=1e-5)


def test_the_part_that_cannot_be_a_graph_is_named(tmp_path):
    class Fickle(nn.Module):
        def forward(self, embeds):
            return embeds if embeds.sum() > 0 else -embeds

    @register_id_tower("fickle")
    class FickleTower(IdTower):
        def __init__(self, config):
            super().__init__(config, deep=False)
            self.mood, self.output_dim = Fickle(), self.input_dim

        def interact(self, embeds):
            return self.mood(embeds).flatten(1)

    try:
        model = FlipForCTR(tiny.flip_config(tiny.sized_fields(9, 9), id_tower="fickle", strategy="id")).eval()
        with pytest.raises(ValueError, match=r"flip\.id_tower\.mood \(Fickle\) cannot become a graph \(model\): "):
            export.write_graph("model", export.graphs_of(model)["model"], tmp_path)
    finally:
        del ID_TOWERS["fickle"]
