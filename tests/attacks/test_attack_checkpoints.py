"""A part of the damaged checkpoints of `make attack`."""

import attack_checkpoints
import outcomes
import pytest
import victims
import warm_python
from attack_checkpoints import Loader, all_attacks, judge, name_of, run
from broken_checkpoints import Damage, damaged
from remote_python import remote_python

KINDS = ("large", "adapter")
pytestmark = pytest.mark.skipif(warm_python.WARM is None, reason="needs pidfd_open, which Linux has")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return victims.make(tmp_path_factory.mktemp("victims"), KINDS)


@pytest.fixture(scope="module")
def loader(tmp_path_factory):
    return Loader(tmp_path_factory.mktemp("loads"))


def failures(tallies) -> list[str]:
    return [f"{one.what}: {one.detail}" for one in sum((tally.ends for tally in tallies), []) if one.outcome in BAD]


BAD = ("unhelpful", "wrong")


def test_a_damaged_checkpoint_scores_as_it_did_or_is_refused(made, loader):
    attacks = list(enumerate(all_attacks(made.values())))[::90]
    assert len(attacks) >= 5
    assert failures(run(attacks, loader, [False])) == []


def test_so_it_is_without_the_package(made, tmp_path):
    (tmp_path / "home").mkdir()
    attacks = list(enumerate(all_attacks([made["large"]])))
    with remote_python(tmp_path / "home") as server:
        tallies = run(attacks[7::140], Loader(tmp_path, server), [True])
    assert tallies[0].ends and failures(tallies) == []


def test_there_are_as_many_as_promised_and_each_is_another(made):
    names = [name_of(one) for one in all_attacks(made.values())]
    assert len(names) > 400 and len(set(names)) == len(names)


def test_hostile_code_is_not_run_and_would_be_noticed(made, loader, tmp_path):
    victim = made["large"]
    hostile = next(damage for _, damage in all_attacks([victim]) if damage.name.endswith("hostile code"))
    assert {one.outcome for one in run([(0, (victim, hostile))], loader, [False])[0].ends} <= {"right", "named"}
    assert judge({"canary": True}, [0.5], victim.folder, hostile)[0] == "wrong"


def test_what_is_wrong_is_noticed(made, tmp_path):
    """The oracle itself."""
    folder, nothing = made["large"].folder, Damage("x", "config.json", lambda rng, path, twin: None)
    for scores, outcome in (
        ([0.5, 0.25], "right"),
        ([0.5, 0.25001], "wrong"),
        ([0.5], "wrong"),
        ([float("nan"), 0.25], "wrong"),
    ):
        assert judge({"scores": scores}, [0.5, 0.25], folder, nothing)[0] == outcome
    traceback = "Could not load model m. See:\nTraceback (most recent call last):\n  File x\n    y()\n"
    for kinds, text, outcome in (
        (["OSError"], f"{folder}: the weights are damaged", "named"),
        (["JSONDecodeError", "ValueError"], "config.json is no JSON", "named"),
        (["ValueError"], "Expecting value: line 1", "unhelpful"),
        (["KeyError"], "config.json", "unhelpful"),
        (["ValueError"], "config.json\n" * 9, "unhelpful"),
        (["ValueError"], f"{traceback}OSError: config.json is cut off\n", "named"),
        (["ValueError"], f"{traceback}torch.x.KeyError: config.json\n", "unhelpful"),
    ):
        assert judge({"kinds": kinds, "text": text}, [0.5], folder, nothing)[0] == outcome, text


def test_damage_is_the_same_for_a_seed(made, tmp_path):
    import random

    victim = made["large"]
    for number, (_, damage) in enumerate(all_attacks([victim])[::20]):
        copies = [
            damaged(victim.folder, victim.twin, damage, random.Random(7), tmp_path / f"{number}{name}" / "c")
            for name in "ab"
        ]
        one, other = (
            {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file() and not path.is_symlink()}
            for copy in copies
        )
        assert one == other, damage.name


def test_known_failures_are_counted_apart():
    ended = outcomes.Ended("wrong", "id/x: cut", "5 scores differ")
    assert outcomes.unless_known(ended, {"cut: 5": "why"}).outcome == "known"
    assert outcomes.unless_known(ended, {"other": "why"}) is ended
    tally = outcomes.Tally("x", [ended, outcomes.Ended("right", "y")])
    assert outcomes.failed([tally]) and "wrong: id/x: cut" in outcomes.listed([tally])
    assert outcomes.table([tally]).splitlines()[1].split() == ["x", "2", "0", "1", "0", "1"]
    assert attack_checkpoints.WAYS.keys() == {False, True}
