"""What became of an attack, and the table of what became of all."""

import builtins
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from table_oracle import is_printable

PATHS = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}  # so that a fork finds the modules of here

# `right`: as if nothing had happened. `named`: refused, by an error that a person understands. `unhelpful`: refused by
# another one, or something was left lying about. `wrong`: other scores, lost or mixed files, or code that was run.
OUTCOMES = ("named", "right", "unhelpful", "wrong")
MOST_UNHELPFUL = 0.01
MOST_LINES, MOST_CHARACTERS = 5, 2_000
# transformers' own, of a pipeline, has the tracebacks of what went wrong in its text: the end of the last one
WRAPPED = re.compile(
    r".*Traceback \(most recent call last\):\n(?: .*\n)+(?P<kind>[\w.]+)(?:: (?P<text>.*))?", re.DOTALL
)


@dataclass(frozen=True)
class Ended:
    """The end of one attack.

    Attributes:
        outcome: see `OUTCOMES`; `known` for a failure that is known.
        what: the attack in words.
        detail: what was seen, where it is not as it should be.
        again: options of `attack.py` that repeat it alone.
    """

    outcome: str
    what: str
    detail: str = ""
    again: str = ""


@dataclass
class Tally:
    """Attacks of one kind."""

    kind: str
    ends: list[Ended] = field(default_factory=list)

    @property
    def counts(self) -> Counter:
        return Counter(one.outcome for one in self.ends)

    def failures(self) -> list[Ended]:
        return [one for one in self.ends if one.outcome in ("unhelpful", "wrong", "known")]


def kinds_of(error: BaseException) -> list[str]:
    """The names of an error's class and of those above it."""
    return [one.__name__ for one in type(error).__mro__]


def judged(kinds: Iterable[str], text: str, names: Iterable[str], code: bool = False) -> tuple[str, str]:
    """The outcome of an error, and what is not right with it.

    Args:
        kinds: its class and those above it, by their names.
        text: what it says.
        names: of which it must name one: files and folders.
        code: whether the code of a checkpoint was damaged, which Python refuses before any of it runs.
    """
    kinds = list(kinds)
    wrapped = WRAPPED.match(text) if text.startswith("Could not load model") else None
    if wrapped:
        name, text = wrapped["kind"].rpartition(".")[2], (wrapped["text"] or "").strip()
        known = getattr(builtins, name, None)
        kinds = [one.__name__ for one in known.__mro__] if isinstance(known, type) else [name]
        kinds += ["ValueError"] if name.endswith(("RowError", "DecodeError")) else []
    shown = f"{kinds[0]}: {text}"
    named = {"ValueError", "OSError"} | ({"SyntaxError", "ImportError", "AttributeError"} if code else set())
    if not named & set(kinds):
        return "unhelpful", f"no named error: {shown}"
    if len(text.strip().splitlines()) > MOST_LINES or len(text) > MOST_CHARACTERS:
        return "unhelpful", f"{len(text.splitlines())} lines, {len(text):,} characters: {shown}"
    if not is_printable("".join(text.split("\n"))):
        return "unhelpful", f"cannot be printed: {shown!r}"
    if not any(name in text for name in names):
        return "unhelpful", f"names neither folder nor file: {shown}"
    return "named", shown


def judged_command(code: int | None, said: str, command: str, names: Iterable[str]) -> tuple[str, str]:
    """The outcome of a command that did not do what it was told, by its exit code and standard error."""
    line = next((one for one in reversed(said.strip().splitlines())), "")
    if code not in (1, 2, 75):
        return "unhelpful", f"exit code {code}: {line}"
    if "Traceback (most recent call last)" in said:
        return "unhelpful", f"a traceback: {line}"
    if not line.startswith(f"flip-ctr {command}: error: "):
        return "unhelpful", f"the last line is no error: {line}"
    return judged(["ValueError"], line, names)


def again(kind: str, name: str, seed: int) -> str:
    """The options of `attack.py` that repeat one attack alone."""
    return shlex.join(["--kinds", kind, "--only", name, "--seed", str(seed)])


def unless_known(ended: Ended, known: Mapping[str, str]) -> Ended:
    """The end of an attack, as a known one where it is one of the failures in `known`, `{pattern: why}`."""
    text = f"{ended.what}: {ended.detail}"
    why = next((why for pattern, why in known.items() if re.search(pattern, text)), None)
    if why is None or ended.outcome not in ("unhelpful", "wrong"):
        return ended
    return replace(ended, outcome="known", detail=f"{why} {ended.detail}")


def table(tallies: Iterable[Tally]) -> str:
    """How many attacks of each kind became what."""
    rows = [("attacks", "tried", *OUTCOMES)]
    sums = Counter()
    for tally in tallies:
        counts = tally.counts + Counter({"tried": len(tally.ends)})
        rows.append((tally.kind, *(str(counts[name]) for name in ("tried", *OUTCOMES))))
        sums += counts
    rows.append(("all", *(str(sums[name]) for name in ("tried", *OUTCOMES))))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines, *([f"{sums['known']} failures are known"] if sums["known"] else [])])


def listed(tallies: Iterable[Tally], most: int = 1_000) -> str:
    """Each attack that was unhelpful or wrong, with what repeats it alone."""
    lines = []
    for tally in tallies:
        for one in sorted(tally.failures(), key=lambda one: one.outcome, reverse=True):
            detail = " / ".join(one.detail.strip().splitlines())[:most]
            lines += [
                f"{one.outcome}: {one.what}",
                f"    {detail}",
                *([f"    attack.py {one.again}"] if one.again else []),
            ]
    return "\n".join(lines)


def failed(tallies: Iterable[Tally]) -> bool:
    """Whether something was wrong, or more than 1 % unhelpful."""
    sums = sum((tally.counts for tally in tallies), Counter())
    return sums["wrong"] > 0 or sums["unhelpful"] > MOST_UNHELPFUL * sums.total()


def shown(tallies: Sequence[Tally]) -> int:
    """Prints failures and table; the exit code."""
    print(listed(tallies))
    print(table(tallies))
    return int(failed(tallies))
