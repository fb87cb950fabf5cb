# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A guess of a schema, worded as YAML with comments for a person."""

import math
from typing import Any

import yaml

from flip_ctr.data.datasets.column_profiles import Profile
from flip_ctr.data.datasets.schema_guess import Group, SchemaGuess, column_in_rule, field_name, is_row_id


def schema_text(guess: SchemaGuess, label: str | None = None, notes: tuple[str, ...] = ()) -> str:
    """The schema.

    Args:
        label: instead of a label that is not known.
        notes: more of what a person should look at.
    """
    label = guess.label or label
    lines = [
        "# A guess from a sample of the rows: correct it. docs/datasets.md of flip-ctr explains every key.",
        *(f"# * {' '.join(note.split())}" for note in (*guess.notes, *notes)),
        _line("name", guess.name),
        *_file_lines(guess.groups[0], ""),
        "",
        "# a column of 0, 1, true or false, or a rule such as: rating >= 4",
        _line("label", label) if label else "label:",
        *_drop_lines(guess.without_key()),
    ]
    lines += [_line("sample_weight", guess.weight.name)] if guess.weight else []
    lines += [_line(entity, field_name(column)) for entity, column in guess.keys.items()]
    lines += [_line("time", guess.time.name, "rows can be split by it: split: time")] if guess.time else []
    if len(guess.keys) < 2:
        key = guess.row_key()
        lines.append(_line("row_key", key, "what identifies a row, for the split") if key else "row_key:")
    types = guess.said_types()
    lines += ["types:", *(f"  {_line(name, said)}" for name, said in types.items())] if types else []
    joined = [group for group in guess.groups[1:] if group.on]
    lines += ["", "joins:", *(line for group in joined for line in _join_lines(guess, group))] if joined else []
    lines += ["", "fields:"]
    for column, one, said in guess.described():
        lines.append(
            " ".join(f"  # {column or '(no name)'}: {said}".split("\n"))
            if isinstance(said, str)
            else f"  - {_flow(said)}     # {_field_note(one)}"
        )
    return "\n".join(lines) + "\n"


def _flow(value: Any) -> str:
    """A value as YAML writes it on one line."""
    text = yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)
    return text.strip()[1:-1]


def _line(key: str, value: Any, note: str = "") -> str:
    return _flow({key: value})[1:-1] + (f"     # {note}" if note else "")


def _drop_lines(without: list[str]) -> list[str]:
    if not without:
        return ["# drop: [rating == 3]     # rows that are no part of the dataset, by rules"]
    return ["drop:", *(f"  {_line(f'no {name}', f'{column_in_rule(name)} is null')}" for name in without)]


def _file_lines(group: Group, indent: str) -> list[str]:
    values = {"files": group.files[0] if len(group.files) == 1 else group.files, **group.options}
    values |= {"null_values": group.null_words} if group.null_words else {}
    return [indent + _line(key, value) for key, value in values.items()]


def _join_lines(guess: SchemaGuess, group: Group) -> list[str]:
    ((on, own),) = (group.on or {}).items()
    key = guess.row_name(on)
    lines = [
        f"  - {_line('name', group.name)}",
        *_file_lines(group, "    "),
        f"    on: {_flow(on if on == own == key else {key: own})}",
        f"    {_line('missing', group.missing, 'a row without partner: reject, drop or null')}",
    ]
    if not group.columns[own].is_unique:
        lines.append("    duplicates: first     # lines with a key that came before; or: reject")
    taken = {guess.side_name(group, name): name for name in group.columns if name not in {own, "", *group.repeated}}
    return [*lines, *([f"    {_line('columns', taken)}"] if taken else [])]


def _field_note(one: Profile) -> str:
    note = f"{one.distinct:,} values, such as {', '.join(one.examples[:2])[:50]}"
    if is_row_id(one):
        note += "; almost as many as rows: `kind: hashed, num_buckets: 100000` needs no vocabulary"
    return " ".join(note.split())
