"""A part of the kills, of the runs at once and of the full disks of `make attack`."""

import attack_concurrency
import attack_kills
import pytest
import warm_python
from bench import Bench

pytestmark = pytest.mark.skipif(warm_python.WARM is None, reason="needs pidfd_open, which Linux has")
BAD = ("unhelpful", "wrong")
KILLS = ("save_pretrained over another", "predict over another .csv")
SITUATIONS = (
    "two runs of predict .csv into one output",
    "a file appears as the output of predict .csv",
    "small files alone for predict .parquet",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Bench(tmp_path_factory.mktemp("attacks"))


def failures(tallies) -> list[str]:
    (tally,) = tallies
    assert tally.ends
    return [f"{one.what}: {one.detail}" for one in tally.ends if one.outcome in BAD]


@pytest.mark.parametrize("kind", KILLS)
def test_what_is_killed_leaves_the_old_or_the_new(place, kind):
    assert failures(attack_kills.attack(1, 1, kind, place)) == []


@pytest.mark.parametrize("situation", SITUATIONS)
def test_runs_at_once_and_full_disks_end_well(place, situation):
    assert failures(attack_concurrency.attack(1, 1, situation, place)) == []


def test_there_are_as_many_kinds_as_promised(place):
    assert len(attack_kills.scenes(place)) > 10 and len(attack_concurrency.SITUATIONS) > 40
