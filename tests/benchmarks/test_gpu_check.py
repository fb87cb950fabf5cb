"""`benchmarks/gpu_check.py` without a GPU: every part but the compiler's runs on tiny models, and what fails, runs too
long or needs CUDA is named while the others go on."""

import json
import sys
from dataclasses import asdict, replace

import pytest

from flip_ctr.benchmarks import gpu_check
from flip_ctr.benchmarks.gpu_check import BASE, PARTS, SMALL, CheckArguments, Place, Skipped, child, failures, run

QUICK = replace(SMALL, users=30, items=40, rows=400, seconds=0.0, requests=2, candidates=10, resume_steps=1)
KEPT = ["pretrain, row prompts", "finetune id", "finetune joint, entity prompts, K=8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_check, "SMALL", QUICK)
        here = Place("cpu", True, str(folder / "inputs"), str(folder))
        gpu_check.make_inputs(here)
        yield here


def rows_of(place, part, tmp_path):
    child(part, asdict(place), str(tmp_path / "rows.jsonl"))
    return {row["what"]: row for row in map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())}


def test_steps(place, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "RECIPES", {name: gpu_check.RECIPES[name] for name in KEPT})
    rows = rows_of(place, "throughput", tmp_path)
    assert {row["status"] for row in rows.values()} == {"ok"} and list(rows) == KEPT
    assert all(row["rows_per_second"] > 0 and "peak_gb" not in row for row in rows.values())


def test_switches_that_need_cuda_are_named(place, tmp_path, monkeypatch):
    names = ("bf16", "fp16", "eager", "flash_attention_2")
    monkeypatch.setattr(gpu_check, "SWITCHES", {name: gpu_check.SWITCHES[name] for name in names})
    status = {name: row["status"] for name, row in rows_of(place, "switches", tmp_path).items()}
    assert status == dict(zip(names, ("ok", "skipped: no CUDA") * 2))


def test_resume_is_exact(place, tmp_path, monkeypatch):
    names = ("finetune joint, row prompts, bf16", "finetune joint, row prompts, fp16")
    monkeypatch.setattr(gpu_check, "RESUMED", {name: gpu_check.RESUMED[name] for name in names})
    bf16, fp16 = rows_of(place, "resume", tmp_path).values()
    assert bf16["equal"] and bf16["max_difference"] == 0 and fp16["status"] == "skipped: no CUDA"


def test_a_ranker_answers(place, tmp_path):
    rows = rows_of(place, "ranking", tmp_path)
    assert all(row["median_ms"] > 0 and row["candidates"] == 10 for row in rows.values()) and len(rows) == 2


def test_a_part_that_fails_stops_no_other(place, tmp_path, monkeypatch):
    def failing(place):
        yield "divides", lambda: {"median_ms": 1 / 0}
        yield "goes on", lambda: {"median_ms": 1.0}

    monkeypatch.setitem(PARTS, "ranking", (failing, 9))
    rows = rows_of(place, "ranking", tmp_path)
    assert rows["divides"]["status"] == "failed: ZeroDivisionError: division by zero" and rows["divides"]["traceback"]
    assert rows["goes on"]["status"] == "ok"


def test_report(place, tmp_path, monkeypatch, warm):
    """In processes of their own: one part is stopped at its limit, for one nothing is left to do without CUDA."""
    monkeypatch.setitem(PARTS, "throughput", (PARTS["throughput"][0], 0))
    monkeypatch.setitem(PARTS, "tests", (PARTS["tests"][0], 10_000))  # all that is left
    monkeypatch.setattr(sys, "executable", warm)
    args = CheckArguments(output_dir=str(tmp_path), inputs_dir=place.inputs, device="cpu", small=True)
    args.parts = ["throughput", "tests"]
    results = run(args)
    assert failures(results) == 1 and json.loads((tmp_path / "gpu_check.json").read_text()) == results
    assert results["versions"]["torch"] and results["device"] == "CPU" and results["seconds"] > 0
    page = (tmp_path / "gpu_check.md").read_text()
    assert "| throughput | (the rest) | failed: stopped at the part's limit of 0 seconds | 0 |" in page
    assert "| tests | pytest -m gpu | skipped: no CUDA |" in page
    args.minutes, args.parts = 0.001, ["switches"]
    assert run(args)["parts"]["switches"]["rows"] == [{"what": "switches", "status": "skipped: no time is left"}]


def test_what_cannot_run_is_refused(place, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--parts speed: there is no such part; there are tests, equality"):
        run(CheckArguments(output_dir=str(tmp_path), device="cpu", parts=["speed"]))
    with pytest.raises(ValueError, match="--device cuda: torch finds no GPU here"):
        run(CheckArguments(output_dir=str(tmp_path)))
    monkeypatch.setattr(gpu_check, "TO_MAKE_DATA", ("no_engine",))
    with pytest.raises(Skipped, match="no_engine not installed, which make the data"):
        gpu_check.make_inputs(replace(place, inputs=str(tmp_path / "none")))
    gpu_check.make_inputs(place)  # what another machine has made needs none


def test_the_parts_fit_in_ten_minutes():
    assert sum(limit for _, limit in PARTS.values()) <= 60 * CheckArguments().minutes
    assert BASE.plm["vocab_size"] == 30_522
