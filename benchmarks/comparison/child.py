# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""One run: `python -m comparison.child FOLDER` makes what the folder's `run.json` describes, in a process of its own."""

import json
import os
import sys
from pathlib import Path

import torch
from comparison.recipes import RECIPES, versions


def execute(folder: Path) -> None:
    """Makes a run; writes its `result.json` when all else is done."""
    described = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    recipe = RECIPES[described["recipe"]]
    costs = recipe.run(recipe.parse(described["argv"]), folder)
    costs |= {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu", "cpu_count": os.cpu_count(),
              "libraries": versions(recipe)}  # fmt: skip
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(costs, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder / "result.json")


if __name__ == "__main__":
    execute(Path(sys.argv[1]))
