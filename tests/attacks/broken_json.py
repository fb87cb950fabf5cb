"""What is done to the JSON files of a checkpoint: configuration, processor, tokenizer, adapter, index of shards."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

Random = random.Random
Change = Callable[[Random, Path, Path], None]  # of a file; the third is that of the twin


def json_change(change: Callable[[Random, dict], None]) -> Change:
    def does(rng: Random, path: Path, twin: Path) -> None:
        values = json.loads(path.read_text(encoding="utf-8"))
        change(rng, values)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    return does


def _set(name: str, *choices) -> Callable[[Random, dict], None]:
    def change(rng: Random, values: dict) -> None:
        *parents, last = name.split(".")
        for one in parents:
            values = values[one]
        before = values.get(last)
        values[last] = rng.choice([one for one in choices if one != before])

    return change


def _field(change: Callable[[Random, dict], None]) -> Callable[[Random, dict], None]:
    """Of one of the fields."""
    return lambda rng, values: change(rng, rng.choice(_fields(values)))


def _fields(values: dict) -> list[dict]:
    return values.get("feature_extractor", values)["fields"]


def _rename(rng: Random, field: dict) -> None:
    field["name"] += "x"


def _other_wording(rng: Random, field: dict) -> None:
    field["wording"] = field.get("wording", "it") + rng.choice([" a", "s", " of the row"])


def _other_tokens(rng: Random, field: dict) -> None:
    field["max_tokens"] = rng.choice([1, 2, 3])


def _other_type(rng: Random, field: dict) -> None:
    field["type"] = {"int": "string", "string": "int"}.get(field["type"], "int")


def _other_size(rng: Random, field: dict) -> None:
    if field.get("vocab_size"):
        field["vocab_size"] += rng.choice([-1, 1, 10])
    else:
        field["vocab_size"] = 9


def _other_sides(rng: Random, field: dict) -> None:
    field["sides"] = rng.choice([one for one in (["id"], ["text"], ["id", "text"]) if one != field["sides"]])


def _other_entity(rng: Random, field: dict) -> None:
    field["entity"] = {"user": "item"}.get(field["entity"], "user")


def _other_key(rng: Random, field: dict) -> None:
    field["key"] = not field["key"]


def _other_values(rng: Random, field: dict) -> None:
    field["max_values"] = rng.choice([1, 2])
    field["separator"] = rng.choice([",", ";"])
    field["kind"] = "multi-valued"


def _swap_fields(rng: Random, values: dict) -> None:
    fields = _fields(values)
    one, other = rng.sample(range(len(fields)), 2)
    fields[one], fields[other] = fields[other], fields[one]


def _drop_field(rng: Random, values: dict) -> None:
    fields = _fields(values)
    fields.pop(rng.randrange(len(fields)))


def _twice(rng: Random, values: dict) -> None:
    fields = _fields(values)
    fields.append(rng.choice(fields))


def _drop_setting(rng: Random, values: dict) -> None:
    values.pop(rng.choice(sorted(values)))


def _unknown_setting(rng: Random, values: dict) -> None:
    values["there_is_none"] = 1


def _null_setting(rng: Random, values: dict) -> None:
    values[rng.choice(sorted(name for name in values if values[name] is not None))] = None


def _number_for_all(rng: Random, values: dict) -> None:
    values[rng.choice(sorted(values))] = 7


OF_FIELDS = {
    "a field renamed": _field(_rename),
    "a field's wording": _field(_other_wording),
    "a field's max_tokens": _field(_other_tokens),
    "a field's type": _field(_other_type),
    "a field's size": _field(_other_size),
    "a field's sides": _field(_other_sides),
    "a field's entity": _field(_other_entity),
    "a field's key": _field(_other_key),
    "a field multi-valued": _field(_other_values),
    "two fields swapped": _swap_fields,
    "a field dropped": _drop_field,
    "a field twice": _twice,
    "no fields": lambda rng, values: values.get("feature_extractor", values).update(fields=[]),
    "fields null": lambda rng, values: values.get("feature_extractor", values).update(fields=None),
    "a setting dropped": _drop_setting,
    "an unknown setting": _unknown_setting,
    "a setting null": _null_setting,
    "a setting 7": _number_for_all,
    "prompts": _set("prompts", "row", "entity"),
}
OF_CONFIG = OF_FIELDS | {
    "strategy": _set("strategy", "id", "plm", "joint"),
    "fusion": _set("fusion", "scalar", "gate"),
    "pooling": _set("text_pooling", "cls", "mean", "last"),
    "ID tower": _set("id_tower", "deepfm", "dcn", "lr", "no_such_tower"),
    "arguments of the ID tower": _set("id_tower_kwargs", {"low_rank": 2, "num_experts": 2}, {"x": 1}),
    "width of embeddings": _set("id_embedding_size", 3, 8),
    "hidden layers": _set("id_hidden_dims", [9], [8, 8], []),
    "dtype": _set("dtype", "float16", "bfloat16", "float64", "int8", "x"),
    "model type": _set("model_type", "bert", "x", None),
    "architecture": _set("architectures", ["FlipForPretraining"], ["BertModel"], ["X"], [], None),
    "auto_map elsewhere": _set("auto_map.AutoModel", "no_such_file.X", "../outside.X", "a/b--modeling_flip.FlipForCTR"),
    "auto_map of none": _set("auto_map", {}, None),
    "a version to come": _set("transformers_version", "99.0.0"),
    "dropout": _set("id_dropout", 0.5),
}
OF_TEXT_CONFIG = {
    "text: activation": _set("text_config.hidden_act", "relu", "silu", "x"),
    "text: heads": _set("text_config.num_attention_heads", 1, 4, 3),
    "text: layers": _set("text_config.num_hidden_layers", 0, 2),
    "text: layer norm": _set("text_config.layer_norm_eps", 1.0, None),
    "text: tokens": _set("text_config.vocab_size", 106, 200),
    "text: another PLM": _set("text_config.model_type", "roberta", "x"),
    "text: none": _set("text_config", None, {}),
}


def _some(rng: Random, values: dict) -> list:
    """One of the vocabularies that has several values."""
    lists = values["feature_extractor"]["vocabularies"]
    return rng.choice([one for one in lists or [] if len(one) > 2])


def _shorter(rng: Random, values: dict) -> None:
    words = _some(rng, values)
    del words[rng.randrange(len(words)) :]


def _without_one(rng: Random, values: dict) -> None:
    words = _some(rng, values)
    words.pop(rng.randrange(len(words)))


def _with_one(rng: Random, values: dict) -> None:
    _some(rng, values).append("new")


def _shuffled(rng: Random, values: dict) -> None:
    _some(rng, values).reverse()


def _two_swapped(rng: Random, values: dict) -> None:
    words = _some(rng, values)
    one, other = rng.sample(range(len(words)), 2)
    words[one], words[other] = words[other], words[one]


def _duplicate(rng: Random, values: dict) -> None:
    words = _some(rng, values)
    one, other = rng.sample(range(len(words)), 2)
    words[one] = words[other]


def _null_value(rng: Random, values: dict) -> None:
    words = _some(rng, values)
    words[rng.randrange(len(words))] = None


def _numbers(rng: Random, values: dict) -> None:
    words = _some(rng, values)
    words[:] = range(len(words))


def _two_lists_swapped(rng: Random, values: dict) -> None:
    lists = values["feature_extractor"]["vocabularies"]
    one, other = rng.sample([number for number, words in enumerate(lists) if words], 2)
    lists[one], lists[other] = lists[other], lists[one]


OF_VOCABULARIES = {
    "a vocabulary shortened": _shorter,
    "a value lost": _without_one,
    "a value more": _with_one,
    "a vocabulary reversed": _shuffled,
    "two values swapped": _two_swapped,
    "a value twice": _duplicate,
    "a value null": _null_value,
    "numbers for values": _numbers,
    "two vocabularies swapped": _two_lists_swapped,
    "vocabularies null": _set("feature_extractor.vocabularies", None),
    "no vocabularies": _set("feature_extractor.vocabularies", [], "", 3),
    "min_frequency": _set("feature_extractor.min_frequency", 5),
}


def _bounds(change: Callable[[Random, list], None]) -> Callable[[Random, dict], None]:
    def does(rng: Random, values: dict) -> None:
        change(rng, rng.choice([one for one in values["feature_extractor"]["boundaries"] if one]))

    return does


OF_BOUNDARIES = {
    "boundaries null": _set("feature_extractor.boundaries", None),
    "a bound moved": _bounds(lambda rng, bounds: bounds.__setitem__(0, bounds[0] - 5)),
    "a bound lost": _bounds(lambda rng, bounds: bounds.pop()),
    "bounds descending": _bounds(lambda rng, bounds: bounds.reverse()),
    "a bound of text": _bounds(lambda rng, bounds: bounds.__setitem__(0, "x")),
    "a bound NaN": _bounds(lambda rng, bounds: bounds.__setitem__(0, float("nan"))),
}
OF_HASHES = {
    "salt": _set("feature_extractor.hash_salt", "0" * 32, None),
    "check": _set("feature_extractor.hash_check", "0" * 32),
    "no hashed fields": _set("feature_extractor.hashed_fields", []),
}
OF_SIZES = {"sizes null": _set("feature_extractor.vocabulary_sizes", None)}


def _moved_size(rng: Random, values: dict) -> None:
    """One vocabulary has a value more, and the next one a value less."""
    sizes = values["feature_extractor"]["vocabulary_sizes"]
    one, other = rng.sample([number for number, size in enumerate(sizes) if size > 1], 2)
    sizes[one], sizes[other] = sizes[one] + 1, sizes[other] - 1


def _fewer_sizes(rng: Random, values: dict) -> None:
    values["feature_extractor"]["vocabulary_sizes"].pop()


OF_SIZES |= {"a size moved to another": _moved_size, "fewer sizes": _fewer_sizes}
OF_PROCESSOR = OF_FIELDS | {
    "max_length": _set("max_length", 12, 10**6, "x"),
    "label": _set("label", "other", 3),
    "id_only": _set("id_only", True, False, None),
    "processor class": _set("processor_class", "BertProcessor", "X"),
    "reading": _set("feature_extractor.reading", {"x": 1}, 3, {"null_values": ["Film 3"]}),
}
OF_ADAPTER_CONFIG = {
    "rank": _set("r", 1, 64),
    "alpha": _set("lora_alpha", 1, 999),
    "rslora": _set("use_rslora", True),
    "target modules": _set("target_modules", ["query"], None),
    "base": _set("base_model_name_or_path", "no/such", None, 3),
    "kind": _set("peft_type", "IA3", "X"),
    "bias": _set("bias", "all"),
}


def _token_swap(rng: Random, values: dict) -> None:
    words = values["model"]["vocab"]
    one, other = rng.sample([word for word in words if len(word) == 1], 2)
    words[one], words[other] = words[other], words[one]


def _token_lost(rng: Random, values: dict) -> None:
    words = values["model"]["vocab"]
    words.pop(rng.choice([word for word in words if len(word) > 1 and not word.startswith(("#", "["))]))


OF_TOKENIZER = {
    "two tokens swapped": _token_swap,
    "a token lost": _token_lost,
    "no normalizer": _set("normalizer", None),
    "no special tokens": _set("post_processor", None),
    "truncation": _set("truncation", {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0}),
    "another model": _set("model.type", "BPE", "X"),
}
OF_TOKENIZER_CONFIG = {
    "lower case": _set("do_lower_case", False),
    "class": _set("tokenizer_class", "RobertaTokenizer", "X", None),
    "length": _set("model_max_length", 10, None),
    "special tokens": _set("cls_token", "[UNK]", None),
    "unknown token": _set("unk_token", "[PAD]"),
}


def _moved(to: str) -> Change:
    """A shard that lies elsewhere, and has other weights."""

    def does(rng: Random, path: Path, twin: Path) -> None:
        values = json.loads(path.read_text())
        name = rng.choice(sorted(set(values["weight_map"].values())))
        outside = path.parent.parent / f"outside-{path.parent.name}.safetensors"
        shutil.copyfile(twin.parent / name, outside)
        target = {"relative": f"../{outside.name}", "absolute": str(outside)}[to]
        weight_map = values["weight_map"]
        values["weight_map"] = {key: target if one == name else one for key, one in weight_map.items()}
        path.write_text(json.dumps(values))

    return does


def _swap_shards(rng: Random, path: Path, twin: Path) -> None:
    one, other = rng.sample(sorted(path.parent.glob("model-*.safetensors")), 2)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def _lose_shard(rng: Random, path: Path, twin: Path) -> None:
    rng.choice(sorted(path.parent.glob("model-*.safetensors"))).unlink()


def _twin_shard(rng: Random, path: Path, twin: Path) -> None:
    one = rng.choice(sorted(path.parent.glob("model-*.safetensors")))
    shutil.copyfile(twin.parent / one.name, one)


def _lose_key(rng: Random, values: dict) -> None:
    values["weight_map"].pop(rng.choice(sorted(values["weight_map"])))


def _wrong_shard(rng: Random, values: dict) -> None:
    weight_map = values["weight_map"]
    one, other = rng.sample(sorted(weight_map), 2)
    weight_map[one], weight_map[other] = weight_map[other], weight_map[one]


OF_INDEX: dict[str, Change] = {
    "a shard in ../": _moved("relative"),
    "a shard at a whole path": _moved("absolute"),
    "two shards swapped": _swap_shards,
    "a shard lost": _lose_shard,
    "a shard of the twin": _twin_shard,
    "a tensor not listed": json_change(_lose_key),
    "two tensors' shards swapped": json_change(_wrong_shard),
    "no map": json_change(lambda rng, values: values.pop("weight_map")),
    "a map of null": json_change(_set("weight_map", None, [])),
}
