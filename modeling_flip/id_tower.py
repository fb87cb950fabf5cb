# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""ID-based backbones of FLIP behind one interface: feature ids in, the interaction vector `h_id` out.

A tower is a class that takes a `FlipConfig` (and its own arguments, from `config.id_tower_kwargs`), has an
`output_dim`, and maps `feature_ids` `(batch, slots)` to `h_id` `(batch, output_dim)`. The history is one field more,
and with strategy `frozen` so is the embedding of the row's text. `register_id_tower` names it. Here are the interface
and what towers are built from; each tower has a file `id_tower_<name>.py`, which `modeling_flip` imports.
"""

import inspect
from collections.abc import Callable
from itertools import accumulate, combinations, groupby

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import PAD_ID, UNK_ID, check_count
from .histories_flip import NO_ENTRY
from .inputs_flip import IDS, check_ids, check_tensor
from .layers_flip import TowerLinear
from .numbers_flip import NumberEmbedding
from .target_attention_flip import FlipTargetAttention

# the towers of this package: the one named X is in the file id_tower_X
BUILT_IN_TOWERS = (
    "afm",
    "afn",
    "autoint",
    "dcn",
    "dcnv2",
    "deepfm",
    "fibinet",
    "finalmlp",
    "fm",
    "gdcn",
    "lr",
    "masknet",
    "pnn",
    "widedeep",
    "xdeepfm",
)
HASH_FACTOR = 0x2545F4914F6CDD1D  # an odd number below 2^63, whose powers are the weights of positions
ID_TOWERS: dict[str, type["IdTower"]] = {}


def register_id_tower(name: str):
    """Class decorator: makes a tower available as `FlipConfig(id_tower=name)`.

    Raises:
        ValueError: the class is no [`IdTower`], or the name is that of a tower of this package, whose checkpoints would
            load into another.
    """

    def register(cls):
        if not (isinstance(cls, type) and issubclass(cls, IdTower)):
            raise ValueError(f"register_id_tower({name!r}): {cls!r} must be a class that inherits from IdTower")
        if is_built_in(ID_TOWERS.get(name, cls)) and not is_built_in(cls):
            raise ValueError(
                f"register_id_tower({name!r}): this package has a tower of that name; choose another one for "
                f"{cls.__name__}"
            )
        ID_TOWERS[name] = cls
        return cls

    return register


def build_id_tower(config: FlipConfig) -> "IdTower":
    """The tower that `config.id_tower` names, with `config.id_tower_kwargs`.

    Raises:
        ValueError: no tower has that name, the tower has no such argument, or an argument's value does not fit.
    """
    if config.id_tower not in ID_TOWERS:
        raise ValueError(
            f"FlipConfig: `id_tower` must be one of {', '.join(sorted(ID_TOWERS))}; got {config.id_tower!r}. A tower "
            "of your own is known once the module that registers it has been imported (on the command line: "
            "--custom_code my_towers.py)."
        )
    tower = ID_TOWERS[config.id_tower]
    allowed = own_arguments(tower)
    unknown = sorted(set(map(str, config.id_tower_kwargs)) - set(allowed))
    if unknown:
        raise ValueError(
            f"FlipConfig: `id_tower_kwargs` of {config.id_tower!r} may hold {', '.join(allowed) or 'nothing'}; got "
            f"{', '.join(unknown)}."
        )
    built = tower(config, **config.id_tower_kwargs)
    if built.history is not None and "history_ids" not in inspect.signature(tower.forward).parameters:
        raise ValueError(
            f"{tower.__name__}: its `forward` takes no `history_ids` and `history_outcomes`, and a field is a history; "
            "pass them on to `added_fields` as IdTower.forward does, or leave `id` out of the history's `sides`."
        )
    return built


def own_arguments(tower: type["IdTower"]) -> list[str]:
    """Names that `id_tower_kwargs` may hold: of the class's `__init__`, and where that passes on `**kwargs`, of the one
    that gets them."""
    of_all, names = inspect.signature(IdTower.__init__).parameters, []
    for cls in tower.__mro__[: tower.__mro__.index(IdTower)]:
        if "__init__" in vars(cls):
            parameters = inspect.signature(vars(cls)["__init__"]).parameters.values()
            names += [
                one.name
                for one in parameters
                if one.name not in of_all and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)
            ]
            if all(one.kind != one.VAR_KEYWORD for one in parameters):
                break
    return names


def is_built_in(tower: type["IdTower"]) -> bool:
    """Whether a tower is of this package, and not a user's own."""
    return tower.__module__ in [f"{__package__}.id_tower_{name}" for name in BUILT_IN_TOWERS]


class FeatureEmbedding(nn.Embedding):
    """One table for the features of all fields: row `sizes of the fields before + local id` of each slot's field.

    `(batch, slots)` local ids -> `(batch, fields, embedding_dim)`; a field of several slots is the mean of those that
    are not pad.

    Args:
        field_sizes: number of feature ids of each field.
        slot_fields: the field of each slot, in ascending order; one slot a field when None.
    """

    offsets: torch.Tensor
    last_ids: torch.Tensor

    def __init__(self, field_sizes: list[int], embedding_dim: int, slot_fields: list[int] | None = None):
        super().__init__(sum(field_sizes), embedding_dim)
        self.field_sizes = list(field_sizes)
        self.slot_fields = list(range(len(field_sizes)) if slot_fields is None else slot_fields)
        slots = [self.slot_fields.count(field) for field in range(len(field_sizes))]
        # runs of neighbouring fields, (slots, whether they are one field's): fields of one slot need no pooling
        runs = groupby(slots, key=lambda number: number > 1)
        self.runs = [
            run for several, group in runs for run in ([(n, True) for n in group] if several else [(sum(group), False)])
        ]
        for name, numbers in self._numbers().items():
            self.register_buffer(name, numbers, persistent=False)

    def _numbers(self) -> dict[str, torch.Tensor]:
        """First row and last local id of each slot's field, `(slots,)` each."""
        starts = [0, *accumulate(self.field_sizes[:-1])]
        return {
            "offsets": torch.tensor([starts[field] for field in self.slot_fields], dtype=torch.long),
            "last_ids": torch.tensor([self.field_sizes[field] - 1 for field in self.slot_fields], dtype=torch.long),
        }

    def grow(self, field_sizes: list[int]) -> None:
        """Appends rows to the fields; each starts as the field's `[UNK]` row. The rows that are there stay bit for
        bit."""
        weight = grown(self.weight.detach(), self.field_sizes, field_sizes, lambda rows: rows[UNK_ID])
        self.weight = nn.Parameter(weight, self.weight.requires_grad)
        self.num_embeddings, self.field_sizes = sum(field_sizes), list(field_sizes)
        for name, numbers in self._numbers().items():
            setattr(self, name, numbers.to(self.offsets.device))

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.normal_(self.weight, std=config.id_initializer_range)
        for name, numbers in self._numbers().items():  # built on the meta device by `from_pretrained`: filled here
            init.copy_(getattr(self, name), numbers)

    def of_fields(self, feature_ids: torch.Tensor, slots: list[int]) -> torch.Tensor:
        """Ids of the slots of some fields alone, `(..., slots)` -> `(..., fields, embedding_dim)`."""
        embeds = super().forward(feature_ids + columns_at(self.offsets, slots))
        fields = [self.slot_fields[slot] for slot in slots]
        sizes = [fields.count(field) for field in dict.fromkeys(fields)]
        if max(sizes) == 1:
            return embeds
        parts = zip(embeds.split(sizes, dim=-2), feature_ids.split(sizes, dim=-1))
        return torch.cat([mean_of_values(part, ids) for part, ids in parts], dim=-2)

    def check(self, feature_ids: torch.Tensor) -> None:
        """Raises `TypeError` where these are no whole numbers, and `ValueError` where they have another shape, or are
        beyond their field."""
        slots = len(self.slot_fields)
        check_tensor("feature_ids", feature_ids, ("B", slots), IDS)
        if feature_ids.ndim != 2 or feature_ids.shape[-1] != slots:
            raise ValueError(
                f"`feature_ids` must have the shape (B, {slots}), a column for each of the {slots} slots of "
                f"{len(self.field_sizes)} ID-side fields; got {tuple(feature_ids.shape)}."
            )
        check_ids("feature_ids", feature_ids, self.last_ids, whose=" The processor must be the model's own.")

    def check_history(self, history_ids: torch.Tensor, outcomes: torch.Tensor, slots: list[int], rows: int) -> None:
        """Raises `TypeError` and `ValueError` where these are no `history_ids` and `history_outcomes` of so many rows,
        or of rows that share them, whose items have these slots."""
        if getattr(history_ids, "ndim", 0) and history_ids.shape[0] and rows % history_ids.shape[0] == 0:
            rows = history_ids.shape[0]
        check_tensor("history_ids", history_ids, (rows, "n", len(slots)), IDS)
        check_tensor("history_outcomes", outcomes, (rows, "n"), IDS)
        if history_ids.ndim != 3 or history_ids.shape[::2] != (rows, len(slots)):
            raise ValueError(
                f"`history_ids` must have the shape ({rows}, n, {len(slots)}), as the row's item has {len(slots)} "
                f"slots; got {tuple(history_ids.shape)}."
            )
        if outcomes.shape != history_ids.shape[:2]:
            raise ValueError(
                f"`history_outcomes` must have the shape of the entries of `history_ids`, "
                f"{tuple(history_ids.shape[:2])}; got {tuple(outcomes.shape)}."
            )
        last = columns_at(self.last_ids, slots)
        check_ids("history_ids", history_ids, last, whose=" The processor must be the model's own.")

    def forward(self, feature_ids: torch.Tensor) -> torch.Tensor:
        self.check(feature_ids)
        embeds = super().forward(feature_ids + self.offsets)  # (B, S, D)
        if len(self.slot_fields) == len(self.field_sizes):
            return embeds
        sizes = [size for size, _ in self.runs]
        parts = zip(self.runs, embeds.split(sizes, dim=1), feature_ids.split(sizes, dim=1))
        return torch.cat([mean_of_values(part, ids) if pooled else part for (_, pooled), part, ids in parts], dim=1)


def columns_at(values: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """`values[..., numbers]`, by slices: a list as an index is copied to the device, which the host then waits for."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return torch.cat([values[..., run[0] : run[-1] + 1] for run in runs], dim=-1)


def grown(table: torch.Tensor, sizes: list[int], new_sizes: list[int], start: Callable) -> torch.Tensor:
    """A table of all fields' features with more rows for some fields; `start` gives a new row from a field's rows."""
    parts = [
        torch.cat([rows, start(rows).expand(new_size - len(rows), *rows.shape[1:])])
        for rows, new_size in zip(table.split(sizes), new_sizes)
    ]
    return torch.cat(parts)


def mean_of_values(embeds: torch.Tensor, feature_ids: torch.Tensor) -> torch.Tensor:
    """The mean over the slots of one field that are not pad: `(..., n, D)` and local ids `(..., n)` -> `(..., 1,
    D)`."""
    kept = (feature_ids != PAD_ID)[..., None].to(embeds.dtype)  # (..., n, 1)
    return (embeds * kept).sum(-2, keepdim=True) / kept.sum(-2, keepdim=True).clamp(min=1)


class DNN(nn.Module):
    """Hidden layers with ReLU and dropout: `(batch, input_dim)` -> `(batch, hidden_dims[-1])`."""

    def __init__(self, input_dim: int, hidden_dims: list[int], dropout: float):
        super().__init__()
        dims = [input_dim, *hidden_dims]
        self.layers = nn.ModuleList(TowerLinear(a, b) for a, b in zip(dims, dims[1:]))
        self.dropout = nn.Dropout(dropout)
        self.output_dim = dims[-1]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = self.dropout(layer(hidden, "relu"))
        return hidden


class FieldPairs(nn.Module):
    """The pairs (i, j), i < j, of fields: `num_pairs` of them, in the order (0, 1), (0, 2), ..., (1, 2), ..."""

    left: torch.Tensor
    right: torch.Tensor

    def __init__(self, num_fields: int):
        super().__init__()
        self.num_fields, self.num_pairs = num_fields, num_fields * (num_fields - 1) // 2
        for name, numbers in self._numbers().items():
            self.register_buffer(name, numbers, persistent=False)

    def _numbers(self) -> dict[str, torch.Tensor]:
        pairs = list(combinations(range(self.num_fields), 2))
        return {"left": torch.tensor([i for i, _ in pairs]), "right": torch.tensor([j for _, j in pairs])}

    def init_flip_weights(self, config: FlipConfig) -> None:
        for name, numbers in self._numbers().items():  # built on the meta device by `from_pretrained`: filled here
            init.copy_(getattr(self, name), numbers)

    def forward(self, embeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(B, F, D)` -> the first and the second field of each pair, `(B, pairs, D)` each."""
        return embeds.index_select(1, self.left), embeds.index_select(1, self.right)

    def inner_products(self, embeds: torch.Tensor) -> torch.Tensor:
        """`(B, F, D)` -> `<e_i, e_j>` of each pair, `(B, pairs)`."""
        return (embeds @ embeds.mT)[:, self.left, self.right]


def integer_keys(numbers: torch.Tensor) -> torch.Tensor:
    """A 64-bit hash of each row of integers, `(..., n)` -> `(...)` int64; zeros at the end change nothing."""
    factor = torch.full((numbers.shape[-1],), HASH_FACTOR, dtype=torch.long, device=numbers.device)
    return (numbers.long() * factor.cumprod(0)).sum(-1)  # modulo 2^64


def bi_interaction(embeds: torch.Tensor) -> torch.Tensor:
    """The sum of `e_i * e_j` (element by element) over all pairs i < j, in O(fields): `(..., F, D)` -> `(..., D)`."""
    return 0.5 * (embeds.sum(-2).square() - embeds.square().sum(-2))


class IdTower(nn.Module):
    """Base of the towers: feature embeddings, and by default a DNN beside the interaction, `h_id = [interaction;
    deep]`.

    A subclass adds the size of its interaction to `output_dim` and implements `interact`; one of another form
    implements `encode` and sets `output_dim`. The click logit is linear in `h_id`.

    Args:
        config: the fields and their sizes, the size of an embedding, the DNN's layers (`id_hidden_dims`), the dropouts.
        deep: whether there is the DNN over all embeddings; without it `h_id` is the interaction.

    Raises:
        ValueError: there are fewer fields on the ID side than the tower needs.
    """

    has_first_order = False  # whether the click logit also adds one weight a feature, as in DeepFM
    min_fields = 1

    def __init__(self, config: FlipConfig, deep: bool = True):
        super().__init__()
        self.history_slots = config.history_slots
        self.num_fields = len(config.field_sizes) + (len(self.history_slots) > 0) + config.text_is_field
        if not config.field_sizes:
            raise ValueError("FlipConfig: `fields` has no field on the ID side; an ID tower needs at least one.")
        if self.num_fields < self.min_fields:
            raise ValueError(
                f"{type(self).__name__}: pairs of fields need at least {self.min_fields} fields on the ID side; "
                f"`fields` has {self.num_fields}."
            )
        self.embedding_size = config.id_embedding_size
        self.input_dim = self.num_fields * self.embedding_size
        self.embeddings = FeatureEmbedding(config.field_sizes, self.embedding_size, config.slot_fields)
        self.numbers = NumberEmbedding(config) if config.numbers else None
        self.embedding_dropout = nn.Dropout(config.id_embedding_dropout)
        self.dnn = DNN(self.input_dim, config.id_hidden_dims, config.id_dropout) if deep else None
        self.output_dim = self.dnn.output_dim if deep else 0
        self.history = None
        if self.history_slots:
            item_dim = len({config.slot_fields[slot] for slot in self.history_slots}) * self.embedding_size
            self.history = FlipTargetAttention(item_dim, item_dim, self.embedding_size)

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        """`(batch, fields, embedding_size)` -> the interaction, `(batch, output_dim - deep)`."""
        raise NotImplementedError

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        """`(batch, fields, embedding_size)` -> `h_id`, `(batch, output_dim)`."""
        if self.dnn is None:
            return self.interact(embeds)
        return torch.cat([self.interact(embeds), self.dnn(embeds.flatten(1))], dim=-1)

    def added_fields(
        self,
        feature_ids: torch.Tensor,
        text_embeds: torch.Tensor | None,
        history_ids: torch.Tensor | None,
        history_outcomes: torch.Tensor | None,
    ) -> list[torch.Tensor]:
        """The embeddings of fields that are none of `feature_ids`: of the history, and of the text, `(batch,
        embedding_size)` each; see `forward`."""
        added = []
        if self.history is not None:
            if (history_ids is None) != (history_outcomes is None):
                missing = "history_ids" if history_ids is None else "history_outcomes"
                raise ValueError(
                    f"`{missing}` is needed: `history_ids` and `history_outcomes` are of the same entries."
                )
            self.embeddings.check(feature_ids)
            if history_ids is None or history_outcomes is None:
                # as an empty one; of one place, so that each weight has a gradient
                shape = (len(feature_ids), 1, len(self.history_slots))
                history_ids = feature_ids.new_full(shape, PAD_ID)
                history_outcomes = feature_ids.new_full(shape[:2], NO_ENTRY)
            self.embeddings.check_history(history_ids, history_outcomes, self.history_slots, feature_ids.shape[0])
            item = self.embeddings.of_fields(columns_at(feature_ids, self.history_slots), self.history_slots).flatten(1)
            users = history_ids.shape[0]  # (`len` would be a constant in a graph)
            item = item.unflatten(0, (users, item.shape[0] // max(users, 1)))
            entries, places = self._entries(history_ids)
            of_rows = self.history(item, entries, history_outcomes, places)
            added.append(of_rows.flatten(0, 1))
        return added if text_embeds is None else [*added, text_embeds]

    def _entries(self, history_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the target attention reads of histories `(U, n, slots of an item)`: `(U, n, 2 ATTENTION_DIM)` and None,
        or of their distinct items `(items, 2 ATTENTION_DIM)`, and which of them each entry is, `(U, n)`."""
        places = None
        if not (torch.compiler.is_compiling() or torch.jit.is_tracing() or len(history_ids) == 1):
            # histories share their items: each is read once
            keys, places = integer_keys(history_ids).unique(return_inverse=True)
            distinct = history_ids.new_empty(len(keys), len(self.history_slots))
            distinct[places] = history_ids
            history_ids = distinct
        return self.history.entry(self.embeddings.of_fields(history_ids, self.history_slots).flatten(-2)), places

    def embed(self, table: FeatureEmbedding, feature_ids: torch.Tensor, added: list[torch.Tensor]) -> torch.Tensor:
        """The embeddings of all fields, `(batch, fields, embedding_size)`, from one table, and `added_fields`."""
        embeds = table(feature_ids)
        if self.numbers is not None:
            embeds = self.numbers(embeds, feature_ids)
        if added:
            embeds = torch.cat([embeds, torch.stack(added, dim=1).to(embeds.dtype)], dim=1)
        return self.embedding_dropout(embeds)

    def forward(
        self,
        feature_ids: torch.Tensor,
        text_embeds: torch.Tensor | None = None,
        history_ids: torch.Tensor | None = None,
        history_outcomes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features -> `h_id`, `(batch, output_dim)`.

        Args:
            feature_ids: `(batch, slots)` local feature ids.
            text_embeds: `(batch, embedding_size)` of the text, with strategy `frozen`: the last field.
            history_ids, history_outcomes: of the history's entries `(batch, n, slots of an item)` local feature ids,
                and `(batch, n)` 1 not clicked, 2 clicked, 0 for none. Without them a history is empty. Fewer
                histories, `(U, n, ...)`, are shared: the first of `batch / U` rows each.

        Raises:
            ValueError: `output_dim` is not the size of what `encode` returns.
        """
        added = self.added_fields(feature_ids, text_embeds, history_ids, history_outcomes)
        h_id = self.encode(self.embed(self.embeddings, feature_ids, added))
        if h_id.shape[-1] != self.output_dim:
            raise ValueError(
                f"{type(self).__name__}: h_id has the size {h_id.shape[-1]}, and its `output_dim` says "
                f"{self.output_dim}"
            )
        return h_id


# --- checks of a tower's arguments; `owner` is the tower's name


def check_flag(owner: str, name: str, value) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{owner}: `{name}` must be true or false; got {value!r}.")


def check_sizes(owner: str, name: str, value) -> None:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{owner}: `{name}` must be a list of at least one size, such as [100, 100]; got {value!r}.")
    for size in value:
        check_count(owner, name, size, 1)


def check_divides(owner: str, size_name: str, size: int, name: str, number: int) -> None:
    if size % number:
        raise ValueError(f"{owner}: {size_name} {size} is not a multiple of {name} {number}.")


__all__ = ["IdTower", "register_id_tower"]
