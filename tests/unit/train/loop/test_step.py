"""One training step: two processes do what one does, chunks do what the whole batch does, sparse tables what dense ones
do."""

import os
import subprocess
from pathlib import Path

import pytest
import step_child
import torch
from accelerate import Accelerator
from step_child import CASES, batches, gradients, new_model, processor

from flip_ctr.modeling_flip.heads_flip import contrastive_logits
from flip_ctr.modeling_flip.losses_flip import contrastive_accuracy, contrastive_loss
from flip_ctr.train.loop.grad_cache import chunked_losses


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, warm) -> dict[str, dict[str, torch.Tensor]]:
    """Case -> gradients by two processes, each with half of every batch."""
    path = tmp_path_factory.mktemp("step") / "gradients.pt"
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHON_EXEC": warm}
    command = [
        warm,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        step_child.__file__,
        str(path),
    ]
    done = subprocess.run(
        command, env=environment, cwd=Path(step_child.__file__).parent, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(path, weights_only=True)


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest difference of any gradient, as a share of the largest gradient of its parameter."""
    assert found.keys() == expected.keys()
    largest = max(gradient.abs().max() for gradient in expected.values())
    # (softmax is blind to a key's bias: of such parameters only rounding errors are left)
    return max(
        ((found[n] - g).abs().max() / g.abs().max().clamp(min=1e-3 * largest)).item() for n, g in expected.items()
    )


@pytest.mark.parametrize("case", CASES)
def test_two_processes_have_the_gradient_of_one_with_twice_the_batch(two_processes, case):
    expected = gradients(case)
    assert all(gradient.abs().sum() > 0 for name, gradient in expected.items() if "key.bias" not in name)
    # dot products over .7 are large, and so is their rounding: another order of the rows in one process moves them by
    # 1e-5 already
    assert difference(two_processes[case], expected) < (6e-5 if case == "ICL, dot" else 2e-5)


@pytest.mark.parametrize("name", ["mlm_labels", "mtm_labels", "sample_weight"])
def test_the_processes_have_different_counts(name):
    """Else means over their own rows would do."""
    settings = {"strategy": "id", "weighted": True} if name == "sample_weight" else {}
    count = (
        (lambda batch: batch[name].sum()) if name == "sample_weight" else (lambda batch: (batch[name] != -100).sum())
    )
    first, second = (count(batches(settings, 1, index, 2)[0]) for index in (0, 1))
    assert first != second


@pytest.mark.parametrize(
    ("chunked", "plain"),
    [
        ("all, GradCache, 3 batches", "all, 3 batches"),
        ("all, every kind of field, sparse tables, GradCache", "all, every kind of field"),
    ],
)
def test_chunks_have_the_gradient_and_loss_of_the_whole_batch(chunked, plain):
    assert difference(gradients(chunked), gradients(plain)) < 2e-5


def test_accumulation_is_the_mean_over_the_batches():
    alone = []
    for number in range(3):
        model = new_model({}, processor().fields)
        model(**batches({}, 3)[number]).loss.backward()
        alone.append({name: parameter.grad for name, parameter in model.named_parameters()})
    found = gradients("all, weights of 1, 3 batches")
    del found["loss"]
    assert difference(found, {name: sum(one[name] for one in alone) / 3 for name in found}) < 2e-5


@pytest.mark.parametrize("chunk_size", [1, 5, 16, 99])
def test_with_dropout_chunks_see_the_same_views_twice(chunk_size):
    """GradCache's result is that of the same chunks, with the same dropout, held in memory together."""
    model = new_model({"mlm_weight": 0.0, "mtm_weight": 0.0, "icl_weight": 3.0}, processor().fields, dropout=0.3)
    batch, accelerator = batches({}, 1)[0], Accelerator(cpu=True)
    torch.manual_seed(5)
    losses = chunked_losses(accelerator, model, batch, chunk_size, lambda loss: loss.backward(), sync=True)
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()

    torch.manual_seed(5)
    starts = range(0, step_child.BATCH, chunk_size)
    outputs = []
    for start, seed in zip(starts, torch.randint(2**62, (len(starts),)).tolist()):
        torch.manual_seed(seed)
        views = (batch[name][start : start + chunk_size] for name in ("feature_ids", "input_ids", "attention_mask"))
        outputs.append(model.flip(*views))
    embeds = (torch.cat([output[name] for output in outputs]) for name in ("id_embeds", "text_embeds"))
    similarities = contrastive_logits(*embeds, model.icl_scale())
    loss, accuracy = contrastive_loss(*similarities), contrastive_accuracy(*similarities)
    (3.0 * loss).backward()
    assert losses["icl_loss"] == pytest.approx(loss.item(), rel=1e-6) and losses["icl_accuracy"] == accuracy
    assert losses["loss"] == pytest.approx(3 * loss.item(), rel=1e-6)
    assert difference(found, {name: parameter.grad for name, parameter in model.named_parameters()}) < 2e-5


def test_dropout_of_the_chunks_differs_and_the_random_state_goes_on():
    model, batch = new_model({}, processor().fields, dropout=0.3), batches({}, 1)[0]
    seen = []
    model.flip.text_projection.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output == 0))
    torch.manual_seed(5)
    chunked_losses(Accelerator(cpu=True), model, batch, 8, lambda loss: loss.backward(), sync=True)
    first, second, again_first, again_second = seen
    assert torch.equal(first, again_first) and torch.equal(second, again_second) and not torch.equal(first, second)
    torch.manual_seed(5)
    torch.randint(2**62, (2,))
    expected = torch.rand(3)
    torch.manual_seed(5)
    chunked_losses(Accelerator(cpu=True), model, batch, 8, lambda loss: loss.backward(), sync=True)
    assert torch.equal(torch.rand(3), expected)


def test_only_one_chunk_is_ever_held():
    model, batch = new_model({}, processor().fields), batches({}, 1)[0]
    sizes = set()
    model.flip.text_encoder.register_forward_hook(
        lambda module, inputs, output: sizes.add(
            (len(output.last_hidden_state), output.last_hidden_state.requires_grad)
        )
    )
    chunked_losses(Accelerator(cpu=True), model, batch, 5, lambda loss: loss.backward(), sync=True)
    assert sizes == {(5, False), (1, False), (5, True), (1, True)}
