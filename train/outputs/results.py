# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Numbers of a run: printed, and kept as JSON in the output folder."""

import json
import math
import os
from pathlib import Path

from accelerate import Accelerator

from flip_ctr.data.outputs import naming_limits
from flip_ctr.modeling_flip.new_files_flip import PARTIAL
from flip_ctr.train.outputs.run_log import file_logger

RESULTS_FILE, HISTORY_FILE = "all_results.json", "history.json"


def write_json(accelerator: Accelerator, folder: str, name: str, content) -> None:
    """Writes a JSON file from the main process, at once; NaN becomes null, which JSON can say."""
    if accelerator.is_main_process:
        path = Path(folder, name)
        partial = path.with_name(f"{PARTIAL}{name}")
        with naming_limits(path):
            partial.write_text(json.dumps(_without_nan(content), indent=2) + "\n", encoding="utf-8")
            os.replace(partial, path)


def _without_nan(content):
    if isinstance(content, dict):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def report(accelerator: Accelerator, results: dict, output_dir: str | None = None) -> None:
    """Prints the results, logs them, and writes them to `all_results.json` in the output folder."""
    measured = {name: value for name, value in results.items() if name.startswith("test_")}
    accelerator.log(measured, step=results.get("train_steps"))  # evaluations on validation are in the history
    file_logger.info(f"results: {json.dumps(_without_nan(results))}")
    if output_dir is not None:
        write_json(accelerator, output_dir, RESULTS_FILE, results)
    width = max(map(len, results))
    for name, value in results.items():
        accelerator.print(f"{name:<{width}}  {value:.4f}" if isinstance(value, float) else f"{name:<{width}}  {value}")
