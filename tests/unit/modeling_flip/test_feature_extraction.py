"""The tabular view: canonical values, vocabularies, feature ids, and rows in every form that people have them in."""

import datetime
import decimal
import unicodedata

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import tiny
from transformers import AutoProcessor

from flip_ctr import FlipFeatureExtractor, FlipField, FlipProcessor
from flip_ctr.modeling_flip.columns_flip import Column
from flip_ctr.modeling_flip.values_flip import canonical_value

NULLS = [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, "", "  \t "]


@pytest.mark.parametrize(
    ("type_name", "same", "canonical"),
    [
        ("int", [25, 25.0, "25", " 25 ", "25.0", np.int64(25), np.float32(25), np.uint8(25)], "25"),
        ("int", [-3, "-3", -3.0], "-3"),
        ("int", [2**53 + 1, str(2**53 + 1), np.int64(2**53 + 1)], "9007199254740993"),
        ("float", [0.1, "0.1", "0.10", np.float64(0.1), np.float32(0.1)], "0.1"),
        ("float", [2, 2.0, "2", "2.00", "2e0"], "2"),
        ("float", [1e-7, "1e-7", "0.0000001"], "0.0000001"),
        ("bool", [True, 1, "1", "true", "True", np.bool_(True), np.int64(1)], "true"),
        ("bool", [False, 0, "0", "FALSE"], "false"),
        ("string", ["02139", " 02139", "02139\n", np.str_("02139")], "02139"),
        ("string", ["Toy  Story\t(1995)", "Toy Story (1995)", "Toy\u00a0Story\r\n(1995) "], "Toy Story (1995)"),
        ("string", ["Café", unicodedata.normalize("NFD", "Café")], "Café"),
        ("string", ["NA", " NA"], "NA"),  # text that other readers take for a null
    ],
)
def test_one_canonical_form(type_name, same, canonical):
    assert [canonical_value(value, type_name) for value in same] == [canonical] * len(same)


@pytest.mark.parametrize("type_name", ["string", "int", "float", "bool"])
def test_nulls(type_name):
    assert [canonical_value(value, type_name) for value in NULLS] == [None] * len(NULLS)


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("string", 2139),
        ("string", 1.5),
        ("string", True),
        ("string", b"x"),
        ("string", ["a"]),
        ("int", 1.5),
        ("int", "1.5"),
        ("int", "x"),
        ("int", True),
        ("int", float("inf")),
        ("int", "1,000"),
        ("float", "x"),
        ("float", float("inf")),
        ("float", False),
        ("float", "-inf"),
        ("bool", 2),
        ("bool", "yes"),
        ("bool", 1.0),
        ("bool", None.__class__),
        ("int", datetime.date(2020, 1, 1)),
        ("string", decimal.Decimal("1.5")),
        ("bool", decimal.Decimal(1)),
        ("int", decimal.Decimal("1.5")),
        ("int", [1]),
        ("int", {"a": 1}),
    ],
)
def test_values_of_another_type_are_refused(type_name, value):
    with pytest.raises(
        ValueError, match=f"expected {'text' if type_name == 'string' else type_name}, got {type(value).__name__}"
    ):
        canonical_value(value, type_name)


def test_a_leading_zero_lost_by_a_reader_is_an_error_not_a_wrong_score():
    with pytest.raises(ValueError, match="column 'zip_code', row 1.*leading zeros"):
        FlipFeatureExtractor(tiny.FIELDS)(
            pd.DataFrame(tiny.toy_rows(3)).astype({"zip_code": object}).replace("01139", 1139)
        )


# --- vocabularies


def test_ids_are_reserved_then_by_falling_frequency():
    values = ["b", "a", "c", "a", None, "d", "c", "a", "b", "d"]
    processor = FlipProcessor.from_dataset({"f": values}, [FlipField("f")])
    assert processor.feature_extractor.vocabularies == [["a", "b", "c", "d"]]  # ties in order of the value
    ids = processor({"f": ["a", "b", "c", "d", None, "new"]})["feature_ids"][:, 0]
    assert ids.tolist() == [4, 5, 6, 7, 3, 2]
    assert processor.fields[0]["vocab_size"] == 8


def test_rare_values_share_the_unknown_id():
    values = ["a"] * 3 + ["b"] * 2 + ["c"]
    processor = FlipProcessor.from_dataset({"f": values}, [FlipField("f")], min_frequency=2)
    assert processor({"f": ["a", "b", "c"]})["feature_ids"][:, 0].tolist() == [4, 5, 2]


def test_a_vocabulary_does_not_depend_on_the_order_of_the_rows():
    rows = tiny.toy_rows(50)
    one, two = (FlipProcessor.from_dataset(part, tiny.FIELDS).feature_extractor for part in (rows, rows[::-1]))
    assert one.vocabularies == two.vocabularies


def test_only_id_side_fields_have_columns():
    fields = [FlipField("a", sides=("text",)), FlipField("b", sides=("id",)), FlipField("c")]
    processor = FlipProcessor.from_dataset({"a": ["x"], "b": ["y"], "c": ["z"]}, fields)
    assert processor({"a": ["x"], "b": ["y"], "c": ["z"]})["feature_ids"].tolist() == [[4, 4]]
    assert [field["vocab_size"] for field in processor.fields] == [None, 5, 5]


def test_vocabularies_survive_saving(tmp_path, id_processor, rows):
    id_processor.feature_extractor.save_pretrained(tmp_path)
    again = FlipFeatureExtractor.from_pretrained(tmp_path)
    assert again.vocabularies == id_processor.feature_extractor.vocabularies
    assert (again(rows)["feature_ids"] == id_processor.feature_extractor(rows)["feature_ids"]).all()


def test_vocabularies_and_fields_must_match():
    with pytest.raises(ValueError, match="1 vocabularies for 2 ID-side fields"):
        FlipFeatureExtractor([FlipField("a"), FlipField("b")], [["x"]])


# --- forms of rows


def table(rows) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0]}


FORMS = {
    "list of dicts": lambda rows: rows,
    "dict of columns": table,
    "dict of arrays": lambda rows: {name: np.array(column, dtype=object) for name, column in table(rows).items()},
    "pandas": pd.DataFrame,
    "pandas with nullable types": lambda rows: pd.DataFrame(rows).convert_dtypes(),
    "pandas of a filtered index": lambda rows: pd.DataFrame(rows + rows).iloc[len(rows) :],
    "arrow": pa.Table.from_pylist,
    "arrow in chunks": lambda rows: pa.concat_tables([pa.Table.from_pylist(rows[:5]), pa.Table.from_pylist(rows[5:])]),
    "arrow dictionaries": lambda rows: pa.table(
        {name: pa.array(column).dictionary_encode() for name, column in table(rows).items()}
    ),
    "arrow batch": lambda rows: pa.RecordBatch.from_pylist(rows),
    "datasets": datasets.Dataset.from_list,
    "datasets in another order": lambda rows: datasets.Dataset.from_list(rows[::-1]).select(range(len(rows))[::-1]),
    "datasets batch": lambda rows: datasets.Dataset.from_list(rows)[:],
    "datasets batch of numpy": lambda rows: datasets.Dataset.from_list(rows).with_format("numpy")[:],
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_rows_are_equal(processor, rows, form):
    expected, got = processor(rows), processor(FORMS[form](rows))
    assert expected.keys() == got.keys() == {*processor.model_input_names, "labels"}
    assert all((expected[name] == got[name]).all() for name in expected)


def test_a_column_of_floats_with_nulls_is_the_same_integers(processor, rows):
    """What pandas makes of an integer column with a null."""
    rows = [dict(row) for row in rows]
    rows[3]["age"] = None
    frame = pd.DataFrame(rows)
    assert frame["age"].dtype == float
    assert (processor(frame)["feature_ids"] == processor(rows)["feature_ids"]).all()


def test_datasets_map_reads_batches(processor, rows):
    data = datasets.Dataset.from_list(rows)
    mapped = data.map(lambda batch: {"feature_ids": processor(batch, return_tensors=None)["feature_ids"]}, batched=True)
    assert mapped["feature_ids"] == processor(rows)["feature_ids"].tolist()


def test_one_row_may_be_a_dict(processor, rows):
    single, batch = processor(rows[0]), processor(rows[:1])
    assert all((single[name] == batch[name]).all() and len(single[name]) == 1 for name in batch)


def test_extra_columns_are_ignored(processor, rows):
    extra = [row | {"note": object(), "rating": 5} for row in rows]
    assert (processor(extra)["feature_ids"] == processor(rows)["feature_ids"]).all()


# --- errors


@pytest.mark.parametrize("form", ["list of dicts", "dict of columns", "pandas", "arrow", "datasets"])
def test_wrong_values_name_column_and_row(processor, rows, form):
    wrong = [dict(row) | {"age": str(row["age"])} for row in rows]
    wrong[7]["age"] = "old"
    with pytest.raises(ValueError, match="column 'age', row 7: expected int, got str 'old'"):
        processor(FORMS[form](wrong))


@pytest.mark.parametrize("form", ["dict of columns", "pandas", "arrow", "datasets"])
def test_missing_columns_are_named(processor, rows, form):
    short = [{name: value for name, value in row.items() if name not in ("title", "age")} for row in rows]
    with pytest.raises(ValueError, match="'age', 'title' missing; the rows have: 'user_id', 'zip_code'"):
        processor(FORMS[form](short))


def test_a_row_that_lacks_a_column_is_named(processor, rows):
    short = [dict(row) for row in rows]
    del short[4]["genre"]
    with pytest.raises(ValueError, match="column 'genre' is missing in row 4"):
        processor(short)


def test_columns_of_different_lengths_are_refused(processor, rows):
    with pytest.raises(ValueError, match="columns differ in length.*'age': 5"):
        processor(table(rows) | {"age": [1, 2, 3, 4, 5]})


@pytest.mark.parametrize("thing", ["text", 5, [1, 2], None])
def test_other_things_are_no_rows(processor, thing):
    with pytest.raises(TypeError, match=f"got {type(thing).__name__}"):
        processor(thing)


def test_forbidden_nulls_are_named():
    with pytest.raises(ValueError, match="column 'f', row 1: null, and the schema forbids nulls"):
        Column.read(["a", None], FlipField("f", nullable=False))


def test_nested_values_are_named(processor, rows):
    wrong = [dict(row) for row in rows]
    wrong[2]["genre"] = ["Drama", "Romance"]
    with pytest.raises(ValueError, match="column 'genre', row 2: expected text, got list"):
        processor(wrong)


@pytest.mark.parametrize("label", [2, -1, 0.5, None])
def test_wrong_labels_are_named(processor, rows, label):
    wrong = [dict(row) for row in rows]
    wrong[9]["label"] = label
    with pytest.raises(ValueError, match="column 'label', row 9: a label must be 0 or 1"):
        processor(wrong)


@pytest.mark.parametrize("labels", [[0, 1, 1], [0.0, 1.0, 1.0], ["0", "1", "1"], [False, True, True]])
def test_labels_in_any_type(labels):
    processor = FlipProcessor.from_dataset({"f": list("abc")}, [FlipField("f")], label="click")
    assert processor({"f": list("abc"), "click": labels})["labels"].tolist() == [0, 1, 1]
    assert "labels" not in processor({"f": ["a"]})


def test_weights():
    processor = FlipProcessor.from_dataset({"f": ["a", "b"]}, [FlipField("f")], weight="w")
    assert processor({"f": ["a", "b"], "w": [0, 2.5]})["sample_weight"].tolist() == [0.0, 2.5]
    for wrong, message in ((-1, "a weight must be at least 0, got -1"), (None, "null, and the schema forbids nulls")):
        with pytest.raises(ValueError, match=f"column 'w', row 1: {message}"):
            processor({"f": ["a", "b"], "w": [1, wrong]})


# --- large vocabularies lie in a file of their own


@pytest.fixture
def few_in_json(monkeypatch):
    monkeypatch.setattr("flip_ctr.modeling_flip.feature_extraction_flip.MAX_JSON_VALUES", 5)


@pytest.mark.parametrize("kind", ["processor", "id_processor"])
def test_large_vocabularies_survive_saving_in_a_file(tmp_path, request, rows, kind, few_in_json, monkeypatch):
    processor = request.getfixturevalue(kind)
    processor.save_pretrained(tmp_path)
    config = (tmp_path / "processor_config.json").read_text(encoding="utf-8")
    assert "Titanic" not in config and '"vocabulary_sizes"' in config
    assert "Titanic (1997) 0" in (tmp_path / "vocabularies.txt").read_text(encoding="utf-8").split("\n")
    again = AutoProcessor.from_pretrained(tmp_path)
    assert (
        again.feature_extractor.vocabularies == processor.feature_extractor.vocabularies
        and again.fields == processor.fields
    )
    assert (again(rows)["feature_ids"] == processor(rows)["feature_ids"]).all()
    monkeypatch.setattr("flip_ctr.modeling_flip.feature_extraction_flip.MAX_JSON_VALUES", 10**6)
    again.save_pretrained(tmp_path)  # the file that is no longer needed goes
    assert not (tmp_path / "vocabularies.txt").exists()
    assert (
        AutoProcessor.from_pretrained(tmp_path).feature_extractor.vocabularies
        == processor.feature_extractor.vocabularies
    )


def test_values_with_every_kind_of_space_survive_in_the_file(tmp_path, few_in_json):
    values = ["a\u2028b", "c\x85d", "e\x0bf", "g\x1ch", "", "ü", "[NULL]", "\\n", "i\u00a0j"]
    processor = FlipProcessor.from_dataset({"title": values}, [FlipField("title")])
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert again({"title": values})["feature_ids"].tolist() == processor({"title": values})["feature_ids"].tolist()
    assert len(again.feature_extractor.vocabularies[0]) == len(values) - 1


def test_a_file_of_another_checkpoint_and_a_missing_one_are_refused(tmp_path, processor, rows, few_in_json):
    processor.save_pretrained(tmp_path)
    path = tmp_path / "vocabularies.txt"
    path.write_text(path.read_text(encoding="utf-8") + "one more\n", encoding="utf-8")
    with pytest.raises(
        ValueError,
        match=r"vocabularies.txt holds \d+ values, and the vocabularies have \d+: it is not of this checkpoint",
    ):
        AutoProcessor.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match="vocabularies.txt"):
        AutoProcessor.from_pretrained(tmp_path)
    extractor = FlipFeatureExtractor(**processor.feature_extractor.to_dict())
    with pytest.raises(
        ValueError, match="the vocabularies lie in vocabularies.txt, which only `from_pretrained` reads"
    ):
        extractor(rows)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [("9007199254740995.0", "9007199254740995"), ("25.0", "25"), ("1.0e3", "1000"), ("-0.0", "0")],
)
def test_whole_numbers_with_a_point_lose_no_digit(text, canonical):
    assert canonical_value(text, "int") == canonical


@pytest.mark.parametrize("text", ["1_000", "1_0.0", "1.5e999", "1.2.3"])
@pytest.mark.parametrize("kind", ["int", "float"])
def test_what_only_python_takes_for_a_number_is_none(text, kind):
    with pytest.raises(ValueError, match=f"expected {kind}, got str"):
        canonical_value(text, kind)
