# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What a server is asked, as types of pydantic that are made of a model's fields: an error names the field."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Required

from pydantic import AliasChoices, ConfigDict, Discriminator, Field, PlainValidator, Tag, TypeAdapter, WithJsonSchema
from typing_extensions import TypedDict  # pydantic needs this one below Python 3.12

from flip_ctr.modeling_flip.fields_flip import CLICKED, FlipField, fields_of_items
from flip_ctr.modeling_flip.values_flip import canonical_label, value_reader
from flip_ctr.serve.ranker import FlipRanker

JSON_TYPES = {"int": "integer", "float": "number", "string": "string", "bool": "boolean"}
Check = Callable[[Any], Any]


def checked(check: Check, **schema: Any) -> Any:
    """Any value that a function does not raise `ValueError` for; it stays as it is."""

    def validate(value: Any) -> Any:
        check(value)
        return value

    return Annotated[Any, PlainValidator(validate), WithJsonSchema(schema)]


def value_type(field: FlipField) -> Any:
    """What the model reads as a value of a field: what the pipeline reads, by the same function."""
    read = value_reader(field)

    def check(value: Any) -> None:
        if read(value) is None and not field.nullable:
            raise ValueError("null, and the schema forbids nulls here")

    schema: dict = {"type": JSON_TYPES[field.type]}
    if field.is_multi_valued:
        schema = {"type": "array", "items": schema}
    if field.nullable:
        schema = {"anyOf": [schema, {"type": "null"}]}
    return checked(check, **schema)


def check_key(value: Any) -> None:
    if not isinstance(value, int | float | str):
        raise ValueError(f"expected the key of an item, got {type(value).__name__}")


def check_clicked(value: Any) -> None:
    if canonical_label(value, "float") not in ("0", "1"):
        raise ValueError("expected 0 or 1")


def either(plain: Any, other: Any, is_other: Callable[[Any], bool]) -> Any:
    """One of two types, told apart by the value, so that an error is of one of them alone."""
    union = Annotated[plain, Tag(TAGS[0])] | Annotated[other, Tag(TAGS[1])]
    return Annotated[union, Discriminator(lambda value: TAGS[is_other(value)])]


TAGS = ("<plain>", "<other>")  # are no part of an error's place


def record(name: str, members: Mapping[str, Any], extra: Literal["ignore", "forbid"] = "ignore") -> Any:
    """A JSON object with these members."""
    made = TypedDict(name, dict(members), total=False)  # noqa: UP013  the members are known here alone
    made.__pydantic_config__ = ConfigDict(extra=extra, title=name)
    return made


def members(fields: Sequence[FlipField], needed: bool) -> dict[str, Any]:
    """Fields as members of an object, also under the names that raw rows call them by."""
    found = {}
    for field in fields:
        names = [name for name in (field.name, field.column) if name]
        kind = Annotated[value_type(field), Field(validation_alias=AliasChoices(*names), title=field.wording)]
        found[field.name] = Required[kind] if needed else NotRequired[kind]
    return found


class RankRequest(NamedTuple):
    """Users, and the items to rank for each.

    Args:
        users: with the fields of the context.
        candidates: a list for each user; None for all items of the catalogue.
        shared: whether that list is the same for all of them.
        histories: a list for each user; None for a model that reads none.
        excluded: keys of items that are not to be returned, a list for each user.
        many: whether users came as a list.
        own: the fields that candidates themselves have.
        skipped: keys that are in no catalogue, of `candidates` and of `history`; None where such are an error.
    """

    users: list[dict]
    candidates: list[list] | None
    shared: bool
    histories: list[list] | None
    excluded: list[list]
    top_k: int | None
    many: bool
    own: frozenset[str]
    skipped: dict[str, list] | None


class RequestTypes:
    """The requests that a ranker's model takes.

    Attributes:
        rank_one, rank_many, predict, items, keys: the bodies of requests.
    """

    def __init__(self, ranker: FlipRanker):
        fields = ranker.processor.feature_extractor.all_fields
        history = next((field for field in fields if field.is_history), None)
        self.key = ranker.key.name
        self.user_fields = [field.name for field in ranker.user_fields]
        self.history = history and history.name
        key = checked(check_key, type=JSON_TYPES[ranker.key.type])
        clicked = checked(check_clicked, type="integer", enum=[0, 1])
        of_users, of_items = members(ranker.user_fields, False), members(ranker.item_fields, True)
        entry = record("Entry", {self.key: Required[key], CLICKED: Required[clicked]})
        past = list[either(key, entry, is_object)]
        candidate = either(key, record("Candidate", {self.key: Required[key]} | of_users), is_object)
        item = record("Item", of_items | {self.key: Required[of_items.get(self.key, key)]})
        in_rows: dict[str, Any] = {}
        if history is not None:
            whole = members(fields_of_items(fields), False) | {
                history.history_of: Required[key],
                CLICKED: Required[clicked],
            }
            in_rows = {history.name: list[record("WholeEntry", whole)] | None}
        user = record("User", of_users | dict.fromkeys(in_rows, NotRequired[past | None]))
        row = record("Row", members([field for field in fields if not field.is_history], True) | in_rows)
        options = {"top_k": Annotated[int, Field(ge=1, strict=True)] | None, "unknown": Literal["error", "skip"]}
        context = record("Context", of_users)
        listed = lambda kind: Annotated[list[kind], Field(min_length=1)]  # noqa: E731
        one = {"user": Required[user], "candidates": list[candidate] | None, "context": context | None}
        one["exclude"] = list[key] | None
        many = {
            "user": Required[listed(user)],
            "candidates": either(list[candidate], list[list[candidate]], is_list_of_lists) | None,
            "context": either(context, list[context], lambda value: isinstance(value, list)) | None,
            "exclude": list[list[key] | None] | None,
        }
        if history is not None:
            one, many = one | {"history": past | None}, many | {"history": list[past | None] | None}
        bodies = {
            "rank_one": record("Rank", one | options, "forbid"),
            "rank_many": record("RankMany", many | options, "forbid"),
            "predict": record("Predict", {"rows": Required[listed(row)], "items": list[item] | None}, "forbid"),
            "items": record("Items", {"items": Required[listed(item)]}, "forbid"),
            "keys": record("Keys", {"keys": Required[listed(key)], "unknown": options["unknown"]}, "forbid"),
        }
        self.adapters = {name: TypeAdapter(body) for name, body in bodies.items()}

    def read(self, name: str, body: Any) -> dict:
        """A body as its type. `ValueError` (pydantic's `ValidationError`) names what is wrong where."""
        return self.adapters[name].validate_python(body)

    def read_rank(self, body: Any, known: Callable[[list, bool], list]) -> RankRequest:
        """
        Args:
            known: gives those of some keys that no item has; of items that are ranked, or of all.

        Raises:
            ValueError: the body is no such request, or what it has does not fit each other; an [`UnknownItems`] where
                candidates or entries of histories are not in the catalogue, and are not to be skipped.
        """
        many = isinstance(body, dict) and isinstance(body.get("user"), list)
        values = self.read("rank_many" if many else "rank_one", body)
        users: list[dict] = values["user"] if many else [values["user"]]
        count = len(users)
        contexts = values.get("context") or {}
        contexts = one_each("context", contexts, count) if isinstance(contexts, list) else [contexts] * count
        candidates, shared = values.get("candidates"), True
        if candidates is not None:
            shared = not (many and is_list_of_lists(candidates))
            candidates = [candidates] * count if shared else one_each("candidates", candidates, count)
        histories = None
        if self.history is not None:
            given = values.get("history")
            given = one_each("history", given, count) if many and given is not None else [given] * count
            own_histories = [user.pop(self.history, None) for user in users]
            histories = [own or [] if one is None else one for one, own in zip(given, own_histories)]
        excluded = values.get("exclude")
        excluded = one_each("exclude", excluded, count) if many and excluded is not None else [excluded] * count
        known([key for some in excluded for key in some or []], True)  # which refuses those of another type
        own = frozenset[str]()
        if candidates is not None and any(isinstance(one, dict) for some in candidates for one in some):
            candidates = [[one if isinstance(one, dict) else {self.key: one} for one in some] for some in candidates]
            own = frozenset(name for some in candidates for one in some for name in one if name != self.key)
        users = [self._whole(*both, own) for both in zip(users, contexts)]
        return self._without_unknown(
            RankRequest(
                users,
                candidates,
                shared,
                histories,
                [some or [] for some in excluded],
                values.get("top_k"),
                many,
                own,
                None,
            ),
            known,
            values.get("unknown") == "skip",
        )

    def _whole(self, user: dict, context: dict, own: frozenset[str]) -> dict:
        """A user with the fields of the context. `ValueError` where a field is missing, or is there twice."""
        parts = [("user", user), ("context", context), ("candidates", own)]
        for name in self.user_fields:
            holders = [side for side, part in parts if name in part]
            if len(holders) > 1:
                raise ValueError(f"'{name}' is given by both the {holders[0]} and the {holders[1]}")
            if not holders:
                raise ValueError(
                    f"user: '{name}' is missing; give it in the user or the context, as null where it is unknown"
                )
        return user | context

    def _without_unknown(self, request: RankRequest, known: Callable[[list, bool], list], skip: bool) -> RankRequest:
        """A request without the keys that no item has."""
        parts = {"candidates": request.candidates, "history": request.histories}
        skipped: dict[str, list] = {}
        key_of = lambda one: one[self.key] if isinstance(one, dict) else one  # noqa: E731
        for name, lists in parts.items():
            if lists is None:
                continue
            distinct = lists[:1] if name == "candidates" and request.shared else lists
            lacking = known([key_of(one) for some in distinct for one in some], name == "candidates")
            if lacking and not skip:
                raise UnknownItems(name, self.key, lacking)
            skipped[name] = lacking
            if lacking:
                gone = set(lacking)
                kept = [[one for one in some if key_of(one) not in gone] for some in distinct]
                parts[name] = kept if distinct is lists else kept * len(lists)
        return request._replace(
            candidates=parts["candidates"], histories=parts["history"], skipped=skipped if skip else None
        )

    def schemas(self, template: str) -> tuple[dict[str, dict], dict]:
        """JSON schemas of the bodies by their names, and what they refer to, at addresses of a template."""
        found, defined = TypeAdapter.json_schemas(
            [(name, "validation", adapter) for name, adapter in self.adapters.items()], ref_template=template
        )
        return {name: schema for (name, _), schema in found.items()}, defined.get("$defs", {})


class UnknownItems(ValueError):
    """Keys that no item of the catalogue has.

    Args:
        where: `candidates`, `history` or `keys`.
        key: name of the key.
        unknown: the keys.
    """

    def __init__(self, where: str, key: str, unknown: list):
        super().__init__(
            f'{where}: no item of the catalogue has {key} {unknown[0]!r}; with "unknown": "skip" such are left out'
        )
        self.where, self.unknown = where, unknown


def is_object(value: Any) -> bool:
    return isinstance(value, dict)


def is_list_of_lists(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and isinstance(value[0], list)


def one_each(name: str, values: list, count: int) -> list:
    if len(values) != count:
        raise ValueError(f"{name}: one for each of the {count} users is needed; got {len(values)}")
    return values
