"""A process that has transformers and torch, but neither this package nor the libraries that people may lack."""

import json
import os
import subprocess
import sys
from pathlib import Path

BLOCKED = ("flip_ctr", "pandas", "pyarrow", "datasets", "accelerate", "peft", "evaluate", "sklearn")

SCRIPT = """
import gc, sys
gc.disable()  # it would take a tenth of the time
for name in sys.argv[3].split(","):
    sys.modules[name] = None  # importing it fails from now on
import glob, json, os
import torch
import transformers
from transformers import (AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification,
AutoProcessor,
                          AutoFeatureExtractor, AutoTokenizer, pipeline)
folders, out, rows = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[4])
remote = {"trust_remote_code": True}
refused = {name: [] for name in folders}
for name, folder in folders.items():  # before any of their code is run
    for auto_class in (AutoModel, AutoProcessor):
        try:
            auto_class.from_pretrained(folder, trust_remote_code=False)
        except ValueError as error:
            assert "trust_remote_code" in str(error), error
            refused[name].append(auto_class.__name__)
assert not glob.glob(os.environ["HF_HOME"] + "/**/modeling_flip.py", recursive=True)
report = {"versions": {one.__name__: one.__version__ for one in (torch, transformers)}}
for name, folder in folders.items():
    config = AutoConfig.from_pretrained(folder, **remote)
    processor = AutoProcessor.from_pretrained(folder, **remote)
    AutoFeatureExtractor.from_pretrained(folder, **remote)
    own_rows = rows[name] if isinstance(rows, dict) else rows
    inputs = processor(own_rows)
    outputs, classes = {}, {"config": type(config).__name__, "processor": type(processor).__name__}
    classes["refused"] = refused[name]
    heads = [AutoModel] + ([AutoModelForPreTraining] if name == "pretraining" else [AutoModelForSequenceClassification])
    for head in heads:
        model, info = head.from_pretrained(folder, output_loading_info=True, **remote)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        classes[head.__name__] = type(model).__name__
        with torch.no_grad():
            views = model.eval().flip(**inputs) if name == "pretraining" else model.eval()(**inputs)
        outputs[head.__name__] = dict(views)
    if name != "pretraining":
        scorer = pipeline("click-through-rate", model=folder, **remote)
        outputs["pipeline"] = torch.tensor([answer["click_probability"] for answer in scorer(own_rows, batch_size=4)])
        scorer.save_pretrained(os.path.join(out, name + "-again"))  # code and all, from the copy of the code
    if config.text_config is not None:
        classes["tokenizer"] = type(AutoTokenizer.from_pretrained(folder)).__name__
    torch.save(outputs, os.path.join(out, name + ".pt"))
    report[name] = classes
assert not any(module.split(".")[0] in sys.argv[3].split(",") and sys.modules[module] for module in sys.modules)
json.dump(report, open(os.path.join(out, "report.json"), "w"))
"""


def run_blocked(
    folders: dict, out, rows: list[dict] | dict, python: str = sys.executable, libraries: Path | None = None
) -> dict:
    """Loads checkpoints and scores rows elsewhere; the names of the classes that were loaded, for each checkpoint, and
    as `refused` of those that were not without trust.

    Args:
        folders: the checkpoints; the one called "pretraining" is loaded as such, the others as models that predict.
        rows: those of all checkpoints, or of each by its name.
        out: where outputs (`NAME.pt`) and the checkpoints saved anew (`NAME-again`) are written.
        python: the interpreter, of another environment perhaps.
        libraries: a folder with libraries that it has beside its own.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(out / "home"), "HF_HUB_OFFLINE": "1"}
    if libraries is not None:
        environment["PYTHONPATH"] = str(libraries)
    arguments = [
        json.dumps({name: str(folder) for name, folder in folders.items()}),
        str(out),
        ",".join(BLOCKED),
        json.dumps(rows),
    ]
    done = subprocess.run(
        [python, "-c", SCRIPT, *arguments], env=environment, capture_output=True, text=True, cwd=out, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((out / "report.json").read_text())
