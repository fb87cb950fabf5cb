# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What the ID tower reads of a number beside the id of its bucket."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig
from .fields_flip import NUM_RESERVED_IDS


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
