"""The batch plan: every row once, the same on every process, rows of similar length together."""

import numpy as np
import pytest

from flip_ctr.data.batches.samplers import GlobalBatchSampler

LENGTHS = np.random.default_rng(0).integers(5, 90, 1000)


def samplers(processes: int, num_rows: int = 103, batch_size: int = 8, **kwargs) -> list[GlobalBatchSampler]:
    shared = {"num_processes": processes} | kwargs
    return [GlobalBatchSampler(num_rows, batch_size, process_index=i, **shared) for i in range(processes)]


def rows_of(sampler) -> list[int]:
    return [row for batch in sampler for row in batch]


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 103, 1000])
def test_one_process_sees_every_row_once_an_epoch(num_rows, lengths):
    sampler = GlobalBatchSampler(num_rows, 8, lengths=None if lengths is None else lengths[:num_rows])
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert sorted(rows_of(sampler)) == list(range(num_rows))
        assert len(list(sampler)) == len(sampler) == -(-num_rows // 8)


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("num_rows", [48, 49, 50, 95, 103, 97])
def test_processes_share_each_batch_equally(processes, num_rows):
    parts = samplers(processes, num_rows, lengths=LENGTHS[:num_rows])
    plans = [list(part) for part in parts]
    assert {len(plan) for plan in plans} == {len(part) for part in parts} and len(plans[0]) == len(parts[0])
    for batches in zip(*plans):
        assert len({len(batch) for batch in batches}) == 1 and 0 < len(batches[0]) <= 8
    seen = [row for part in parts for row in rows_of(part)]
    assert len(seen) == len(set(seen)) >= num_rows - (processes - 1)


def test_the_rows_that_processes_cannot_share_change_every_epoch():
    dropped = set()
    for epoch in range(20):
        parts = samplers(3, 104)
        for part in parts:
            part.set_epoch(epoch)
        missing = set(range(104)) - {row for part in parts for row in rows_of(part)}
        assert len(missing) == 2
        dropped |= missing
    assert len(dropped) > 20


def test_the_global_batches_do_not_depend_on_the_number_of_processes():
    """2 processes with batches of 8 learn from the same rows at each step as 1 with batches of 16."""
    whole = samplers(1, 160, 16, lengths=LENGTHS[:160], seed=3)[0]
    halves = samplers(2, 160, 8, lengths=LENGTHS[:160], seed=3)
    assert [sorted(batch) for batch in whole] == [sorted(one + two) for one, two in zip(*halves)]


def test_the_plan_is_a_function_of_seed_and_epoch():
    def plan(seed, epoch):
        sampler = samplers(1, seed=seed, lengths=LENGTHS[:103])[0]
        sampler.set_epoch(epoch)
        np.random.seed(len(str(seed)))  # global state has no say
        return list(sampler)

    assert plan(1, 2) == plan(1, 2)
    assert len({str(plan(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_rows_of_similar_length_are_batched():
    def padding(lengths):
        sampler = GlobalBatchSampler(1000, 10, lengths=lengths)
        return sum(LENGTHS[batch].max() * len(batch) for batch in sampler) / LENGTHS.sum()

    assert padding(LENGTHS) < 1.05 < 1.5 < padding(None)


def test_short_and_long_batches_take_turns():
    means = [LENGTHS[batch].mean() for batch in GlobalBatchSampler(1000, 10, lengths=LENGTHS)]
    assert abs(np.corrcoef(means, range(100))[0, 1]) < 0.3


def test_small_groups_mix_more():
    sampler = GlobalBatchSampler(1000, 10, lengths=LENGTHS, group=1)
    assert np.mean([LENGTHS[batch].std() for batch in sampler]) > 15


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("lengths", [None, LENGTHS[:97]])
def test_evaluation_covers_each_row_exactly_once(processes, lengths):
    parts = samplers(processes, 97, shuffle=False, lengths=lengths)
    assert sorted(row for part in parts for row in rows_of(part)) == list(range(97))
    assert len({len(list(part)) for part in parts}) == 1 and len(list(parts[0])) == len(parts[0])
    if lengths is None and processes == 1:
        assert rows_of(parts[0]) == list(range(97))
    if lengths is not None:  # longest first: memory runs out at the start, or not at all
        longest = [max(lengths[row] for row in batch) for batch in parts[0]]
        assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 25])
def test_a_complete_plan_has_every_row_once_and_no_tiny_batch(rows, processes):
    shares = [
        list(GlobalBatchSampler(rows, 4, 1, num_processes=processes, process_index=index, complete=True))
        for index in range(processes)
    ]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(rows))
    assert len({len(share) for share in shares}) == 1  # as many batches each: forward passes are collective
    sizes = [len(batch) for share in shares for batch in share]
    assert not sizes or (max(sizes) <= 4 and max(sizes) - min(sizes) <= 2)


def test_a_complete_plan_gives_every_process_a_row_of_every_batch():
    shares = [
        list(GlobalBatchSampler(5, 1, 1, num_processes=4, process_index=index, complete=True)) for index in range(4)
    ]
    assert sorted(row for share in shares for batch in share for row in batch) == list(range(5))
    assert all(batch for share in shares for batch in share)


def prompts_of_windows(sampler: GlobalBatchSampler, prompts: np.ndarray) -> list[int]:
    """How many distinct prompts each window has."""
    batches = list(sampler)
    starts = range(0, len(batches), sampler.window)
    return [len(np.unique(prompts[np.concatenate(batches[start : start + sampler.window])])) for start in starts]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_windows_share_prompts_and_have_every_row_once(processes):
    prompts = np.random.default_rng(0).integers(0, 800, 8000)
    parts = samplers(processes, 8000, 24 // processes, prompts=prompts, window=8)
    seen = [row for part in parts for row in rows_of(part)]
    assert len(seen) == len(set(seen)) >= 8000 - (processes - 1)
    whole = samplers(1, 8000, 24, prompts=prompts, window=8)[0]
    together = [sorted(sum(batches, [])) for batches in zip(*parts)]
    assert together[:-1] == [sorted(batch) for batch in whole][:-1]  # whatever the number of processes
    counts = prompts_of_windows(whole, prompts)  # 42 windows of 192 rows, in four blocks of some 200 prompts
    plain = prompts_of_windows(samplers(1, 8000, 24, window=8)[0], prompts)
    assert np.mean(counts) < 0.75 * np.mean(plain)


def test_windows_are_a_function_of_seed_and_epoch():
    prompts = np.arange(4000) % 800

    def plan(seed, epoch):
        sampler = samplers(1, 4000, seed=seed, prompts=prompts, window=8)[0]
        sampler.set_epoch(epoch)
        return list(sampler)

    assert plan(1, 2) == plan(1, 2)
    assert len({str(plan(seed, epoch)) for seed in range(2) for epoch in range(2)}) == 4
    together = [{prompt for batch in plan(0, epoch)[:8] for prompt in prompts[batch]} for epoch in range(2)]
    assert together[0] != together[1]  # the prompts of a window are others in each epoch


def test_a_prompt_is_read_in_several_windows_of_an_epoch():
    """However many prompts there are, a block has four windows: a PLM must read each more than once."""
    prompts = np.random.default_rng(0).permutation(np.repeat(np.arange(2400), 8))
    sampler = samplers(1, 19200, 120, prompts=prompts, window=10)[0]
    batches = list(sampler)
    windows = [np.concatenate(batches[start : start + 10]) for start in range(0, 160, 10)]
    read = np.zeros(2400, int)
    for window in windows:
        read[np.unique(prompts[window])] += 1
    assert sampler.blocks == 4 and read.max() == 4 and read.mean() > 3.5


def test_a_killed_run_goes_on_with_the_same_windows():
    sampler = samplers(1, 4000, prompts=np.arange(4000) % 800, window=8)[0]
    whole = list(sampler)
    sampler.set_epoch(0, 160)
    assert list(sampler) == whole[160:]


def test_few_prompts_need_no_blocks():
    assert list(samplers(1, prompts=np.arange(103) % 90, window=1)[0]) == list(samplers(1)[0])


def test_few_windows_need_no_blocks():
    plain = list(samplers(1, 4000)[0])
    assert list(samplers(1, 4000, prompts=np.arange(4000) % 800, window=80)[0]) == plain
