"""`pipeline("click-through-rate")`: every form of rows, in order, in batches, with the errors a user meets."""

import datasets
import pandas as pd
import pyarrow as pa
import pytest
import tiny
import torch
from transformers import pipeline

import flip_ctr  # noqa: F401  registers the task
from flip_ctr import ClickThroughRatePipeline, FlipForCTR

ROWS = tiny.toy_rows(11)


@pytest.fixture(scope="module", params=["id", "plm", "joint"])
def scorer(request, tmp_path_factory, processor, text_config):
    torch.manual_seed(0)
    model = tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, strategy=request.param))).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    (processor.without_tokenizer() if request.param == "id" else processor).save_pretrained(folder)
    return pipeline("click-through-rate", model=str(folder))  # nothing to trust: the package has registered its own


def probabilities(scorer, name: str = "logits") -> torch.Tensor:
    with torch.no_grad():
        return scorer.model(**scorer.processor(ROWS))[name][:, 0].sigmoid()


FORMS = {
    "list": lambda: ROWS,
    "columns": lambda: {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "pandas": lambda: pd.DataFrame(ROWS),
    "pandas with another index": lambda: pd.DataFrame(ROWS, index=range(50, 61)),
    "arrow": lambda: pa.Table.from_pylist(ROWS),
    "dataset": lambda: datasets.Dataset.from_list(ROWS),
    "batch of a dataset": lambda: datasets.Dataset.from_list(ROWS)[:],
    "generator": lambda: (row for row in ROWS),
    "streaming dataset": lambda: datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_every_form_of_rows_is_scored_in_order(scorer, form, batch_size):
    answers = list(scorer(FORMS[form](), batch_size=batch_size))
    joint = scorer.model.config.strategy == "joint"
    names = ["click_probability", "id_probability", "text_probability"] if joint else ["click_probability"]
    assert all(list(answer) == names for answer in answers)
    for name, output in zip(names, ("logits", "id_logits", "text_logits")):
        got = torch.tensor([answer[name] for answer in answers])
        torch.testing.assert_close(got, probabilities(scorer, output), atol=1e-6, rtol=1e-5)
    assert len({answer["click_probability"] for answer in answers}) > 5  # the rows differ


def test_one_row_has_one_answer(scorer):
    answer = scorer({name: value for name, value in ROWS[3].items() if name != "label"})
    assert answer["click_probability"] == pytest.approx(probabilities(scorer)[3].item(), abs=1e-6)


def test_no_rows_no_answers(scorer):
    assert scorer([]) == [] and scorer(pd.DataFrame(ROWS)[:0]) == []


def test_a_label_in_the_rows_is_ignored(scorer):
    assert len(scorer([row | {"label": "not a click"} for row in ROWS])) == 11


def test_a_stream_is_read_batch_by_batch(scorer):
    read = []
    answers = scorer((read.append(row) or row for row in ROWS), batch_size=2)
    next(answers)
    assert len(read) == 2


def test_errors_name_column_and_row(scorer):
    with pytest.raises(ValueError, match="column 'age', row 2: expected int, got str 'old'"):
        scorer([*ROWS[:2], ROWS[2] | {"age": "old"}])
    with pytest.raises(ValueError, match="'zip_code' missing"):
        scorer(pd.DataFrame(ROWS).drop(columns="zip_code"))
    with pytest.raises(TypeError, match="got str"):
        scorer("Titanic")
    with pytest.raises(TypeError, match="unknown argument.s. top_k"):
        scorer(ROWS, top_k=3)


def test_a_saved_pipeline_keeps_its_processor(scorer, tmp_path):
    scorer.save_pretrained(tmp_path)
    again = pipeline("click-through-rate", model=str(tmp_path))
    assert isinstance(again, ClickThroughRatePipeline) and again(ROWS) == scorer(ROWS)


def test_the_configuration_still_prints_after_use(scorer):
    assert "AutoModelForSequenceClassification" in repr(scorer.model.config)


def test_a_row_of_a_frame_is_one_row(scorer):
    frame = pd.DataFrame(ROWS).drop(columns="label")
    assert scorer(frame.iloc[3]) == pytest.approx(scorer(ROWS[3]))
    assert scorer(frame[["title", "genre", "zip_code", "user_id", "age", "movie_id"]].iloc[0]) == pytest.approx(
        scorer(ROWS[0])
    )


def test_a_single_value_among_columns_is_refused(scorer):
    with pytest.raises(ValueError, match="column 'title' holds one value, 'ab'"):
        scorer({name: [row[name] for row in ROWS[:2]] for name in ROWS[0]} | {"title": "ab"})


def test_batches_without_rows_are_refused(scorer):
    with pytest.raises(ValueError, match="`batch_size` must be a whole number of at least 1; got -1"):
        scorer(ROWS, batch_size=-1)


def test_a_model_object_with_its_processor(scorer):
    again = pipeline("click-through-rate", model=scorer.model, processor=scorer.processor)
    assert again(ROWS[:2]) == scorer(ROWS[:2])
