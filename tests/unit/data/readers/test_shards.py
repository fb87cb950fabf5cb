"""A split in many files: the same rows as in one, and what is wrong with a file is said before anything is trained."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from transformers import AutoTokenizer

from flip_ctr import FlipField, FlipProcessor
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.shards import SplitRows, fits, open_splits
from flip_ctr.modeling_flip.fields_flip import FIELD_TYPES


@pytest.fixture(scope="module")
def sharded(tmp_path_factory, dataset_dir):
    return tiny.reshard(dataset_dir, tmp_path_factory.mktemp("sharded") / "d", files=3, group_rows=70)


def gathered(rows, **kwargs) -> pa.Table:
    numbers, parts = zip(*rows.parts(**kwargs))
    assert list(numbers) == np.cumsum([0, *map(len, parts)])[:-1].tolist()  # parts follow each other
    return pa.concat_tables(parts)


@pytest.mark.parametrize("size", [1, 64, 100_000])
def test_parts_are_the_rows_in_their_order(dataset_dir, sharded, size):
    whole, rows = read_split(dataset_dir, "validation"), SplitRows(sharded, "validation")
    assert len(rows) == len(whole) and len(rows.shards) == 3
    table = gathered(rows, size=size)
    assert (
        table.equals(whole.select(table.column_names)) and "timestamp" not in table.column_names
    )  # no column that nobody needs


@pytest.mark.parametrize("size", [1, 64, 100_000])
def test_a_sample_is_that_of_the_seed(dataset_dir, sharded, size):
    whole = read_split(dataset_dir, "train")
    picked = np.sort(np.random.default_rng(3).choice(len(whole), 200, replace=False))
    rows = SplitRows(sharded, "train", 200, 3)
    table = gathered(rows, size=size)
    assert len(rows) == 200 and table.equals(whole.select(table.column_names).take(picked))
    assert rows.take([0, 7, 8, 199]).equals(table.take([0, 7, 8, 199]))
    assert len(gathered(rows.whole())) == len(whole)
    assert len(SplitRows(sharded, "train", 10**6, 3)) == len(whole)


def test_vocabularies_are_those_of_the_table(dataset_dir, sharded, plm):
    rows, table = SplitRows(sharded, "train"), read_split(dataset_dir, "train")
    tokenizer = AutoTokenizer.from_pretrained(plm)
    processors = [
        FlipProcessor.from_dataset(data, rows.schema.fields, tokenizer, min_frequency=20) for data in (rows, table)
    ]
    assert processors[0].feature_extractor.to_dict() == processors[1].feature_extractor.to_dict()
    assert processors[0].feature_extractor.vocabularies[0]


def test_prompts_that_do_not_compose_name_a_row_of_the_split(sharded):
    with pytest.raises(ValueError, match=r"prompts do not compose with BertTokenizer: row \d+, token"):
        FlipProcessor.from_dataset(
            SplitRows(sharded, "train"), SplitRows(sharded, "train").schema.fields, tiny.joining()
        )


def path_of(folder, split="test", number=1):
    return folder / "data" / f"{split}-{number:05}-of-00003.parquet"


def without(name):
    return lambda table: table.drop_columns(name)


def as_type(name, kind):
    return lambda table: table.set_column(table.column_names.index(name), name, table[name].cast(kind))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("title"),
            "split 'test', .*test-00001-of-00003.parquet: no column 'title', which schema.json names; it has user_id",
        ),
        (without("user_id"), "test-00001-of-00003.parquet: no column 'user_id'"),
        (
            as_type("zip_code", pa.binary()),
            "column 'zip_code' is of type binary, which does not fit string of schema.json",
        ),
        (
            as_type("age", pa.float32()),
            r"test-00001-of-00003.parquet: its columns are not those of test-00000.* \(see age\)",
        ),
        (without("timestamp"), r"its columns are not those of test-00000-of-00003.parquet \(see timestamp\)"),
        (as_type("label", pa.timestamp("s")), "column 'label' is of type timestamp"),
    ],
)
@pytest.mark.parametrize("recipe", ["finetune", "streaming"])
def test_a_column_that_does_not_fit_is_found_before_training(tmp_path, dataset_dir, change, message, recipe):
    folder = tiny.reshard(dataset_dir, tmp_path / "d")
    table = pq.read_table(path_of(folder))
    if "timestamp" in message and "label" in message:
        table = as_type("label", pa.int64())(table)
    pq.write_table(change(table), path_of(folder))
    with pytest.raises(ValueError, match=message):
        tiny.finetune(folder, None, tmp_path / "m", streaming=recipe == "streaming")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("length", [0, 5, 3000, -1])
def test_a_damaged_file_is_named(tmp_path, dataset_dir, length):
    folder = tiny.reshard(dataset_dir, tmp_path / "d")
    content = path_of(folder).read_bytes()
    path_of(folder).write_bytes(content[:length] if length else b"no parquet at all")
    with pytest.raises(ValueError, match="split 'test': .*test-00001-of-00003.parquet is not a whole Parquet file"):
        tiny.finetune(folder, None, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_damaged_page_is_named(tmp_path, dataset_dir):
    folder = tiny.reshard(dataset_dir, tmp_path / "d")
    content = bytearray(path_of(folder).read_bytes())
    content[4:400] = b"\xff" * 396  # of the first column; the footer is whole
    path_of(folder).write_bytes(content)
    with pytest.raises(ValueError, match="split 'test', .*test-00001-of-00003.parquet: "):
        tiny.finetune(folder, None, tmp_path / "m")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (None, "split 'test': .* lacks test-00001-of-00003.parquet; its 3 file"),
        ("test-00000-of-00001.parquet", "split 'test': .* also has test-00000-of-00001.parquet; its 3 file"),
        ("test-more.parquet", "also has test-more.parquet"),
    ],
)
def test_files_are_complete(tmp_path, dataset_dir, name, message):
    folder = tiny.reshard(dataset_dir, tmp_path / "d")
    if name is None:
        path_of(folder).unlink()
    else:
        path_of(folder).with_name(name).write_bytes(path_of(folder).read_bytes())
    with pytest.raises(ValueError, match=message):
        SplitRows(folder, "test")


@pytest.mark.parametrize("recipe", ["finetune", "streaming"])
def test_a_value_names_file_and_row(tmp_path, dataset_dir, recipe):
    """In the rows that a sample leaves out too, where it is a label."""
    folder = tiny.reshard(dataset_dir, tmp_path / "d")
    table = pq.read_table(path_of(folder))
    labels = table["label"].to_pylist()
    labels[50] = 2
    changed = table.set_column(table.column_names.index("label"), "label", pa.array(labels, table["label"].type))
    pq.write_table(changed, path_of(folder), row_group_size=20)
    expected = "split 'test', .*test-00001-of-00003.parquet: column 'label', row 50: a label must be 0 or 1, got 2"
    assert len(table) > 50
    with pytest.raises(ValueError, match=expected):
        tiny.finetune(folder, None, tmp_path / "m", max_eval_samples=20, streaming=recipe == "streaming")


def test_a_forbidden_null_of_the_test_split_is_found_before_training(tmp_path, dataset_dir):
    folder = tiny.reshard(dataset_dir, tmp_path / "d")
    schema = (folder / "schema.json").read_text()
    (folder / "schema.json").write_text(schema.replace('"nullable": true', '"nullable": false'))
    table = pq.read_table(path_of(folder))
    titles = table["title"].to_pylist()
    titles[3] = None
    pq.write_table(table.set_column(table.column_names.index("title"), "title", pa.array(titles)), path_of(folder))
    with pytest.raises(
        ValueError, match="split 'test', .*00001-of-00003.parquet: column 'title', row 3: null, and the schema forbids"
    ):
        tiny.finetune(folder, None, tmp_path / "m", max_eval_samples=None)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("kind", "fitting"),
    [
        (pa.string(), {"string", "int", "float", "bool"}),  # text is read by its type
        (pa.dictionary(pa.int32(), pa.large_string()), {"string", "int", "float", "bool"}),
        (pa.int16(), {"int", "float", "bool"}),
        (pa.float64(), {"int", "float"}),  # pandas has integers with nulls as floats
        (pa.bool_(), {"bool"}),
        (pa.null(), {"string", "int", "float", "bool"}),
        (pa.list_(pa.string()), set()),
        (pa.date32(), set()),
    ],
)
def test_types_that_fit(kind, fitting):
    assert {name for name in FIELD_TYPES if fits(kind, FlipField("f", name))} == fitting
    lists = [pa.list_(kind), pa.large_list(kind)]
    for arrow in [kind, *(lists if fitting else [])]:  # a list, or text with separators, or a single value
        assert {name for name in FIELD_TYPES if fits(arrow, FlipField("f", name, kind="multi-valued"))} >= fitting
    assert not any(fits(arrow, FlipField("f", name)) for name in FIELD_TYPES for arrow in lists)


def replace_folder(folder, by):
    """As `prepare --overwrite_output_dir`: the other is there in one step."""
    folder.rename(folder.with_name("gone"))
    shutil.copytree(by, folder)


@pytest.fixture
def replaced(tmp_path, dataset_dir, sharded):
    """A dataset folder, and what puts another into its place."""
    folder = shutil.copytree(dataset_dir, tmp_path / "d")
    return folder, lambda: replace_folder(folder, sharded)


@pytest.mark.parametrize("read", [lambda rows: gathered(rows), lambda rows: rows.take([3]), SplitRows.content_digest])
def test_rows_of_another_dataset_in_the_same_place_are_not_read(replaced, read):
    folder, replace = replaced
    rows = SplitRows(folder, "train")
    read(rows)
    rows._open = None  # a worker's own copy has no open file
    replace()
    with pytest.raises(ValueError, match=r"/d was replaced by another dataset while it was read; start again\."):
        read(rows)


@pytest.mark.parametrize("at", ["_check_columns", "__init__"])
def test_splits_are_of_one_dataset(replaced, monkeypatch, at):
    folder, replace = replaced
    whole, left = getattr(SplitRows, at), [replace]

    def then_replace(self, *args):
        whole(self, *args)
        if left:
            left.pop()()

    assert open_splits(folder, {"train": 10, "test": None})["train"].version == SplitRows(folder, "test").version
    monkeypatch.setattr(SplitRows, at, then_replace)
    with pytest.raises(ValueError, match=r"/d was replaced by another dataset while it was read; start again\."):
        open_splits(folder, {"train": 10, "test": None})
