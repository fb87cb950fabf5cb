# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The fields of a row, and the feature ids that every field's vocabulary starts with."""

import operator
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

# Local feature ids that every field's vocabulary starts with; real values follow in an append-only order.
PAD_ID, MASK_ID, UNK_ID, NULL_ID = 0, 1, 2, 3
NUM_RESERVED_IDS = 4

FIELD_TYPES = ("string", "int", "float", "bool")
FIELD_KINDS = ("categorical", "multi-valued", "numeric", "hashed", "history")
FIELD_SIDES = ("id", "text")
BUCKETINGS = ("quantile", "log")
NUMERIC_BUCKETS = 32
CLICKED = "clicked"  # what an entry of a history says beside its item
# what the files of a field are like: left out of its JSON form where nothing is said of them
OF_FILES = ("column", "null_values", "decimal")
LEARNED = ("vocab_size", "bucket_numbers")  # attributes of a field that a processor fills in
# attributes of a field that only these kinds have; for another kind a value that is not the default is an error
OF_KINDS = {
    "max_values": ("multi-valued", "history"),
    "separator": ("multi-valued",),
    "num_buckets": ("multi-valued", "numeric", "hashed"),
    "bucketing": ("numeric",),
    "bucket_numbers": ("numeric",),
    "history_of": ("history",),
}

# bounds of a number: their words, and what holds of a value and the bound
BOUNDS = {
    "at_least": ("at least", operator.ge),
    "above": ("above", operator.gt),
    "at_most": ("at most", operator.le),
    "below": ("below", operator.lt),
}


LIMITS = {int: 2**24, float: 1e30}
MOST_IDS = 2**31 - 1  # an id has 32 bits where rows are kept


def as_python(value: Any) -> Any:
    """A setting without numpy: its scalars as Python's, and its arrays as lists, inside lists and mappings too."""
    if type(value).__module__ == "numpy":  # which is not imported here, as commands start with this file
        return value.tolist()
    if isinstance(value, dict):
        return {key: as_python(one) for key, one in value.items()}
    return type(value)(map(as_python, value)) if type(value) in (list, tuple) else value


@dataclass(frozen=True)
class Allowed:
    """What a setting may be; `check` raises `ValueError` that names the setting, what is right, and what was given.

    Args:
        kind: `bool`, `int`, `float` (whole numbers too), `str` or `dict`.
        many: whether it is a list of them, of at least one.
        choices: the values that there are.
        at_least, above, at_most, below: bounds of numbers.
        optional: whether it may be None.
        empty: whether text may be empty.
        limit: the largest number that can be meant: beyond it memory would be asked for that no machine has, or
            arithmetic overflows; `LIMITS` of the kind when None.
    """

    kind: type
    many: bool = False
    choices: tuple = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    optional: bool = False
    empty: bool = True
    limit: float | None = None

    @property
    def in_words(self) -> str:
        kinds = {
            bool: "true or false",
            int: "a whole number",
            float: "a number",
            str: "text",
            dict: "a mapping of names",
        }
        limits = " and ".join(f"{words} {bound:g}" for words, _, bound in self._bounds)
        one = f"{kinds[self.kind]} {'of ' if limits.startswith('at ') else ''}{limits}".strip()
        if self.choices:
            one = f"one of {', '.join(map(repr, self.choices))}"
        return f"a list of at least one entry, each {one}" if self.many else one

    def check(self, owner: str, name: str, value: Any) -> None:
        """Raises `ValueError` where the value of `owner`'s setting `name` is not allowed."""
        if value is None and self.optional:
            return
        right = isinstance(value, list | tuple) and len(value) > 0 if self.many else True
        if not right or not all(map(self._is_right, value if self.many else [value])):
            raise ValueError(f"{owner}: `{name}` must be {self.in_words}; got {value!r}.")
        limit = LIMITS.get(self.kind) if self.limit is None else self.limit
        if limit is not None and any(one > limit for one in (value if self.many else [value])):
            raise ValueError(f"{owner}: `{name}` must be at most {limit:,}; got {value!r}.")

    def _is_right(self, value: Any) -> bool:
        kinds = (int, float) if self.kind is float else self.kind
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.kind is not bool):
            return False
        if (self.choices and value not in self.choices) or (value == "" and not self.empty):
            return False
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            return False
        return all(holds(value, bound) for _, holds, bound in self._bounds)

    @cached_property  # fields are read, and checked, many times in a run
    def _bounds(self) -> list[tuple[str, Callable[[Any, Any], bool], float]]:
        """Words, comparison and number of the bounds that there are."""
        return [(*BOUNDS[name], bound) for name in BOUNDS if (bound := getattr(self, name)) is not None]


def check_count(owner: str, name: str, value: Any, least: int) -> None:
    Allowed(int, at_least=least).check(owner, name, value)


def check_choice(owner: str, name: str, value: Any, choices) -> None:
    Allowed(str, choices=tuple(choices)).check(owner, name, value)


# what each attribute of a field may be
SETTINGS = {
    "type": Allowed(str, choices=FIELD_TYPES),
    "wording": Allowed(str),
    "kind": Allowed(str, choices=FIELD_KINDS),
    "entity": Allowed(str, empty=False),
    "key": Allowed(bool),
    "sides": Allowed(str, many=True, choices=FIELD_SIDES),
    "max_tokens": Allowed(int, at_least=1),
    "nullable": Allowed(bool),
    "null_wording": Allowed(str),
    "max_values": Allowed(int, at_least=1),
    "separator": Allowed(str),
    "num_buckets": Allowed(int, at_least=2, optional=True, limit=MOST_IDS),
    "bucketing": Allowed(str, choices=BUCKETINGS),
    "history_of": Allowed(str),
    "column": Allowed(str),
    "decimal": Allowed(str, choices=(".", ",")),
    "vocab_size": Allowed(int, at_least=0, optional=True, limit=MOST_IDS),
    "bucket_numbers": Allowed(float, many=True, optional=True),
}


@dataclass
class FlipField:
    """One field of a row (the paper's modality transformation): a column, and how each of the two views shows it.

    Args:
        name: column that holds the field.
        type: type of the raw values: `string`, `int`, `float` or `bool`. It decides the canonical form of a value.
        wording: what the prompt calls the field; the name with underscores as spaces when empty.
        kind: what the values are, and how the ID side shows them:
            `categorical`: one value a row, with an id of its own from a vocabulary;
            `multi-valued`: a list of values a row, each with an id of its own, pooled to one embedding;
            `numeric`: a number, whose id is the bucket that it falls in;
            `hashed`: one value a row, whose id is a hash of it: no vocabulary, however many values there are;
            `history`: a list of what the user had before, each with its item's key and `clicked` (0 or 1), newest last.
            Both sides read it by target attention ([`FlipTargetAttention`]), as its items' ids and as their prompts.
        entity: whom the field describes (`user`, `item`, `context`, ...); the unit of entity-level masking.
        key: whether the field identifies its entity (its id is new when the entity is new).
        sides: `id` (the field is a feature of the tabular view), `text` (it is in the prompt), or both.
        max_tokens: token budget of one value in the prompt; a longer value is cut, no later field is lost.
        nullable: whether a null value is allowed. A null has an id of its own.
        null_wording: what the prompt says for a null.
        max_values: slots of a multi-valued field in `feature_ids`; of a row's values only the first so many are on the
            ID side (in the prompt all are, within `max_tokens`). Of a history the last so many entries are read.
        separator: where text (of a CSV file, say) is split into the values of a multi-valued field. A list is never
            split, nor is text that is a list as JSON, Python or numpy print it (`["a", "b"]`, `['a', 'b']`, `[1, 2]`)
            or a set as Python or Postgres do (`{a,"b, c"}`): it has its values. Text that merely begins with a bracket
            (`[REC] 2`) is text.
        num_buckets: ids for the values of a `numeric` field (32 when None; fewer where the training rows have fewer
            distinct numbers) or a `hashed` one (to be given); with it the values of a `multi-valued` field are hashed
            too, and have no vocabulary.
        bucketing: bounds of numeric buckets: `quantile`, equal shares of the training rows, or `log`, even steps of
            `sign(x) * log1p(|x|)` between the smallest and the largest number of the training rows.
        history_of: of a history the field whose values its entries have: the key of an item.
        column: what raw rows call the field, which are read under either name; the field's own name when empty. Names
            are compared in NFC and without superfluous spaces.
        null_values: texts that mean null in raw rows, beside the empty one; one that is a number means it as a number
            too. Of a multi-valued field they are the whole text, or single values.
        decimal: what stands before the decimals of a number in text, `.` or `,`, of type `int` or `float`.
        vocab_size: number of feature ids, reserved ones included; known once a vocabulary was built.
        bucket_numbers: of a `numeric` field the number that stands for each bucket, standardised, which the ID tower
            reads beside the bucket's id; known once the bounds were built. None: it reads the id alone.

    Raises:
        ValueError: an attribute has a value that is not allowed.
    """

    name: str
    type: str = "string"
    wording: str = ""
    kind: str = "categorical"
    entity: str = "context"
    key: bool = False
    sides: tuple[str, ...] = FIELD_SIDES
    max_tokens: int = 32
    nullable: bool = True
    null_wording: str = "unknown"
    max_values: int = 8
    separator: str = ","
    num_buckets: int | None = None
    bucketing: str = "quantile"
    history_of: str = ""
    column: str = ""
    null_values: tuple[str, ...] = ()
    decimal: str = "."
    vocab_size: int | None = None
    bucket_numbers: list[float] | None = None

    def __post_init__(self):
        if not self.name or not isinstance(self.name, str):
            raise ValueError(f"a field needs the name of its column; got {self.name!r}.")
        owner = f"field '{self.name}'"
        if isinstance(self.sides, list | tuple) and self.sides:
            self.sides = tuple(side for side in FIELD_SIDES if side in self.sides) or tuple(self.sides)
        for name, allowed in SETTINGS.items():
            setattr(self, name, as_python(getattr(self, name)))
            allowed.check(owner, name, getattr(self, name))
        if not isinstance(self.null_values, list | tuple) or not all(isinstance(one, str) for one in self.null_values):
            raise ValueError(
                f"{owner}: `null_values` must be a list of texts, such as ['NULL', 'n/a']; got {self.null_values!r}."
            )
        self.null_values = tuple(self.null_values)
        self.column = "" if self.column == self.name else self.column
        self.wording = " ".join((self.wording or self.name.replace("_", " ")).split())
        self.null_wording = " ".join(self.null_wording.split())
        if not self.null_wording:
            raise ValueError(f"{owner}: `null_wording` must be words for the prompt, such as 'unknown'; got ''.")
        self._check_kind(owner)

    def _check_kind(self, owner: str) -> None:
        """What belongs to some kinds only."""
        defaults = {field.name: field.default for field in fields(self)}
        for name, kinds in OF_KINDS.items():
            if self.kind not in kinds and getattr(self, name) != defaults[name]:
                raise ValueError(
                    f"{owner}: `{name}` is of kind {' or '.join(map(repr, kinds))} and has no effect on kind "
                    f"{self.kind!r}; leave it out, or change the kind; got {getattr(self, name)!r}."
                )
        if self.is_history and not self.history_of:
            raise ValueError(f"{owner}: `history_of` must name the key of an item, such as 'item_id'; got ''.")
        if self.key and self.kind in ("multi-valued", "numeric", "history"):
            why = "a bucket of numbers" if self.kind == "numeric" else "several values"
            raise ValueError(
                f"{owner}: `key` must be False for kind {self.kind!r}, as {why} cannot identify an entity; got True."
            )
        if self.kind == "numeric":
            if self.type not in ("int", "float"):
                raise ValueError(f"{owner}: `type` must be 'int' or 'float' for kind 'numeric'; got {self.type!r}.")
            self.num_buckets = NUMERIC_BUCKETS if self.num_buckets is None else self.num_buckets
        if self.decimal != "." and self.type not in ("int", "float"):
            raise ValueError(f"{owner}: `decimal` is of type 'int' or 'float'; got {self.decimal!r} for {self.type!r}.")
        if self.kind == "hashed" and self.num_buckets is None:
            raise ValueError(
                f"{owner}: `num_buckets` must say into how many buckets kind 'hashed' puts the values; got None."
            )
        if not isinstance(self.separator, str) or not self.separator:
            raise ValueError(
                f"{owner}: `separator` must be the text between two values, such as ',' or '|'; got {self.separator!r}."
            )
        if self.is_multi_valued and self.decimal == "," and "," in self.separator:
            raise ValueError(
                f"{owner}: `separator` must not hold the comma of `decimal`; say another one, such as ';', or leave "
                f"`decimal` out; got {self.separator!r}."
            )

    @classmethod
    def from_dict(cls, values: "dict | FlipField") -> "FlipField":
        """Reads a field from its JSON form. An unknown key is an error (`ValueError`), so that a typo is never
        ignored, and so is what is no field at all (`TypeError`)."""
        if isinstance(values, FlipField):
            return values
        if not isinstance(values, dict):
            raise TypeError(f"`fields`: a field is a FlipField, or a dict with its `name`; got {values!r}.")
        form = repr(values)
        if form not in _CHECKED:
            if "name" not in values:
                raise ValueError(f"`fields`: a field needs the `name` of its column; got {values!r}.")
            unknown = sorted(set(values) - {field.name for field in fields(cls)})
            if unknown:
                raise ValueError(f"field {values.get('name')!r}: unknown key(s) {', '.join(unknown)}.")
            _CHECKED[form] = cls(**values)
        return copy(_CHECKED[form])  # its size may be set

    def to_dict(self) -> dict:
        """The field's JSON form. What only some fields need is left out where it has its default, so that people can
        read the rest."""
        defaults = {field.name: field.default for field in fields(self)}
        values = {k: list(v) if isinstance(v, tuple) and v else v for k, v in asdict(self).items()}
        rare = (*OF_KINDS, *OF_FILES, "null_wording")
        return {k: v for k, v in values.items() if k not in rare or v != defaults[k]}

    @property
    def on_id_side(self) -> bool:
        """Whether the field is a feature in `feature_ids`."""
        return "id" in self.sides and not self.is_history

    @property
    def on_text_side(self) -> bool:
        """Whether the prompt says the field's value."""
        return "text" in self.sides and not self.is_history

    @property
    def is_history(self) -> bool:
        return self.kind == "history"

    @property
    def is_multi_valued(self) -> bool:
        return self.kind == "multi-valued"

    @property
    def num_slots(self) -> int:
        """Columns that the field takes in `feature_ids` where it is on the ID side."""
        return self.max_values if self.is_multi_valued else 1

    def value_text(self, value: str | tuple[str, ...] | None) -> str:
        """A canonical value in words."""
        return self.null_wording if value is None else value if isinstance(value, str) else ", ".join(value)

    @property
    def has_vocabulary(self) -> bool:
        """Whether the field's ids stand for values from a vocabulary (where it is on the ID side), and not for
        buckets."""
        return self.num_buckets is None


# By their JSON form: configs and processors read the same fields hundreds of times in a run.
_CHECKED: dict[str, FlipField] = {}


class ProcessorFields(list):
    """The fields of a processor. They know its fingerprint, and how often each feature occurs in the training rows,
    `(sum of field sizes,)`."""

    def __init__(self, fields: list, fingerprint: dict[str, Any], feature_counts: Any = None):
        super().__init__(fields)
        self.fingerprint, self.feature_counts = fingerprint, feature_counts


def read_fields(values) -> list[FlipField]:
    """`FlipField`s from a list of dicts (or of `FlipField`s).

    Raises:
        TypeError: these are no fields.
        ValueError: two fields have one column; there are two histories, or one of what is no key of an item, or of
            another type than the key; or a field of the item has the name of what an entry says.
    """
    if not isinstance(values, Iterable | None) or isinstance(values, str | dict):
        raise TypeError(f"`fields` must be a list of fields; got {values!r}.")
    result = [FlipField.from_dict(value) for value in values or []]
    names = [field.name for field in result]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"column(s) {', '.join(twice)} are named by more than one field.")
    for field in result:
        if field.column in names:  # raw rows are read under either name
            raise ValueError(
                f"field '{field.name}': its `column` '{field.column}' is the name of another field; give that field "
                "another `name`, and say its `column`."
            )
    history = history_field(result)
    if history is not None and not any(field.key and field.name == history.history_of for field in result):
        keys = ", ".join(field.name for field in result if field.key) or "none"
        raise ValueError(
            f"field '{history.name}': `history_of` must name a field that is a `key` ({keys}); got "
            f"{history.history_of!r}."
        )
    if history is not None:
        of_item = fields_of_items(result)
        key = next(field for field in of_item if field.name == history.history_of)
        if history.type != key.type:
            raise ValueError(
                f"field '{history.name}': `type` must be that of '{key.name}', {key.type!r}; got {history.type!r}."
            )
        if CLICKED in [field.name for field in of_item]:
            raise ValueError(
                f"field '{CLICKED}': an entry of '{history.name}' has '{CLICKED}' beside its item, so that the field "
                "must have another name."
            )
    return result


def history_field(fields: Sequence[FlipField]) -> FlipField | None:
    """The history among some fields, if there is one. `ValueError` where there are two."""
    histories = [field for field in fields if field.is_history]
    if len(histories) > 1:
        raise ValueError(f"fields {', '.join(field.name for field in histories)}: a row has one history at most.")
    return histories[0] if histories else None


def fields_of_items(fields: Sequence[FlipField]) -> list[FlipField]:
    """The fields that describe an item of the history: all of its entity but numbers on the ID side alone, as these are
    a row's own where they are statistics."""
    history = history_field(fields)
    if history is None:
        return []
    entity = next(field.entity for field in fields if field.name == history.history_of)
    of_row = [field for field in fields if field.is_history or (field.kind == "numeric" and not field.on_text_side)]
    return [field for field in fields if field.entity == entity and field not in of_row]


def history_entity(fields: Sequence[FlipField], entities: Sequence[str]) -> int | None:
    """The number, among the entities that have a prompt, of the items of the history; None where the text side reads no
    history: there is none, items have no prompt of their own, or no text."""
    history, of_item = history_field(fields), fields_of_items(fields)
    if history is None or "text" not in history.sides or of_item[0].entity not in entities:
        return None
    return entities.index(of_item[0].entity)


def slot_fields(id_fields: list[FlipField]) -> list[int]:
    """For each slot (column) of `feature_ids` the number of its field among those of the ID side, in order."""
    return [number for number, field in enumerate(id_fields) for _ in range(field.num_slots)]


__all__ = ["FlipField"]
