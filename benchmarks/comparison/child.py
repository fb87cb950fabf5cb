# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""One run: `python benchmarks/comparison/child.py FOLDER` makes what the folder's `run.json` describes, in a process of
its own."""

import json
import os
import sys
import threading
import time
from pathlib import Path


def execute(folder: Path) -> None:
    """Makes a run; writes its `result.json` when all else is done."""
    import torch  # takes seconds, in which the parent may go

    from flip_ctr.benchmarks.comparison.recipes import RECIPES, versions

    described = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    recipe = RECIPES[described["recipe"]]
    costs = recipe.run(recipe.parse(described["argv"]), folder)
    costs |= {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "cpu_count": os.cpu_count(),
        "libraries": versions(recipe),
    }
    partial = folder / "result.json.partial"
    partial.write_text(json.dumps(costs, indent=2) + "\n", encoding="utf-8")
    partial.rename(folder / "result.json")


def end_with(parent: int, seconds: float = 1.0) -> None:
    """Ends this process soon after that parent has gone, however it went: nobody would read the run, and the next
    comparison may make it in the same folder."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    end_with(os.getppid())
    execute(Path(sys.argv[1]))
