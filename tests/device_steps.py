"""Training steps of tiny models, one of each recipe, and where the host waits for the device in them."""

import copy

import tiny
from transformers import BertConfig

from flip_ctr import FlipCollator, FlipField, FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.train.arguments import FinetuneArguments, PretrainArguments, TrainingOptions

HISTORY = FlipField("seen", "int", kind="history", history_of="movie_id", entity="user", max_values=3)
ENTITY = {"prompts": "entity", "plm_every": 2}
# transformers looks whether any prompt is padded each time that the PLM reads
READS = {"encode_text": 1}
# which prompts a window of batches has, how long they are, and those of a batch, says how the PLM reads them
WINDOW = {"merge_prompts": 1, "_tokens_of_rows": 1, "_chunks": 1, "encode_text": 1}
# how many tokens and features are masked: of the fields' features twice, for all of them together
MASKED = {"_masked_language_modelling": 1, "_places": 2}
# name -> arguments of the recipe, of which those of `finetune` have a strategy; and where the host waits, how often in
# each step, and in each window of steps
RECIPES = {
    "id": ({"strategy": "id"}, {}, {}),
    "plm": ({"strategy": "plm"}, READS, {}),
    "joint": ({"strategy": "joint", "fusion": "gate"}, READS, {}),
    "pretraining": ({}, READS | MASKED, {}),
    # of two chunks; each is read for ICL, and then clean and masked
    "pretraining, GradCache": (
        {"grad_cache_chunk_size": 4},
        {"encode_text": 6, "_masked_language_modelling": 2, "_places": 4},
        {},
    ),
    "plm, entity prompts": ({"strategy": "plm"} | ENTITY, {}, WINDOW),
    "joint, entity prompts": ({"strategy": "joint"} | ENTITY, {}, WINDOW),
    # histories share their items: each is read once
    "joint, histories": ({"strategy": "joint"} | ENTITY, {"_entries": 1}, WINDOW),
    # `_entity_text`: which prompts are masked, `_lowest` and `read`: with which of their rows
    "entity pretraining": (
        ENTITY,
        MASKED | {"_entity_text": 1},
        {"merge_prompts": 1, "_lowest": 1, "read": 2, "_tokens_of_rows": 1, "_chunks": 2, "encode_text": 2},
    ),
}


def made(name, options):
    """A model with some batches, as the recipe makes them."""
    rows, tokenizer = tiny.toy_rows(), tiny.wordpiece()
    fields, prompts, strategy = list(tiny.FIELDS), options.get("prompts", "row"), options.get("strategy")
    if "histories" in name:
        fields.append(HISTORY)
        seen = [{one: row[one] for one in ("movie_id", "title", "genre")} | {"clicked": 1} for row in rows[:3]]
        rows = [row | {"seen": seen[: number % 4]} for number, row in enumerate(rows)]
    processor = FlipProcessor.from_dataset(rows, fields, tokenizer, max_length=96, prompts=prompts)
    text = BertConfig(**tiny._SIZES | {"vocab_size": len(tokenizer)}, max_position_embeddings=100)
    shape = {name: options[name] for name in ("strategy", "fusion") if name in options} | {"prompts": prompts}
    config = tiny.flip_config(processor.fields, copy.deepcopy(text), **shape)
    starts = (0, 8, 16, 4)[: 2 + options.get("plm_every", 1)]  # two to begin with, and a window
    if strategy is None:
        model = FlipForPretraining(config)
        model.set_feature_counts(processor.count_features(rows))
        return model, [tiny.pretraining_batch(processor, rows[start : start + 8]) for start in starts]
    dataset = EncodedDataset(processor, rows, prompts=strategy != "id")
    return FlipForCTR(config), [
        FlipCollator(processor)(dataset.__getitems__(range(start, start + 8))) for start in starts
    ]


def arguments(options) -> TrainingOptions:
    """The arguments of the recipe; its model is made without them."""
    plm = None if options.get("strategy") == "id" else "a-plm"
    recipe = FinetuneArguments if "strategy" in options else PretrainArguments
    return recipe(dataset_dir="", output_dir="", model_name_or_path=plm, **options)
