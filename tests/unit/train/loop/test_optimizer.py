"""The optimizers of large tables: what they compute, and that a step costs what it touches."""

import copy

import pytest
import tiny
import torch
from accelerate import Accelerator
from step_child import batches, new_model, processor
from torch.optim import AdamW
from transformers import get_scheduler

from flip_ctr import FlipForCTR, FlipProcessor
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.loop.optimizer import (
    CombinedOptimizer,
    LazyAdam,
    RowwiseAdagrad,
    feature_tables,
    input_tables,
    make_optimizer,
    parameter_groups,
    use_sparse_tables,
)
from flip_ctr.train.loop.step import TrainingStep, clip_gradients
from flip_ctr.train.pretrain import PretrainArguments


def lookups(table: torch.nn.Embedding, *rows: int) -> None:
    """Gradients of a made-up loss that touches these rows, some of them twice."""
    table.weight.grad = None
    index = torch.tensor(rows)
    factors = torch.arange(1.0, 1 + index.numel())[:, None] * torch.tensor([1.0, -2.0, 0.5])
    (table(index) * factors).sum().backward()


def new_table(sparse: bool = True) -> torch.nn.Embedding:
    torch.manual_seed(1)
    return torch.nn.Embedding(6, 3, sparse=sparse)


def test_rowwise_adagrad_is_its_formula():
    table = new_table()
    expected, total = table.weight.tolist(), [0.0] * 6
    optimizer = RowwiseAdagrad([table.weight], lr=0.1)
    for rows in ([0, 2, 2], [5, 2], [0]):
        lookups(table, *rows)
        gradient = table.weight.grad.to_dense().tolist()
        optimizer.step()
        for row in set(rows):
            total[row] += sum(g * g for g in gradient[row]) / 3
            expected[row] = [w - 0.1 * g / total[row] ** 0.5 for w, g in zip(expected[row], gradient[row])]
    torch.testing.assert_close(table.weight, torch.tensor(expected))


@pytest.mark.parametrize(
    ("betas", "steps"),
    [
        # every row at every step: the moments of torch's Adam, momentum too
        ((0.9, 0.99), ([0, 1, 2, 3, 4, 5, 2], [5, 4, 3, 2, 1, 0, 0], [0, 1, 2, 3, 4, 5])),
        # with gaps: without momentum a row that has no gradient does not move, and its second moment decays
        ((0.0, 0.9), ([0, 1, 2], [2, 4], [2, 2], [4], [5, 0], [0, 1])),
    ],
)
def test_lazy_adam_is_adam_over_the_whole_table(betas, steps):
    lazy, dense = new_table(), new_table(sparse=False)
    optimizers = (
        LazyAdam([lazy.weight], lr=0.1, betas=betas),
        AdamW([dense.weight], lr=0.1, betas=betas, weight_decay=0.0),
    )
    for rows in steps:
        for table, optimizer in zip((lazy, dense), optimizers):
            lookups(table, *rows)
            optimizer.step()
    torch.testing.assert_close(lazy.weight, dense.weight)


@pytest.mark.parametrize("kind", [RowwiseAdagrad, LazyAdam])
def test_rows_that_are_not_touched_stay(kind):
    table = new_table()
    before = table.weight.detach().clone()
    optimizer = kind([table.weight], lr=0.1, l2=0.5)
    for rows in ([0, 2], [2], [2]):
        lookups(table, *rows)
        optimizer.step()
    changed = (table.weight != before).any(1).tolist()
    assert changed == [True, False, True, False, False, False]


@pytest.mark.parametrize("kind", [RowwiseAdagrad, LazyAdam])
def test_l2_is_charged_for_the_steps_since_the_last_touch(kind):
    """Beside an independent computation, one weight at a time: the old weight pays for the steps without a touch, the
    new one for this."""
    table, lr, l2 = new_table(), 0.1, 0.02
    expected, last = table.weight.tolist(), [0] * 6
    total, moment = [0.0] * 6, [[0.0] * 3 for _ in range(6)]
    optimizer = kind([table.weight], lr=lr, l2=l2)
    for step, rows in enumerate(([1], [1, 4], [4], [2], [1, 2, 2]), start=1):
        lookups(table, *rows)
        gradient = table.weight.grad.to_dense().tolist()
        optimizer.step()
        for row in set(rows):
            total[row] += sum(g * g for g in gradient[row]) / 3
            for d, (w, g) in enumerate(zip(expected[row], gradient[row])):
                moment[row][d] = 0.999 ** (step - last[row]) * moment[row][d] + 0.001 * g * g
                divisor = total[row] ** 0.5 if kind is RowwiseAdagrad else (moment[row][d] / (1 - 0.999**step)) ** 0.5
                rate = 2 * l2 * lr / (divisor**2 + (2 * l2 * w) ** 2) ** 0.5
                expected[row][d] = (w / (1 + rate * (step - last[row] - 1)) - lr * g / divisor) / (1 + rate)
            last[row] = step
    torch.testing.assert_close(table.weight, torch.tensor(expected))


@pytest.mark.parametrize("kind", [RowwiseAdagrad, LazyAdam])
@pytest.mark.parametrize("l2", [1e-3, 1e9])
def test_l2_alone_moves_a_row_by_no_more_than_its_rate_and_never_past_zero(kind, l2):
    table = new_table()
    before = table.weight.detach().clone()
    optimizer = kind([table.weight], lr=0.01, l2=l2)
    table.weight.grad = torch.sparse_coo_tensor([[0, 1, 2, 3, 4, 5]], torch.zeros(6, 3), (6, 3))
    optimizer.step()
    moved = before - table.weight
    assert (moved * before.sign() > 0).all() and moved.abs().max() <= 0.01 + 1e-6
    assert (table.weight.sign() == before.sign()).all()


def test_the_combined_optimizer_is_one_to_schedulers_and_checkpoints():
    def new():
        table, layer = new_table(), torch.nn.Linear(3, 1)
        torch.nn.init.ones_(layer.weight), torch.nn.init.zeros_(layer.bias)
        optimizer = CombinedOptimizer(AdamW(layer.parameters(), lr=0.1), RowwiseAdagrad([table.weight], lr=0.5))
        return table, layer, optimizer, get_scheduler("linear", optimizer, num_warmup_steps=0, num_training_steps=4)

    def step(table, layer, optimizer, scheduler):
        layer(table(torch.tensor([1, 4]))).square().sum().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    whole = new()
    step(*whole)
    assert [group["lr"] for group in whole[2].param_groups] == [0.1 * 3 / 4, 0.5 * 3 / 4]
    assert [part.param_groups[0]["lr"] for part in whole[2].parts] == [0.1 * 3 / 4, 0.5 * 3 / 4]
    states = [copy.deepcopy(part.state_dict()) for part in whole]
    step(*whole)
    resumed = new()
    for part, state in zip(resumed, states):
        part.load_state_dict(state)
    step(*resumed)
    for part, other in zip(whole[:2], resumed[:2]):
        for name, value in part.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    assert whole[0].weight.grad is None


@pytest.mark.parametrize("settings", [{"strategy": "joint", "id_tower": "deepfm"}, {}])
@pytest.mark.parametrize("kind", ["rowwise_adagrad", "lazy_adam"])
@pytest.mark.parametrize("kinds", [False, True])
def test_a_step_makes_no_gradient_as_large_as_a_table(settings, kind, kinds):
    model = new_model(settings, processor(kinds).fields)
    arguments = FinetuneArguments if settings else PretrainArguments
    args = arguments(
        dataset_dir="d", output_dir="o", model_name_or_path="m", embedding_optimizer=kind, embedding_l2=0.1
    )
    use_sparse_tables(model)
    accelerator = Accelerator(cpu=True)
    step = TrainingStep(accelerator, *accelerator.prepare(model, make_optimizer(model, args, accelerator.device)), args)
    before = {name: table.weight.detach().clone() for name, table in feature_tables(model).items()}
    assert set(before) == set(step.tables.sparse) and len(before) == (2 if settings else 3)
    step.backward(batches(settings | {"kinds": kinds}, 1))
    sizes = {
        name: weight.grad._nnz() for name, weight in step.tables.sparse.items()
    }  # before they are coalesced: lookups
    assert all(weight.grad.is_sparse for weight in step.tables.sparse.values()) and min(sizes.values()) > 0
    step.update()
    for name, table in feature_tables(model).items():
        changed = (table.weight != before[name]).any(1)
        assert 0 < changed.sum() < len(changed), name  # the reserved ids, say, were not looked up


def test_clipping_counts_the_sparse_gradients():
    """The norm is that of dense tables, and every gradient is scaled to the same limit."""
    clipped = []
    for kind in ("dense", "lazy_adam"):
        model = new_model({"strategy": "id"}, processor().fields)
        args = FinetuneArguments(
            dataset_dir="d",
            output_dir="o",
            strategy="id",
            embedding_optimizer=kind,
            embedding_l2=0.0,
            max_grad_norm=0.01,
        )
        if kind != "dense":
            use_sparse_tables(model)
        accelerator = Accelerator(cpu=True)
        step = TrainingStep(
            accelerator, *accelerator.prepare(model, make_optimizer(model, args, accelerator.device)), args
        )
        step.backward(batches({"strategy": "id"}, 1))
        step.optimizer.step, step.optimizer.zero_grad = lambda: None, lambda: None
        norm = step.update()
        clipped.append({"norm": norm} | {name: p.grad.to_dense() for name, p in model.named_parameters()})
    assert clipped[0]["norm"] > 0.01
    for name, value in clipped[0].items():
        torch.testing.assert_close(clipped[1][name], value)


@pytest.mark.parametrize("max_norm", [4.9, 5.1, float("inf")])
def test_clipping_scales_all_gradients_or_none(max_norm):
    dense, table = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(3, 1))
    dense.grad = torch.tensor([3.0])
    table.grad = torch.sparse_coo_tensor(
        torch.tensor([[1]]), torch.tensor([[4.0]]), (3, 1), is_coalesced=True, check_invariants=False
    )
    assert clip_gradients([dense, table], max_norm) == 5
    scale = min(max_norm / 5, 1)
    torch.testing.assert_close(torch.cat([dense.grad, table.grad.values()[0]]), torch.tensor([3.0, 4.0]) * scale)
    dense.grad = torch.tensor([float("nan")])
    assert clip_gradients([dense, table], max_norm).isnan()


def test_a_table_that_is_read_whole_is_named():
    model = new_model({"strategy": "id"}, processor().fields)
    use_sparse_tables(model)
    args = FinetuneArguments(dataset_dir="d", output_dir="o", strategy="id", embedding_optimizer="lazy_adam")
    accelerator = Accelerator(cpu=True)
    step = TrainingStep(accelerator, *accelerator.prepare(model, make_optimizer(model, args, accelerator.device)), args)
    model.flip.id_tower.embeddings.weight.square().sum().backward()
    with pytest.raises(
        ValueError, match="id_tower.embeddings.weight is that of a whole table.*--embedding_optimizer dense"
    ):
        step.update()


def test_defaults_follow_the_embedding_optimizer():
    def of(kind, **options):
        return FinetuneArguments(dataset_dir="d", output_dir="o", strategy="id", embedding_optimizer=kind, **options)

    def rate(args):
        """Of the tables, in the optimizer."""
        model = new_model({"strategy": "id"}, processor().fields)
        if args.embedding_optimizer != "dense":
            use_sparse_tables(model)
        groups = make_optimizer(model, args, torch.device("cpu")).param_groups
        table = model.flip.id_tower.embeddings.weight
        return next(group["lr"] for group in groups if any(one is table for one in group["params"]))

    assert rate(of("dense")) == rate(of("lazy_adam")) == of("dense").learning_rate
    args = of("rowwise_adagrad")
    assert rate(args) == 0.3 and not {"embedding_learning_rate", "embedding_l2"} & set(args.changed())
    args.use_dense_tables()
    assert args.embedding_optimizer == "dense" and rate(args) == args.learning_rate
    assert rate(of("dense", id_learning_rate=1e-4)) == rate(of("lazy_adam", id_learning_rate=1e-4)) == 1e-4
    assert rate(of("dense", id_learning_rate=1e-4, embedding_learning_rate=0.5)) == 0.5
    for kind in ("dense", "lazy_adam"):  # first-order weights are a head's, whatever the optimizer of their table
        args, model = (
            of(kind, id_learning_rate=1e-4),
            new_model({"strategy": "id", "id_tower": "deepfm"}, processor().fields),
        )
        if kind != "dense":
            use_sparse_tables(model)
        groups = make_optimizer(model, args, torch.device("cpu")).param_groups
        assert (
            next(g["lr"] for g in groups if any(one is model.first_order.weight for one in g["params"]))
            == args.learning_rate
        )
    args = of("rowwise_adagrad", embedding_learning_rate=0.5)
    args.use_dense_tables()
    assert rate(of("dense", embedding_learning_rate=0.5)) == rate(args) == 0.5


def test_sharded_training_says_that_it_uses_dense_tables(tmp_path, dataset_dir, monkeypatch, caplog):
    from flip_ctr.train.loop import run

    monkeypatch.setattr(run, "splits_states", lambda accelerator: True)
    tiny.finetune(dataset_dir, None, tmp_path / "m", embedding_optimizer="lazy_adam", num_train_epochs=1)
    assert "--embedding_optimizer lazy_adam works on one process and under DDP" in caplog.text
    assert '"embedding_optimizer": "dense"' in (tmp_path / "m" / "training_args.json").read_text()


# --- loops of one's own


def test_groups_for_adam_have_the_rates_and_the_l2(tiny_models):
    """A step of Adam with them is one on the loss with l2 of the tables."""
    ours, expected = tiny_models
    optimizer = torch.optim.Adam(parameter_groups(ours, 0.01, 0.002, embedding_l2=0.1))
    named = dict(expected.named_parameters())
    of_plm = [weight for name, weight in named.items() if ".text_encoder." in name and weight.requires_grad]
    others = [weight for name, weight in named.items() if ".text_encoder." not in name]
    assert of_plm and len(of_plm) + len(others) == sum(len(group["params"]) for group in optimizer.param_groups)
    reference = torch.optim.Adam([{"params": others, "lr": 0.01}, {"params": of_plm, "lr": 0.002}])
    tables = [table.weight for table in input_tables(expected).values()]
    assert len(tables) == 2  # DeepFM's weights of single features too
    for model, one, l2 in ((ours, optimizer, 0.0), (expected, reference, 0.1)):
        for step in range(3):
            torch.manual_seed(step)
            loss = sum((weight * torch.randn_like(weight)).sum() for weight in model.parameters())
            (loss + l2 * sum(table.square().sum() for table in tables)).backward()
            one.step()
            one.zero_grad()
    for (name, weight), other in zip(ours.named_parameters(), expected.parameters()):
        torch.testing.assert_close(weight, other, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def tiny_models(rows, tokenizer, text_config):
    """Two equal click models around a PLM, of which some weights need no gradient."""
    fields = FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer).fields
    model = FlipForCTR(tiny.flip_config(fields, text_config, "deepfm"))
    model.flip.text_encoder.embeddings.requires_grad_(False)
    return model, copy.deepcopy(model)
