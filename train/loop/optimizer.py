# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The optimizer of the recipes: AdamW, and for large vocabularies an update of the touched rows alone.

With `--embedding_optimizer rowwise_adagrad` or `lazy_adam` the feature tables (the ID tower's, and MTM's output table)
get sparse gradients: (row id, gradient) pairs of the rows that the batch looked up. Their exchange between processes,
clipping, update and l2 cost what the batch touches, whatever the vocabulary. DDP is told to leave them alone; it would
send whole tables.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW, Optimizer

from flip_ctr.modeling_flip.gather_flip import gather_unequal, world_size
from flip_ctr.modeling_flip.id_tower import FeatureEmbedding
from flip_ctr.modeling_flip.mtm_head_flip import FlipMTMHead
from flip_ctr.train.arguments import TrainingOptions

FUSED_ON = ("cpu", "cuda", "mps", "xpu")  # devices with a fused AdamW


class RowWiseOptimizer(Optimizer):
    """Base of the optimizers of large tables: a step reads and writes the rows that have a gradient, and no other.

    The l2 is that of whole tables, `l2 * sum of squares` at every step, charged to a row when it is touched, for all
    the steps since it was touched last: a row that is rare is held back more than a frequent one, as it is where the
    penalty is in the loss. (With l2 of the touched rows alone it would be the other way round.) It is taken as a
    proximal step, which never goes past zero. What differs from whole tables: a row is read before it has paid for the
    steps since, and pays for them at the learning rate of
        now.

    Args:
        params: tables `(rows, size)`, or groups of them; their gradients must be sparse.
        lr: learning rate.
        l2: factor of the sum of squares.
    """

    def __init__(self, params, lr: float, l2: float = 0.0, **settings):
        super().__init__(params, {"lr": lr, "l2": l2} | settings)

    def new_state(self, table: torch.Tensor, group: dict) -> dict[str, torch.Tensor]:
        """The state of a table of that group."""
        raise NotImplementedError

    def direction(
        self, state: dict, rows: torch.Tensor, gradient: torch.Tensor, group: dict
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Updates the state of the touched rows `(n,)` with their gradients `(n, size)`.

        Returns what the rows move against, `(n, size)`, and what a gradient is divided by, `(n, 1)` or `(n, size)`.
        """
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is None:
                    continue
                state = self.state[table]
                if not state:
                    # a float, as load_state_dict would make it one
                    state |= {
                        "step": 0,
                        "last_step": torch.zeros_like(table[:, 0], dtype=torch.float),
                    } | self.new_state(table, group)
                state["step"] += 1
                gradient = table.grad.coalesce()
                rows = gradient.indices()[0]
                change, divisor = self.direction(state, rows, gradient.values().float(), group)
                weights, update = table[rows], group["lr"] * change / divisor
                if group["l2"] > 0:
                    missed = (state["step"] - state["last_step"][rows] - 1)[:, None]
                    # of the penalty's own gradient, over the divisor that a loss with it would have: no step is larger
                    # than lr
                    rate = (
                        2 * group["l2"] * group["lr"] / (divisor.square() + (2 * group["l2"] * weights).square()).sqrt()
                    )
                    weights = (weights / (1 + missed * rate) - update) / (1 + rate)
                else:
                    weights = weights - update
                table[rows] = weights.to(table.dtype)
                state["last_step"][rows] = float(state["step"])


class RowwiseAdagrad(RowWiseOptimizer):
    """Adagrad with one accumulator a row: a row moves by `lr * g / (sqrt(G) + eps)`, G the sum over the steps of the
    mean of its squared gradients. Two floats of state a row, where Adam has two a weight."""

    def __init__(self, params, lr: float, l2: float = 0.0, eps: float = 1e-10):
        super().__init__(params, lr, l2, eps=eps)

    def new_state(self, table, group):
        return {"sum": torch.zeros_like(table[:, 0], dtype=torch.float)}

    def direction(self, state, rows, gradient, group):
        total = state["sum"][rows] + gradient.square().mean(1)
        state["sum"][rows] = total
        return gradient, (total.sqrt() + group["eps"])[:, None]


class LazyAdam(RowWiseOptimizer):
    """Adam that brings a row's moments up to date when it is touched: they decay for all the steps since it was touched
    last, as those of Adam over whole tables do, so that the same learning rate and l2 serve. (In torch's SparseAdam
    they do not decay, and a rare row then moves less.) Without a first moment by default: what momentum would still
    move a row after its last touch, it
        moves at once.
    """

    def __init__(
        self, params, lr: float, l2: float = 0.0, betas: tuple[float, float] = (0.0, 0.999), eps: float = 1e-8
    ):
        super().__init__(params, lr, l2, betas=betas, eps=eps)

    def new_state(self, table, group):
        momentum = ["exp_avg"] if group["betas"][0] > 0 else []
        return {name: torch.zeros_like(table, dtype=torch.float) for name in [*momentum, "exp_avg_sq"]}

    def direction(self, state, rows, gradient, group):
        steps = (state["step"] - state["last_step"][rows])[:, None]

        def moment(name: str, beta: float, value: torch.Tensor) -> torch.Tensor:
            state[name][rows] = beta**steps * state[name][rows] + (1 - beta) * value
            return state[name][rows] / (1 - beta ** state["step"])

        first, second = group["betas"]
        change = moment("exp_avg", first, gradient) if first > 0 else gradient
        return change, moment("exp_avg_sq", second, gradient.square()).sqrt() + group["eps"]


class CombinedOptimizer(Optimizer):
    """Several optimizers, each with its own parameters, that schedulers, scalers and checkpoints see as one."""

    def __init__(self, *parts: Optimizer):
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts = parts
        self._share_groups()

    def _share_groups(self) -> None:
        self.param_groups = [
            group for part in self.parts for group in part.param_groups
        ]  # what a scheduler sets, a part reads

    def step(self, closure=None) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share_groups()


def input_tables(model: nn.Module) -> dict[str, nn.Embedding]:
    """The feature tables that l2 is taken of: name of the weight -> module."""
    return {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, FeatureEmbedding)}


def feature_tables(model: nn.Module) -> dict[str, nn.Embedding]:
    """All tables with a row a feature, MTM's output table too: name of the weight -> module."""
    heads = {name: module for name, module in model.named_modules() if isinstance(module, FlipMTMHead)}
    outputs = {
        f"{name}.{part}.weight": getattr(head, part) for name, head in heads.items() for part in ("embeddings", "bias")
    }
    return input_tables(model) | outputs


def parameter_groups(
    model: nn.Module, learning_rate: float = 3e-3, plm_learning_rate: float = 1e-4, embedding_l2: float = 1e-3
) -> list[dict]:
    """The weights of a model for `torch.optim.Adam` in a loop of one's own, with rates and l2 as the recipes have them;
    the defaults are those of `flip-ctr finetune` for a new model.

    The l2 of the recipes is in the loss. That is what `weight_decay` of Adam is (of the gradient before Adam's
    division; AdamW's is another thing, and needs other factors).

    Args:
        model: a FLIP model, before or after Accelerate or DDP wrapped it.
        learning_rate: of the ID tower and the heads.
        plm_learning_rate: of the PLM.
        embedding_l2: factor of the sum of squares of the whole feature tables.

    Returns: groups with `params`, `lr` and `weight_decay`; weights that need no gradient are in none.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    tables = input_tables(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rate = plm_learning_rate if ".text_encoder." in name else learning_rate
            groups.setdefault((rate, 2 * embedding_l2 if name in tables else 0.0), []).append(parameter)
    return [{"params": some, "lr": rate, "weight_decay": decay} for (rate, decay), some in groups.items()]


def make_optimizer(model: nn.Module, args: TrainingOptions, device: torch.device) -> Optimizer:
    """AdamW with learning rates of their own for the PLM and the ID tower; no weight decay on tables, biases, norms and
    single scalars. Feature tables are left to a row-wise optimizer where `--embedding_optimizer` asks for one; it needs
    [`use_sparse_tables`] first."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    tables = feature_tables(model)
    row_wise = {name: table.weight for name, table in tables.items() if table.sparse and table.weight.requires_grad}
    elsewhere = {id(weight) for weight in row_wise.values()}

    def rate(name: str) -> float:
        if ".text_encoder." in name:
            return args.plm_learning_rate
        of_tower = args.id_learning_rate if ".id_tower." in name else None
        return (args.embedding_learning_rate if name in tables else None) or of_tower or args.learning_rate

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in elsewhere:
            decay = args.weight_decay if parameter.ndim > 1 and id(parameter) not in embeddings else 0.0
            groups.setdefault((rate(name), decay), []).append(parameter)
    listed = [{"params": p, "lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]
    dense = AdamW(listed, fused=device.type in FUSED_ON)
    if not row_wise:
        return dense
    kind = {"rowwise_adagrad": RowwiseAdagrad, "lazy_adam": LazyAdam}[args.embedding_optimizer]
    penalised = input_tables(model)
    of_rows = [
        {"params": [weight], "l2": args.embedding_l2 * (name in penalised), "lr": rate(name)}
        for name, weight in row_wise.items()
    ]
    return CombinedOptimizer(dense, kind(of_rows, lr=args.learning_rate))


def use_sparse_tables(model: nn.Module) -> None:
    """Makes the gradients of all feature tables sparse: [`FeatureTables`] exchanges them."""
    for table in feature_tables(model).values():
        table.sparse = True


def keep_out_of_ddp(model: nn.Module, plm: bool) -> None:
    """Leaves to us the exchange of what is not exchanged in every step, or not whole: sparse feature tables, and with
    entity prompts the PLM's weights (see [`PromptReader`])."""
    names = [name for name, table in feature_tables(model).items() if table.sparse]
    of_plm = {id(weight) for name, weight in model.named_parameters() if plm and ".text_encoder." in f".{name}"}
    # MLM's decoder is the PLM's token embeddings, under another name
    names += [name for name, weight in model.named_parameters(remove_duplicate=False) if id(weight) in of_plm]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)


class FeatureTables:
    """What training does with the gradients of a model's feature tables between backward and the optimizer's step.

    Args:
        model: the model, out of what Accelerate put around it.
        l2: factor of the sum of squares of the input tables whose gradients are dense; a row-wise optimizer has its
            own.

    Raises:
        ValueError: a table whose gradient should be sparse has a dense one.
    """

    def __init__(self, model: nn.Module, l2: float):
        tables = feature_tables(model)
        self.sparse = {
            name: table.weight for name, table in tables.items() if table.sparse and table.weight.requires_grad
        }
        dense = [
            table.weight for table in input_tables(model).values() if not table.sparse and table.weight.requires_grad
        ]
        self.penalised = dense if l2 > 0 else []
        self.l2 = l2
        if world_size() > 1:
            for weight in self.sparse.values():  # DDP does this for what it keeps in step
                dist.broadcast(weight.detach(), 0)

    @torch.no_grad()
    def exchange(self) -> None:
        """Makes every sparse gradient the average over the processes, coalesced."""
        pairs = {name: self._pairs(name, weight) for name, weight in self.sparse.items()}
        if pairs and world_size() > 1:
            pairs = _gather_pairs(pairs)
        for name, (rows, values) in pairs.items():
            weight = self.sparse[name]
            weight.grad = torch.sparse_coo_tensor(rows[None], values, weight.shape, check_invariants=False).coalesce()

    def penalty(self) -> torch.Tensor | float:
        """The l2 itself: what [`add_l2`] is the gradient of."""
        return self.l2 * sum(weight.square().sum() for weight in self.penalised)

    @torch.no_grad()
    def add_l2(self, loss_scale: float = 1.0) -> None:
        """Adds the gradient of l2, times the scale of the loss; outside the loss, so that it counts once a step."""
        for weight in self.penalised:
            weight.grad.add_(weight, alpha=2 * self.l2 * loss_scale)

    def _pairs(self, name: str, weight: nn.Parameter) -> tuple[torch.Tensor, torch.Tensor]:
        if weight.grad is None:  # nothing was looked up: no noise was drawn, say
            return torch.empty(0, dtype=torch.long, device=weight.device), weight.new_empty(0, weight.shape[1])
        if not weight.grad.is_sparse:
            raise ValueError(
                f"the gradient of {name} is that of a whole table: something reads its weight, and not rows of it. "
                "Train this model with --embedding_optimizer dense"
            )
        gradient = weight.grad.coalesce()
        return gradient.indices()[0], gradient.values()


def _gather_pairs(pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The (row id, gradient) pairs of all processes, one after the other, gradients divided by the number of
    processes."""
    world = world_size()
    device = next(rows.device for rows, _ in pairs.values())
    mine = torch.tensor([len(rows) for rows, _ in pairs.values()], device=device)
    sizes = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(sizes, mine)
    sizes = torch.stack(sizes).T.tolist()  # (tables, processes)
    gathered = {}
    for (name, (rows, values)), lengths in zip(pairs.items(), sizes):
        gathered[name] = gather_unequal(rows, lengths), gather_unequal(values, lengths) / world
    return gathered
