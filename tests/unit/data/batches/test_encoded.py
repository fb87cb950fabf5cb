"""Encoded splits on disk: the same integers whatever the parts, used again where nothing has changed, and only
there."""

import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny

from flip_ctr import FlipProcessor
from flip_ctr.data.batches import cache
from flip_ctr.data.batches.cache import KEPT, cached_split, read_cache
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train.loop.loaders import encode_split


@pytest.fixture
def folder(tmp_path, dataset_dir):
    return tiny.reshard(dataset_dir, tmp_path / "d", files=2, group_rows=90)


@pytest.fixture(scope="module")
def table(dataset_dir):
    return read_split(dataset_dir, "train")


@pytest.fixture(scope="module")
def ml_processor(dataset_dir, table, tokenizer):
    return FlipProcessor.from_dataset(table, SplitRows(dataset_dir, "train").schema.fields, tokenizer, min_frequency=2)


def encodings(folder, split="train"):
    path = folder / ".cache" / "encoded" / split
    return sorted(path.iterdir()) if path.exists() else []


@pytest.mark.parametrize("part_rows", [1, 37, 100_000])
def test_in_parts_as_in_one(folder, table, ml_processor, part_rows, monkeypatch):
    tokenized = []
    value_tokens = FlipProcessor._value_tokens
    monkeypatch.setattr(
        FlipProcessor,
        "_value_tokens",
        lambda self, field, values, budget: (
            tokenized.extend((field.name, value) for value in values),
            value_tokens(self, field, values, budget),
        )[1],
    )
    rows = SplitRows(folder, "train", 150 if part_rows == 1 else None, 7)
    cached_split(ml_processor, rows, part_rows=part_rows)
    assert len(tokenized) == len(set(tokenized)) > 20  # each distinct value once
    monkeypatch.undo()
    dataset = EncodedDataset(ml_processor, rows)
    if part_rows == 1:
        table = table.take(np.sort(np.random.default_rng(7).choice(len(table), 150, replace=False)))
    whole = EncodedDataset(ml_processor, table)
    assert len(dataset) == len(whole) == len(table) and (dataset.lengths == whole.lengths).all()
    assert (dataset.labels == whole.labels).all() and dataset.weights is None
    assert (dataset.feature_counts() == whole.feature_counts()).all()
    picked = [5, 0, 149, 5]
    batches = [data.__getitems__(picked) for data in (dataset, whole)]
    assert batches[0].keys() == batches[1].keys() >= {"rows", "feature_ids", "input_ids", "token_fields", "labels"}
    for name, values in batches[0].items():
        assert values.dtype == batches[1][name].dtype and (values == batches[1][name]).all(), name
    users = table["user_id"].to_numpy()
    assert all(len(set(users[dataset.users == number])) == 1 for number in range(3))
    assert len(set(dataset.users.tolist())) == len(set(users.tolist()))


@pytest.mark.parametrize("part_rows", [1, 7, 100])
def test_every_kind_of_field_in_parts(tmp_path, kind_processor, part_rows):
    """Lists, numbers and hashes; several slots of a field."""
    rows = SplitRows(tiny.write_dataset(tmp_path / "d", tiny.kind_rows(40), tiny.KIND_FIELDS), "train")
    again = FlipProcessor.from_dataset(rows, rows.schema.fields, tiny.wordpiece(), max_length=128)
    whole = FlipProcessor.from_dataset(tiny.kind_rows(40), tiny.KIND_FIELDS)
    assert again.feature_extractor.to_dict() == whole.feature_extractor.to_dict()
    cached_split(kind_processor, rows, part_rows=part_rows)
    dataset, whole = EncodedDataset(kind_processor, rows), EncodedDataset(kind_processor, tiny.kind_rows(40))
    assert dataset.encoded.feature_ids.shape == (40, len(kind_processor.feature_extractor.slot_fields))
    assert (dataset.feature_counts() == whole.feature_counts()).all()
    batches = [data.__getitems__(range(40)) for data in (dataset, whole)]
    assert all((values == batches[1][name]).all() for name, values in batches[0].items())


def test_what_is_mapped_can_not_be_written(folder, ml_processor):
    dataset = EncodedDataset(ml_processor, SplitRows(folder, "test"))
    arrays = (
        dataset.encoded.feature_ids,
        dataset.encoded.prompts.entries,
        dataset.labels,
        dataset.encoded.prompts.tokens,
    )
    assert not any(array.flags.writeable or array.flags.owndata for array in arrays)


def test_a_loader_worker_maps_and_gets_no_copy(folder, ml_processor):
    dataset = EncodedDataset(ml_processor, SplitRows(folder, "train"), prompts=False)
    sent = pickle.dumps(dataset)
    assert len(sent) < len(pickle.dumps(ml_processor)) + 20_000
    again = pickle.loads(sent)
    assert (
        again.encoded.feature_ids == dataset.encoded.feature_ids
    ).all() and not again.encoded.feature_ids.flags.owndata


def test_used_again_and_made_again(tmp_path, folder, table, ml_processor, monkeypatch):
    """Not encoded twice; but anew for other rows, vocabularies, views, tokenizers."""
    made = []
    monkeypatch.setattr(cache, "_encode", lambda *args, real=cache._encode: (made.append(args), real(*args))[1])

    def encode(processor=ml_processor, prompts=True, split="train", **sample) -> bool:
        before = len(made)
        dataset = EncodedDataset(processor, SplitRows(folder, split, **sample), prompts)
        assert (dataset.lengths is not None) == (prompts and not processor.id_only)
        return len(made) > before

    fields = SplitRows(folder, "train").schema.fields
    assert encode() and not encode()
    again = FlipProcessor.from_dataset(table, fields, tiny.wordpiece(), min_frequency=2)
    again(table.slice(0, 3))  # a call may change what a tokenizer remembers, and not what it does
    again.save_pretrained(tmp_path / "p")
    assert not encode(again) and not encode(FlipProcessor.from_pretrained(tmp_path / "p"))
    assert encode(prompts=False) and not encode(ml_processor.without_tokenizer())
    assert encode(FlipProcessor.from_dataset(table, fields, tiny.wordpiece(), min_frequency=30))
    tokenizer = tiny.wordpiece()
    tokenizer.add_tokens(["Number"])
    assert encode(FlipProcessor.from_dataset(table, fields, tokenizer, min_frequency=2))
    assert encode(max_samples=50, seed=1) and encode(max_samples=50, seed=2) and not encode(max_samples=50, seed=1)
    assert encode(split="test") and not encode(split="test")
    for field in fields:
        field.max_tokens = 3
    assert encode(FlipProcessor.from_dataset(table, fields, tiny.wordpiece(), min_frequency=2))


def test_changed_rows_are_encoded_anew(folder, ml_processor):
    """Though neither the size of the file nor its time differ."""
    path = folder / "data" / "train-00001-of-00002.parquet"
    before, stat = EncodedDataset(ml_processor, SplitRows(folder, "train")), path.stat()
    rows = pq.read_table(path)
    pq.write_table(rows.take(list(range(len(rows)))[::-1]), path, row_group_size=90)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = EncodedDataset(ml_processor, SplitRows(folder, "train"))
    assert (after.encoded.feature_ids[-len(rows) :] == before.encoded.feature_ids[-len(rows) :][::-1]).all()


def test_few_are_kept(folder, ml_processor):
    for seed in range(KEPT + 3):
        EncodedDataset(ml_processor, SplitRows(folder, "train", 30, seed))
        time.sleep(0.01)  # their times differ
        EncodedDataset(ml_processor, SplitRows(folder, "train", 30, 0))  # in use all the time: it stays
    found = encodings(folder)
    assert len(found) == KEPT
    EncodedDataset(ml_processor, SplitRows(folder, "train", 30, 0))
    assert encodings(folder) == found
    left = folder / ".cache" / "encoded" / "train" / ".partial-killed"
    left.mkdir()
    os.utime(left, (0, 0))  # of a run that was killed long ago
    EncodedDataset(ml_processor, SplitRows(folder, "train", 31))
    assert not left.exists() and len(encodings(folder)) == KEPT


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("damage", ["cut", "gone", "flipped"])
def test_a_damaged_one_is_made_again(folder, ml_processor, damage):
    rows = SplitRows(folder, "test")
    first = cached_split(ml_processor, rows)
    path = first / "feature_ids.npy"
    expected = np.load(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    elif damage == "gone":
        path.unlink()
    else:
        flip_bit(path)
    assert damage == "flipped" or read_cache(first) is None
    assert (EncodedDataset(ml_processor, rows).encoded.feature_ids == expected).all()


def test_a_shard_of_other_bytes_is_encoded_anew(dataset_dir, ml_processor, tmp_path):
    """Of the same size, footer and time."""
    folder = Path(shutil.copytree(dataset_dir, tmp_path / "d", ignore=shutil.ignore_patterns(".cache")))
    first = cached_split(ml_processor, SplitRows(folder, "test"))
    (path,) = (folder / "data").glob("test-*.parquet")
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match=f"{path.name}: damaged: .*Prepare the dataset again"):
        cached_split(ml_processor, SplitRows(folder, "test"))
    assert len(encodings(folder, "test")) == 1 and first.exists()


def test_no_flipped_bit_gives_other_rows(dataset_dir, tmp_path):
    """The pages of a split have checksums; what lies between them changes no row."""
    folder = Path(shutil.copytree(dataset_dir, tmp_path / "d"))
    (path,) = (folder / "data").glob("test-*.parquet")
    data, expected, refused = path.read_bytes(), read_split(folder, "test"), 0
    for place in range(len(data) // 40, len(data), len(data) // 20):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            rows = [part for _, part in SplitRows(folder, "test").parts(expected.column_names)]
            assert pa.concat_tables(rows).equals(expected)
        except ValueError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 10


def test_a_failure_leaves_nothing(folder, ml_processor, monkeypatch):
    monkeypatch.setattr(FlipProcessor, "read_targets", lambda self, rows: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cached_split(ml_processor, SplitRows(folder, "test"))
    assert encodings(folder, "test") == []


def test_a_folder_that_cannot_be_written(folder, ml_processor, monkeypatch, tmp_path, caplog):
    (folder / ".cache").write_text("not a folder")  # root may write anywhere else
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    caplog.set_level("INFO", "flip_ctr")
    first, again = (EncodedDataset(ml_processor, SplitRows(folder, "test")) for _ in range(2))
    assert first._folder == again._folder and first._folder.is_relative_to(tmp_path / f"flip-ctr-{os.getuid()}")
    assert (tmp_path / f"flip-ctr-{os.getuid()}").stat().st_mode & 0o077 == 0  # nobody else's rows
    assert [f"{folder} cannot be written" in record.message for record in caplog.records].count(True) == 1


def test_a_full_disk_is_one_error(folder, ml_processor, monkeypatch):
    def full(self, part):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache._NpyWriter, "write", full)
    with pytest.raises(OSError, match="No space left"):
        EncodedDataset(ml_processor, SplitRows(folder, "test"))
    assert encodings(folder, "test") == []


def test_only_the_main_process_of_a_machine_encodes(folder, ml_processor, monkeypatch):
    class Accelerator:
        is_local_main_process = False

        def wait_for_everyone(self):
            made.append("waited")
            cached_split(ml_processor, rows)  # what the main process has done by then

    made, rows = [], SplitRows(folder, "test")
    monkeypatch.setattr(cache, "_encode", lambda *args, real=cache._encode: (made.append("encoded"), real(*args))[1])
    assert len(encode_split(Accelerator(), ml_processor, rows)) == len(rows)
    assert made == ["waited", "encoded"]


def test_no_token_table_enters_a_checkpoint(folder, ml_processor, tmp_path):
    EncodedDataset(ml_processor, SplitRows(folder, "train"))
    ml_processor.save_pretrained(tmp_path / "p")
    assert not [path for path in (tmp_path / "p").rglob("*") if path.suffix == ".npy" or "cache" in path.name]
