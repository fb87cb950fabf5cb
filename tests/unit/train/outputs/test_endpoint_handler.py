"""`handler.py` of a repository scores and ranks where this package is not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import past
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from serving import made, parted

from flip_ctr import FlipRanker
from flip_ctr.modeling_flip.pipeline_flip import ClickThroughRatePipeline
from flip_ctr.train.outputs import endpoint_handler

SCRIPT = """
import importlib.util, json, sys
sys.modules["flip_ctr"] = None  # importing it fails
spec = importlib.util.spec_from_file_location("handler", sys.argv[1] + "/handler.py")
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
handler = module.EndpointHandler(sys.argv[1])
print(json.dumps([handler(data) for data in json.loads(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tokenizer, text_config):
    rows = past.past_rows()
    model, processor = made(rows, past.FIELDS, tokenizer, text_config, prompts="entity", fusion="gate")
    folder = tmp_path_factory.mktemp("m")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    users, items = parted(rows)
    pq.write_table(pa.Table.from_pylist(items), folder / "items.parquet")
    (folder / "handler.py").write_bytes(Path(endpoint_handler.__file__).read_bytes())
    return folder, model, processor, rows, users, items


def close(answers: list[dict]) -> list[dict]:
    return [{name: pytest.approx(value, abs=1e-6) for name, value in one.items()} for one in answers]


def test_it_needs_no_package(saved, tmp_path):
    folder, model, processor, rows, users, items = saved
    history = [{"movie_id": 100, "clicked": 1}]
    user = users[0] | {"history": history}
    data = [
        {"inputs": rows[-3:]},
        {"inputs": {"user": user, "top_k": 3}},
        {"inputs": {"user": user, "candidates": [104, 101]}},
        {"inputs": {"user": user, "candidates": []}},
    ]
    python = os.environ | {"PYTHONPATH": "", "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, folder, json.dumps(data)],
        capture_output=True,
        text=True,
        env=python,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    ranker = FlipRanker(model, processor, items)
    scores = ClickThroughRatePipeline(model=model, processor=processor)(rows[-3:], items=items)
    ranked = [ranker.rank(users[0], keys, history, top_k=top_k) for keys, top_k in ((None, 3), ([104, 101], None))]
    assert json.loads(done.stdout.splitlines()[-1]) == [*map(close, (scores, *ranked)), []]


def test_what_is_wrong_is_named(saved, tmp_path):
    folder, *_, users, items = saved
    handler = endpoint_handler.EndpointHandler(str(folder))
    with pytest.raises(ValueError, match="no item of items.parquet has movie_id 7, 8"):
        handler({"inputs": {"user": users[0], "candidates": [100, 7, 8]}})
    os.rename(folder / "items.parquet", folder / "x")
    with pytest.raises(ValueError, match=r"needs items\.parquet"):
        endpoint_handler.EndpointHandler(str(folder))({"inputs": {"user": users[0]}})
    pq.write_table(pa.Table.from_pylist([*items, items[0]]), folder / "items.parquet")
    with pytest.raises(ValueError, match="movie_id must be another one in each row"):
        endpoint_handler.EndpointHandler(str(folder))
