"""The attention that a run trains with."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from flip_ctr.train.loop import attention, training_loop
from flip_ctr.train.loop.attention import choose_attention, time_attention
from flip_ctr.train.loop.resume import step_checkpoints

BATCH = {"input_ids": torch.randint(5, 50, (4, 12)), "attention_mask": torch.ones(4, 12, dtype=torch.long)}
BATCH["attention_mask"][1, 7:] = 0


@pytest.fixture
def bert(monkeypatch):
    monkeypatch.setattr(attention, "SMALLEST_PLM", 0)
    return tiny.random_mlm("bert").base_model.train()


@pytest.fixture
def choose(monkeypatch, bert):
    """The choice for a PLM on which the implementations take so many seconds; and which of them were tried."""

    def chosen(seconds: dict[str, float], asked=None, lengths=None):
        tried = []
        monkeypatch.setattr(attention, "time_attention", lambda a, b, c, names, *d: (tried.extend(names), seconds)[1])
        args = SimpleNamespace(attn_implementation=asked, torch_compile=False)
        name = choose_attention(Accelerator(cpu=True), bert, args, BATCH, lengths)
        assert (
            bert.config._attn_implementation == name == bert.encoder.layer[0].attention.self.config._attn_implementation
        )
        return name, tried

    return chosen


def test_the_fastest_is_chosen_where_it_is_faster_for_certain(choose, bert, caplog):
    caplog.set_level("INFO", logger="flip_ctr")
    assert choose({"sdpa": 1.0, "eager": 0.95}) == ("sdpa", ["sdpa", "eager"])
    assert choose({"sdpa": 1.0, "eager": 0.7}) == ("eager", ["sdpa", "eager"])
    assert (
        "the PLM's attention is eager (forward and backward of 48 tokens: sdpa 1,000 ms, eager 700 ms)" in caplog.text
    )
    assert choose({"sdpa": 0.1, "eager": 0.7})[0] == "sdpa"  # its own is eager now


def test_where_there_is_nothing_to_try(choose, bert, monkeypatch):
    faster = {"sdpa": 1.0, "eager": 0.1}
    assert choose(faster, asked="sdpa") == ("sdpa", [])
    assert choose(faster, lengths=np.array([9, 129])) == ("sdpa", [])  # eager attention would take memory
    assert choose(faster, lengths=np.array([9, 128]))[0] == "eager"
    bert.set_attn_implementation("sdpa")
    bert.requires_grad_(False)
    assert choose(faster) == ("sdpa", [])
    bert.requires_grad_(True)
    monkeypatch.setattr(attention, "SMALLEST_PLM", 10**6)
    assert choose(faster) == ("sdpa", [])
    assert choose_attention(Accelerator(cpu=True), None, SimpleNamespace(), BATCH) is None


def test_a_trial_leaves_no_trace(bert):
    before, weights = torch.get_rng_state(), [weight.detach().clone() for weight in bert.parameters()]
    trained = list(bert.parameters())
    seconds = time_attention(
        Accelerator(cpu=True), bert, trained, ["eager", "sdpa"], BATCH["input_ids"], BATCH["attention_mask"]
    )
    assert set(seconds) == {"eager", "sdpa"} and min(seconds.values()) > 0
    assert torch.equal(before, torch.get_rng_state())  # dropout drew numbers
    assert all(weight.grad is None for weight in trained)
    assert all(torch.equal(one, weight) for one, weight in zip(weights, trained))


def test_a_run_that_goes_on_keeps_its_attention(tmp_path, dataset_dir, plm, monkeypatch, caplog):
    def eager(accelerator, text_encoder, *rest):
        text_encoder.set_attn_implementation("eager")
        return "eager"

    def refuse(*_):
        raise AssertionError("tried again")

    caplog.set_level("INFO", logger="flip_ctr")
    options = {"strategy": "plm", "max_train_steps": 4, "max_train_samples": 64, "checkpointing_steps": "2"}
    monkeypatch.setattr(training_loop, "choose_attention", eager)
    tiny.finetune(dataset_dir, plm, tmp_path / "whole", **options)
    monkeypatch.setattr(training_loop, "choose_attention", refuse)
    first = step_checkpoints(str(tmp_path / "whole"))[0]
    tiny.finetune(dataset_dir, plm, tmp_path / "goes-on", **options, resume_from_checkpoint=first)
    assert "the PLM's attention is eager, as it was" in caplog.text
    whole, goes_on = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "goes-on"))
    assert all(torch.equal(weight, goes_on[name]) for name, weight in whole.items())
