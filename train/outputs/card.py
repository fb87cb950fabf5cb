# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The model card of a checkpoint, `README.md`."""

import functools
import json
import math
import os
import re
from importlib.resources import files

import jinja2
from huggingface_hub import DatasetCard, EvalResult, ModelCard, ModelCardData

from flip_ctr.data.prepare.dataset_folder import CARD_NAME, REPORT_NAME
from flip_ctr.data.prepare.markdown import code, link, markdown_table, plain, prose
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.data.readers.shards import SplitRows
from flip_ctr.modeling_flip.configuration_flip import CUSTOM_ENTRY, PIPELINE_TASK, FlipConfig
from flip_ctr.modeling_flip.fields_flip import CLICKED, NUM_RESERVED_IDS, fields_of_items
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR, FlipPreTrainedModel
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.values_flip import canonical_value
from flip_ctr.train.models.lora import ADAPTER_CONFIG
from flip_ctr.train.outputs.metrics import CALIBRATION_METRICS, Effects
from flip_ctr.train.outputs.plots import CURVES_FILE, RELIABILITY_FILE
from flip_ctr.train.outputs.record import UNKNOWN, objectives_of, other_splits, pretraining_arguments, tower_pretraining

CARD = "README.md"
TAGS = ["click-through-rate", "recommendation", "flip", "flip-ctr"]
PLACEHOLDER = "path/or/hub-id"  # stands for the repository until a checkpoint has one
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
UNCALIBRATED = {f"uncalibrated_{name}": f"{METRICS[name][0]}, before the correction" for name in CALIBRATION_METRICS}
ALIGNMENT = {"mlm": "masked tokens recovered (MLM)", "mtm": "masked ids recovered (MTM)"}


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
    effects: Effects | None = None,
) -> str:
    """Renders `model_cards/template.md` into the folder's `README.md` and returns its path.

    Args:
        record: see [`training_record`].
        model: the model that the folder holds.
        dataset_dir: the dataset folder that it was trained on; its own card gives title and licence.
        rows: the training rows, for an example.
        results: of the recipe; `eval_…` are of validation, `test_…` of the test split.
        effects: what the fields do on validation rows, see [`measure_effects`].
    """
    data = _dataset_facts(dataset_dir, schema)
    # GAUC is NaN where no user has both classes
    results = {name: value for name, value in results.items() if math.isfinite(value)}
    core = model.base_model
    facts = {
        "card_data": _metadata(model, record, schema, data, results).to_yaml(),
        "title": plain(_title(model, data)),
        "recipe": record["recipe"],
        "calibrated": model.config.calibration is not None,
        "has_id_tower": core.id_tower is not None,
        "has_plm": core.text_encoder is not None,
        "has_projections": core.id_projection is not None,
        "tower": _tower(model),
        "plm": _plm(model, record) if core.text_encoder is not None else None,
        "plm_name": plain(record["plm"]) if record["plm"] is not None else None,
        "teacher": code(record["arguments"]["teacher"]) if record["arguments"].get("teacher") else None,
        "metrics_table": _metrics(results),
        "effects_table": effects and _effects_table(effects),
        "effects_rows": effects and f"{effects.rows:,}",
        "validated": "eval_auc" in results,
        "tested": "test_auc" in results,
        "own_mlm_vocabulary": record["arguments"].get("mlm_vocabulary") == "dataset",
        "shuffled": any(name.endswith("shuffled_accuracy") for name in results),
        "curves": CURVES_FILE if os.path.isfile(os.path.join(folder, CURVES_FILE)) else None,
        "reliability": RELIABILITY_FILE if os.path.isfile(os.path.join(folder, RELIABILITY_FILE)) else None,
        "repository": PLACEHOLDER,
        "task": PIPELINE_TASK,
        "own_tower": _own_tower_file(folder),
        "is_adapter": os.path.isfile(os.path.join(folder, ADAPTER_CONFIG)),
        "row": _example_code(processor, rows),
        "model_table": _model_table(model, record),
        "data": _data(schema, data, results, record),
        "fields_table": _fields_table(processor),
        "training": _training(record, results),
        **_limits(model, processor),
        "dataset": plain(data["title"]),
        "licence": data.get("license"),
        "licence_code": code(data.get("license", "")),
        "licence_link": link(data.get("license_name") or "licence", data.get("license_link") or ""),
        **_origin(model, record),
    }
    text = re.sub(r"\n{3,}", "\n\n", templates().get_template("template.md").render(facts))
    path = os.path.join(folder, CARD)
    ModelCard(text).save(path)
    return path


def limits_section(model: FlipPreTrainedModel, processor: FlipProcessor) -> str:
    """The part of a card that says what a checkpoint tells about people, for cards of others."""
    text = templates().get_template("template_limits.md").render(_limits(model, processor))
    return f"## Limits and personal data\n\n{text.strip()}\n"


def _limits(model: FlipPreTrainedModel, processor: FlipProcessor) -> dict:
    """What `template_limits.md` says."""
    extractor = processor.feature_extractor
    return {
        "strategy": model.config.strategy if isinstance(model, FlipForCTR) else None,
        "users": _fields_of_users(model, processor),
        "history": next((code(field.name) for field in extractor.all_fields if field.is_history), None),
        "has_users": any(field.entity == "user" for field in extractor.all_fields),
        "secret_key": bool(extractor.hash_check),
    }


@functools.cache  # of several runs in one process the templates are compiled once
def templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(files("flip_ctr").joinpath("model_cards")),
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


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
    return TOWERS.get(model.config.id_tower, plain(model.config.id_tower))


def _plm(model: FlipPreTrainedModel, record: dict) -> str:
    text = model.config.text_config
    layers = f"{text.num_hidden_layers} layer{'s' * (text.num_hidden_layers > 1)}"
    return f"{plain(record['plm'] or 'unnamed')}, {text.model_type} with {layers} of {text.hidden_size}"


def _title(model: FlipPreTrainedModel, data: dict) -> str:
    names = {"id": "FLIP_ID", "plm": "FLIP_PLM", "joint": "FLIP", "frozen": "CTR model with text embedding"}
    name = names[model.config.strategy] if isinstance(model, FlipForCTR) else "FLIP, pretrained"
    return f"{name} for {data['title']}"


def _origin(model: FlipPreTrainedModel, record: dict) -> dict:
    """What pretraining the towers come from: for each tower that predicts `none`, `own` (view), `aligned` or
    `unknown`; of a pretrained model what its own objectives did."""
    arguments = record["arguments"]
    if not isinstance(model, FlipForCTR):
        locked = arguments.get("id_learning_rate") == 0
        return {"objectives_align": objectives_of(arguments).aligns, "tower_locked": locked}
    given = arguments.get("model_name_or_path") or arguments.get("plm_model")
    of = {"id": tower_pretraining(record), "plm": pretraining_arguments(record["started_from"])}
    towers = {"id": ("id",), "plm": ("plm",), "joint": ("id", "plm"), "frozen": ()}[model.config.strategy]
    return {
        "start_unknown": record["started_from"] is None and record["plm"] is None and bool(given),
        "pretraining": {tower: _kind_of_pretraining(of[tower]) for tower in towers},
    }


def _kind_of_pretraining(arguments: dict | None) -> str:
    if arguments is UNKNOWN:
        return "unknown"
    return "none" if arguments is None else "aligned" if objectives_of(arguments).aligns else "own"


def _number(value) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _metrics(results: dict) -> str:
    if "eval_auc" in results or "test_auc" in results:
        names = {name: title for name, (title, _) in METRICS.items()} | UNCALIBRATED | ALONE | {"rows": "rows"}
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


def _effects_table(effects: Effects) -> str:
    rows = []
    for one in effects.parts:
        lost = f"{one.auc_lost:+.4f}" if math.isfinite(one.auc_lost) else ""  # of one class there is no AUC
        lost += f" ± {1.96 * one.error:.4f}" if math.isfinite(one.error) else ""
        rows.append([code(one.part), f"{one.change:.3f}", lost])
    return markdown_table(["without", "log odds change by", "AUC is lower by"], rows)


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
        if field.is_history:  # nobody's: the row's own item
            of_item = [one.name for one in fields_of_items(extractor.all_fields)]
            example[field.name] = [{name: example[name] for name in of_item} | {CLICKED: 1}]
        elif field.entity == "user":
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


def _example_code(processor: FlipProcessor, rows: SplitRows) -> str:
    pairs = [f"{json.dumps(name)}: {_literal(value)}" for name, value in _example_row(processor, rows).items()]
    row = f"row = {{{', '.join(pairs)}}}"
    return row if len(row) <= 120 else "row = {" + ",\n       ".join(pairs) + "}"


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
            f"apart from its base {code(record['arguments']['model_name_or_path'])}"
            if record["arguments"]["lora_adapter_only"]
            else "merged into the PLM"
        )
        rows.append(["LoRA", f"rank {record['arguments']['lora_r']}, {kept}"])
    if isinstance(model, FlipForCTR) and config.strategy == "joint":
        rows.append(["fusion", f"`{config.fusion}`"])
    if getattr(model, "text_numbers", None) is not None:
        names = [config.id_fields[config.slot_fields[slot]].name for slot in config.number_slots]
        rows.append(["numbers beside the text", ", ".join(map(code, names))])
    if isinstance(model, FlipForCTR) and (correction := _correction(config)):
        rows.append(["correction of the log odds", correction])
    return markdown_table(["part", ""], rows, right=False)


def _correction(config: FlipConfig) -> str:
    """What corrects the log odds of a click model; nothing where nothing does."""
    rate, calibration = config.negative_sampling_rate, config.calibration
    parts = [f"training rows have {rate:g} of the non-clicks: {math.log(rate):+.3f}"] * (rate != 1)
    return ", then ".join(parts + ([f"`{calibration['kind']}`, fitted on validation"] if calibration else []))


def _data(schema: DatasetSchema, data: dict, results: dict, record: dict) -> str:
    protocol, lines = schema.protocol, [f"* **Dataset** {plain(data['title'])} ({code(schema.dataset)})."]
    if "label_rule" in protocol:
        lines.append(f"* **Label** {code(schema.label)}: {prose(protocol['label_rule'])}.")
    if "split" in protocol:
        rule = f": {prose(protocol['split_rule'])}" if "split_rule" in protocol else ""
        fold = f", fold {protocol['split_fold']}" if "split_fold" in protocol else ""
        lines.append(f"* **Split** `{protocol['split']}`, seed {protocol.get('split_seed')}{fold}{rule}.")
    splits = data["report"].get("splits", {})
    if splits:
        sizes = ", ".join(f"{name} {one['rows']:,}" for name, one in splits.items())
        used = {
            "fuse": "the weights of the towers were fitted on {:,} of validation",
            "calibrate": "the calibration was fitted on {:,} of validation",
        }.get(record["recipe"], "{:,} of the training rows were used")
        used = used.format(results["train_rows"])
        lines.append(f"* **Rows** {sizes}; {used}.")
    lines += [f"* **Another split** {plain(told)}." for told in other_splits(record)]
    return "\n".join(lines)


def _fields_table(processor: FlipProcessor) -> str:
    hashed = processor.feature_extractor.hashed_fields

    def ids(field) -> str:
        if field.is_history:
            return f"of {code(field.history_of)}, the last {field.max_values}"
        if not field.on_id_side:
            return ""
        what = "" if field.has_vocabulary else " buckets"
        several = f", up to {field.max_values} a row" if field.is_multi_valued else ""
        return f"{field.vocab_size - NUM_RESERVED_IDS:,}{what}{', hashed' if field.name in hashed else ''}{several}"

    rows = [
        [code(field.name), field.type, field.kind, plain(field.entity), " + ".join(field.sides), ids(field)]
        for field in processor.feature_extractor.all_fields
    ]
    return markdown_table(
        ["column", "type", "kind", "of the", "views", "values in the vocabulary, or buckets"], rows, right=False
    )


def _changed_table(record: dict) -> str:
    if not record["changed"]:
        return "All hyperparameters have the recipe's defaults."
    rows = [
        [code(name), *("not set" if one[key] is None else plain(one[key]) for key in ("value", "default"))]
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
    if arguments.get("teacher"):
        pairs = arguments["pairs_per_row"] * results["train_rows"]
        text.append(
            f"It learned with weight {1 - arguments['teacher_weight']:g} from the clicks and with weight "
            f"{arguments['teacher_weight']:g} from the log odds of the teacher {code(arguments['teacher'])}, on the "
            f"training rows, and from the teacher alone on {pairs:,} pairs of a user and an item drawn from these rows."
        )
    text.append(_changed_table(record))
    told: list[dict] = []

    def tell_before(one: dict, what: str) -> None:
        start, tower, teacher = one["started_from"], one.get("id_tower_from"), one.get("teacher")
        came = "started from"
        for which, how, before in (
            (what, came, start),
            ("Its ID tower", came, tower),
            ("Its teacher", "is", teacher),
        ):
            if before and before not in told:  # two towers may come from one pretraining
                told.append(before)
                text.append(f"{which} {how} a checkpoint of `flip-ctr {before['recipe']}`. {_changed_table(before)}")
                tell_before(before, which)

    tell_before(record, "It")
    return "\n\n".join(text)


def _fields_of_users(model: FlipPreTrainedModel, processor: FlipProcessor) -> dict[str, str]:
    """The user's fields by what a checkpoint holds of their values; each a list for a sentence, empty where none is."""
    hashed_fields = processor.feature_extractor.hashed_fields
    users = [field for field in processor.feature_extractor.all_fields if field.entity == "user"]
    on_id_side = [field for field in users if field.on_id_side]
    kinds = {
        "stored": [f for f in on_id_side if f.has_vocabulary and f.name not in hashed_fields],
        "hashed": [f for f in users if f.name in hashed_fields],
        "buckets": [f for f in on_id_side if not f.has_vocabulary and f.kind != "numeric"],
        "numeric": [f for f in on_id_side if f.kind == "numeric"],
        "prompted": [f for f in users if f.on_text_side and model.base_model.text_encoder is not None],
    }
    return {
        kind: ", ".join(code(f.name) + (f" ({BOUNDS[f.bucketing]})" if kind == "numeric" else "") for f in listed)
        for kind, listed in kinds.items()
    }


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
    tags = [*TAGS, config.id_tower]
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
