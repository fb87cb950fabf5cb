# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The card of a dataset folder."""

import yaml

from flip_ctr.data.prepare.dataset_folder import ITEMS_NAME, PICTURE_NAME, REJECTED_NAME, REPORT_NAME
from flip_ctr.data.prepare.markdown import code, fenced, markdown_table, plain, prose
from flip_ctr.data.readers.dataset_schema import SCHEMA_NAME, DatasetSchema


def dataset_card(schema: DatasetSchema, report: dict, facts: dict[str, str], has_picture: bool = False) -> str:
    """The dataset card. Its front matter names no files: `datasets.load_dataset(folder)` finds the splits by the names
    in `data/`, and then tells folders apart by their files; of named patterns it takes two folders of one name for one.

    Args:
        report: with `rows_read`, `dropped` (by rule), `malformed`, `rows_kept`, `splits` (see
            `split_statistics`), `entity_prompts` and `prompt_lengths`; where there are histories with
            `history_lengths`, and where rows are support with `support`; where titles say which items are one with
            `same_items`.
        facts: `title`, `licence`, `licence_link` and `citation` of the raw data, and `values`, how they were cleaned;
            each where it is known. `licence` and `values` are Markdown.
        has_picture: whether `dataset.png` lies in the folder.
    """
    title = facts.get("title", schema.dataset)
    front_matter = {
        "pretty_name": title,
        **({"license": "other", "license_name": schema.dataset} if "licence" in facts else {}),
        **({"license_link": facts["licence_link"]} if "licence" in facts and "licence_link" in facts else {}),
        "task_categories": ["tabular-classification"],
        "tags": ["click-through-rate", "recommendation", "flip-ctr"],
    }
    splits, protocol = report["splits"], schema.protocol
    held_out = [name for name in splits if name != "train"]
    keys = [field for field in schema.fields if field.key]
    rows = []
    for name, one in splits.items():
        counts = [one["fields"][field.name]["values"] for field in keys]
        rows.append([name, one["rows"], one["clicks"], f"{one['click_rate']:.4f}", *counts])
    split_header = ["split", "rows", "clicks", "click rate", *(plain(f"{field.wording}s") for field in keys)]
    columns = [
        [
            code(field.name),
            field.type if field.kind == "categorical" else f"{field.kind} {field.type}",
            plain(field.entity),
            " + ".join(field.sides),
            splits["train"]["fields"][field.name]["values"],
            sum(one["fields"][field.name]["nulls"] for one in splits.values()),
            *(f"{100 * splits[name]['fields'][field.name]['unseen_share']:.2f} %" for name in held_out),
        ]
        for field in schema.fields
        if not field.is_history
    ]
    column_header = ["column", "type", "entity", "views", "values in train", "nulls"]
    column_header += [f"unseen in {name}" for name in held_out]
    values = f"\n{facts['values']}\n" if "values" in facts else ""
    accounts = [["rows read", report["rows_read"]]]
    accounts += [[f"dropped: {plain(rule)}", count] for rule, count in report["dropped"].items()]
    accounts.append(["malformed, or of an unknown user or item", report["malformed"]])
    if "support" in report:
        accounts.append(["support of held-out users, in no split", report["support"]["rows"]])
    accounts.append(["kept", report["rows_kept"]])
    ends = [f"\n## Licence\n\n{facts['licence']}\n"] if "licence" in facts else []
    ends += [f"\n## Citation\n\n{fenced(facts['citation'], 'bibtex')}\n"] if "citation" in facts else []
    picture = f"\n![rows and clicks, unseen values, prompt lengths]({PICTURE_NAME})\n" if has_picture else ""
    return f"""---
{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)}---

# {plain(title)}

Made from the raw files of {code(schema.dataset)} by `flip-ctr prepare`; read it with
`datasets.load_dataset(this_folder)`. `{SCHEMA_NAME}` holds the fields and the protocol, `{REPORT_NAME}` every count,
`{REJECTED_NAME}` every line that could not be read or used, with file, line, reason and text.

* **Label** {code(schema.label)}: {prose(protocol["label_rule"])}.
* **Split** `{protocol["split"]}`{_ratios(protocol)}:
  {prose(protocol["split_rule"])}.{_same_items(report)}
{_statistics(protocol)}{_history(schema)}{picture}
## Splits

{markdown_table(split_header, rows)}

## Fields

{markdown_table(column_header, columns)}

*Values* are distinct values; *unseen* is the share of rows whose value no training row has (of a multi-valued field:
of its values).
{values}{_histories(report)}{_prompts(report["entity_prompts"], report["prompt_lengths"])}
## Where the rows went

{markdown_table(["", "rows"], accounts)}
{"".join(ends)}"""


def _ratios(protocol: dict) -> str:
    """The shares, the seed and the fold of a split, where the data does not bring it."""
    fold = f", fold {protocol['split_fold']}" if "split_fold" in protocol else ""
    shares = ":".join(map(str, protocol.get("ratios", ())))
    return f", {shares}, seed {protocol['split_seed']}{fold}" if shares else ""


def _same_items(report: dict) -> str:
    """How many items have several keys, where titles say it."""
    if "same_items" not in report:
        return ""
    return " {keys:,} keys are of {titles:,} titles that have several.".format(**report["same_items"])


def _statistics(protocol: dict) -> str:
    rule = protocol.get("statistics")
    return f"* **Click rates** (`..._click_rate`, `..._rows`) count {prose(rule)}.\n" if rule else ""


def _history(schema: DatasetSchema) -> str:
    field = next((one for one in schema.fields if one.is_history), None)
    if field is None:
        return ""
    what = (
        f"the last {field.max_values} values of {code(field.history_of)}, newest last, each with whether it was clicked"
    )
    return (
        f"* **Histories** ({code(field.name)}): {what}, of {prose(schema.protocol['history'])}.\n"
        f"  `{ITEMS_NAME}` says what item each key is.\n"
    )


def _histories(report: dict) -> str:
    """The section on histories; empty where there are none."""
    if "history_lengths" not in report:
        return ""
    rows = [
        [split, f"{one['mean']:.2f}", f"{100 * one['empty']:.2f} %"] for split, one in report["history_lengths"].items()
    ]
    support = ""
    if "support" in report:
        support = (
            f"\n{report['support']['rows']:,} rows are support: they are in histories of held-out users, and in no "
            f"split. {report['support']['users_without_rows']:,} held-out users have no other row.\n"
        )
    return f"""
## Histories

{markdown_table(["split", "mean length", "empty"], rows)}
{support}"""


def _prompts(entities: dict, lengths: dict) -> str:
    """The section on prompts, how many and how long they are; empty where no field is in them."""
    if not lengths:
        return ""
    names = ("mean", "median", "p95", "longest")
    splits = [[split, one["rows"], *(f"{one[name]:g}" for name in names)] for split, one in lengths["splits"].items()]
    has_cuts = any("cut_share" in one for one in lengths["fields"].values())
    fields = [
        [
            code(field),
            *(f"{one[name]:g}" for name in names),
            one["budget"],
            *([f"{100 * one['cut_share']:.2f} %"] if has_cuts else []),
        ]
        for field, one in lengths["fields"].items()
    ]
    counts = [
        [
            plain(entity),
            ", ".join(code(name) for name in one["fields"]) or "none",
            one["prompts"],
            "" if one["keys"] is None else one["keys"],
        ]
        for entity, one in entities.items()
    ]
    header = ["mean", "median", "95 %", "longest"]
    note = (
        "Values longer than their budget are cut, and no later field is lost."
        if has_cuts
        else "The budget is in tokens, of which a word has one or more: `--tokenizer_name PLM` counts them."
    )
    return f"""
## Prompts

{markdown_table(["entity", "fields in the prompt", "distinct prompts in train", "distinct keys in train"], counts)}

Where people have about as many distinct prompts as keys, a prompt names its person: a field in it is an id in other
words.

Lengths in {lengths["unit"]}, of evenly spread rows.

{markdown_table(["split", "rows measured", *header], splits)}

{markdown_table(["value of, in train", *header, "budget in tokens", *(["cut"] if has_cuts else [])], fields)}

{note}
"""
