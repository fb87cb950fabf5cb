"""`transformers.Trainer` on the models, with its default arguments on `dataset.map(processor, batched=True)`."""

import os
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from datasets import Dataset
from packaging.version import Version
from transformers import AutoProcessor, Trainer, TrainingArguments, set_seed

from flip_ctr import (
    FlipCollator,
    FlipForCTR,
    FlipForPretraining,
    FlipPretrainingCollator,
    FlipProcessor,
    FlipTrainer,
    compute_metrics,
)
from flip_ctr.modeling_flip.fields_flip import UNK_ID
from flip_ctr.modeling_flip.losses_flip import IGNORE_INDEX

ACCUMULATES = Version(transformers.__version__) >= Version("5.17")  # that of 5.2 divides accumulated losses twice


@pytest.fixture
def trainer(processor, rows, tmp_path, text_config):
    """Makes a trainer of a new model, the same one each time."""

    def make(strategy="id", **arguments) -> Trainer:
        torch.manual_seed(0)
        model = FlipForCTR(tiny.flip_config(processor.fields, text_config, strategy=strategy))
        arguments = {"max_steps": 1, "logging_steps": 1, "max_grad_norm": 1e9, "save_strategy": "no"} | arguments
        common = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "remove_unused_columns": False}
        collator = processor if strategy != "id" else processor.without_tokenizer()
        return Trainer(
            model, TrainingArguments(str(tmp_path), **common, **arguments), train_dataset=rows, data_collator=collator
        )

    return make


@pytest.mark.skipif(not ACCUMULATES, reason="the Trainer of transformers 5.2 divides accumulated losses twice")
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


# --- datasets that the processor has mapped

PROMPTS = ("row", "entity")
QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "seed": 3}


@pytest.fixture(scope="module")
def mapped():
    """Prompts -> a processor and 60 rows that it has mapped."""
    rows = Dataset.from_list(tiny.toy_rows(60))
    processors = {
        prompts: FlipProcessor.from_dataset(rows, tiny.FIELDS, tiny.wordpiece(), max_length=96, prompts=prompts)
        for prompts in PROMPTS
    }
    return {prompts: (processor, rows.map(processor, batched=True)) for prompts, processor in processors.items()}


def new_model(processor, text_config, cls=FlipForCTR, **settings):
    set_seed(0)
    settings |= {"prompts": processor.prompts, "mtm_full_softmax_size": 5}
    return cls(tiny.flip_config(processor.fields, text_config, **settings))


def run(model, processor, rows, folder, collator=None, cls=Trainer, metrics=None, **arguments) -> Trainer:
    chosen = {} if collator is None else {"data_collator": collator}
    arguments = QUIET | {"per_device_train_batch_size": 16, "save_strategy": "no"} | arguments
    return cls(
        model,
        TrainingArguments(str(folder), **arguments),
        train_dataset=rows,
        eval_dataset=rows.select(range(24)) if isinstance(rows, Dataset) else None,
        processing_class=processor,
        compute_metrics=metrics,
        **chosen,
    )


def check_parts(history: list[dict], prefix: str = "") -> int:
    """The number of logs with a loss, each of which must be the sum of its parts (all have the weight 1)."""
    logs = [entry for entry in history if f"{prefix}loss" in entry]
    for entry in logs:
        parts = [entry[f"{prefix}{name}_loss"] for name in ("mlm", "mtm", "icl")]
        assert all(part > 0 for part in parts) and entry[f"{prefix}loss"] == pytest.approx(sum(parts), rel=1e-4)
    return len(logs)


@pytest.mark.parametrize("prompts", PROMPTS)
def test_the_parts_of_the_loss_of_pretraining_are_logged(mapped, text_config, tmp_path, prompts):
    """Over accumulated batches, several steps, a last step of fewer batches, and an evaluation with a smaller one."""
    processor, rows = mapped[prompts]
    trainer = run(
        new_model(processor, text_config, FlipForPretraining),
        processor,
        rows,
        tmp_path,
        FlipPretrainingCollator(processor),
        cls=FlipTrainer,
        num_train_epochs=3,
        logging_steps=2,
        eval_strategy="epoch",
        gradient_accumulation_steps=3 if ACCUMULATES else 1,
        per_device_eval_batch_size=10,
    )
    trainer.train()
    trainer.predict(rows.select(range(7)))  # is of no later evaluation
    trainer.evaluate()
    assert check_parts(trainer.state.log_history) == (3 if ACCUMULATES else 6)
    assert check_parts(trainer.state.log_history, "eval_") == 4


@pytest.mark.parametrize("strategy", ["id", "joint"])
def test_an_evaluation_has_the_metrics_of_the_rows_as_they_are(mapped, text_config, tmp_path, strategy):
    """All ids are dropped in training, and none of them here."""
    processor, rows = mapped["row"]
    dropping, keeping = FlipCollator(processor, unk_rate=1.0), FlipCollator(processor)
    model = tiny.shake(new_model(processor, text_config, strategy=strategy)).eval()
    one, two = (
        run(model, processor, rows, tmp_path, collator, cls, compute_metrics)
        for collator, cls in ((dropping, FlipTrainer), (keeping, Trainer))
    )
    evaluated = one.evaluate()
    few = rows.select(range(24))
    with torch.no_grad():
        logits = model(**keeping([few[row] for row in range(24)])).logits
    expected = compute_metrics((logits, few["labels"]))
    assert {"auc", "logloss"} < set(expected)
    for name, value in expected.items():
        assert evaluated[f"eval_{name}"] == pytest.approx(value, rel=1e-5)
        assert two.evaluate()[f"eval_{name}"] == pytest.approx(value, rel=1e-5)
    assert (one.predict(few).predictions == two.predict(few).predictions).all()
    dropped = next(iter(one.get_train_dataloader()))["feature_ids"]
    assert (dropped == UNK_ID).any() and one.data_collator is dropping


@pytest.mark.parametrize("prompts", PROMPTS)
def test_click_model_with_and_without_our_collator(mapped, text_config, tmp_path, prompts):
    """The last batch is smaller; both collators give the same, as nothing is random."""
    processor, rows = mapped[prompts]
    text_config = type(text_config).from_dict(text_config.to_dict() | {"hidden_dropout_prob": 0.0})
    text_config.attention_probs_dropout_prob = 0.0
    losses = []
    for collator in (None, FlipCollator(processor)):
        trainer = run(new_model(processor, text_config), processor, rows, tmp_path, collator, num_train_epochs=1)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert trainer.predict(rows.select(range(20))).predictions.shape == (20, 1)
    assert len(losses[0]) == 4 and losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("prompts", PROMPTS)
def test_pretraining_counts_features_masks_anew_and_loads_the_best(mapped, text_config, tmp_path, prompts):
    processor, rows = mapped[prompts]
    model = new_model(processor, text_config, FlipForPretraining, mlm_weight=0.0 if prompts == "row" else 1.0)
    expected = processor.count_features(rows)
    assert model.mtm_head.feature_counts.sum() > 0
    kept = model.mtm_head.feature_counts > 0
    assert torch.equal(model.mtm_head.feature_counts[kept], torch.from_numpy(expected)[kept])
    trainer = run(
        model,
        processor,
        rows,
        tmp_path,
        FlipPretrainingCollator(processor),
        num_train_epochs=2,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 2
    saved = AutoProcessor.from_pretrained(trainer.state.best_model_checkpoint)
    assert saved.prompts == prompts
    assert saved.fields.feature_counts is None  # how often a user occurs is nobody's business


@pytest.mark.parametrize("prompts", PROMPTS)
def test_masks_of_a_list_change_each_time_and_follow_the_random_state(mapped, prompts):
    processor, rows = mapped[prompts]
    features = [rows[number] for number in range(16)]
    names = set(processor.model_input_names)
    features = [{name: row[name] for name in names} for row in features]
    collator = FlipPretrainingCollator(processor)
    torch.manual_seed(1)
    first, second = collator(features), collator(features)
    torch.manual_seed(1)
    again = collator(features)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("mlm_labels", "mtm_labels", "noise_uniform"):
        assert not torch.equal(first[name], second[name])
    assert first["input_ids"].shape == first["mlm_labels"].shape == first["masked_input_ids"].shape
    masked = first["mlm_labels"] != IGNORE_INDEX
    assert torch.equal(
        first["masked_input_ids"][masked], torch.full((int(masked.sum()),), processor.tokenizer.mask_token_id)
    )
    assert torch.equal(first["input_ids"][masked], first["mlm_labels"][masked])
    if prompts == "entity":  # each distinct prompt is predicted once, in one of its rows
        labelled = masked.any(-1)
        texts = [tuple(ids.tolist()) for ids in first["input_ids"][labelled]]
        assert len(texts) == len(set(texts)) == len({tuple(ids.tolist()) for ids in first["input_ids"].flatten(0, 1)})


def test_a_list_without_the_fields_of_its_tokens_is_refused(mapped):
    processor, rows = mapped["row"]
    features = [{name: rows[0][name] for name in ("feature_ids", "input_ids", "attention_mask")}]
    with pytest.raises(ValueError, match="`token_fields`.*FlipProcessor"):
        FlipPretrainingCollator(processor)(features)


def test_a_stream_of_rows(mapped, text_config, tmp_path):
    processor, rows = mapped["entity"]
    stream = rows.to_iterable_dataset(num_shards=3)
    trainer = run(
        new_model(processor, text_config, FlipForPretraining),
        processor,
        stream,
        tmp_path,
        FlipPretrainingCollator(processor),
        max_steps=3,
    )
    trainer.train()
    assert trainer.state.global_step == 3


def test_a_trainer_goes_on_with_the_same_masks(mapped, text_config, tmp_path):
    """What a Trainer restores, torch's random state, is what masks follow from."""
    processor, rows = mapped["entity"]

    def trainer(folder) -> Trainer:
        model = new_model(processor, text_config, FlipForPretraining)
        collator = FlipPretrainingCollator(processor)
        return run(model, processor, rows, folder, collator, max_steps=8, save_strategy="steps", save_steps=4)

    whole = trainer(tmp_path / "whole")
    whole.train()
    again = trainer(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-4"))
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], weight, msg=lambda m, n=name: f"{n}: {m}")


def test_an_id_only_processor_is_saved_by_a_trainer(rows, tmp_path):
    processor = FlipProcessor.from_dataset(rows, tiny.FIELDS)
    dataset = Dataset.from_list(rows).map(processor, batched=True)
    model = FlipForCTR(tiny.flip_config(processor.fields, strategy="id"))
    trainer = run(model, processor, dataset, tmp_path, max_steps=2, save_strategy="steps", save_steps=2)
    trainer.train()
    assert AutoProcessor.from_pretrained(tmp_path / "checkpoint-2").id_only


TWO_PROCESSES = """
import sys
sys.path.insert(0, sys.argv[2])
import tiny, test_trainer
import torch
from datasets import Dataset
from transformers import BertConfig
from flip_ctr import FlipForPretraining, FlipPretrainingCollator, FlipProcessor, FlipTrainer
rows = Dataset.from_list(tiny.toy_rows(58))
processor = FlipProcessor.from_dataset(rows, tiny.FIELDS, tiny.wordpiece(), max_length=96, prompts="entity")
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
text = BertConfig(**sizes, vocab_size=len(processor.tokenizer))
rows = rows.map(processor, batched=True)
# of a stream one process reads batches and deals them out; they differ in length, so it must cut whole ones
of_stream = {"accelerator_config": {"split_batches": True}}
for kind, one, options in (("dataset", rows, {}), ("stream", rows.to_iterable_dataset(num_shards=2), of_stream)):
    model = test_trainer.new_model(processor, text, FlipForPretraining)
    trainer = test_trainer.run(model, processor, one, sys.argv[1], FlipPretrainingCollator(processor), FlipTrainer,
        max_steps=4, per_device_train_batch_size=8, gradient_accumulation_steps=2, **options)
    trainer.train()
    assert not test_trainer.ACCUMULATES or test_trainer.check_parts(trainer.state.log_history) == 4
    both = trainer.accelerator.gather(sum(p.double().sum() for p in model.parameters())[None].detach())
    assert trainer.accelerator.num_processes == 2 and both[0] == both[1], both
    sys.stdout.write(f"{kind} worked {trainer.state.global_step}\\n")  # at once: two processes write here
torch.distributed.destroy_process_group()
"""


def test_two_processes(tmp_path, warm):
    """Accumulated steps, an uneven last batch, and batches that one process deals out. The parts of the loss are means
    over both."""
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    path = os.pathsep.join([str(Path(tiny.__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [warm, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHON_EXEC": warm}
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "out"), str(Path(__file__).parent)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("dataset worked 4") == done.stdout.count("stream worked 4") == 2
