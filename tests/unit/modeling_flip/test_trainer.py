"""`transformers.Trainer` on the click model: what its conventions promise."""

import pytest
import tiny
import torch
from transformers import Trainer, TrainingArguments

from flip_ctr import FlipForCTR


@pytest.fixture
def trainer(processor, rows, tmp_path, text_config):
    """Makes a trainer of a new model, the same one each time."""

    def make(strategy="id", **arguments) -> Trainer:
        torch.manual_seed(0)
        model = FlipForCTR(tiny.flip_config(processor.fields, text_config, strategy=strategy))
        arguments = {"max_steps": 1, "logging_steps": 1, "max_grad_norm": 0, "save_strategy": "no"} | arguments
        common = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False}
        collator = processor if strategy != "id" else processor.without_tokenizer()
        return Trainer(
            model, TrainingArguments(str(tmp_path), **common, **arguments), train_dataset=rows, data_collator=collator
        )

    return make


def test_accumulated_gradients_are_those_of_the_whole_batch(trainer):
    seen = []
    for rows, steps in ((24, 1), (12, 2), (6, 4)):
        run = trainer(per_device_train_batch_size=rows, gradient_accumulation_steps=steps)
        run.train()
        seen.append([run.state.log_history[0][name] for name in ("loss", "grad_norm")])
    assert seen[1] == pytest.approx(seen[0], rel=1e-4) and seen[2] == pytest.approx(seen[0], rel=1e-4)


@pytest.mark.parametrize("strategy", ["id", "joint"])
def test_predictions_are_one_array(trainer, rows, strategy):
    run = trainer(strategy, per_device_eval_batch_size=10)
    predicted = run.predict(rows)
    with torch.no_grad():
        expected = run.model.eval()(**run.data_collator(rows)).logits
    assert predicted.predictions.shape == (24, 1)
    torch.testing.assert_close(torch.from_numpy(predicted.predictions), expected)
