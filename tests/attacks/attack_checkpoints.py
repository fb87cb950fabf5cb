"""Damaged checkpoints, each of which scores as it did or is refused by name, with the package and without it.

    PYTHONPATH=tests:tests/attacks python tests/attacks/attack_checkpoints.py --count 120 --seed 0
    PYTHONPATH=tests:tests/attacks python tests/attacks/attack_checkpoints.py --seed 17 --count 1 --keep folder
    PYTHONPATH=tests:tests/attacks python tests/attacks/attack_checkpoints.py --only "large/vocabularies.txt: crlf"

`--count all` does everything that can be done to every kind of checkpoint once.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import loading_routes
import outcomes
import victims
import warm_python
from broken_checkpoints import Damage, damaged, damages
from outcomes import Ended, Tally, again
from remote_python import remote_python
from victims import Victim

TOLERANCE = 1e-6
WORST_FIRST = ("wrong", "unhelpful", "named", "right")
WAYS = {False: "damaged checkpoints, with the package", True: "damaged checkpoints, without it"}
PATIENCE = 60  # seconds after which loading hangs
# Failures that are known, by a pattern of `KIND/FILE: DAMAGE, WAY: ROUTES: DETAIL`: why.
KNOWN: dict[str, str] = {
    r"without it: .*SyntaxError: .*<unknown>": "transformers parses code before any of it runs, and names no file:",
    r"auto_map elsewhere, .*without it": "transformers looks on the Hub before any code of ours runs:",
}

SCRIPT = "import sys, loading_routes; loading_routes.attempt(sys.argv[1])"
Attack = tuple[Victim, Damage]


def all_attacks(some: Iterable[Victim]) -> list[Attack]:
    """Everything that can be done, in an order of chance that is always the same."""
    attacks = [(victim, damage) for victim in some for damage in damages(victim.folder)]
    random.Random(0).shuffle(attacks)
    return attacks


def name_of(attack: Attack) -> str:
    return f"{attack[0].name}/{attack[1].name}"


class Loader:
    """Loads checkpoints in warm processes, one for each, so that nothing of one is left for the next.

    Args:
        folder: for what comes of it.
        remote: the process without the package; None where that way is not taken.
    """

    def __init__(self, folder: Path, remote=None):
        self.folder, self.remote, self.number = folder, remote, 0

    def load(self, folder: Path, victim: Victim, is_remote: bool) -> dict[str, dict]:
        """What each route gave, see [`loading_routes.attempt`]."""
        self.number += 1
        scratch = self.folder / f"load-{self.number}"
        scratch.mkdir()
        if is_remote:
            routes = loading_routes.WITHOUT_PACKAGE
        else:
            routes = loading_routes.WITH_PACKAGE if victim.base is None else loading_routes.OF_ADAPTER
        options = {"trust_remote_code": True} if is_remote else {}
        if victim.base is not None:
            options["base"] = str(victim.base)
        out = scratch / "found.json"
        task = [str(folder), str(victim.rows), str(scratch), list(routes), options, str(out)]
        process = warm_python.Process(
            ["-c", SCRIPT, json.dumps(task)],
            scratch / "said.txt",
            self.remote if is_remote else None,
            {"CANARY": str(scratch / "canary")} | ({"PYTHONPATH": ""} if is_remote else outcomes.PATHS),
        )
        process.join(PATIENCE)
        found = json.loads(out.read_text()) if out.exists() else {}
        ends = f"exit code {process.exitcode}" if process.exitcode is not None else f"no end in {PATIENCE} s"
        for name in routes:
            found.setdefault(name, {"kinds": [ends], "text": (scratch / "said.txt").read_text()[-500:]})
        if (scratch / "canary").exists() and not is_remote:
            found = {name: {"canary": True} for name in found}
        shutil.rmtree(scratch)
        # the copy of its code
        shutil.rmtree(self.folder / "home" / "modules" / "transformers_modules" / folder.name, ignore_errors=True)
        return found


def judge(found: dict, expected: list[float], folder: Path, damage: Damage) -> tuple[str, str]:
    """The outcome of one route."""
    if "canary" in found:
        return "wrong", "code of the checkpoint was run, which nobody had trusted"
    if "scores" in found:
        scores = found["scores"]
        apart = [abs(one - other) for one, other in zip(scores, expected)]
        if len(scores) == len(expected) and all(one <= TOLERANCE for one in apart):
            return "right", ""
        worst = max((one for one in apart if one == one), default=float("nan"))
        return (
            "wrong",
            f"{sum(not one <= TOLERANCE for one in apart)} of {len(expected)} scores differ, by up to {worst:.3g}",
        )
    names = [str(folder), damage.file, *(path.name for path in folder.iterdir())]
    names += [f".{Path(damage.file).stem}"] if damage.is_code else []  # as Python calls a module
    return outcomes.judged(found["kinds"], found["text"], names, damage.is_code)


def run(
    attacks: list[tuple[int, Attack]], loader: Loader, ways: Iterable[bool], keep: Path | None = None
) -> list[Tally]:
    """Each attack by each way of loading, of which True is that without the package. Each way has several routes, of
    which the worst counts."""
    tallies, expected = {is_remote: Tally(WAYS[is_remote]) for is_remote in ways}, {}
    for seed, (victim, damage) in attacks:
        target = (keep or loader.folder) / f"c{seed}"
        shutil.rmtree(target, ignore_errors=True)
        what = name_of((victim, damage))
        try:
            damaged(victim.folder, victim.twin, damage, random.Random(f"{what} {seed}"), target)
            for is_remote in ways:
                if is_remote and victim.base is not None:
                    continue
                key = victim.name, is_remote
                if key not in expected:
                    expected[key] = loader.load(victim.folder, victim, is_remote)
                    assert all("scores" in one for one in expected[key].values()), (key, expected[key])
                ends: dict[str, dict[str, str]] = {}  # outcome -> route -> detail
                for route, found in loader.load(target, victim, is_remote).items():
                    outcome, detail = judge(found, expected[key][route]["scores"], target, damage)
                    ends.setdefault(outcome, {})[route] = detail
                outcome = next(one for one in WORST_FIRST if one in ends)
                detail = "; ".join(dict.fromkeys(ends[outcome].values())).replace(str(loader.folder), "…")
                name = f"{what}, {WAYS[is_remote]}: {', '.join(ends[outcome])}"
                ended = Ended(outcome, name, detail, again("checkpoints", what, seed))
                tallies[is_remote].ends.append(outcomes.unless_known(ended, KNOWN))
        finally:
            if keep is None:
                for path in loader.folder.glob(f"*c{seed}*"):
                    path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path, ignore_errors=True)
    return list(tallies.values())


def attack(
    count: int | None,
    seed: int,
    only: str | None = None,
    remote: bool = True,
    keep: Path | None = None,
    kinds: tuple[str, ...] = victims.KINDS,
) -> list[Tally]:
    """So many damaged checkpoints from a seed on, or all where `count` is None.

    Args:
        only: the name of one, see [`name_of`], or a part of names.
        remote: whether they are loaded without the package, too.
    """
    named = (only or "").partition("/")[0]
    kinds = (named,) if named in kinds else kinds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attack-")))
        (folder / "home").mkdir()
        server = stack.enter_context(remote_python(folder / "home")) if remote else None
        attacks = all_attacks(victims.make(folder / "victims", kinds).values())
        if only is not None:
            picked = [one for one in attacks if name_of(one) == only] or [
                one for one in attacks if only in name_of(one)
            ]
            numbered = [(seed, one) for one in picked]
        else:
            numbers = range(seed, seed + (len(attacks) if count is None else count))
            numbered = [(number, attacks[number % len(attacks)]) for number in numbers]
        loader = Loader(folder, server)
        return run(numbered, loader, [False, True] if remote else [False], keep)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", default="120", help="of checkpoints, or `all`")
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--only", help="one attack, or those with this text in their name")
    parser.add_argument("--no-remote", action="store_true", help="with the package alone")
    parser.add_argument("--keep", type=Path, help="existing folder for the damaged checkpoints")
    args = parser.parse_args(argv)
    warm_python.WARM = warm_python.Warm([*warm_python.MODULES, "transformers.pipelines", "loading_routes"])
    try:
        count = None if args.count == "all" else int(args.count)
        tallies = attack(count, args.seed, args.only, not args.no_remote, args.keep)
    finally:
        warm_python.WARM.close()
    return outcomes.shown(tallies)


if __name__ == "__main__":
    sys.exit(main())
