"""All attacks, and one table of what became of them: `make attack`.

    make attack                                                                    # all kinds
    make attack ARGS='--kinds kills --count 10 --seed 3'
    make attack ARGS=--strict                                                      # also what is known to fail
    make attack ARGS='--kinds checkpoints --only "id/config.json: cut" --seed 5'   # one alone
    PYTHONPATH=tests:tests/attacks python tests/attacks/attack.py --kinds calls    # without make

Of each attack that was unhelpful or wrong the options are shown that repeat it alone. The exit code is 1 where
something was wrong, or more than 1 % unhelpful.
"""

import os

# before any import of the libraries: nothing reaches the network
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attack_calls
import attack_checkpoints
import attack_concurrency
import attack_kills
import attack_tables
import bench
import outcomes
import warm_python
from broken_tables import FORMATS
from outcomes import Ended, Tally, again
from transformers.utils import logging

# of tables those of each format, read; a quarter of them is scored, and a twentieth prepared
COUNTS = {"tables": 200, "checkpoints": 160, "calls": None, "kills": 56, "concurrency": 56}
# parts of what an oracle of tables says of an error that is not right
OF_ERRORS = ("instead of a named error", "error of several", "error that", "error of ")


def tables(count: int, seed: int, only: str | None) -> list[Tally]:
    """Broken tables of each format, by each way; `only` names a way, or a way and a format: `predict csv`."""
    tallies = []
    with tempfile.TemporaryDirectory() as folder:
        model = None
        for way, share in (("read", 1), ("predict", 4), ("prepare", 20)):
            tally = Tally(f"broken tables: {way}")
            some = -(-count // share)
            for kind in FORMATS:
                if only is not None and only not in (way, f"{way} {kind}"):
                    continue
                if way == "predict" and model is None:
                    with contextlib.redirect_stdout(io.StringIO()):
                        model = attack_tables.click_model(Path(folder))
                became, failures = attack_tables.run(
                    kind, range(seed, seed + some), way, model=model if way == "predict" else None
                )
                tally.ends += [Ended("named", kind)] * became["error"] + [Ended("right", kind)] * became["read"]
                for failure, details in failures.items():
                    for detail in details:
                        number = int(detail.split()[1])
                        outcome = "unhelpful" if any(one in detail for one in OF_ERRORS) else "wrong"
                        outcome = "known" if failure in attack_tables.KNOWN else outcome
                        tally.ends.append(
                            Ended(outcome, f"{way} {kind}", detail, again("tables", f"{way} {kind}", number))
                        )
            if tally.ends:
                tallies.append(tally)
    return tallies


def calls(count: int | None, seed: int, only: str | None) -> list[Tally]:
    """Bad calls of the Python API and of the commands, of which none may do something."""
    python, commands = Tally("wrong calls: Python"), Tally("wrong calls: commands")
    some = [call for call in attack_calls.all_calls() if only is None or only in call.what]
    some = some[seed:][:count] if count is not None else some
    with tempfile.TemporaryDirectory() as folder:
        setup = attack_calls.Setup(Path(folder))
        for call in some:
            wrong = attack_calls.run([call], setup).get(call.what)
            outcome = "named" if wrong is None else "wrong" if wrong == "no error" else "unhelpful"
            outcome = "known" if wrong is not None and call.what in attack_calls.KNOWN else outcome
            tally = commands if call in attack_calls.bad_commands.CALLS else python
            tally.ends.append(Ended(outcome, call.what, wrong or "", again("calls", call.what, 0)))
    return [python, commands]


def of_module(module) -> Callable[[int, int, str | None], list[Tally]]:
    return lambda count, seed, only: module.attack(count, seed, only)


KINDS: dict[str, Callable[..., list[Tally]]] = {
    "tables": tables,
    "checkpoints": of_module(attack_checkpoints),
    "calls": calls,
    "kills": of_module(attack_kills),
    "concurrency": of_module(attack_concurrency),
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, help=f"of each kind, instead of {COUNTS}; 1 where --only is given")
    parser.add_argument("--seed", type=int, default=0, help="of the first of each kind; the others follow")
    parser.add_argument("--only", help="the name of one attack, or a part of names")
    parser.add_argument("--strict", action="store_true", help="count what is in the lists KNOWN as what it is")
    args = parser.parse_args(argv)
    if args.strict:
        for module in (attack_tables, attack_calls, attack_checkpoints, attack_kills, attack_concurrency):
            module.KNOWN.clear()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # before this process has threads, which a fork would not have
    warm_python.WARM = warm_python.Warm(bench.MODULES)
    tallies = []
    try:
        for kind in args.kinds:
            begun = time.monotonic()
            count = args.count or (1 if args.only else COUNTS[kind])
            tallies += KINDS[kind](count, args.seed, args.only)
            print(f"{kind}: {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        warm_python.WARM.close()
    return outcomes.shown(tallies)


if __name__ == "__main__":
    sys.exit(main())
