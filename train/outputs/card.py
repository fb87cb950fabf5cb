# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a checkpoint says of itself: the record of its training (`training_args.json`) and its model card
(`README.md`)."""

import json
import math
import os
from importlib.resources import files

import accelerate
import torch
import transformers
from huggingface_hub import DatasetCard, EvalResult, ModelCard, ModelCardData
from transformers.utils import cached_file

import flip_ctr
from flip_ctr.data.prepare.dataset_folder import CARD_NAME, REPORT_NAME, markdown_table
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.columns_flip import canonical_value
from flip_ctr.modeling_flip.configuration_flip import CUSTOM_ENTRY, PIPELINE_TASK, FlipConfig
from flip_ctr.modeling_flip.fields_flip import NUM_RESERVED_IDS
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR, FlipPreTrainedModel
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.train.arguments import OBJECTIVES, TrainArguments
from flip_ctr.train.models.lora import ADAPTER_CONFIG, is_flip_checkpoint
from flip_ctr.train.options import public_name
from flip_ctr.train.outputs.plots import CURVES_FILE, RELIABILITY_FILE

CARD, RECORD = "README.md", "training_args.json"
PLACEHOLDER = "path/or/hub-id"  # stands for the repository until a checkpoint has one
PAPER = "https://arxiv.org/abs/2310.19453"
STRATEGIES = {
    "id": "FLIP_ID: the ID tower alone predicts; no language model is needed to serve it",
    "plm": "FLIP_PLM: the language model alone predicts, from the row as a sentence",
    "joint": "FLIP: the ID tower and the language model predict together",
    "frozen": "the ID tower predicts, with the text embedding of a frozen language model as one more field",
}
TOWERS = {
    "lr": "LR",
    "fm": "FM",
    "afm": "AFM",
    "widedeep": "Wide&Deep",
    "deepfm": "DeepFM",
    "pnn": "PNN",
    "fibinet": "FiBiNET",
    "dcn": "DCN",
    "dcnv2": "DCNv2",
    "gdcn": "GDCN",
    "xdeepfm": "xDeepFM",
    "autoint": "AutoInt",
    "afn": "AFN",
    "masknet": "MaskNet",
    "finalmlp": "FinalMLP",
}
ALONE = {
    "id_auc": "AUC, ID tower alone",
    "text_auc": "AUC, language model alone",
    "id_logloss": "LogLoss, ID tower alone",
    "text_logloss": "LogLoss, language model alone",
}
# of a field's type: what stands where no value is shown, and what a canonical value reads as in Python
BLANKS = {"string": "unknown", "int": 0, "float": 0.0, "bool": False}
CONVERT = {"string": str, "int": int, "float": float, "bool": "true".__eq__}
# what the bounds of numeric buckets tell
BOUNDS = {
    "quantile": "quantiles, numbers that occur in the rows",
    "log": "even steps from the smallest to the largest number",
}
# metric of the results -> (its name for people, its type in the Hub's model-index)
METRICS = {
    "auc": ("AUC", "roc_auc"),
    "logloss": ("LogLoss", "log_loss"),
    "gauc": ("GAUC (per user)", "gauc"),
    "ece": ("expected calibration error", "expected_calibration_error"),
    "predicted_actual_ratio": ("predicted / actual clicks", "predicted_actual_ratio"),
}
ALIGNMENT = {"mlm": "masked tokens recovered (MLM)", "mtm": "masked ids recovered (MTM)"}
PICTURES = {
    CURVES_FILE: ("training curves", "The course of training."),
    RELIABILITY_FILE: (
        "reliability diagram",
        "Reliability on the test split: of rows with a predicted click probability of p, a "
        "share p should be clicks. Bins of equal size, with 95 % intervals.",
    ),
}
UNKNOWN: dict = {}  # in place of a pretraining's arguments: there may have been one
CITATION = """@inproceedings{wang2024flip,
  title     = {{FLIP}: Fine-grained Alignment between ID-based Models and Pretrained Language Models
               for {CTR} Prediction},
  author    = {Wang, Hangyu and Lin, Jianghao and Li, Xiangyang and Chen, Bo and Zhu, Chenxu
               and Tang, Ruiming and Zhang, Weinan and Yu, Yong},
  booktitle = {Proceedings of the 18th ACM Conference on Recommender Systems (RecSys)},
  year      = {2024}
}"""


# --- the record of training


def read_record(name_or_path: str | None) -> dict | None:
    """The training record of a checkpoint, a folder or hub id; None where it has none."""
    if name_or_path is None:
        return None
    path = cached_file(name_or_path, RECORD, _raise_exceptions_for_missing_entries=False)
    if path is None:
        return None
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def training_record(args: TrainArguments, source: str | None = None) -> dict:
    """How a checkpoint came about: recipe, versions, arguments (no paths, no token), and the same of what it started
    from, `--model_name_or_path` or another source, and of what `--id_model` names."""
    source, published = source or args.model_name_or_path, args.published()
    before = read_record(source)
    hub_id = source if source is not None and not os.path.exists(source) else None
    is_plm = source is not None and not is_flip_checkpoint(source)
    return {
        "recipe": args.recipe,
        "versions": {one.__name__: one.__version__ for one in (flip_ctr, transformers, accelerate, torch)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "arguments": published,
        "changed": args.changed(),
        # the first model on the Hub that all this started from, where there is one
        "base_model": (before or {}).get("base_model") or hub_id,
        "plm": public_name(source) if is_plm else (before or {}).get("plm"),
        "started_from": before,
        "id_tower_from": read_record(args.id_model),
    }


# --- the card


def write_card(
    folder: str,
    record: dict,
    model: FlipPreTrainedModel,
    processor: FlipProcessor,
    schema: DatasetSchema,
    dataset_dir: str,
    rows: SplitRows,
    results: dict,
) -> str:
    """Renders `model_cards/template.md` into the folder's `README.md` and returns its path.

    Args:
        record: see [`training_record`].
        model: the model that the folder holds.
        dataset_dir: the dataset folder that it was trained on; its own card gives title and licence.
        rows: the training rows, for an example.
        results: of the recipe; `eval_…` are of validation, `test_…` of the test split.
    """
    data = _dataset_facts(dataset_dir, schema)
    # GAUC is NaN where no user has both classes
    results = {name: value for name, value in results.items() if math.isfinite(value)}
    parts = {
        "title": _title(model, data),
        "summary": _summary(model, record),
        "metrics_table": _metrics(results),
        "metrics_note": _metrics_note(record, results),
        "pictures": [
            {"file": file, "alt": alt, "caption": caption}
            for file, (alt, caption) in PICTURES.items()
            if os.path.isfile(os.path.join(folder, file))
        ],
        "use": _use(folder, model, processor, rows),
        "model_table": _model_table(model, record),
        "data": _data(schema, data, results, record["recipe"] == "fuse"),
        "fields_table": _fields_table(processor),
        "training": _training(record, results),
        "limits": _limits(model, processor),
        "licence": _licence(data, record, model),
        "citation": CITATION,
    }
    template = files("flip_ctr").joinpath("model_cards", "template.md")
    card = ModelCard.from_template(
        _metadata(model, record, schema, data, results), template_str=template.read_text("utf-8"), **parts
    )
    path = os.path.join(folder, CARD)
    card.save(path)
    return path


def _dataset_facts(dataset_dir: str, schema: DatasetSchema) -> dict:
    facts = {"title": schema.dataset, "report": {}}
    card, report = os.path.join(dataset_dir, CARD_NAME), os.path.join(dataset_dir, REPORT_NAME)
    if os.path.isfile(card):
        data = DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict()
        facts["title"] = data.get("pretty_name", schema.dataset).removesuffix(" for click-through rate prediction")
        facts |= {name: data[name] for name in ("license", "license_name", "license_link") if name in data}
    if os.path.isfile(report):
        with open(report, encoding="utf-8") as file:
            facts["report"] = json.load(file)
    return facts


def _tower(model: FlipPreTrainedModel) -> str:
    return TOWERS.get(model.config.id_tower, model.config.id_tower)


def _plm(model: FlipPreTrainedModel, record: dict) -> str:
    text = model.config.text_config
    layers = f"{text.num_hidden_layers} layer{'s' * (text.num_hidden_layers > 1)}"
    return f"{record['plm'] or 'unnamed'}, {text.model_type} with {layers} of {text.hidden_size}"


def _title(model: FlipPreTrainedModel, data: dict) -> str:
    names = {"id": "FLIP_ID", "plm": "FLIP_PLM", "joint": "FLIP", "frozen": "CTR model with text embedding"}
    name = names[model.config.strategy] if isinstance(model, FlipForCTR) else "FLIP, pretrained"
    return f"{name} for {data['title']}"


def _summary(model: FlipPreTrainedModel, record: dict) -> str:
    if not isinstance(model, FlipForCTR):
        return _pretraining_summary(model, record)
    towers = {
        "id": lambda: f"An ID-based click model ({_tower(model)})",
        "plm": lambda: f"A click model on a language model ({_plm(model, record)})",
        "joint": lambda: f"A click model of an ID tower ({_tower(model)}) and a language model ({_plm(model, record)})",
        "frozen": lambda: (
            f"An ID-based click model ({_tower(model)}) with text embeddings of a language model "
            f"({_plm(model, record)})"
        ),
    }
    return (
        f"{towers[model.config.strategy]()}{_origin(model, record)}. It predicts the probability of a click from a "
        "row of plain columns."
    )


def _origin(model: FlipForCTR, record: dict) -> str:
    """What pretraining the towers of a click model come from."""
    strategy, start = model.config.strategy, record["started_from"]
    arguments = record["arguments"]
    if start is None and record["plm"] is None and (arguments.get("model_name_or_path") or arguments.get("plm_model")):
        return ", fine-tuned from a FLIP checkpoint that does not say how it was made"
    of_text, of_ids = _pretraining_arguments(start), _tower_pretraining(record)
    parts = {"id": [of_ids], "plm": [of_text], "joint": [of_text, of_ids], "frozen": []}[strategy]
    if parts == [UNKNOWN]:
        return ", its ID tower from a checkpoint that does not say how it was made"
    if not any(one is not None for one in parts):
        return f", trained without FLIP's pretraining ([paper]({PAPER}))"
    if all(one is not None and one is not UNKNOWN and _objectives(one).aligns for one in parts):
        return f", aligned in pretraining by [FLIP]({PAPER})"
    if len(parts) == 1:
        return ", pretrained without labels on its own view"

    def how(one: dict | None) -> str:
        if one is UNKNOWN:
            return "from a checkpoint that does not say how it was made"
        return (
            "not pretrained"
            if one is None
            else "aligned with the other view"
            if _objectives(one).aligns
            else "pretrained on its own view"
        )

    return f", the language model {how(of_text)} and the ID tower {how(of_ids)}"


def _pretraining_summary(model: FlipPreTrainedModel, record: dict) -> str:
    start = "The start of fine-tuning for click prediction"
    if model.base_model.text_encoder is None:
        return (
            f"An ID tower ({_tower(model)}) trained to recover masked ids of a row from its other ids (MAP), "
            f"without labels. {start}."
        )
    if model.base_model.id_tower is None:
        return (
            f"A language model ({record['plm']}) trained on rows as sentences by masked language modelling, "
            f"without labels. {start}."
        )
    how = f"aligned on the same rows without labels, by [FLIP]({PAPER})"
    if not _objectives(record["arguments"]).aligns:
        how = "pretrained on the same rows without labels, each on its own view"
    elif record["arguments"].get("id_learning_rate") == 0:
        how += ": the language model was aligned to the ID tower, which stayed as it was"
    encoder = ", and an encoder of rows from either view" if model.base_model.id_projection is not None else ""
    return f"An ID tower ({_tower(model)}) and a language model ({record['plm']}) {how}. {start}{encoder}."


def _pretraining_arguments(record: dict | None) -> dict | None:
    """The arguments of the pretraining that a checkpoint comes from; None where there was none."""
    while record and record["recipe"] != "pretrain":
        record = record["started_from"]
    return record["arguments"] if record else None


def _tower_pretraining(record: dict | None) -> dict | None:
    """The arguments of the pretraining that shaped a checkpoint's ID tower; None where there was none."""
    arguments = record["arguments"] if record else {}
    if arguments.get("id_model") and not record.get("id_tower_from"):
        return UNKNOWN  # a checkpoint without a record
    if record and record["recipe"] != "pretrain":
        before = record.get("id_tower_from") or record["started_from"]
        return (
            None if before and before["arguments"].get("strategy") == "plm" else _tower_pretraining(before)
        )  # (which has no ID tower)
    if arguments.get("id_learning_rate") == 0:  # which left the tower as it was
        return _tower_pretraining(record.get("id_tower_from"))
    return arguments if record and _objectives(arguments).pretrains_id_tower else None


def _objectives(pretraining: dict) -> FlipConfig:
    """A configuration that says what the objectives of a pretraining saw (records of before lack some settings)."""
    return FlipConfig(**{name: pretraining[name] for name in OBJECTIVES if name in pretraining})


def _number(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _metrics(results: dict) -> str:
    if "eval_auc" in results:
        names = {name: title for name, (title, _) in METRICS.items()} | ALONE | {"rows": "rows"}
        cells = {name: [results.get(f"{split}_{name}") for split in ("eval", "test")] for name in names}
        rows = [
            [names[name], *("" if value is None else _number(value) for value in values)]
            for name, values in cells.items()
            if values != [None, None]
        ]
        return markdown_table(["", "validation", "test"], rows)
    names = {kind: (f"eval_{kind}_accuracy", f"eval_{kind}_shuffled_accuracy") for kind in ALIGNMENT}
    rows = [
        [ALIGNMENT[kind], *(_number(results[name]) if name in results else "" for name in pair)]
        for kind, pair in names.items()
        if pair[0] in results
    ]
    if "eval_icl_accuracy" in results:
        rows.append(["own counterpart found in the batch (ICL)", _number(results["eval_icl_accuracy"]), ""])
    return markdown_table(["validation", "true rows", "shuffled rows"], rows)


def _metrics_note(record: dict, results: dict) -> str:
    if record["recipe"] == "fuse":
        return (
            "The towers are those of two runs; the weight of each was fitted on validation, whose numbers are "
            "cross-fitted: each row's "
            "weights were fitted on the rows of other users. The test split was scored once."
        )
    if record["recipe"] != "pretrain":
        return (
            "One run with one seed. The checkpoint is the one with the best AUC − LogLoss on validation; the test "
            "split was "
            "scored once, with that checkpoint."
        )
    share = "Share of masked tokens and ids that are recovered"
    if record["arguments"].get("mlm_vocabulary") == "dataset":
        share += " (tokens among those that occur in the training prompts)"
    if not any(name.endswith("shuffled_accuracy") for name in results):
        return f"{share}."
    return f"{share}, with the other view's true rows and with those of another row. Only the gap is alignment."


def _example_row(processor: FlipProcessor, rows: SplitRows) -> dict:
    """A row to try: a common item as a training row has it; of users, none of whom is an example, the commonest
    value of each field, and no id."""
    extractor = processor.feature_extractor
    vocabularies = {field.name: words for field, words in zip(extractor.id_fields, extractor.vocabularies) if words}
    picked = 0
    for field in extractor.id_fields:
        if field.key and field.entity != "user" and field.name in vocabularies:
            common, (_, part) = vocabularies[field.name][0], next(rows.parts([field.name]))
            column = part.column(field.name).to_pylist()
            picked = next((row for row, value in enumerate(column) if canonical_value(value, field.type) == common), 0)
            break
    example = rows.take([picked]).to_pylist()[0]
    for field in extractor.all_fields:
        if field.entity == "user":
            hidden = field.key or field.name in extractor.hashed_fields or field.name not in vocabularies
            shown = BLANKS[field.type] if hidden else CONVERT[field.type](vocabularies[field.name][0])
            example[field.name] = None if hidden and field.nullable else [shown] if field.is_multi_valued else shown
    return {field.name: example[field.name] for field in extractor.all_fields}


def _literal(value) -> str:
    """A value of a row in Python."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _own_tower_file(folder: str) -> str | None:
    """The file of a user's own ID tower in a checkpoint, as the module that loads it names it; None where the tower is
    of this package."""
    try:
        with open(os.path.join(folder, f"{CUSTOM_ENTRY}.py"), encoding="utf-8") as file:
            return file.readline().split()[1].removeprefix(".") + ".py"
    except FileNotFoundError:
        return None


def _use(folder: str, model: FlipPreTrainedModel, processor: FlipProcessor, rows: SplitRows) -> str:
    pairs = [f"{json.dumps(name)}: {_literal(value)}" for name, value in _example_row(processor, rows).items()]
    row = f"row = {{{', '.join(pairs)}}}"
    if len(row) > 120:
        row = "row = {" + ",\n       ".join(pairs) + "}"
    tower = _own_tower_file(folder)
    custom = f" --custom_code {tower}" if tower else ""
    with_package = (
        f"With `pip install flip-ctr` and a copy of `{tower}`, its ID tower, which is not part of flip-ctr, a file of "
        "rows:"
        if tower
        else "After `pip install flip-ctr` and `import flip_ctr`, neither needs `trust_remote_code`. A file of rows:"
    )
    if os.path.isfile(os.path.join(folder, ADAPTER_CONFIG)):
        of_adapter = (
            f"""from flip_ctr.train.models.custom_code import import_custom_code
import_custom_code("{tower}")    # its ID tower: a copy of that file here
"""
            if tower
            else ""
        )
        return f"""This folder is a LoRA adapter with the ID tower and the heads: it needs its base, and `pip install
flip-ctr`.

```python
import flip_ctr
{of_adapter}from flip_ctr.train.models.lora import load_adapter
from transformers import AutoProcessor

model = load_adapter("{PLACEHOLDER}").eval()    # base_model_name_or_path=... where the base is a folder of yours
processor = AutoProcessor.from_pretrained("{PLACEHOLDER}")

{row}
output = model(**processor([row]))
```"""
    if not isinstance(model, FlipForCTR):
        aligned = model.config.icl_weight > 0
        core = model.base_model
        views = (
            "views.id_embeds, views.text_embeds    # both views of the row, in one space"
            if aligned
            else "views.id_hidden_state    # the ids of the row"
            if core.text_encoder is None
            else "views.text_pooled    # the text of the row"
            if core.id_tower is None
            else "views.id_hidden_state, views.text_pooled    # the two views of the row"
        )
        return f"""Fine-tune it with `flip-ctr finetune{custom} --model_name_or_path {PLACEHOLDER} …`, or take the
rows' embeddings:

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{PLACEHOLDER}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{PLACEHOLDER}", trust_remote_code=True)

{row}
views = getattr(model, "flip", model)(**processor(row))
{views}
```

The heads of masked language and masked tabular modelling are in this repository only if its publisher asked for that:
they can
return a user's demographics from an id."""
    return f"""With nothing but transformers and torch (`trust_remote_code=True` runs the code of this repository;
read it first):

```python
from transformers import pipeline

score = pipeline("{PIPELINE_TASK}", model="{PLACEHOLDER}", trust_remote_code=True)
{row}
score(row)    # or a list of rows, a pandas frame, a datasets dataset
```

or step by step:

```python
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{PLACEHOLDER}", trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained("{PLACEHOLDER}", trust_remote_code=True)
probability = model(**processor([row])).logits.sigmoid()    # (rows, 1)
```

{with_package}
`flip-ctr predict{custom} --model_name_or_path {PLACEHOLDER} --input rows.csv --output scores.parquet`.

Values that were not in the training rows are unknown to the ID
tower{"" if processor.id_only else " and plain words to the language model"}; a null is allowed."""


def _model_table(model: FlipPreTrainedModel, record: dict) -> str:
    def size(module) -> str:
        own = (parameter.numel() for name, parameter in module.named_parameters() if ".lora_" not in name)
        return f"{sum(own):,} parameters"

    config, core, rows = model.config, model.base_model, []
    if isinstance(model, FlipForCTR):
        rows.append(["strategy", f"`{config.strategy}`: {STRATEGIES[config.strategy]}"])
    if core.id_tower is not None:
        rows.append(
            [
                "ID tower",
                f"{_tower(model)}, embeddings of {config.id_embedding_size}, {len(config.id_fields)} fields, "
                f"{size(core.id_tower)}",
            ]
        )
    if core.text_encoder is not None:
        rows.append(
            [
                "language model (PLM)",
                f"{_plm(model, record)}, {size(core.text_encoder)}, pooling `{config.text_pooling}`",
            ]
        )
    if record["arguments"].get("use_lora"):
        kept = (
            f"apart from its base `{record['arguments']['model_name_or_path']}`"
            if record["arguments"]["lora_adapter_only"]
            else "merged into the PLM"
        )
        rows.append(["LoRA", f"rank {record['arguments']['lora_r']}, {kept}"])
    if isinstance(model, FlipForCTR) and config.strategy == "joint":
        rows.append(["fusion", f"`{config.fusion}`"])
    return markdown_table(["part", ""], rows, right=False)


def _data(schema: DatasetSchema, data: dict, results: dict, fused: bool) -> str:
    protocol, lines = schema.protocol, [f"* **Dataset** {data['title']} (`{schema.dataset}`)."]
    if "label_rule" in protocol:
        lines.append(f"* **Label** `{schema.label}`: {protocol['label_rule']}.")
    if "split" in protocol:
        rule = f": {protocol['split_rule']}" if "split_rule" in protocol else ""
        lines.append(f"* **Split** `{protocol['split']}`, seed {protocol.get('split_seed')}{rule}.")
    splits = data["report"].get("splits", {})
    if splits:
        sizes = ", ".join(f"{name} {one['rows']:,}" for name, one in splits.items())
        used = (
            f"the weights of the towers were fitted on {results['train_rows']:,} of validation"
            if fused
            else (f"{results['train_rows']:,} of the training rows were used")
        )
        lines.append(f"* **Rows** {sizes}; {used}.")
    return "\n".join(lines)


def _fields_table(processor: FlipProcessor) -> str:
    hashed = processor.feature_extractor.hashed_fields

    def ids(field) -> str:
        if not field.on_id_side:
            return ""
        what = "" if field.has_vocabulary else " buckets"
        several = f", up to {field.max_values} a row" if field.is_multi_valued else ""
        return f"{field.vocab_size - NUM_RESERVED_IDS:,}{what}{', hashed' if field.name in hashed else ''}{several}"

    rows = [
        [f"`{field.name}`", field.type, field.kind, field.entity, " + ".join(field.sides), ids(field)]
        for field in processor.feature_extractor.all_fields
    ]
    return markdown_table(
        ["column", "type", "kind", "of the", "views", "values in the vocabulary, or buckets"], rows, right=False
    )


def _changed_table(record: dict) -> str:
    if not record["changed"]:
        return "All hyperparameters have the recipe's defaults."
    rows = [
        [f"`{name}`", *("not set" if one[key] is None else f"{one[key]}" for key in ("value", "default"))]
        for name, one in sorted(record["changed"].items())
    ]
    return "Hyperparameters that differ from the recipe's defaults:\n\n" + markdown_table(
        ["", "value", "default"], rows
    )


def _training(record: dict, results: dict) -> str:
    arguments, text = record["arguments"], []
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    processes = f"{results['num_processes']} process{'es' * (results['num_processes'] > 1)}"
    chosen = f" The best checkpoint is of epoch {results['best_epoch']:.1f}." if "best_epoch" in results else ""
    steps = f"{results['train_steps']:,} steps over " if "train_steps" in results else ""
    text.append(
        f"`flip-ctr {record['recipe']}`: {steps}{results['train_rows']:,} rows in "
        f"{results['train_seconds'] / 60:.1f} minutes in {processes} on {record['device']}, precision "
        f"{'fp32' if arguments['mixed_precision'] == 'no' else arguments['mixed_precision']}.{chosen} {versions}."
    )
    text.append(_changed_table(record))
    told: list[dict] = []

    def tell_before(one: dict, what: str) -> None:
        for which, before in ((what, one["started_from"]), ("Its ID tower", one.get("id_tower_from"))):
            if before and before not in told:  # two towers may come from one pretraining
                told.append(before)
                text.append(
                    f"{which} started from a checkpoint of `flip-ctr {before['recipe']}`. {_changed_table(before)}"
                )
                tell_before(before, which)

    tell_before(record, "It")
    return "\n\n".join(text)


def _limits(model: FlipPreTrainedModel, processor: FlipProcessor) -> str:
    extractor, core = processor.feature_extractor, model.base_model
    users = [field for field in extractor.all_fields if field.entity == "user"]
    on_id_side = [field for field in users if field.on_id_side]
    stored = [
        f"`{field.name}`" for field in on_id_side if field.has_vocabulary and field.name not in extractor.hashed_fields
    ]
    buckets = [f"`{field.name}`" for field in on_id_side if not field.has_vocabulary and field.kind != "numeric"]
    numeric = [f"`{field.name}` ({BOUNDS[field.bucketing]})" for field in on_id_side if field.kind == "numeric"]
    hashed = [f"`{field.name}`" for field in users if field.name in extractor.hashed_fields]
    prompted = [f"`{field.name}`" for field in users if field.on_text_side] if core.text_encoder is not None else []
    lines = []
    if stored:
        lines.append(
            "* The vocabulary, in `processor_config.json`, lists the values of these fields of users: "
            f"{', '.join(stored)}."
        )
    if hashed:
        secret = (
            "with a secret key that is not here"
            if extractor.hash_check
            else ("with a key that is published beside them, so that a guessed value can be tested")
        )
        lines.append(
            f"* Of these fields of users the vocabulary holds hashes only: {', '.join(hashed)}, made {secret}."
        )
    if buckets:
        lines.append(
            "* Of these fields of users no value is stored, on the ID side they are hashed into buckets: "
            f"{', '.join(buckets)}. Whoever "
            "guesses a value can compute its bucket."
        )
    if numeric:
        lines.append(
            "* Of these fields of users only bounds of buckets over all training rows are stored: "
            f"{', '.join(numeric)}."
        )
    if prompted:
        how = "was not trained on" if model.config.text_is_field else "was trained on"
        lines.append(
            f"* The prompt of a row contains these fields of users: {', '.join(prompted)}. The language model {how} "
            "such prompts."
        )
    if not users:
        lines.append("* No field describes a user.")
    lines += [
        "* It was trained on the rows described above and predicts clicks as defined there. On other populations, "
        "catalogues or times its "
        "probabilities are not calibrated until you have checked them.",
        "* Where demographics are among the fields, predictions depend on them. Check what that means before people "
        "are affected.",
    ]
    return "\n".join(lines)


def _licence(data: dict, record: dict, model: FlipPreTrainedModel) -> str:
    text = "The code in this repository is under the Apache License 2.0."
    if data.get("license") == "other":
        text += (
            f" The model was trained on {data['title']}, whose own terms ([{data.get('license_name', 'licence')}]"
            f"({data.get('license_link', '')})) say what may be done with the data and what is made from them."
        )
    elif data.get("license"):
        text += f" The training data are under `{data['license']}`."
    if record["plm"] and model.base_model.text_encoder is not None:
        text += f" The language model {record['plm']} has its own licence."
    return text


def _metadata(
    model: FlipPreTrainedModel, record: dict, schema: DatasetSchema, data: dict, results: dict
) -> ModelCardData:
    is_click, config = isinstance(model, FlipForCTR), model.config
    evaluations = [
        EvalResult(
            task_type="tabular-classification",
            task_name="click-through rate prediction",
            dataset_type=schema.dataset,
            dataset_name=data["title"],
            dataset_split=split,
            metric_type=kind,
            metric_name=title,
            metric_value=round(value, 5),
        )
        for split, prefix in (("test", "test"), ("validation", "eval"))
        for name, (title, kind) in METRICS.items()
        if is_click and (value := results.get(f"{prefix}_{name}")) is not None
    ]
    tags = ["click-through-rate", "recommendation", "flip", "flip-ctr", config.id_tower]
    licence = {name: data[name] for name in ("license", "license_name", "license_link") if name in data}
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="tabular-classification" if is_click else "feature-extraction",
        base_model=record["base_model"],
        tags=tags + ([config.strategy] if is_click else []),
        **(licence if licence.get("license") == "other" else {}),
        **(
            {"model_name": f"flip-{schema.dataset}", "eval_results": evaluations, "metrics": ["roc_auc", "log_loss"]}
            if evaluations
            else {}
        ),
    )
