"""Streaming: every row once an epoch, in an order that follows from (seed, epoch) alone, whoever reads it and from
wherever."""

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from flip_ctr import FlipProcessor
from flip_ctr.data.batches.collators import FlipPretrainingCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.batches.streaming import StreamedDataset
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train.loop.loaders import make_loader


@pytest.fixture(scope="module")
def folder(tmp_path_factory, dataset_dir):
    return tiny.reshard(dataset_dir, tmp_path_factory.mktemp("streamed") / "d", files=3, group_rows=70)


@pytest.fixture(scope="module")
def rows(folder):
    return SplitRows(folder, "train")


@pytest.fixture(scope="module")
def ml_processor(rows, tokenizer):
    return FlipProcessor.from_dataset(rows, rows.schema.fields, tokenizer)


@pytest.fixture
def stream(ml_processor, rows):
    """Windows of 128 rows: groups of 4 batches of 16 rows are sorted by length."""

    def new(epoch=0, first_batch=0, processor=ml_processor, rows=rows, **settings):
        dataset = StreamedDataset(
            processor, rows, **{"batch_size": 16, "group": 4, "window_rows": 100, "seed": 3} | settings
        )
        dataset.set_epoch(epoch, first_batch)
        return dataset

    return new


def order_of(dataset) -> list[list[int]]:
    return [batch["rows"].tolist() for batch in dataset]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("samples", [None, 301, 20])
@pytest.mark.parametrize("batch_size", [1, 16, 10_000])
def test_every_row_once_an_epoch(stream, folder, samples, batch_size):
    dataset = stream(rows=SplitRows(folder, "train", samples, 1), batch_size=batch_size)
    orders = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        batches = order_of(dataset)
        assert sorted(row for batch in batches for row in batch) == list(range(dataset.num_rows))
        assert len(batches) == len(dataset) and max(map(len, batches)) <= batch_size
        orders.append(batches)
    assert orders[0] != orders[1]


def test_the_rows_are_those_of_the_encoded_split(stream, rows, ml_processor):
    whole = EncodedDataset(ml_processor, rows)
    for batch in stream():
        assert same(batch, whole.__getitems__(batch["rows"]))


def test_the_order_is_a_function_of_seed_and_epoch(stream):
    def order(seed, epoch):
        np.random.seed(epoch)  # global state has no say
        return order_of(stream(seed=seed, epoch=epoch))

    assert order(1, 2) == order(1, 2)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_rows_mix_beyond_a_row_group_and_are_of_similar_length(stream, rows):
    batches = list(stream())
    groups = [len(set(np.searchsorted(rows.group_starts, batch["rows"], side="right"))) for batch in batches]
    assert np.mean(groups) > 1.5
    spread = [np.ptp(batch["attention_mask"].sum(1)) for batch in batches]
    mixed = [np.ptp(batch["attention_mask"].sum(1)) for batch in stream(group=1)]
    assert np.mean(spread) < np.mean(mixed) / 2
    means = [batch["attention_mask"].sum(1).mean() for batch in batches]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # short and long batches take turns


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("samples", [None, 98])
def test_processes_share_an_epoch(stream, folder, processes, samples):
    shared = {"num_processes": processes, "rows": SplitRows(folder, "train", samples, 1)}
    missed = set()
    for epoch in range(6):
        parts = [order_of(stream(epoch, process_index=index, **shared)) for index in range(processes)]
        assert len({len(part) for part in parts}) == 1 and len(parts[0]) == len(stream(**shared))
        for batches in zip(*parts):  # of equal size at each step
            assert len({len(batch) for batch in batches}) == 1
        seen = [row for part in parts for batch in part for row in batch]
        assert len(seen) == len(set(seen)) == len(shared["rows"]) // processes * processes
        missed |= set(range(len(shared["rows"]))) - set(seen)
    lost = len(shared["rows"]) % processes
    assert len(missed) > lost if lost else not missed  # not always the same ones


def test_a_process_reads_its_own_row_groups(stream, rows):
    parts = [stream(num_processes=3, process_index=index).segments(0) for index in range(3)]
    groups = [{group for group, _, _ in part} for part in parts]
    assert all(len(group) < 0.5 * (len(rows.group_starts) - 1) for group in groups)
    assert sum(len(group) for group in groups) <= len(rows.group_starts) - 1 + 2  # two are cut by the ranges


@pytest.mark.parametrize("first", [1, 7, 8, 9, 20])
def test_an_offset_gives_the_tail(stream, first, monkeypatch):
    whole, tail = list(stream(1)), stream(1, first)
    read = []
    monkeypatch.setattr(
        SplitRows,
        "read_group",
        lambda self, group, *args, real=SplitRows.read_group: (read.append(group), real(self, group, *args))[1],
    )
    batches = list(tail)
    assert len(batches) == len(whole) - first and all(map(same, batches, whole[first:]))
    if first > 8:
        assert len(read) < len(stream().rows.group_starts) - 1  # what lies before is not read


@pytest.mark.parametrize("first", [0, 3])
def test_any_number_of_workers_gives_the_same_batches(stream, ml_processor, first):
    def batches(workers, epoch):
        torch.manual_seed(workers)
        loader = make_loader(
            stream(), FlipPretrainingCollator(ml_processor, 5, 0.1), 16, Accelerator(cpu=True), workers=workers
        )
        loader.set_epoch(epoch, first)
        assert len(loader) == len(stream())
        return list(loader)

    expected = batches(0, 1)
    for workers in (1, 2):
        assert all(map(same, batches(workers, 1), expected))
    assert not all(map(same, batches(0, 0), expected))


def test_masks_and_noise_are_those_of_the_encoded_split(stream, rows, ml_processor):
    collator = FlipPretrainingCollator(ml_processor, 5, 0.1)
    collator.set_epoch(2)
    whole = EncodedDataset(ml_processor, rows)
    for batch in stream(2):
        numbers = batch["rows"]
        assert same(collator(batch), collator(whole.__getitems__(numbers)))


def test_features_are_counted(stream, rows, ml_processor):
    assert (stream().feature_counts() == EncodedDataset(ml_processor, rows).feature_counts()).all()


def test_every_kind_of_field_is_streamed(tmp_path, stream, kind_processor):
    folder = tiny.write_dataset(tmp_path / "d", tiny.kind_rows(150), tiny.KIND_FIELDS)
    dataset = stream(
        processor=kind_processor, rows=SplitRows(tiny.reshard(folder, tmp_path / "s", group_rows=11), "train")
    )
    whole = EncodedDataset(kind_processor, tiny.kind_rows(150))
    assert all(same(batch, whole.__getitems__(batch["rows"])) for batch in dataset)
    assert (dataset.feature_counts() == whole.feature_counts()).all()


def test_an_id_only_stream_has_no_prompts(stream, ml_processor):
    assert set(next(iter(stream(prompts=False)))) == {"rows", "feature_ids", "labels"}
    assert set(next(iter(stream(processor=ml_processor.without_tokenizer())))) == {"rows", "feature_ids", "labels"}


@pytest.mark.parametrize("recipe", ["pretrain", "finetune"])
def test_a_streamed_run_learns_and_goes_on(tmp_path, dataset_dir, plm, recipe):
    """With gradient accumulation, and loader workers after the break."""
    folder = tiny.reshard(dataset_dir, tmp_path / "d")
    options = {
        "streaming": True,
        "max_train_samples": 200,
        "gradient_accumulation_steps": 2,
        "checkpointing_steps": "1",
    }
    options |= {"strategy": "joint"} if recipe == "finetune" else {}
    run = getattr(tiny, recipe)
    results = run(folder, plm, tmp_path / "whole", **options)
    assert results["train_rows"] == 200 and results["train_steps"] == 8  # 7 batches of 32 rows in 4 steps, twice
    assert not (folder / ".cache" / "encoded" / "train").exists()  # nothing of the training split is kept
    step = tmp_path / "whole" / "checkpoint-3"
    run(folder, plm, tmp_path / "again", resume_from_checkpoint=str(step), dataloader_num_workers=2, **options)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="--streaming was True and is False"):
        run(folder, plm, tmp_path / "again", **options | {"streaming": False, "resume_from_checkpoint": str(step)})


def test_other_rows_are_another_run(tmp_path, folder, dataset_dir):
    options = {"streaming": True, "max_train_samples": None, "checkpointing_steps": "1", "max_train_steps": 2}
    tiny.finetune(folder, None, tmp_path / "m", **options)
    again = {"resume_from_checkpoint": str(tmp_path / "m" / "checkpoint-1"), **options}
    other = tiny.reshard(dataset_dir, tmp_path / "other", files=2)
    with pytest.raises(ValueError, match="is of a run on other training rows"):
        tiny.finetune(other, None, tmp_path / "o", **again)
    tiny.finetune(
        tiny.reshard(dataset_dir, tmp_path / "same", files=3, group_rows=70), None, tmp_path / "s", **again
    )  # moved


def test_fewer_rows_than_processes_are_refused(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(StreamedDataset, "range_rows", property(lambda self: 0))
    with pytest.raises(ValueError, match="96 training rows give 1 processes no batch"):
        tiny.finetune(folder, None, tmp_path / "m", streaming=True)
