"""FlipClassifier on frames: forms of rows, labels, what is kept, and errors."""

import json
import logging
import os
import pickle
import random

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from transformers import AutoModelForSequenceClassification, pipeline
from transformers.utils import logging as transformers_logging

from flip_ctr import FlipClassifier, FlipField
from flip_ctr.modeling_flip.fields_flip import read_fields
from flip_ctr.train.outputs.hub import published_files
from flip_ctr.train.outputs.run_log import logger

FAST = {"num_train_epochs": 2, "settings": {"id_embedding_size": 4, "id_hidden_dims": [8]}}


def table(count: int = 240, start: int = 0) -> pd.DataFrame:
    """Rows with numbers, nulls, lists and text; the index of a part of a larger frame."""
    rows = np.arange(start, start + count)
    frame = pd.DataFrame(
        {
            "user_id": 1 + rows % 11,
            "age": (20 + rows % 11 * 3).astype(float),
            "item_id": 100 + rows * 7 % 13,
            "title": [f"Film {row * 7 % 13}" for row in rows],
            "genres": [["Drama", "Comedy"][: 1 + row % 2] for row in rows],
            "price": np.where(rows * 7 % 13, rows * 7 % 13 * 1.25, np.nan),
        },
        index=rows * 3,
    )
    frame.loc[frame.user_id == 4, "age"] = None
    frame.loc[frame.index[::10], "genres"] = None
    return frame


def clicks(frame: pd.DataFrame) -> np.ndarray:
    """A click for every item of three, and a little of chance."""
    return ((frame.item_id % 3 == 0) ^ (np.arange(len(frame)) % 17 == 0)).to_numpy().astype(int)


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return table()


@pytest.fixture(scope="module")
def fitted(frame) -> FlipClassifier:
    return FlipClassifier(num_train_epochs=8).fit(frame, clicks(frame))


def forms(frame: pd.DataFrame) -> dict:
    """The same rows in the forms in which people have them."""
    arrow = pa.Table.from_pandas(frame, preserve_index=False)
    return {
        "pandas": frame,
        "pandas with more columns": frame.assign(extra=1)[["extra", *frame.columns[::-1]]],
        "arrow": arrow,
        "record batches": arrow.to_reader(),
        "datasets": datasets.Dataset(arrow),
        "dict of columns": {name: frame[name].tolist() for name in frame},
        "list of rows": arrow.to_pylist(),
        "iterator of rows": iter(arrow.to_pylist()),
    }


def test_it_learns_and_every_form_of_rows_says_the_same(fitted, frame):
    probabilities = fitted.predict_proba(frame)
    assert probabilities.shape == (len(frame), 2) and np.allclose(probabilities.sum(1), 1)
    assert roc_auc_score(clicks(frame), probabilities[:, 1]) > 0.9 and fitted.score(frame, clicks(frame)) > 0.8
    assert {field.name: field.kind for field in fitted.fields_} == {
        **dict.fromkeys(("user_id", "item_id", "title"), "categorical"),
        "age": "numeric",
        "genres": "multi-valued",
        "price": "numeric",
    }
    assert fitted.strategy_ == "id" and fitted.n_features_in_ == 6 and list(fitted.feature_names_in_) == list(frame)
    assert np.array_equal(fitted.decision_function(frame) > 0, fitted.predict(frame) == 1)
    for name, rows in forms(frame).items():
        assert np.array_equal(fitted.predict_proba(rows), probabilities), name
    row = frame.iloc[5].to_dict()
    assert np.allclose(fitted.predict_proba(row), probabilities[5:6], atol=1e-6)
    assert fitted.predict_proba(frame[:0]).shape == (0, 2)


@pytest.mark.parametrize("name", ["arrow", "datasets", "dict of columns", "list of rows", "iterator of rows"])
def test_fit_takes_every_form(name, frame):
    expected = FlipClassifier(**FAST).fit(frame, clicks(frame)).predict_proba(frame)
    model = FlipClassifier(**FAST).fit(forms(frame)[name], clicks(frame))
    assert np.allclose(model.predict_proba(frame), expected)


@pytest.mark.parametrize(
    "labels",
    [
        lambda y: y.astype(bool),
        lambda y: np.where(y, "yes", "no"),
        lambda y: pd.Series(y == 1, dtype="boolean"),
        lambda y: pa.array(y.tolist()),
        lambda y: [float(one) for one in y],
    ],
    ids=["bool", "text", "nullable", "arrow", "list"],
)
def test_labels_of_any_two_values(labels, frame):
    y = labels(clicks(frame))
    model = FlipClassifier(**FAST).fit(frame, y)
    assert model.classes_.tolist() == sorted(set(np.asarray(y).tolist()))
    assert set(model.predict(frame)) <= set(model.classes_.tolist())


def test_a_matrix_has_numeric_columns(frame):
    matrix = frame[["age", "price"]].to_numpy()
    model = FlipClassifier(**FAST).fit(matrix, clicks(frame))
    assert [(field.name, field.kind) for field in model.fields_] == [("x0", "numeric"), ("x1", "numeric")]
    assert not hasattr(model, "feature_names_in_")
    assert np.isfinite(model.predict_proba(matrix)).all()  # with NaN in them


def test_seeds_decide_and_nothing_else_changes(frame, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    states = [dict(one._shared_state) for one in (PartialState, AcceleratorState, GradientState)]
    before = torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    said = logger.level, transformers_logging.get_verbosity(), logging.getLogger().handlers[:]
    y = clicks(frame)
    first, again, other = (
        FlipClassifier(random_state=seed, **FAST).fit(frame, y).predict_proba(frame) for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.allclose(first, other)
    assert [dict(one._shared_state) for one in (PartialState, AcceleratorState, GradientState)] == states
    assert torch.equal(before[0], torch.random.get_rng_state()) and before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])
    assert (logger.level, transformers_logging.get_verbosity(), logging.getLogger().handlers[:]) == said
    assert os.listdir(tmp_path) == ["tmp"] and not os.listdir(tmp_path / "tmp")
    assert capfd.readouterr() == ("", "")
    torch.manual_seed(5)  # nor does what came before count
    assert np.array_equal(FlipClassifier(random_state=1, **FAST).fit(frame, y).predict_proba(frame), first)
    FlipClassifier(verbose=True, **FAST).fit(frame, y)
    assert "eval_auc" in "".join(capfd.readouterr())


def test_what_sklearn_does_with_estimators(frame):
    y, model = clicks(frame), FlipClassifier(**FAST)
    assert len(cross_val_score(model, frame, y, cv=2, scoring="roc_auc")) == 2
    chosen = GridSearchCV(model, {"learning_rate": [1e-3, 1e-2]}, cv=2).fit(frame, y)
    assert chosen.best_params_["learning_rate"] in (1e-3, 1e-2)
    assert CalibratedClassifierCV(model, cv=2).fit(frame, y).predict_proba(frame).shape == (len(frame), 2)
    picked = make_column_transformer(("passthrough", ["user_id", "item_id"])).set_output(transform="pandas")
    assert make_pipeline(picked, clone(model)).fit(frame, y).predict(frame).shape == (len(frame),)


def test_a_model_is_kept_whole(fitted, frame, tmp_path):
    probabilities = fitted.predict_proba(frame)
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(frame), probabilities)
    named = FlipClassifier(**FAST).fit(frame, np.where(clicks(frame), "yes", "no"))
    named.save_pretrained(tmp_path / "named")
    back = FlipClassifier.from_pretrained(tmp_path / "named", num_train_epochs=1)
    assert np.array_equal(back.predict(frame), named.predict(frame)) and back.n_features_in_ == 6
    assert list(back.feature_names_in_) == list(frame) and back.fields_ == back.processor_.feature_extractor.all_fields
    # an ordinary checkpoint, with a card
    fitted.save_pretrained(tmp_path / "model")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").config.strategy == "id"
    score = pipeline("click-through-rate", model=str(tmp_path / "model"))
    assert np.allclose([one["click_probability"] for one in score(frame)], probabilities[:, 1], atol=1e-6)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "FLIP_ID" in card and "test split" not in card
    (tmp_path / "model" / "classifier.json").unlink()  # as the recipes write checkpoints
    again = FlipClassifier.from_pretrained(tmp_path / "model")
    assert np.array_equal(again.predict_proba(frame), probabilities) and again.strategy == "id"


def test_a_copy_of_what_was_read_trains_the_same_model(frame, plm, tmp_path):
    y, fields = clicks(frame), [FlipField("user_id", "int", key=True), {"name": "title", "entity": "item"}]
    settings = FAST["settings"] | {"fusion": "gate", "base_model_name_or_path": str(plm)}
    parameters = {"strategy": "joint", "fields": fields, "learning_rate": np.float64(2e-3), "random_state": 7}
    model = FlipClassifier(str(plm), num_train_epochs=1, settings=settings, **parameters)
    model.fit(frame, y).save_pretrained(tmp_path / "m")
    assert str(plm.parent) not in (tmp_path / "m" / "classifier.json").read_text()  # no path is published
    back = FlipClassifier.from_pretrained(tmp_path / "m")
    theirs = back.get_params()
    assert theirs.pop("model_name_or_path") == plm.name  # which is in no such folder
    assert [field.name for field in read_fields(theirs.pop("fields"))] == ["user_id", "title"]
    expected = model.get_params() | {"settings": settings | {"base_model_name_or_path": plm.name}}
    assert theirs == {name: expected[name] for name in theirs}
    with pytest.raises(OSError, match=plm.name):
        clone(back).fit(frame, y)
    back = FlipClassifier.from_pretrained(tmp_path / "m", model_name_or_path=str(plm), settings=settings)
    assert np.array_equal(clone(back).fit(frame, y).predict_proba(frame), model.predict_proba(frame))
    # what stands in a stranger's checkpoint names no file here
    said = json.loads((tmp_path / "m" / "classifier.json").read_text())
    said["parameters"]["settings"] |= {"custom_code": ["x.py"], "logging_dir": "/"}
    (tmp_path / "m" / "classifier.json").write_text(json.dumps(said))
    assert FlipClassifier.from_pretrained(tmp_path / "m").settings == theirs["settings"]


def test_text_that_is_read_as_null_is_named(frame):
    words = frame.assign(title=frame.title.where(frame.item_id % 3 == 0, "N/A"))
    with pytest.warns(UserWarning, match="texts of X that are read as null: 'N/A' of 'title'. `fields` can say"):
        model = FlipClassifier(**FAST).fit(words, clicks(frame))
    assert {field.name: field.null_values for field in model.fields_}["title"] == ("N/A",)


def test_sparse_columns_are_numbers_like_others(frame):
    y, flag = clicks(frame), (frame.item_id % 3 == 0).astype(int)
    sparse = frame.assign(flag=pd.arrays.SparseArray(flag))
    model = FlipClassifier(**FAST).fit(sparse, y)
    assert "flag" in [field.name for field in model.fields_]
    assert np.array_equal(model.predict_proba(sparse), model.predict_proba(frame.assign(flag=flag)))


def test_continue_fit_gives_new_values_ids_and_keeps_the_rest(frame, tmp_path):
    model = FlipClassifier(**FAST).fit(frame, clicks(frame))
    before, size = model.predict_proba(frame), model.model_.config.id_fields[0].vocab_size
    newer = table(120).assign(user_id=lambda one: one.user_id + 500)
    model.continue_fit(newer, clicks(newer), sample_weight=np.ones(len(newer)))
    assert model.model_.config.id_fields[0].vocab_size == size + 11
    assert not np.array_equal(model.predict_proba(frame), before)
    model.save_pretrained(tmp_path / "grown")
    again = FlipClassifier.from_pretrained(tmp_path / "grown", num_train_epochs=1)
    again.processor_.label = "clicked"  # as others call it
    again.continue_fit(newer, clicks(newer))
    assert again.predict_proba(newer).shape == (120, 2)
    with pytest.raises(ValueError, match="y, row 3: 2 is none of the classes"):
        model.continue_fit(newer, [0, 1, 0, 2] + [1] * 116)
    with pytest.raises(NotFittedError):
        FlipClassifier().continue_fit(newer, clicks(newer))


def test_a_plm_reads_the_text(frame, plm):
    y = clicks(frame)
    of_plm = {"use_lora": True, "lora_r": 4, "fusion": "gate"}
    both = FlipClassifier(str(plm), num_train_epochs=1, settings=FAST["settings"] | of_plm).fit(frame, y)
    assert both.strategy_ in ("id", "joint")
    joint = FlipClassifier(str(plm), strategy="joint", **FAST).fit(frame, y)
    assert joint.model_.config.strategy == "joint" and joint.model_.config.prompts == "entity"
    assert np.array_equal(pickle.loads(pickle.dumps(joint)).predict_proba(frame), joint.predict_proba(frame))
    frozen = {name: value.clone() for name, value in joint.model_.flip.text_encoder.state_dict().items()}
    joint.continue_fit(table(60).assign(item_id=999, title="New"), clicks(table(60)))
    after = joint.model_.flip.text_encoder.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    trained = FlipClassifier(str(plm), strategy="joint", num_train_epochs=1, settings={"freeze_plm": False}).fit(
        frame, y
    )
    after = trained.model_.flip.text_encoder.state_dict()
    assert trained.model_.config.prompts == "row" and not all(torch.equal(frozen[name], after[name]) for name in frozen)
    with pytest.raises(OSError, match="^model_name_or_path nowhere: no model folder"):
        FlipClassifier("nowhere").fit(frame, y)
    assert FlipClassifier(str(plm), **FAST).fit(frame[["age", "price"]].to_numpy(), y).strategy_ == "id"
    settings = FAST["settings"] | {"use_lora": True, "mixed_precision": "bf16", "prompts": "row"}
    lora = FlipClassifier(str(plm), strategy="plm", num_train_epochs=1, settings=settings).fit(frame, y)
    assert pickle.loads(pickle.dumps(lora)).model_.config.strategy == "plm"


def test_a_score_is_explained(frame):
    model = FlipClassifier(**FAST).fit(frame, clicks(frame))
    rows = frame.head(3)
    answers, log_odds = model.explain(rows), model.decision_function(rows)
    assert [answer["log_odds"] for answer in answers] == pytest.approx(log_odds, abs=1e-6)
    column = next(field.name for field in model.fields_ if not field.key)
    without = model.decision_function(rows.assign(**{column: None}))
    parts = [next(part for part in answer["parts"] if part["part"] == column) for answer in answers]
    assert [part["log_odds"] for part in parts] == pytest.approx(without, abs=1e-6)
    with pytest.raises(NotFittedError):
        FlipClassifier().explain(rows)


def test_validation_rows_and_time(frame):
    y, settings = clicks(frame), FAST["settings"] | {"logging_steps": 1}
    held_out = FlipClassifier(**FAST).fit(frame[:160], y[:160], eval_set=(frame[160:], y[160:]))
    assert [one["eval_rows"] for one in held_out.history_ if "eval_rows" in one] == [80, 80]
    without = FlipClassifier(validation_fraction=0, **FAST).fit(frame, y)
    assert not any("eval_auc" in one for one in without.history_)
    short = FlipClassifier(max_minutes=0, settings=settings).fit(frame, y)
    assert short.history_[-1]["step"] == 1 and "eval_auc" in short.history_[-1]
    lone = np.r_[1, np.zeros(len(frame) - 1, int)]  # of one click none can be held out
    assert not any("eval_auc" in one for one in FlipClassifier(**FAST).fit(frame, lone).history_)


def test_weights_count(frame):
    y, weights = clicks(frame), np.where(clicks(frame), 20.0, 1.0)
    plain, heavy = (
        FlipClassifier(num_train_epochs=6).fit(frame, y, sample_weight=one).predict_proba(frame)[:, 1]
        for one in (None, weights)
    )
    assert heavy.mean() > plain.mean() + 0.1
    model, even = (FlipClassifier(**FAST).fit(frame, y) for _ in range(2))
    model.continue_fit(frame, y, sample_weight=weights), even.continue_fit(frame, y)
    assert model.predict_proba(frame)[:, 1].mean() > even.predict_proba(frame)[:, 1].mean() + 0.005
    fitted = FlipClassifier(validation_fraction=0.4, settings={"calibration": "platt"}).fit(frame, y)
    assert fitted.model_.config.calibration["kind"] == "platt"


def test_one_value_beside_nulls_is_read(frame):
    given = np.arange(len(frame)) % 3 == 0
    marked = frame.assign(
        coupon=np.where(given, "SUMMER", None),
        is_new=pd.array(np.where(given, True, None), dtype="boolean"),
        gift=np.where(given, 5.5, np.nan),
    )
    model = FlipClassifier(**FAST).fit(marked, given.astype(int))
    assert {"coupon", "is_new", "gift"} <= {field.name for field in model.fields_}
    probabilities = model.predict_proba(marked)[:, 1]
    assert probabilities[given].min() > probabilities[~given].max()


def test_validation_rows_are_one_pair(frame):
    y = clicks(frame)
    with pytest.raises(ValueError, match=r"eval_set is a pair \(X, y\) of rows and labels; got list"):
        FlipClassifier(**FAST).fit(frame, y, eval_set=[(frame, y)])


def test_columns_that_are_no_fields_are_said(frame):
    strange = frame.assign(when=pd.Timestamp("2024-01-01"), always="x", label="a", weight=np.arange(len(frame)) / 7.0)
    strange.loc[strange.index[0], "label"] = "b"
    with pytest.warns(UserWarning, match=r"not read: 'when' \(a time\), 'always' \(always 'x' in the sample\)"):
        model = FlipClassifier(**FAST).fit(strange, clicks(frame))
    assert {"label_value", "weight"} <= {field.name for field in model.fields_}
    assert np.isfinite(model.predict_proba(strange)).all()
    fields = [FlipField("label", "int", key=True), {"name": "price", "type": "float", "kind": "numeric"}]
    strange["label"] = [1, "2"] * (len(frame) // 2)  # which no inference would take
    given = FlipClassifier(fields=fields, **FAST).fit(strange, clicks(frame))
    assert [field.name for field in given.fields_] == ["label", "price"] and fields[0].vocab_size is None


def one_more(frame):
    return frame.assign(age=frame.age.astype(object).where(np.arange(len(frame)) != 7, "old"))


ERRORS = {
    "one class": (lambda m, X, y: m.fit(X, y * 0), "y has one class only"),
    "three classes": (lambda m, X, y: m.fit(X, y + np.arange(len(y)) % 2), "Only binary classification.*3 classes"),
    "lengths": (lambda m, X, y: m.fit(X, y[1:]), "X has 240 rows, and y 239"),
    "null label": (lambda m, X, y: m.fit(X, np.where(np.arange(len(y)) == 3, np.nan, y)), "y, row 3: null"),
    "no rows": (lambda m, X, y: m.fit(X[:0], []), "X has 0 rows and 6 columns"),
    "types": (
        lambda m, X, y: m.fit(one_more(X), y),
        r"column 'age' .*several types \(float in row 0, str in row 7\); give",
    ),
    "sets": (lambda m, X, y: m.fit(X.assign(tags=[{"a"}] * 240), y), "'tags' of the frame holds sets.*make them lists"),
    "bits": (
        lambda m, X, y: m.fit(X.assign(big=[2**70] * 240), y),
        "'big' of the frame holds integers of more than 64",
    ),
    "objects": (lambda m, X, y: m.fit(X.assign(f=[print] * 240), y), "'f' of the frame holds objects of the type"),
    "type": (lambda m, X, y: m.fit(X.assign(wave=1j), y), "column 'wave' of the frame is of a type that is not read"),
    "no column": (lambda m, X, y: m.fit(X[[]].assign(a=1), y), "no column that a click could be predicted by"),
    "twice": (lambda m, X, y: m.fit(pd.concat([X, X], axis=1), y), "more than one column 'user_id'"),
    "weight": (lambda m, X, y: m.fit(X, y, sample_weight=np.arange(len(y)) - 1), "sample_weight, row 0.*got -1"),
    "weights": (lambda m, X, y: m.fit(X, y, sample_weight=[1]), "a number for each of 240 rows"),
    "missing": (lambda m, X, y: m.predict(X.drop(columns="price")), "'price' missing; the rows have: 'user_id'"),
    "value": (lambda m, X, y: m.predict(one_more(X)), "column 'age', row 7: expected float, got str 'old'"),
    "value of training": (
        lambda m, X, y: m.set_params(fields=[FlipField("age", "float")]).fit(one_more(X), y),
        "column 'age', row 7: expected float, got str 'old'",
    ),
    "matrix": (lambda m, X, y: m.predict(np.ones((2, 6))), "X is a matrix without names.*'user_id', 'age'"),
    "fields": (lambda m, X, y: m.set_params(fields=[FlipField("colour")]).fit(X, y), "'colour' missing"),
    "fraction": (lambda m, X, y: m.set_params(validation_fraction=1.5).fit(X, y), "validation_fraction must be"),
    "minutes": (lambda m, X, y: m.set_params(max_minutes=-1).fit(X, y), "max_minutes must be a number of at least 0"),
    "rate": (lambda m, X, y: m.set_params(learning_rate=-1).fit(X, y), "^learning_rate must be above 0; got -1"),
    "strategy": (lambda m, X, y: m.set_params(strategy="both").fit(X, y), "^strategy must be one of id"),
    "no PLM": (lambda m, X, y: m.set_params(strategy="joint").fit(X, y), "needs a PLM.*: model_name_or_path"),
    "setting": (lambda m, X, y: m.set_params(settings={"tower": "fm"}).fit(X, y), "no 'tower' .*did you mean id_tower"),
    "calibration": (
        lambda m, X, y: m.set_params(settings={"calibration": "platt"}, validation_fraction=0).fit(X, y),
        "^calibration platt needs validation rows",
    ),
    "parameter": (lambda m, X, y: m.set_params(settings={"seed": 1}).fit(X, y), "the parameter random_state"),
    "settings": (lambda m, X, y: m.set_params(settings=[1]).fit(X, y), "settings must be a dict"),
}


@pytest.mark.filterwarnings("ignore:columns of X")
@pytest.mark.parametrize("name", ERRORS)
def test_errors_say_what_is_wrong(name, fitted, frame):
    call, message = ERRORS[name]
    model = pickle.loads(pickle.dumps(fitted))
    with pytest.raises(ValueError, match=message):
        call(model, frame, clicks(frame))


def test_a_loss_that_is_not_finite_is_an_error(frame):
    with pytest.raises(FloatingPointError) as caught:
        FlipClassifier(learning_rate=1e25, **FAST).fit(frame, clicks(frame))
    assert "Kept in" not in str(caught.value) and "Lower learning_rate or" in str(caught.value)


def test_publishing_reads_as_saving_does(fitted, frame, monkeypatch):
    pushed = {}

    def push(folder, repo_id, private, token):
        assert set(published_files(folder)) == set(os.listdir(folder)) >= {"classifier.json", "README.md"}
        pushed[repo_id] = FlipClassifier.from_pretrained(folder).predict_proba(frame)
        return "https://hub/" + repo_id

    monkeypatch.setattr("flip_ctr.estimator.classifier.push_checkpoint", push)
    assert fitted.push_to_hub("org/model") == "https://hub/org/model"
    assert np.array_equal(pushed["org/model"], fitted.predict_proba(frame))
    with pytest.raises(NotFittedError):
        FlipClassifier().save_pretrained("nowhere")
