"""Small models, users and items for the tests of what serves."""

import past
import tiny

from flip_ctr import FlipForCTR, FlipProcessor
from flip_ctr.modeling_flip.pipeline_flip import ClickThroughRatePipeline

USER = ("user_id", "age", "zip_code")


def parted(rows, user=USER) -> tuple[list[dict], list[dict]]:
    """The distinct users of rows, and the items."""
    users = list({row["user_id"]: {name: row[name] for name in user} for row in rows}.values())
    return users, past.items_of(rows)


def made(rows, fields, tokenizer, text_config, **settings) -> tuple[FlipForCTR, FlipProcessor]:
    """A model with noise on its weights, and its processor."""
    id_only, prompts = settings.get("strategy") == "id", settings.get("prompts", "row")
    options = {} if id_only else {"tokenizer": tokenizer, "max_length": 96, "prompts": prompts}
    processor = FlipProcessor.from_dataset(rows, fields, **options)
    config = tiny.flip_config(processor.fields, None if id_only else text_config, **settings)
    return tiny.shake(FlipForCTR(config)).eval(), processor


def saved(folder, model, processor) -> str:
    """The path of a checkpoint."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def scored(model, processor, users, shown, **more) -> list[list[dict]]:
    """What the pipeline says of every user joined with every item."""
    pipe = ClickThroughRatePipeline(model=model, processor=processor)
    return [pipe([user | item for item in shown], **more) for user in users]
