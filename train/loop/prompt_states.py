# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Entity prompts in the loop: the distinct prompts of several batches are read by the PLM together, once.

Each of the K batches then gets the states of its own prompts (`--plm_every K`), so that a step of the ID tower and the
heads costs as much whatever K is. While training these are leaves, whose gradients are added up over the batches, and
then the PLM does one backward pass and one step. Prompts are read in chunks of similar length.
The graphs of the first of them wait for the backward pass, of half as many tokens as one batch would have with row
prompts; the others are read without one, and once more for the backward pass, with the same dropout (as GradCache
does). So the PLM's activations do not grow with K, and are at most those of row prompts.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from flip_ctr.modeling_flip.gather_flip import gather_rows, world_size
from flip_ctr.modeling_flip.losses_flip import IGNORE_INDEX
from flip_ctr.modeling_flip.modeling_flip import FlipForPretraining, FlipPreTrainedModel
from flip_ctr.modeling_flip.prompts_flip import prompt_keys
from flip_ctr.train.loop.distributed import splits_states
from flip_ctr.train.outputs.run_log import logger

# what a compact batch has for each prompt, and what these are padded with
FILLERS = {"input_ids": 0, "attention_mask": 0, "masked_input_ids": 0, "mlm_labels": IGNORE_INDEX}
STATES = ("text_pooled", "text_hidden_states", "masked_text_hidden_states")
TOKENS_AT_ONCE = 4096  # that go through the PLM together: few hold few activations
LEAST_TOKENS, MOST_PADDING = 768, 0.015  # more go together while at most this share of them is padding
KEPT_BYTES = 2**31  # of the states of a frozen PLM, which are kept from window to window

Batch = dict[str, torch.Tensor]


def row_names(batch: Batch) -> list[str]:
    """The tensors of a batch that have an entry for each row, and not for each distinct prompt."""
    of_prompts = (*FILLERS, *STATES) if "prompt_index" in batch else ()
    return [name for name in batch if name not in of_prompts]


class Window(NamedTuple):
    """Some compact batches, and the distinct prompts of all of them.

    Args:
        prompts: token ids, mask, and where there are such the masked form, `(P, L)` each.
        places: of each batch the numbers of its prompts among these.
        batches: the batches, in which a prompt has the window's masked form. With `mlm_scores` each prompt is paired
            with one row of all batches of all processes, the one of the lowest score, so that its masked form is
            predicted once (`mlm_pairs`).
    """

    prompts: Batch
    places: list[torch.Tensor]
    batches: list[Batch]


def merge_prompts(batches: list[Batch]) -> Window:
    """The distinct prompts of several batches. With `mlm_scores` this is a collective of all processes."""
    names = [name for name in FILLERS if name in batches[0]]
    length = max(batch["input_ids"].shape[1] for batch in batches)
    padded = {
        name: torch.cat(
            [nn.functional.pad(b[name], (0, length - b[name].shape[1]), value=FILLERS[name]) for b in batches]
        )
        for name in names
    }
    keys, numbers = prompt_keys(padded["input_ids"], padded["attention_mask"]).unique(return_inverse=True)
    order = torch.arange(len(numbers), device=numbers.device)
    first = torch.full_like(keys, len(numbers)).scatter_reduce(0, numbers, order, "amin")
    prompts = {name: values[first] for name, values in padded.items()}
    places = list(numbers.split([len(batch["input_ids"]) for batch in batches]))
    masked = [name for name in ("masked_input_ids", "mlm_labels") if name in prompts]
    merged = [
        batch | {name: prompts[name][own, : batch["input_ids"].shape[1]] for name in masked}
        for batch, own in zip(batches, places)
    ]
    if "mlm_scores" in batches[0]:
        index = [own[batch["prompt_index"]] for batch, own in zip(batches, places)]
        best = _lowest(keys, index, [batch["mlm_scores"] for batch in batches])
        for batch, numbers_of_rows in zip(merged, index):
            batch["mlm_pairs"] = batch.pop("mlm_scores") == best[numbers_of_rows]
    return Window(prompts, places, merged)


def _lowest(keys: torch.Tensor, index: list[torch.Tensor], scores: list[torch.Tensor]) -> torch.Tensor:
    """The lowest score of each prompt in the batches of all processes, `(P,)`."""
    places, values = (torch.cat([part.flatten() for part in parts]) for parts in (index, scores))
    best = _least(len(keys), places, values)
    (all_keys, _), (of_all, _) = (gather_rows(part, training=False) for part in (keys, best))
    distinct, places = all_keys.unique(return_inverse=True)
    return _least(len(distinct), places, of_all)[torch.searchsorted(distinct, keys)]


def _least(count: int, places: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The lowest value at each of so many places, infinity where there is none."""
    return values.new_full((count,), torch.inf).scatter_reduce(0, places, values, "amin")


class PromptReader:
    """Lets a model's PLM read the distinct prompts of several batches at once.

    Args:
        accelerator: of the run.
        model: a FLIP model with entity prompts, out of what Accelerate put around it.
        chunk_size: most prompts that go through the PLM at once.
    """

    def __init__(self, accelerator: Accelerator, model: FlipPreTrainedModel, chunk_size: int):
        self.accelerator, self.flip, self.chunk_size = accelerator, model.base_model, chunk_size
        config = model.config
        self.pretrains = isinstance(model, FlipForPretraining)
        self.needs_clean = not self.pretrains or config.mtm_uses_text or config.icl_weight > 0
        parameters = [p for p in self.flip.text_encoder.parameters() if p.requires_grad]
        self.parameters = [] if config.text_is_field else parameters  # that train
        self.token_table = self._large_table()
        self.weight = 1.0  # of the gradients that a step adds on the states
        self._kept: dict[int, torch.Tensor] = {}  # states of a frozen PLM, by the prompt's key
        self._kept_bytes = 0
        self._said = False
        self._graph_tokens = 0  # of a window, that are yet to be read with a graph
        self._gradients: dict[str, torch.Tensor] = {}  # on the states, of the batches so far
        self._replays: dict[str, tuple] = {}  # how to read the states again, with a graph

    def _large_table(self) -> nn.Embedding | None:
        """The PLM's token embeddings, where they train on a CPU: a dense gradient, as large as the table, would be made
        for each chunk. (On a GPU, and in a compiled graph, a sparse one costs more.)"""
        tokens = self.flip.text_encoder.get_input_embeddings()
        on_cpu = self.accelerator.device.type == "cpu" and self.flip.text_encoder._compiled_call_impl is None
        trains = isinstance(tokens, nn.Embedding) and any(tokens.weight is one for one in self.parameters)
        return tokens if on_cpu and trains else None

    @contextmanager
    def _sparse_lookups(self) -> Iterator[None]:
        """Inside, what the PLM reads gives its token embeddings a sparse gradient, which is added to the dense one."""
        if self.token_table is None:
            yield
            return
        former, self.token_table.sparse = self.token_table.sparse, True
        try:
            yield
        finally:
            self.token_table.sparse = former

    @classmethod
    def of(cls, accelerator: Accelerator, model: FlipPreTrainedModel, chunk_size: int) -> "PromptReader | None":
        """A reader for a model with entity prompts and a PLM, where its weights lie whole in each process."""
        if model.config.prompts == "row" or model.base_model.text_encoder is None or splits_states(accelerator):
            return None
        return cls(accelerator, model, chunk_size)

    # --- reading

    def read(self, batches: list[Batch], train: bool = False) -> Iterator[Batch]:
        """The batches with what the PLM says of their prompts; those of all batches are read at once, before the first
        batch is asked for.

        Args:
            train: whether the states are leaves whose gradients are added up, for `backward`.
        """
        window = merge_prompts(batches)
        prompts = window.prompts
        train = train and len(self.parameters) > 0
        self._gradients, self._replays = {}, {}
        wanted = []  # (name of the states, prompts, token ids)
        if self.needs_clean:
            everything = torch.arange(len(prompts["input_ids"]), device=prompts["input_ids"].device)
            name = "text_hidden_states" if self.pretrains else "text_pooled"
            wanted.append((name, everything, prompts["input_ids"]))
        if "masked_input_ids" in prompts:
            index = torch.cat([own[batch["prompt_index"]] for batch, own in zip(window.batches, window.places)])
            pairs = torch.cat([batch["mlm_pairs"] for batch in window.batches])
            wanted.append(("masked_text_hidden_states", index[pairs].unique(), prompts["masked_input_ids"]))
        says = train and not self._said
        if says:
            self._say_size(window, wanted)
        if train:
            # of several batches half as many, as chunks of many sizes fragment memory: a run took a fifth more than
            # with row prompts otherwise, and takes a tenth more
            self._graph_tokens = len(wanted) * self._tokens_of_rows(window.batches[0]) // min(len(batches), 2)
        kept = not train and self.flip.text_encoder.training is False and len(self.parameters) == 0
        states = {}
        for name, some, ids in wanted:
            clean = name != "masked_text_hidden_states"
            states[name] = self._states(name, some, ids, prompts["attention_mask"], train, kept and clean)
        if says:
            chunks = sum(len(replay) for replay, *_ in self._replays.values())
            kept_graphs = sum(len(with_graph) for _, with_graph, *_ in self._replays.values())
            logger.info(
                f"it reads them in {chunks} chunks; {kept_graphs} of these it need not read again for its backward pass"
            )
        return (
            batch | {name: self._own(name, of_all, own, batch, train) for name, of_all in states.items()}
            for batch, own in zip(window.batches, window.places)
        )

    def _own(self, name: str, states: torch.Tensor, places: torch.Tensor, batch: Batch, train: bool) -> torch.Tensor:
        """The states of a batch's prompts; while training a leaf, whose gradient each backward pass adds to those of
        the window."""

        def to_length(of_window: torch.Tensor) -> torch.Tensor:  # of the batch's longest prompt
            return of_window if name == "text_pooled" else of_window[:, : batch["input_ids"].shape[1]]

        own = to_length(states)[places]
        if not train:
            return own

        def add(leaf: torch.Tensor) -> None:
            if name not in self._gradients:
                self._gradients[name] = torch.zeros_like(states)
            to_length(self._gradients[name]).index_add_(0, places, leaf.grad, alpha=self.weight)
            leaf.grad = None

        own.requires_grad_().register_post_accumulate_grad_hook(add)
        return own

    def _states(self, name, prompts, ids, mask, train: bool, kept: bool) -> torch.Tensor:
        """The states of some prompts, in a tensor with a place for each."""
        tokens = name != "text_pooled"
        width = self.flip.config.text_config.hidden_size
        shape = (len(ids), ids.shape[1], width) if tokens else (len(ids), width)
        states = torch.zeros(shape, device=ids.device)
        keys = prompt_keys(ids, mask).tolist() if kept else []
        known = [n for n in prompts.tolist() if keys[n] in self._kept] if kept else []
        for number in known:
            state = self._kept[keys[number]]
            states[number][: len(state)] = state
        new = prompts if not known else prompts[~torch.isin(prompts, torch.tensor(known, device=prompts.device))]
        chunks = self._chunks(new, mask)
        seeds = torch.randint(2**62, (len(chunks),)).tolist() if train else [None] * len(chunks)
        replay = [(*chunk, seed) for chunk, seed in zip(chunks, seeds)]
        with_graph: dict[int, torch.Tensor] = {}
        for number, (chunk, length, seed) in enumerate(replay):
            keeps = train and (len(chunks) == 1 or len(chunk) * length <= self._graph_tokens)
            self._graph_tokens -= keeps * len(chunk) * length
            with torch.set_grad_enabled(keeps):
                encoded = self._encode(ids[chunk, :length], mask[chunk, :length], tokens, seed)
            with torch.no_grad():
                if tokens:
                    states[chunk, : encoded.shape[1]] = encoded.detach().float()
                else:
                    states[chunk] = encoded.detach().float()
            if keeps:
                with_graph[number] = encoded
        if kept:
            self._keep(new.tolist(), keys, states, mask if tokens else None)
        if train:
            self._replays[name] = replay, with_graph, ids, mask, tokens
        return states

    def _tokens_of_rows(self, batch: Batch) -> int:
        """How many tokens row prompts of the batch would have."""
        return int(batch["attention_mask"].sum(1)[batch["prompt_index"]].sum())

    def _chunks(self, prompts: torch.Tensor, mask: torch.Tensor) -> list[tuple[torch.Tensor, int]]:
        """The prompts in chunks, each with the length of its longest; longest first, and in a large chunk
        so similar that it is hardly padded."""
        lengths = mask[prompts].sum(1)
        order = lengths.argsort(descending=True, stable=True)
        prompts, sizes, longest, left = prompts[order], [], [], lengths[order].tolist()
        while left:
            longest.append(int(left[0]))
            tokens = size = 0
            for length in left[: min(self.chunk_size, max(1, TOKENS_AT_ONCE // longest[-1]))]:
                size, tokens = size + 1, tokens + length
                if size * longest[-1] > LEAST_TOKENS and tokens < (1 - MOST_PADDING) * size * longest[-1]:
                    size -= 1
                    break
            sizes.append(size)
            left = left[size:]
        return list(zip(prompts.split(sizes), longest)) if sizes else []

    def _encode(self, ids, mask, tokens: bool, seed: int | None) -> torch.Tensor:
        """The PLM's states of some prompts, `(n, L, H)` or pooled `(n, H)`; with a seed dropout is that of the seed,
        and the random state outside stays as it is."""
        device = self.accelerator.device
        forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else []) if seed is not None else None
        with forked or nullcontext(), self.accelerator.autocast(), self._sparse_lookups():
            if seed is not None:
                torch.manual_seed(seed)
            states = self.flip.encode_text(ids, mask)
            return states if tokens else self.flip.pool(states, mask)

    def _keep(self, numbers: list[int], keys: list[int], states: torch.Tensor, mask: torch.Tensor | None) -> None:
        for number in numbers:
            state = states[number] if mask is None else states[number, : int(mask[number].sum())]
            self._kept_bytes += state.nbytes
            if self._kept_bytes <= KEPT_BYTES:
                self._kept[keys[number]] = state.clone()

    def kept(self) -> dict[int, torch.Tensor]:
        """What is kept of a frozen PLM, for a step checkpoint: read again beside other prompts, states would differ in
        the last bit."""
        return {key: state.cpu() for key, state in self._kept.items()}

    def restore(self, kept: dict[int, torch.Tensor]) -> None:
        self._kept = {key: state.to(self.accelerator.device) for key, state in kept.items()}
        self._kept_bytes = sum(state.nbytes for state in kept.values())

    def _say_size(self, window: Window, wanted: list) -> None:
        """Logs what the states take; `ValueError` where they do not fit, with the most batches that do."""
        self._said = True
        width = self.flip.config.text_config.hidden_size

        def size(prompts: int, length: int) -> int:
            tokens = sum(name != "text_pooled" for name, _, _ in wanted)
            pooled = len(wanted) - tokens
            return 2 * 4 * prompts * width * (tokens * length + pooled)  # float32, and as much for gradients

        count, length = window.prompts["input_ids"].shape
        needed, free = size(count, length), _free_bytes(self.accelerator.device)
        logger.info(
            f"the PLM reads the {count:,} distinct prompts of {len(window.places)} batches at a time; their states, "
            f"and the gradients on them, take {needed / 2**20:,.0f} MB"
        )
        if needed > free:
            fitting = [
                number
                for number in range(1, len(window.places))
                if size(len(torch.cat(window.places[:number]).unique()), length) <= free
            ]
            advice = f"at most {max(fitting)} batches at a time fit" if fitting else "not even those of one batch fit"
            raise ValueError(
                f"--plm_every: the states of {count:,} prompts take {needed / 2**30:.1f} GB with their gradients, and "
                f"{free / 2**30:.1f} GB are free; {advice}"
            )

    # --- the PLM's own step

    def backward(self) -> None:
        """The PLM's backward pass from the gradients that were added up on the states; they are then the mean over all
        processes."""
        if self.token_table is not None and self.token_table.weight.grad is None:
            self.token_table.weight.grad = torch.zeros_like(self.token_table.weight)  # sparse ones are added to it
        for name, (replay, with_graph, ids, mask, tokens) in self._replays.items():
            gradient = self._gradients.get(name)
            for number, (chunk, length, seed) in enumerate(replay):
                if gradient is None:
                    continue
                states = with_graph.pop(number, None)
                if states is None:
                    states = self._encode(ids[chunk, :length], mask[chunk, :length], tokens, seed)
                part = gradient[chunk, : states.shape[1]] if tokens else gradient[chunk]
                torch.autograd.backward(states, part.to(states.dtype))
        self._replays, self._gradients = {}, {}
        if world_size() > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def read_ahead(reader: PromptReader, loader, batches: int) -> Iterator[Batch]:
    """The batches of a loader on the device, with the states of their prompts, which the PLM reads for so many batches
    at a time. Without gradients."""
    device, waiting = reader.accelerator.device, []
    for batch in loader:
        waiting.append({name: tensor.to(device) for name, tensor in batch.items()})
        if len(waiting) == batches:
            yield from reader.read(waiting)
            waiting = []
    if waiting:
        yield from reader.read(waiting)
