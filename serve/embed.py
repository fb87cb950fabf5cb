# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Vectors of items, users, or another entity, for search and clustering, or as features of another model.

flip-ctr embed --model_name_or_path M --input items.parquet --output vectors.parquet
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tqdm.auto import tqdm
from transformers import AutoModel

from flip_ctr.data.outputs import new_file
from flip_ctr.data.readers.row_files import check_output_file, file_format
from flip_ctr.modeling_flip.columns_flip import Column, read_columns
from flip_ctr.modeling_flip.fields_flip import MASK_ID, PAD_ID
from flip_ctr.modeling_flip.modeling_flip import FlipForPretraining, FlipPreTrainedModel
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.serve.item_files import read_items
from flip_ctr.serve.row_side import RowSide
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.models.build import check_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.run_log import logger, set_up_logging
from flip_ctr.train.serve_arguments import EmbedArguments

ROWS_AT_ONCE = 8192


@dataclass
class Vectors:
    """One kind of vector.

    Args:
        name: of the column.
        what: it is, in words.
        missing: why a model has none; None where it has.
        make: columns and the numbers of some rows -> `(rows, size)`.
    """

    name: str
    what: str
    missing: str | None
    make: Callable[[dict[str, Column], range], torch.Tensor]


def vectors_of(model: FlipPreTrainedModel, side: RowSide, entity: str) -> list[Vectors]:
    """What a model can say of an entity alone.

    Args:
        side: the entity's fields.
    """
    flip, config = model.base_model, model.config
    slots = side.slots([field.name for field in side.fields])
    number = flip.entities.index(entity) if flip.text_encoder is not None and side.entities else None
    no_ids = "it has no ID tower" if flip.id_tower is None else None if slots else f"no field of '{entity}' is an id"
    no_text = None
    if flip.text_encoder is None:
        no_text = "it has no PLM"
    elif number is None:
        no_text = f"'{entity}' has no prompt of its own (prompts: {config.prompts})"
    no_icl = None if flip.id_projection is not None else "it was not trained to compare both sides (ICL)"
    # views of entities alone are what ICL compares with entity prompts; with row prompts, whole rows
    no_icl = no_icl or (None if config.prompts == "entity" else "it compares whole rows (prompts: row)")

    def id_features(columns: dict[str, Column], rows: range) -> torch.Tensor:
        ids = side.encode_ids({name: column.take(rows) for name, column in columns.items()}, len(rows)).long()
        return flip.id_tower.embeddings.of_fields(ids, slots).flatten(1)

    def id_embeds(columns: dict[str, Column], rows: range) -> torch.Tensor:
        ids = side.encode_ids({name: column.take(rows) for name, column in columns.items()}, len(rows)).long()
        whole = ids.new_full((len(rows), config.num_slots), PAD_ID)
        first = [slot for slot, field in enumerate(config.slot_fields) if field not in config.slot_fields[:slot]]
        whole[:, first] = MASK_ID  # all other fields, as in training
        whole[:, slots] = ids
        return flip.project(flip.id_tower(whole), flip.id_projection)

    def text_pooled(columns: dict[str, Column], rows: range) -> torch.Tensor:
        return side.pooled(columns, rows)[:, 0]

    def text_embeds(columns: dict[str, Column], rows: range) -> torch.Tensor:
        state = flip.text_interaction.alone(text_pooled(columns, rows), number)
        return flip.project(state, flip.text_projection)

    return [
        Vectors("id_features", "the embeddings of its ids", no_ids, id_features),
        Vectors("text_pooled", "the PLM's state of its prompt", no_text, text_pooled),
        Vectors("id_embeds", "its ids in the space that both sides share", no_ids or no_icl, id_embeds),
        Vectors("text_embeds", "its prompt in the space that both sides share", no_text or no_icl, text_embeds),
    ]


@torch.no_grad()
def run(args: EmbedArguments) -> dict[str, int]:
    """Writes the fields that are keys, and a column of vectors of each kind that the checkpoint has. Returns the
    vectors' sizes by column.

    Raises:
        ValueError: the checkpoint has none, or no such entity; a column is missing, or holds a value that cannot be
            read (names file and line); or the output is there already.
    """
    if file_format(args.output) != ".parquet":
        raise ValueError(f"--output must be a .parquet file, which holds vectors; got {args.output}")
    check_output_file(args.output, args.overwrite_output, False)
    import_custom_code(args.custom_code)
    accelerator = make_accelerator(args.mixed_precision)
    set_up_logging(accelerator)
    check_model("model_name_or_path", args.model_name_or_path)
    model = AutoModel.from_pretrained(args.model_name_or_path)
    if isinstance(model, FlipForPretraining):
        model = model.flip
    if not isinstance(model, FlipPreTrainedModel):
        raise ValueError(
            f"--model_name_or_path {args.model_name_or_path} is a {type(model).__name__}, not a FLIP model; run "
            "`flip-ctr pretrain` or `flip-ctr finetune` first"
        )
    processor = FlipProcessor.from_pretrained(args.model_name_or_path)
    processor.check_model(model.config, args.model_name_or_path)
    model = model.eval().to(accelerator.device)
    fields = [one for one in processor.feature_extractor.all_fields if one.entity == args.entity and not one.is_history]
    if not fields:
        entities = dict.fromkeys(field.entity for field in processor.feature_extractor.all_fields)
        raise ValueError(f"--entity {args.entity}: the model's fields are of {', '.join(entities)}")
    side = RowSide(model, processor, fields)
    kinds = vectors_of(model, side, args.entity)
    made = [kind for kind in kinds if kind.missing is None]
    for kind in kinds:
        print(f"{kind.name}: {kind.what}" if kind.missing is None else f"{kind.name}: none, as {kind.missing}")
    if not made:
        raise ValueError(f"{args.model_name_or_path} has no vectors of '{args.entity}'")
    rows = read_items(args.input, processor, args.key, args.entity)
    columns = read_columns(rows, fields)
    keys = [name for name in rows.column_names if name == args.key or name in {one.name for one in fields if one.key}]
    if keys and (distinct := len(rows.select(keys).group_by(keys).aggregate([]))) < len(rows):
        logger.warning(
            f"{args.input}: {len(rows):,} rows have {distinct:,} different {', '.join(keys)}, and each is written; a "
            "dataset folder gives each once"
        )
    parts: dict[str, list[np.ndarray]] = {kind.name: [] for kind in made}
    for start in tqdm(range(0, len(rows), ROWS_AT_ONCE), unit="part", disable=len(rows) <= ROWS_AT_ONCE):
        some = range(start, min(start + ROWS_AT_ONCE, len(rows)))
        with accelerator.autocast():
            for kind in made:
                parts[kind.name].append(kind.make(columns, some).float().cpu().numpy())
    table = rows.select(keys)
    for name, found in parts.items():
        together = np.concatenate(found)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(together.ravel()), together.shape[1])
        table = table.append_column(name, vectors)
    with new_file(Path(args.output), args.overwrite_output) as partial:
        pq.write_table(table, partial)
    print(f"{len(table):,} rows written to {args.output}")
    return {name: found[0].shape[1] for name, found in parts.items()}
