"""Every option of every command, and every key of a schema, refuses what is of another type or out of all range: a new
one that takes anything fails here."""

import dataclasses
import math
import re
import typing

import pytest
from raw_table import write_schema

from flip_ctr.data.datasets.table_schema import read_schema
from flip_ctr.train import arguments, prepare_arguments
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.fuse import FuseArguments
from flip_ctr.train.options import is_list, option_types, read_value, simple_type
from flip_ctr.train.pretrain import PretrainArguments

COMMANDS = {
    one
    for module in (arguments, prepare_arguments)
    for name, one in vars(module).items()
    if name.endswith("Arguments") and dataclasses.is_dataclass(one)
} | {FinetuneArguments, FuseArguments, PretrainArguments}
# options read generously what a flag or YAML may write ("3", "yes", one value for a list); never these
WRONG = {
    bool: ["perhaps", 2, [True], 0.5, math.nan, None],
    int: [math.nan, math.inf, 1.5, "x", True, [3], 10**30],
    float: [math.nan, math.inf, -math.inf, "x", True, [0.1], 1e300, 10**400],
    str: [math.nan, math.inf, ["a"], b"x", True],
}
TEXTS = {"id_tower_kwargs"}  # JSON, as which YAML's values are read


@pytest.mark.parametrize("command", sorted(COMMANDS, key=lambda one: one.__name__))
def test_a_wrong_option_is_named(command):
    kinds = option_types(command)
    for one in dataclasses.fields(command):
        kind = simple_type(kinds[one.name])
        assert kind in WRONG, f"--{one.name} is of a type without a rule: {kind}"
        for value in WRONG[kind]:
            if isinstance(value, list) and is_list(kinds[one.name]):
                value = [value]
            with pytest.raises(ValueError, match=f"--{one.name} "):
                read_value(one, kinds[one.name], value)


def test_sizes_are_refused_on_the_command_line():
    with pytest.raises(ValueError, match="--id_embedding_size must be at most 65,536; got 1000000000"):
        FinetuneArguments(dataset_dir="d", output_dir="o", strategy="id", id_embedding_size=10**9)
    assert typing.get_type_hints(FinetuneArguments)["id_embedding_size"] == int | None


TEXT = [3, True, [], {}, ["a", 3], "", " "]
LIST = [3, True, {}, [3], [[]], [""]]
WHOLE = ["3", 1.5, math.nan, True, [3], {}]
KEYS = {
    "name": [*TEXT, "a b", "-", "a/b"],
    "files": [3, True, [], [3], {}, {"train": 3}, {"a": "b"}, ""],
    "label": [3, True, [], {}, "", " "],
    "fields": [3, "a", {}, [], [3], [{}], [{"name": 3}], [{"name": "a", "kinds": 1}], [{"name": "a", "type": "x"}]],
    "joins": [3, "a", {}, [3], [{}], [{"files": 3, "on": "a"}], [{"files": "a.csv", "on": 3}]],
    "drop": [3, True, [3], {"a": 3}, "rating ===", {"a": ""}],
    "sample_weight": TEXT,
    "user": TEXT,
    "item": TEXT,
    "time": TEXT,
    "row_key": [[], *LIST],
    "unique": ["no", 1, 0, [], {}],
    "split": [3, True, [], "rand", {"a": 1}],
    "split_seed": [*WHOLE, 10**30],
    "split_fold": [*WHOLE, -1],
    "ratios": [3, [8, 1], [8, 1, -1], [0, 1, 1], [8, 1, 1.5], [True, 1, 1], "8 1 1", {}, [10**30, 1, 1]],
    "statistics": [[], *LIST],
    "history": [*WHOLE, 0, -1, 10**30],
    "support_rows": [*WHOLE, -1, 10**30],
    "past": [3, True, [], {}, "late"],
    "label_delay": [*WHOLE, -1, 10**30],
    "item_title": TEXT,
    "format": [3, True, [], "xls", {}],
    "encoding": [*TEXT, "utf-99", "utf-16"],
    "null_values": [3, True, "a", {}, [[]], [{}]],
    "types": [3, "a", [], ["a"], {"a": 3}, {"a": "integer"}],
    "delimiter": [3, True, [], {}, ""],
    "quote": [3, True, [], {}, "", "ab"],
    "escape": [3, True, [], {}, "", "ab"],
    "column_names": [[], *LIST],
    **dict.fromkeys(("title", "licence", "licence_link", "citation"), TEXT),
}


def test_every_key_of_a_schema_has_wrong_values(tmp_path):
    with pytest.raises(ValueError) as caught:
        read_schema(write_schema(tmp_path, nothing=3))
    assert set(re.search("there are (.*)\\.", str(caught.value))[1].split(", ")) == set(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_a_wrong_value_of_a_key_is_named(tmp_path, key):
    for value in KEYS[key]:
        with pytest.raises(ValueError) as caught:
            read_schema(write_schema(tmp_path, **{key: value}))
        text = str(caught.value)
        assert "schema.yaml" in text and (f"`{key}`" in text or f"`{key}" in text), (value, text)
