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
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.loop import prompt_states
from flip_ctr.train.loop.grad_cache import chunked_losses
from flip_ctr.train.loop.optimizer import make_optimizer
from flip_ctr.train.loop.prompt_states import PromptReader, merge_prompts, row_names
from flip_ctr.train.loop.step import TrainingStep


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
        ("entity prompts, GradCache, 3 steps", "entity prompts, 3 steps"),
    ],
)
def test_chunks_have_the_gradient_and_loss_of_the_whole_batch(chunked, plain):
    assert difference(gradients(chunked), gradients(plain)) < 2e-5


# --- few steps of the PLM


def plain_gradients(settings: dict, number: int = 1) -> dict[str, torch.Tensor]:
    """Gradients of the mean of some batches, each by one call of the model."""
    entity = "entity" if settings.get("prompts") == "entity" else "row"
    model = new_model(settings, processor(prompts=entity).fields)
    for batch in merge_prompts(batches(settings, number)).batches:
        (model(**batch).loss / number).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("chunk_size", [1000, 4])
@pytest.mark.parametrize(
    ("case", "settings"),
    [("entity prompts", {}), ("entity prompts, clicks, joint", {"strategy": "joint", "fusion": "gate"})],
)
def test_one_step_of_the_plm_for_one_of_all_else_is_plain_training(case, settings, chunk_size):
    """Whether or not the prompts go through the PLM in chunks."""
    found = gradients(case, chunk_size)
    del found["loss"]
    assert difference(found, plain_gradients(step_child.ENTITY | settings)) < 2e-5


@pytest.mark.parametrize("chunk_size", [1000, 4])
def test_the_plms_gradient_is_the_mean_over_the_steps(chunk_size):
    found, mean = gradients("entity prompts, 3 steps", chunk_size), plain_gradients(step_child.ENTITY, 3)
    del found["loss"]
    of_all_else = {name: gradient for name, gradient in found.items() if "text_encoder" not in name}
    assert difference(of_all_else, {name: 3 * mean[name] for name in of_all_else}) < 2e-5
    of_plm = {name: gradient for name, gradient in found.items() if name not in of_all_else}
    assert difference(of_plm, {name: mean[name] for name in of_plm}) < 2e-5


def of_rows(batch: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    """Some rows of a compact batch, with their prompts alone."""
    used, index = batch["prompt_index"][rows].unique(return_inverse=True)
    few = {name: values[rows] if name in row_names(batch) else values[used] for name, values in batch.items()}
    return few | {"prompt_index": index}


def test_steps_of_fewer_rows_weigh_less():
    settings = step_child.ENTITY | {"strategy": "plm"}
    first, second = batches(settings, 2)
    fields = processor(prompts="entity").fields
    args = FinetuneArguments(dataset_dir="d", output_dir="o", model_name_or_path="m", strategy="plm", plm_every=2)
    model, expected = (new_model(settings, fields) for _ in range(2))
    few = {name: values[:4] if name in row_names(second) else values for name, values in second.items()}
    step = TrainingStep(Accelerator(cpu=True), model, make_optimizer(model, args, torch.device("cpu")), args)
    for group in step.windows(iter([[first], [few]]), 2):
        step.backward(group)
    step.backward_plm()
    for batch, share in ((first, 16 / 20), (few, 4 / 20)):
        (share * expected(**batch).loss).backward()
    found = {name: parameter.grad for name, parameter in model.flip.text_encoder.named_parameters()}
    assert difference(found, {n: p.grad for n, p in expected.flip.text_encoder.named_parameters()}) < 2e-5


def test_prompts_whose_graphs_do_not_fit_are_read_again_with_the_same_dropout():
    settings, gradients_of_plm = step_child.ENTITY | {"strategy": "plm"}, []
    for most in (0, 10**6):
        model = new_model(settings, processor(prompts="entity").fields, dropout=0.3)
        reader = PromptReader(Accelerator(cpu=True), model, 5)
        reader._tokens_of_rows = lambda batch, most=most: most
        seen = []
        model.flip.text_encoder.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(
                (output.last_hidden_state.detach(), output[0].requires_grad)
            )
        )
        (batch,) = reader.read(batches(settings, 1), train=True)
        read = len(seen)
        model(**batch).loss.backward()
        reader.backward()
        with_graph = sum(graph for _, graph in seen[:read])
        assert read == 4 and with_graph == (4 if most else 0) and len(seen) == read + (0 if most else 4)
        assert all(torch.equal(one, other) and graph for (one, _), (other, graph) in zip(seen[:read], seen[read:]))
        assert max(len(states) for states, _ in seen) == 5
        found = torch.cat([parameter.grad.flatten() for parameter in reader.parameters])
        assert not found.is_sparse and not any(m.sparse for m in model.modules() if isinstance(m, torch.nn.Embedding))
        gradients_of_plm.append(found)
    assert torch.equal(*gradients_of_plm)


@pytest.mark.parametrize("number", [1, 3])
def test_graphs_wait_for_as_many_tokens_as_row_prompts_would(number):
    """Of one batch, and half as many of several, whatever their number."""
    model = new_model(step_child.ENTITY | {"strategy": "plm"}, processor(prompts="entity").fields)
    reader, kept = PromptReader(Accelerator(cpu=True), model, 2), []
    model.flip.text_encoder.register_forward_hook(
        lambda module, inputs, output: kept.append(output[0].requires_grad * output[0].shape[:2].numel())
    )
    group = batches(step_child.ENTITY | {"strategy": "plm"}, number)
    of_rows = group[0]["attention_mask"].sum(1)[group[0]["prompt_index"]].sum()
    reader.read(group, train=True)
    most = of_rows if number == 1 else of_rows // 2
    assert 0 < sum(kept) <= most and (number == 3 or all(kept))
    assert sum(kept) + max(kept) > most or all(kept)


@pytest.mark.parametrize("strategy", [None, "plm"])
def test_a_batch_gets_the_states_of_its_own_prompts(strategy):
    """Whatever the number of batches whose prompts are read together; else a step would cost more with each."""
    settings = step_child.ENTITY | ({"strategy": strategy} if strategy else {})
    model = new_model(settings, processor(prompts="entity").fields).eval()
    reader = PromptReader(Accelerator(cpu=True), model, 50)
    group = [of_rows(batch, slice(3 * number, 3 * number + 3)) for number, batch in enumerate(batches(settings, 3))]
    read = list(reader.read(group, train=True))
    for batch, given in zip(read, group):
        states = batch["text_hidden_states" if strategy is None else "text_pooled"]
        ids, mask = given["input_ids"], given["attention_mask"]
        assert torch.equal(batch["input_ids"], ids) and len(states) == len(ids)
        with torch.no_grad():
            expected = model.flip.encode_text(ids, mask)
            expected = model.flip.pool(expected, mask) if strategy else expected * mask[..., None]
        found = states.detach() if strategy else states.detach() * mask[..., None]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    # more than one batch has
    assert len(merge_prompts(group).prompts["input_ids"]) > max(len(batch["input_ids"]) for batch in read)


def test_large_chunks_are_hardly_padded():
    reader = PromptReader(
        Accelerator(cpu=True), new_model(step_child.ENTITY, processor(prompts="entity").fields), 10**6
    )
    lengths = torch.randint(10, 60, (2000,), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(60) < lengths[:, None]).long()
    chunks = reader._chunks(torch.arange(2000), mask)
    assert torch.equal(torch.cat([chunk for chunk, _ in chunks]).sort().values, torch.arange(2000))
    assert all(lengths[chunk].max() == length for chunk, length in chunks)
    assert max(len(chunk) * length for chunk, length in chunks) <= prompt_states.TOKENS_AT_ONCE
    assert sum(len(chunk) * length for chunk, length in chunks) < 1.03 * lengths.sum()
    assert len(chunks) < 50  # 18 would hold all tokens


def test_prompts_are_read_with_dropout_after_an_evaluation():
    """Else a run that goes on from a step with an evaluation would differ."""
    settings = step_child.ENTITY | {"strategy": "plm"}
    args = FinetuneArguments(dataset_dir="d", output_dir="o", model_name_or_path="m", strategy="plm")
    model = new_model(settings, processor(prompts="entity").fields, dropout=0.3)
    step = TrainingStep(Accelerator(cpu=True), model, make_optimizer(model, args, torch.device("cpu")), args)
    seen = []
    model.flip.text_encoder.register_forward_hook(lambda module, inputs, output: seen.append(module.training))
    model.eval()
    next(step.windows(iter([batches(settings, 1)]), 1))
    assert seen and all(seen)


def test_a_window_that_does_not_fit_is_refused_with_what_does(monkeypatch):
    settings = step_child.ENTITY | {"strategy": "plm"}
    model = new_model(settings, processor(prompts="entity").fields)
    few, all_batches = batches(settings, 1)[0], batches(settings, 3)
    one = of_rows(few, slice(2))
    monkeypatch.setattr(prompt_states, "_free_bytes", lambda device: 2 * 4 * 16 * 5)
    with pytest.raises(ValueError, match=r"--plm_every: the states of 16 prompts .* at most 1 batches at a time fit"):
        PromptReader(Accelerator(cpu=True), model, 5).read([one, *all_batches], train=True)


def test_frozen_states_are_kept():
    settings = step_child.ENTITY | {"strategy": "plm"}
    model = new_model(settings, processor(prompts="entity").fields)
    model.flip.text_encoder.requires_grad_(False)
    model.train()
    reader = PromptReader(Accelerator(cpu=True), model, 50)
    (first,) = reader.read(batches(settings, 1), train=True)
    expected = model(**first).logits
    model.flip.text_encoder.forward = None  # would fail
    (again,) = reader.read(batches(settings, 1), train=True)
    assert torch.equal(model(**again).logits, expected)


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
