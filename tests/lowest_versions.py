"""Prints constraints for pip: the floor of each requirement in pyproject.toml, and torch as constraints.txt pins it.

python tests/lowest_versions.py pyproject.toml constraints.txt
"""

import re
import sys
import tomllib
from pathlib import Path

INSTALLED = ("plot", "sentencepiece", "tensorboard", "test")  # extras; `spark` needs another Ibis floor, and Java


def floors(project: dict, pinned: str) -> list[str]:
    """`name==floor` of the dependencies and extras of a pyproject.toml, the pinned line of torch in place of its own.

    Raises:
        ValueError: a requirement has no floor.
    """
    extras = project["optional-dependencies"]
    needed = project["dependencies"] + sum((extras[name] for name in INSTALLED), [])
    lines = [line for line in pinned.splitlines() if re.match("torch==", line)]
    for requirement in needed:
        if requirement.startswith((project["name"], "torch>")):
            continue
        match = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", requirement)
        if match is None:
            raise ValueError(f"{requirement!r} names no lowest version; write {requirement}>=...")
        lines.append(f"{match[1]}=={match[2]}")
    return lines


if __name__ == "__main__":
    pyproject, constraints = (Path(path).read_text() for path in sys.argv[1:])
    print(*floors(tomllib.loads(pyproject)["project"], constraints), sep="\n")
