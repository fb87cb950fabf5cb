"""`flip-ctr explain`: the parts of the rows of files, as a table and as pictures."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import shared_fixtures
import tiny
from accelerate import Accelerator
from huggingface_hub import ModelCard
from scipy.special import logit
from sklearn.metrics import roc_auc_score
from transformers import pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from flip_ctr import FlipForCTR, FlipProcessor, explain
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.train.explain import ExplainArguments, run
from flip_ctr.train.loop import leave_out

FIELDS = ["user_id", "gender", "age", "occupation", "zip_code", "movie_id", "title", "genre"]


def explained(model, source, output, **options) -> list[dict]:
    run(ExplainArguments(str(model), [str(source)], str(output), **options))
    if output.suffix == ".jsonl":
        return [json.loads(line) for line in output.read_text().splitlines()]
    read = pa.csv.read_csv if output.suffix == ".csv" else pq.read_table
    return read(output).to_pylist()


def test_a_line_for_each_row_and_part(tmp_path, dataset_dir, finetuned, pictures, capsys):
    """The same as from Python, in every format; the first rows have pictures."""
    model, rows = finetuned["joint"][0], tiny.ml_rows(dataset_dir, 6)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    options = {"num_rows": 4, "plots_dir": str(tmp_path / "plots"), "num_plots": 2}
    lines = explained(model, tmp_path / "rows.parquet", tmp_path / "parts.parquet", **options)
    assert [line["row"] for line in lines] == sorted(line["row"] for line in lines) and lines[-1]["row"] == 3
    answers = explain(FlipForCTR.from_pretrained(model), FlipProcessor.from_pretrained(model), rows[:4])
    for number, answer in enumerate(answers):
        own = [line for line in lines if line["row"] == number]
        score, ids, text, *parts, everything = own
        assert [line["kind"] for line in (score, ids, text, everything)] == ["score", "side", "side", "everything"]
        assert score["click_probability"] == pytest.approx(answer["click_probability"], abs=1e-6)
        assert (ids["part"], text["part"]) == ("ids", "text")
        assert ids["log_odds"] == pytest.approx(answer["text_log_odds"], abs=1e-5)  # what is left is the text
        assert ids["change"] == pytest.approx(answer["log_odds"] - answer["text_log_odds"], abs=1e-5)
        assert float(ids["value"].split()[1]) == pytest.approx(answer["id_weight"], abs=1e-3)
        assert [line["part"] for line in parts] == FIELDS
        for line, part in zip(parts, answer["parts"], strict=True):
            assert line["value"] == part["value"]
            for name in ("change", "id_change", "text_change", "log_odds"):
                assert line[name] == pytest.approx(part[name], abs=1e-5)
        assert everything["log_odds"] == pytest.approx(answer["base_log_odds"], abs=1e-5)
    said = dict(re.findall(r"^  (\w+) +([\d.]+)$", capsys.readouterr().out, re.M))
    assert list(said) == sorted(FIELDS, key=lambda name: -float(said[name]))
    genre = [abs(line["change"]) for line in lines if line["part"] == "genre"]
    assert float(said["genre"]) == pytest.approx(sum(genre) / 4, abs=1e-4)
    assert sorted(one.name for one in (tmp_path / "plots").iterdir()) == ["fields.png", "row-0.png", "row-1.png"]
    for name in ("parts.csv", "parts.jsonl"):
        other = explained(model, tmp_path / "rows.parquet", tmp_path / name, num_rows=4)
        assert [list(line) for line in other] == [list(line) for line in lines]
        for line, expected in zip(other, lines, strict=True):
            assert (line["part"] or None, str(line["value"] or "")) == (expected["part"], expected["value"] or "")
            assert line["log_odds"] == pytest.approx(expected["log_odds"], abs=1e-6)


def test_a_checkpoint_that_brings_its_own_code(dataset_dir, finetuned):
    """Its classes are not the package's, as `trust_remote_code=True` has it."""
    folder, rows = str(finetuned["joint"][0]), tiny.ml_rows(dataset_dir, 2)
    names = ("modeling_flip.FlipForCTR", "processing_flip.FlipProcessor")
    model, processor = (get_class_from_dynamic_module(name, folder).from_pretrained(folder) for name in names)
    assert type(model) is not FlipForCTR and type(processor) is not FlipProcessor
    expected = explain(FlipForCTR.from_pretrained(folder), FlipProcessor.from_pretrained(folder), rows)
    assert explain(model, processor, rows) == expected


def test_what_is_wrong_is_said_and_nothing_written(tmp_path, dataset_dir, finetuned):
    model, rows = finetuned["id"][0], tiny.ml_rows(dataset_dir, 3)
    source, output = tmp_path / "rows.jsonl", tmp_path / "parts.csv"
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0] | {"user_id": "x"}]))
    with pytest.raises(ValueError, match="rows.jsonl, line 4: .*user_id"):
        explained(model, source, output)
    assert not output.exists()
    lines = explained(model, source, output, num_rows=3)  # the line is not among them
    assert {line["row"] for line in lines} == {0, 1, 2} and "id_change" not in lines[0]
    with pytest.raises(ValueError, match="is there already"):
        explained(model, source, output)
    source.write_text("")
    with pytest.raises(ValueError, match="has no rows|is empty"):
        explained(model, source, tmp_path / "other.csv")
    with pytest.raises(ValueError, match="--num_plots 2 has no effect without --plots_dir"):
        ExplainArguments("m", ["r"], "o.csv", num_plots=2).check()


def test_a_card_says_what_the_fields_do(tmp_path, dataset_dir, finetuned, monkeypatch):
    """What it says is measured on rows of validation that are scored without each field."""
    for kind, rows in shared_fixtures.EFFECT_ROWS.items():
        monkeypatch.setitem(leave_out.MOST_ROWS, kind, rows)
    folder, split = finetuned["joint"][0], SplitRows(dataset_dir, "validation", 64, 0)
    model, processor = FlipForCTR.from_pretrained(folder), FlipProcessor.from_pretrained(folder)
    effects = leave_out.measure_effects(Accelerator(), model, processor, split, 0, 32)
    assert effects.rows == 64 and sorted(one.part for one in effects.parts) == sorted(FIELDS)
    assert [one.change for one in effects.parts] == sorted((one.change for one in effects.parts), reverse=True)
    score, rows = pipeline("click-through-rate", model=str(folder)), split.take(range(64)).to_pylist()
    labels = [row["label"] for row in rows]

    def scores(**other) -> np.ndarray:
        return logit([one["click_probability"] for one in score([row | other for row in rows])])

    for name, other in (("genre", None), ("user_id", -1)):
        effect = next(one for one in effects.parts if one.part == name)
        whole, without = scores(), scores(**{name: other})
        assert effect.change == pytest.approx(abs(whole - without).mean(), abs=1e-4)
        lost = roc_auc_score(labels, whole) - roc_auc_score(labels, without)
        assert effect.auc_lost == pytest.approx(lost, abs=1e-3) and effect.error > 0

    tiny.finetune(dataset_dir, None, tmp_path / "m")
    text = ModelCard.load(tmp_path / "m" / "README.md").text.split("## What the fields do")[1].split("## Use")[0]
    assert "64 rows of validation, drawn at random" in text
    lines = re.findall(r"^\| `(\w+)` \| (\d\.\d{3}) \| [+-]\d\.\d{4} ± \d\.\d{4} \|$", text, re.M)
    assert sorted(name for name, _ in lines) == sorted(FIELDS)
    assert [change for _, change in lines] == sorted((change for _, change in lines), reverse=True)
