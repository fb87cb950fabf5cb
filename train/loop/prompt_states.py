# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Entity prompts in the loop: the distinct prompts of several batches are read by the PLM together, once.

While training these states are leaves: each of the K steps of the ID tower and the heads (`--plm_every K`) adds up the
gradients on them, and then the PLM does one backward pass and one step. Prompts are read in chunks of similar length.
The graphs of the first of them wait for the backward pass, of half as many tokens as one batch would have with row
prompts; the others are read without one, and once more for the backward pass, with the same dropout (as GradCache
does). So the PLM's activations do not grow with K, and are at most those of row prompts.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

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


def merge_prompts(batches: list[Batch]) -> list[Batch]:
    """Compact batches that name the distinct prompts of all of them: `prompt_index` counts through these.

    With `mlm_scores` each prompt is paired with one row of all batches of all processes, the one of the lowest score,
    so that its masked form is predicted once (`mlm_pairs`). On several processes this is a collective.
    """
    names = [name for name in FILLERS if name in batches[0]]
    length = max(batch["input_ids"].shape[1] for batch in batches)
    padded = {
        name: torch.cat(
            [nn.functional.pad(b[name], (0, length - b[name].shape[1]), value=FILLERS[name]) for b in batches]
        )
        for name in names
    }
    keys, places = prompt_keys(padded["input_ids"], padded["attention_mask"]).unique(return_inverse=True)
    numbers = torch.arange(len(places), device=places.device)
    first = torch.full_like(keys, len(places)).scatter_reduce(0, places, numbers, "amin")
    shared = {name: values[first] for name, values in padded.items()}
    starts = torch.tensor([0] + [len(batch["input_ids"]) for batch in batches]).cumsum(0).tolist()
    merged = [
        batch | shared | {"prompt_index": places[start + batch["prompt_index"]]}
        for batch, start in zip(batches, starts)
    ]
    if "mlm_scores" in batches[0]:
        best = _lowest(keys, [batch["prompt_index"] for batch in merged], [batch["mlm_scores"] for batch in merged])
        for batch in merged:
            batch["mlm_pairs"] = batch.pop("mlm_scores") == best[batch["prompt_index"]]
    return merged


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
        self.leaves: dict[str, torch.Tensor] = {}
        self._replays: dict[str, tuple] = {}  # how to read again what a leaf holds, with a graph

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

    def read(self, batches: list[Batch], train: bool = False) -> list[Batch]:
        """The batches with the distinct prompts of all of them, and what the PLM says of these.

        Args:
            train: whether the states are leaves that gradients are added up on, for `backward`.
        """
        batches = merge_prompts(batches)
        first = batches[0]
        train = train and len(self.parameters) > 0
        self.leaves, self._replays = {}, {}
        wanted = []  # (name of the states, prompts, token ids)
        if self.needs_clean:
            everything = torch.arange(len(first["input_ids"]), device=first["input_ids"].device)
            name = "text_hidden_states" if self.pretrains else "text_pooled"
            wanted.append((name, everything, first["input_ids"]))
        if "masked_input_ids" in first:
            index, pairs = (torch.cat([batch[name] for batch in batches]) for name in ("prompt_index", "mlm_pairs"))
            wanted.append(("masked_text_hidden_states", index[pairs].unique(), first["masked_input_ids"]))
        says = train and not self._said
        if says:
            self._say_size(batches, wanted)
        if train:
            # of several batches half as many, as chunks of many sizes fragment memory: a run took a fifth more than
            # with row prompts otherwise, and takes a tenth more
            self._graph_tokens = len(wanted) * self._tokens_of_rows(first) // min(len(batches), 2)
        kept = not train and self.flip.text_encoder.training is False and len(self.parameters) == 0
        for name, prompts, ids in wanted:
            clean = name != "masked_text_hidden_states"
            self.leaves[name] = self._leaf(name, prompts, ids, first["attention_mask"], train, kept and clean)
        if says:
            chunks = sum(len(replay) for replay, *_ in self._replays.values())
            kept_graphs = sum(len(with_graph) for _, with_graph, *_ in self._replays.values())
            logger.info(
                f"it reads them in {chunks} chunks; {kept_graphs} of these it need not read again for its backward pass"
            )
        return [batch | self.leaves for batch in batches]

    def _leaf(self, name, prompts, ids, mask, train: bool, kept: bool) -> torch.Tensor:
        """The states of some prompts, in a tensor with a place for each."""
        tokens = name != "text_pooled"
        width = self.flip.config.text_config.hidden_size
        shape = (len(ids), ids.shape[1], width) if tokens else (len(ids), width)
        leaf = torch.zeros(shape, device=ids.device)
        keys = prompt_keys(ids, mask).tolist() if kept else []
        known = [n for n in prompts.tolist() if keys[n] in self._kept] if kept else []
        for number in known:
            state = self._kept[keys[number]]
            leaf[number][: len(state)] = state
        new = prompts if not known else prompts[~torch.isin(prompts, torch.tensor(known, device=prompts.device))]
        chunks = self._chunks(new, mask)
        seeds = torch.randint(2**62, (len(chunks),)).tolist() if train else [None] * len(chunks)
        replay = [(*chunk, seed) for chunk, seed in zip(chunks, seeds)]
        with_graph: dict[int, torch.Tensor] = {}
        for number, (chunk, length, seed) in enumerate(replay):
            keeps = train and (len(chunks) == 1 or len(chunk) * length <= self._graph_tokens)
            self._graph_tokens -= keeps * len(chunk) * length
            with torch.set_grad_enabled(keeps):
                states = self._encode(ids[chunk, :length], mask[chunk, :length], tokens, seed)
            with torch.no_grad():
                if tokens:
                    leaf[chunk, : states.shape[1]] = states.detach().float()
                else:
                    leaf[chunk] = states.detach().float()
            if keeps:
                with_graph[number] = states
        if kept:
            self._keep(new.tolist(), keys, leaf, mask if tokens else None)
        if train:
            leaf.requires_grad_()
            leaf.register_hook(lambda gradient: gradient * self.weight)
            self._replays[name] = replay, with_graph, ids, mask, tokens
        return leaf

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

    def _keep(self, numbers: list[int], keys: list[int], leaf: torch.Tensor, mask: torch.Tensor | None) -> None:
        for number in numbers:
            state = leaf[number] if mask is None else leaf[number, : int(mask[number].sum())]
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

    def _say_size(self, batches: list[Batch], wanted: list) -> None:
        """Logs what the states take; `ValueError` where they do not fit, with the most batches that do."""
        self._said = True
        width = self.flip.config.text_config.hidden_size

        def size(prompts: int, length: int) -> int:
            tokens = sum(name != "text_pooled" for name, _, _ in wanted)
            pooled = len(wanted) - tokens
            return 2 * 4 * prompts * width * (tokens * length + pooled)  # float32, and as much for gradients

        count, length = batches[0]["input_ids"].shape
        needed, free = size(count, length), _free_bytes(self.accelerator.device)
        logger.info(
            f"the PLM reads the {count:,} distinct prompts of {len(batches)} batches at a time; their states, and the "
            f"gradients on them, take {needed / 2**20:,.0f} MB"
        )
        if needed > free:
            fitting = [
                number
                for number in range(1, len(batches))
                if size(len(torch.cat([b["prompt_index"].flatten() for b in batches[:number]]).unique()), length)
                <= free
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
            gradient = self.leaves[name].grad
            for number, (chunk, length, seed) in enumerate(replay):
                if gradient is None:
                    continue
                states = with_graph.pop(number, None)
                if states is None:
                    states = self._encode(ids[chunk, :length], mask[chunk, :length], tokens, seed)
                part = gradient[chunk, : states.shape[1]] if tokens else gradient[chunk]
                torch.autograd.backward(states, part.to(states.dtype))
        self._replays, self.leaves = {}, {}
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
