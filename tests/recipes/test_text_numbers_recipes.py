"""Click rates beside the text in the recipes: a run, a run that goes on from it, and a fusion."""

import past
import pytest
import tiny

from flip_ctr import FlipForCTR
from flip_ctr.train import evaluate_ctr, fuse
from flip_ctr.train.arguments import EvaluateArguments, FinetuneArguments, FuseArguments


def test_checkpoints_keep_the_layer(tmp_path, plm):
    dataset = tiny.write_dataset(tmp_path / "d", past.number_rows(96), [*tiny.FIELDS, *past.NUMBERS])
    options = {"prompts": "entity", "plm_every": 2, "text_numbers": True}
    results = tiny.finetune(dataset, plm, tmp_path / "plm", strategy="plm", **options)
    assert "`user_rate`, `pair_rows`" in (tmp_path / "plm" / "README.md").read_text()
    evaluated = evaluate_ctr.run(
        EvaluateArguments(dataset_dir=str(dataset), model_name_or_path=str(tmp_path / "plm"), max_eval_samples=64)
    )
    assert evaluated["test_auc"] == pytest.approx(results["test_auc"], abs=1e-6)
    tiny.finetune(dataset, tmp_path / "plm", tmp_path / "joint", strategy="joint")
    assert FlipForCTR.from_pretrained(tmp_path / "joint").text_numbers is not None
    fused = fuse.run(
        FuseArguments(
            dataset_dir=str(dataset),
            id_model=str(tmp_path / "joint"),
            plm_model=str(tmp_path / "plm"),
            output_dir=str(tmp_path / "fused"),
        )
    )
    assert 0 < fused["test_auc"] <= 1
    layers = [FlipForCTR.from_pretrained(tmp_path / name).text_numbers.state_dict() for name in ("plm", "fused")]
    assert layers[0].keys() == layers[1].keys() and all((layers[0][key] == layers[1][key]).all() for key in layers[0])


@pytest.mark.parametrize("strategy", ["id", "frozen"])
def test_it_is_of_a_text_side_that_predicts(strategy):
    given = {} if strategy == "id" else {"model_name_or_path": "m"}
    with pytest.raises(ValueError, match=f"--text_numbers has no effect with --strategy {strategy}, whose ID tower"):
        FinetuneArguments(dataset_dir="d", output_dir="o", strategy=strategy, text_numbers=True, **given)
