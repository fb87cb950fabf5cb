"""Bad calls of the Python API and of the commands, each of which must end in one line that names what is wrong.

PYTHONPATH=tests python tests/attacks/attack_calls.py                   # all of them
PYTHONPATH=tests python tests/attacks/attack_calls.py --only batch      # those with this word in what they do
"""

import argparse
import contextlib
import io
import logging
import shlex
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import bad_commands
import bad_folder_calls
import bad_python_calls
from bad_calls_setup import Call, Setup

from flip_ctr.train import cli

NAMED = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, OSError)
# Calls whose error is not right yet, and why.
KNOWN: dict[str, str] = {}


def check_python(call: Call, setup: Setup) -> str | None:
    """What is wrong with a call's error; None where nothing is."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            call.makes(setup)
    except Exception as error:
        kind = type(error)
        # huggingface_hub's own is of a path that is no folder, and no name of a repository
        ours = kind.__module__.startswith(("flip_ctr", "huggingface_hub")) and issubclass(kind, NAMED)
        if kind not in NAMED and not ours:
            return f"{kind.__name__} instead of a named error: {str(error)[:300]}"
        return wrong_text(str(error), call.says)
    return "no error"


def check_command(call: Call, setup: Setup) -> str | None:
    """What is wrong with how a command ends; None where nothing is."""
    argv, said, shown = arguments(call, setup), io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
            code = cli.main(argv)
    except SystemExit as stop:
        code = stop.code
    except Exception as error:
        return f"a traceback of {type(error).__name__}: {str(error)[:300]}"
    return wrong_end(code, said.getvalue(), argv[0] if argv else "", call.says)


def arguments(call: Call, setup: Setup) -> list[str]:
    """A command's arguments; `{name}` of its text is an attribute of the setup, and a list is taken as it is."""
    words = call.makes(setup) if callable(call.makes) else [_filled(word, setup) for word in shlex.split(call.makes)]
    return [str(word) for word in words]


def _filled(word: str, setup: Setup) -> str:
    before, brace, rest = word.partition("{")
    name, closed, behind = rest.partition("}")
    return f"{before}{getattr(setup, name)}{behind}" if closed and name.isidentifier() else word


def wrong_end(code: int, stderr: str, command: str, says: tuple[str, ...]) -> str | None:
    lines = stderr.rstrip("\n").split("\n")
    if code not in (1, 2):
        return f"the exit code is {code}: {lines[-1][:300]}"
    if "Traceback" in stderr:
        return f"a traceback: {lines[-1][:300]}"
    if not lines[-1].startswith(f"flip-ctr {command}: error: ") and not lines[-1].startswith("flip-ctr: "):
        return f"the last line is no error: {lines[-1][:300]}"
    return wrong_text(lines[-1], says)


def wrong_text(text: str, says: tuple[str, ...]) -> str | None:
    lacking = [one for one in says if one not in text]
    if lacking:
        return f"does not name {lacking[0]!r}: {text[:400]}"
    if any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in text):
        return f"has several lines, or what cannot be printed: {text[:300]!r}"
    return f"has {len(text):,} characters: {text[:200]}" if len(text) > 2_000 else None


def run(calls: list[Call], setup: Setup) -> dict[str, str]:
    """What is wrong, by the call."""
    found = {}
    logging.disable(logging.CRITICAL)
    try:
        for call in calls:
            check = check_command if call in bad_commands.CALLS else check_python
            wrong = check(call, setup)
            if wrong is not None:
                found[call.what] = wrong
    finally:
        logging.disable(logging.NOTSET)
    return found


def all_calls() -> list[Call]:
    return [*bad_python_calls.CALLS, *bad_folder_calls.CALLS, *bad_commands.CALLS]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="calls with this text in what they do")
    parser.add_argument("--times", action="store_true", help="say which calls take long")
    args = parser.parse_args(argv)
    calls = [call for call in all_calls() if args.only is None or args.only in call.what]
    with tempfile.TemporaryDirectory() as folder:
        setup, failures = Setup(Path(folder)), {}
        for call in calls:
            started = time.perf_counter()
            failures |= run([call], setup)
            if args.times and (taken := time.perf_counter() - started) > 0.3:
                print(f"{taken:.1f} s: {call.what}")
    for what, wrong in failures.items():
        print(f"{'known, ' if what in KNOWN else ''}{what}\n    {wrong}")
    new = failures.keys() - KNOWN.keys()
    print(f"{len(calls)} bad calls, {len(failures)} without the right error, of which {len(failures) - len(new)} known")
    for what in KNOWN.keys() - failures.keys():
        print(f"right now, of KNOWN: {what}")
    return int(len(new) > 0)


if __name__ == "__main__":
    sys.exit(main())
