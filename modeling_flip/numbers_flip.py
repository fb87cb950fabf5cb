# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the towers read of a number beside the id of its bucket."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import NUM_RESERVED_IDS
from .layers_flip import TowerLinear, ZeroLinear

NUMBERS_DIM = 64  # of the hidden layer that reads numbers beside a text


class NumberEmbedding(nn.Module):
    """What fields of kind `numeric` add to the embeddings of their buckets: the bucket's number (`bucket_numbers`)
    times a vector of the field's own. Neighbouring buckets so share what they say, however few rows they have.

    The vectors start at zero.

    Args:
        config: its fields of kind `numeric` with `bucket_numbers`.

    Raises:
        ValueError: a field has another number of `bucket_numbers` than of buckets.
    """

    values: torch.Tensor
    fields: torch.Tensor
    slots: torch.Tensor

    def __init__(self, config: FlipConfig):
        super().__init__()
        for field in config.numbers.values():
            if len(field.bucket_numbers) != field.vocab_size - NUM_RESERVED_IDS:
                raise ValueError(
                    f"FlipConfig: field '{field.name}' has {field.vocab_size - NUM_RESERVED_IDS} buckets (`vocab_size` "
                    f"without {NUM_RESERVED_IDS} reserved ids) and {len(field.bucket_numbers)} `bucket_numbers`."
                )
        self.weight = nn.Parameter(torch.zeros(len(config.numbers), config.id_embedding_size))
        for name, values in self._buffers_of(config).items():
            self.register_buffer(name, values, persistent=False)

    def _buffers_of(self, config: FlipConfig) -> dict[str, torch.Tensor]:
        """`values` of the ids of each field `(n, most ids)`, and the fields and their slots, `(n,)` each."""
        fields = list(config.numbers)
        numbers = [[0.0] * NUM_RESERVED_IDS + one.bucket_numbers for one in config.numbers.values()]
        longest = max(map(len, numbers))
        return {
            "values": torch.tensor([one + [0.0] * (longest - len(one)) for one in numbers]),
            "fields": torch.tensor(fields),
            "slots": torch.tensor([config.slot_fields.index(field) for field in fields]),
        }

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.zeros_(self.weight)
        for name, values in self._buffers_of(config).items():  # built on the meta device by `from_pretrained`
            init.copy_(getattr(self, name), values)

    def forward(self, embeds: torch.Tensor, feature_ids: torch.Tensor) -> torch.Tensor:
        """The embeddings of all fields `(B, F, D)` and feature ids `(B, S)` -> the embeddings with the numbers, `(B, F,
        D)`."""
        ids = feature_ids.index_select(1, self.slots)
        numbers = self.values.gather(1, ids.t()).t()  # (B, n)
        return embeds.index_add(1, self.fields, (numbers.unsqueeze(-1) * self.weight).to(embeds.dtype))


class FlipTextNumbers(nn.Module):
    """What numbers that no prompt says (`config.text_numbers`), such as click rates, add to the textual view of a row:
    one hidden layer over both, whose result starts at zero.

    A number is the place of its bucket among those of its field, from -1 to 1, beside whether it is known. `last_ids`
    `(S,)` is the last id of each slot's field.

    Raises:
        ValueError: no field is such a number.
    """

    last_ids: torch.Tensor

    def __init__(self, config: FlipConfig, text_dim: int):
        super().__init__()
        self.slots, self.slot_fields = config.number_slots, config.slot_fields
        if not self.slots:
            raise ValueError(
                "FlipConfig: `text_numbers` needs a field of kind 'numeric' on the ID side alone (`sides` ['id']), "
                "such as a click rate; `fields` has none."
            )
        self.register_buffer("last_ids", self._last_ids(config.field_sizes), persistent=False)
        self.norm = nn.LayerNorm(text_dim)
        self.state = TowerLinear(text_dim, NUMBERS_DIM)
        self.numbers = TowerLinear(2 * len(self.slots), NUMBERS_DIM, bias=False)
        self.output = ZeroLinear(NUMBERS_DIM, text_dim)

    def _last_ids(self, sizes: list[int]) -> torch.Tensor:
        return torch.tensor([sizes[field] - 1 for field in self.slot_fields])

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.copy_(self.last_ids, self._last_ids(config.field_sizes))  # built on the meta device by `from_pretrained`

    def grow(self, field_sizes: list[int]) -> None:
        """What ids there are with more values; the buckets of numbers stay."""
        self.last_ids = self._last_ids(field_sizes).to(self.last_ids.device)

    def forward(self, text_state: torch.Tensor, feature_ids: torch.Tensor) -> torch.Tensor:
        """The textual view `(B, H)` and feature ids `(B, S)` -> the textual view with the numbers, `(B, H)`."""
        ids, last_ids = feature_ids[:, self.slots], self.last_ids[self.slots]
        known = (ids >= NUM_RESERVED_IDS).to(text_state.dtype)
        places = (ids - NUM_RESERVED_IDS).to(text_state.dtype) / (last_ids - NUM_RESERVED_IDS).clamp(min=1)
        numbers = torch.cat([(2 * places - 1) * known, known], dim=-1)
        hidden = self.state(self.norm(text_state)) + self.numbers(numbers)
        return text_state + self.output(hidden.relu())
