"""Checkpoints of several kinds to be attacked, each with a twin of the same shapes, other values and other weights."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import past
import tiny
import torch
from transformers import AutoConfig
from transformers.utils import logging

from flip_ctr import FlipForCTR, FlipProcessor
from flip_ctr.modeling_flip import feature_extraction_flip
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.models.lora import add_lora, save_adapter

logging.disable_progress_bar()


@dataclass(frozen=True)
class Victim:
    """A checkpoint folder, its twin, and the rows that it is asked for.

    Attributes:
        rows: JSON file of a list of rows, which have every value of the vocabularies, and some beside them.
        base: of an adapter.
    """

    name: str
    folder: Path
    twin: Path
    rows: Path
    base: Path | None = None


def others(rows: list[dict]) -> list[dict]:
    """The same rows with as many other values, by which everything but the values stays as it is."""

    def other(name: str, value):
        if isinstance(value, bool) or value is None or name in ("label", "clicked"):
            return value
        if isinstance(value, list):
            return [other(name, one) for one in value]
        if isinstance(value, dict):
            return {key: other(key, one) for key, one in value.items()}
        return value + 1 if isinstance(value, int | float) else value[::-1]

    return [{name: other(name, value) for name, value in row.items()} for row in rows]


def _save(
    folder: Path, rows: list[dict], fields, seed: int, text_config=None, max_length: int = 128, **options
) -> Path:
    from_dataset = {name: options.pop(name) for name in ("hash_user_values", "prompts") if name in options}
    shard, in_file = options.pop("max_shard_size", None), options.pop("in_file", False)
    tokenizer = None if text_config is None else tiny.wordpiece()
    taken = {"max_length": max_length} if tokenizer is not None else {}
    processor = FlipProcessor.from_dataset(rows, fields, tokenizer, **taken, **from_dataset)
    if "prompts" in from_dataset:
        options["prompts"] = from_dataset["prompts"]
    options.setdefault("strategy", "joint" if text_config is not None else "id")
    torch.manual_seed(seed)
    model = tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, **options)))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    most = feature_extraction_flip.MAX_JSON_VALUES
    feature_extraction_flip.MAX_JSON_VALUES = 3 if in_file else most
    try:
        processor.save_pretrained(folder)
    finally:
        feature_extraction_flip.MAX_JSON_VALUES = most
    return folder


def _save_adapter(folder: Path, rows: list[dict], base: Path, seed: int) -> Path:
    processor = FlipProcessor.from_dataset(rows, tiny.FIELDS, tiny.wordpiece(), max_length=128)
    torch.manual_seed(seed)
    args = FinetuneArguments(
        dataset_dir="d", output_dir=str(folder), model_name_or_path=str(base), strategy="joint", use_lora=True
    )
    config = tiny.flip_config(processor.fields, strategy="joint")
    model = add_lora(FlipForCTR.from_text_pretrained(str(base), config), args)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape)
    folder.mkdir(parents=True)
    save_adapter(model, str(folder), str(base))
    processor.save_pretrained(folder)
    return folder


TITLES = "[PAD] [UNK] a"  # no value of any vocabulary
KINDS = ("joint", "id", "large", "hashed", "history", "kinds", "sharded", "adapter")


def unknown(rows: list[dict]) -> list[dict]:
    """The rows without labels, and one with values that no vocabulary has."""
    plain = [{name: value for name, value in row.items() if name != "label"} for row in rows]
    return [*plain, plain[0] | {"title": TITLES, "movie_id": 9_999}]


def make(folder: Path, kinds: tuple[str, ...] = KINDS) -> dict[str, Victim]:
    """The checkpoints below a folder."""
    plm = tiny.save_bert(folder / "plm", tiny.wordpiece())
    text_config = AutoConfig.from_pretrained(plm)
    toy, kind, whole = tiny.toy_rows(), tiny.kind_rows(), past.past_rows(whole=True)
    ways: dict[str, tuple[list[dict], Callable]] = {
        "joint": (toy, lambda out, rows, seed: _save(out, rows, tiny.FIELDS, seed, text_config)),
        "id": (toy, lambda out, rows, seed: _save(out, rows, tiny.FIELDS, seed)),
        "large": (toy, lambda out, rows, seed: _save(out, rows, tiny.FIELDS, seed, text_config, in_file=True)),
        "hashed": (toy, lambda out, rows, seed: _save(out, rows, tiny.FIELDS, seed, hash_user_values=True)),
        "history": (
            whole,
            lambda out, rows, seed: _save(out, rows, past.FIELDS, seed, text_config, prompts="entity", fusion="gate"),
        ),
        "kinds": (kind, lambda out, rows, seed: _save(out, rows, tiny.KIND_FIELDS, seed, text_config)),
        "sharded": (
            toy,
            lambda out, rows, seed: _save(out, rows, tiny.FIELDS, seed, text_config, max_shard_size="12KB"),
        ),
        "adapter": (toy, lambda out, rows, seed: _save_adapter(out, rows, plm, seed)),
    }
    made = {}
    for name in kinds:
        rows, save = ways[name]
        path = folder / f"{name}.json"
        path.write_text(json.dumps(unknown(rows)))
        ours, twin = save(folder / name, rows, 1), save(folder / f"{name}-twin", others(rows), 2)
        made[name] = Victim(name, ours, twin, path, plm if name == "adapter" else None)
    return made
