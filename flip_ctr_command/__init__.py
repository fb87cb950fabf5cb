# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Start of the `flip-ctr` command.

`import flip_ctr` imports torch and transformers, which takes seconds. The command therefore puts the package into place
without running its `__init__`, so that modules of it can be imported which need neither; `flip_ctr.train.cli` runs the
`__init__` before a recipe that does.
"""

import importlib.util
import sys


def main() -> int:
    """`flip-ctr COMMAND [OPTIONS]`; returns the exit code."""
    if "flip_ctr" not in sys.modules:
        sys.modules["flip_ctr"] = importlib.util.module_from_spec(importlib.util.find_spec("flip_ctr"))
    from flip_ctr.train.cli import main as command

    return command()
