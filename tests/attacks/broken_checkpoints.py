"""What is done to the folder of a checkpoint, each from a seed: to any file, to its JSON, vocabularies and weights."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

CONFIG, PROCESSOR, VOCABULARIES = "config.json", "processor_config.json", "vocabularies.txt"
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
TOKENIZER, ADAPTER_CONFIG = "tokenizer.json", "adapter_config.json"
# files that a checkpoint is loaded from, beside its code
LOADED = (CONFIG, PROCESSOR, VOCABULARIES, INDEX, TOKENIZER, "tokenizer_config.json", ADAPTER_CONFIG)
EVIL = "import os\nopen(os.environ['CANARY'], 'w').close()\n"  # code that nobody trusts; it says that it was run

Random = random.Random
Change = Callable[[Random, Path, Path], None]  # of a file; the third is that of the twin


@dataclass(frozen=True)
class Damage:
    """
    Attributes:
        name: file and what is done to it; one of its kind for each checkpoint.
        file: in the folder.
        does: gets a source of chance, the file, and the file of the twin.
        is_code: whether it is code, which only those who trust it run.
    """

    name: str
    file: str
    does: Change
    is_code: bool = False


# --- any file


def cut(rng: Random, path: Path, twin: Path) -> None:
    data = path.read_bytes()
    size = len(data)
    header = int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else size // 2
    places = [1, 4, 8, 9, 8 + header // 2, 8 + header, 9 + header, size // 3, size - 2, size - 1]
    path.write_bytes(data[: rng.choice([one for one in places if 0 < one < size])])


def empty(rng: Random, path: Path, twin: Path) -> None:
    path.write_bytes(b"")


def flip(rng: Random, path: Path, twin: Path) -> None:
    data = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else 0
    place = rng.randrange(header) if header and rng.random() < 0.4 else rng.randrange(header, len(data))
    # of a number of the weights a bit that matters
    data[place if place < header else place | 3 if header else place] ^= 1 << rng.randrange(7)
    path.write_bytes(data)


def zeros(rng: Random, path: Path, twin: Path) -> None:
    """A block that never reached the disk."""
    data = path.read_bytes()
    start = rng.randrange(len(data) // 2)
    size = min(max(1, len(data) // 4), 4096)
    path.write_bytes(data[:start] + bytes(size) + data[start + size :])


def more(rng: Random, path: Path, twin: Path) -> None:
    with open(path, "ab") as file:
        file.write(rng.choice([b"\0" * 8, b"}", b"x\n", b"\n<<<<<<< HEAD\n"]))


def remove(rng: Random, path: Path, twin: Path) -> None:
    path.unlink()


def of_twin(rng: Random, path: Path, twin: Path) -> None:
    shutil.copyfile(twin, path)


def folder(rng: Random, path: Path, twin: Path) -> None:
    path.unlink()
    path.mkdir()


def nowhere(rng: Random, path: Path, twin: Path) -> None:
    """A link to what is not there."""
    path.unlink()
    path.symlink_to("nowhere")


def loop(rng: Random, path: Path, twin: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def locked(rng: Random, path: Path, twin: Path) -> None:
    """Nobody may read it. (One who may everything still can.)"""
    path.chmod(0)


def linked(rng: Random, path: Path, twin: Path) -> None:
    """A link to the same file elsewhere, as in the cache of the Hub: nothing is wrong with it."""
    blob = path.parent.parent / f"blob-{path.parent.name}"
    shutil.move(path, blob)
    path.symlink_to(blob)


def pointer(rng: Random, path: Path, twin: Path) -> None:
    """What Git leaves where its extension for large files is not installed."""
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12345\n")


def page(rng: Random, path: Path, twin: Path) -> None:
    """What a proxy answers in place of a file."""
    path.write_text("<!DOCTYPE html><html><body>403 Forbidden</body></html>\n")


ANY_FILE = (cut, empty, flip, zeros, more, remove, of_twin, folder, nowhere, loop, locked, linked, pointer, page)

# --- text files


def crlf(rng: Random, path: Path, twin: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def marked(rng: Random, path: Path, twin: Path) -> None:
    """A byte order mark, as editors write it."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def wide(rng: Random, path: Path, twin: Path) -> None:
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))


def latin(rng: Random, path: Path, twin: Path) -> None:
    text = path.read_bytes().decode()
    path.write_bytes(text.replace("a", "é", 1).encode("latin-1", "replace"))


TEXT_FILE = (crlf, marked, wide, latin)

# --- JSON


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

# --- vocabularies.txt


def lines_change(change: Callable[[Random, list[str]], None]) -> Change:
    def does(rng: Random, path: Path, twin: Path) -> None:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
        change(rng, lines)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    return does


def _lines_swapped(rng: Random, lines: list[str]) -> None:
    one, other = rng.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]


def _no_last_end(rng: Random, path: Path, twin: Path) -> None:
    path.write_bytes(path.read_bytes().rstrip(b"\n"))


OF_LINES: dict[str, Change] = {
    "a line lost": lines_change(lambda rng, lines: lines.pop(rng.randrange(len(lines)))),
    "the last line lost": lines_change(lambda rng, lines: lines.pop()),
    "a line more": lines_change(lambda rng, lines: lines.append("new")),
    "a line in between": lines_change(lambda rng, lines: lines.insert(rng.randrange(len(lines)), "new")),
    "an empty line": lines_change(lambda rng, lines: lines.insert(rng.randrange(len(lines)), "")),
    "two lines swapped": lines_change(_lines_swapped),
    "sorted": lines_change(lambda rng, lines: lines.sort()),
    "a line twice": lines_change(lambda rng, lines: lines.__setitem__(1, lines[0])),
    "spaces at the ends": lines_change(lambda rng, lines: lines.__setitem__(slice(None), [one + " " for one in lines])),
    "no line end at the end": _no_last_end,
}

# --- weights


def tensors_change(change: Callable[[Random, dict[str, torch.Tensor]], None]) -> Change:
    def does(rng: Random, path: Path, twin: Path) -> None:
        from safetensors import safe_open

        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        path.unlink()  # the tensors are mapped from it
        change(rng, tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)

    return does


def _pick(rng: Random, tensors: dict) -> str:
    return rng.choice(sorted(tensors))


def _twist(change: Callable[[torch.Tensor], torch.Tensor], least_dims: int = 1) -> Change:
    def does(rng: Random, tensors: dict) -> None:
        name = rng.choice([one for one in sorted(tensors) if tensors[one].dim() >= least_dims])
        tensors[name] = change(tensors[name])

    return tensors_change(does)


def _poke(value: float) -> Change:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return _twist(change)


def _tensor_lost(rng: Random, tensors: dict) -> None:
    del tensors[_pick(rng, tensors)]


def _half_lost(rng: Random, tensors: dict) -> None:
    for name in sorted(tensors)[: max(1, len(tensors) // 2)]:
        del tensors[name]


def _tensor_renamed(rng: Random, tensors: dict) -> None:
    name = _pick(rng, tensors)
    tensors[name + rng.choice(["x", ".weight"])] = tensors.pop(name)


def _tensor_more(rng: Random, tensors: dict) -> None:
    tensors["another.weight"] = torch.ones(2)


def _tensors_swapped(rng: Random, tensors: dict) -> None:
    shapes: dict = {}
    for name in sorted(tensors):
        shapes.setdefault(tuple(tensors[name].shape), []).append(name)
    alike = [names for names in shapes.values() if len(names) > 1]
    if not alike:  # in a small shard
        tensors.update({name: -tensor for name, tensor in tensors.items()})
        return
    one, other = rng.sample(rng.choice(alike), 2)
    tensors[one], tensors[other] = tensors[other], tensors[one]


def _no_metadata(rng: Random, path: Path, twin: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path)


class _Evil:
    def __reduce__(self):
        return exec, (EVIL,)


def _pickled(rng: Random, path: Path, twin: Path) -> None:
    """Weights as a pickle that runs code, in the place of safetensors."""
    path.unlink()
    torch.save({"x": _Evil()}, path.with_name("pytorch_model.bin"))


def _pickled_inside(rng: Random, path: Path, twin: Path) -> None:
    torch.save({"x": _Evil()}, path)


OF_WEIGHTS: dict[str, Change] = {
    "a tensor lost": tensors_change(_tensor_lost),
    "half of the tensors lost": tensors_change(_half_lost),
    "a tensor renamed": tensors_change(_tensor_renamed),
    "a tensor more": tensors_change(_tensor_more),
    "two tensors swapped": tensors_change(_tensors_swapped),
    "half precision": _twist(torch.Tensor.half),
    "double precision": _twist(torch.Tensor.double),
    "whole numbers": _twist(torch.Tensor.int),
    "a row more": _twist(lambda one: torch.cat([one, one[:1]])),
    "a row less": _twist(lambda one: one[1:]),
    "transposed": _twist(lambda one: one.transpose(0, -1), 2),
    "another rank": _twist(lambda one: one[None]),
    "a NaN": _poke(float("nan")),
    "an infinity": _poke(float("inf")),
    "zeroed": _twist(torch.zeros_like),
    "no metadata": _no_metadata,
    "a pickle instead": _pickled,
    "a pickle of its name": _pickled_inside,
}

# --- code


def _later_version(rng: Random, path: Path, twin: Path) -> None:
    """Code that means something else, as that of another version."""
    path.write_text(path.read_text(encoding="utf-8").replace("NUM_RESERVED_IDS = 4", "NUM_RESERVED_IDS = 3"))


def _comment(rng: Random, path: Path, twin: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\n# read and found right\n", encoding="utf-8")


def _evil(rng: Random, path: Path, twin: Path) -> None:
    """Code that nobody who has the package, or does not trust it, runs."""
    path.write_text(EVIL + path.read_text(encoding="utf-8"), encoding="utf-8")


CODE_FILES = ("configuration_flip.py", "fields_flip.py", "modeling_flip.py", "processing_flip.py", "id_tower.py")
OF_CODE = (cut, empty, remove, crlf, _comment)


def damages(folder: Path) -> Iterator[Damage]:
    """All that can be done to a checkpoint."""
    names = sorted(path.name for path in folder.iterdir())
    shards = [name for name in names if name.startswith("model") and name.endswith(".safetensors")]
    weights = [name for name in [*shards[:1], ADAPTER] if name in names]
    text = json.loads((folder / CONFIG).read_text())["text_config"] is not None
    extractor = json.loads((folder / PROCESSOR).read_text())["feature_extractor"]

    def of(file: str, changes: dict[str, Callable], is_json: bool = True) -> Iterator[Damage]:
        for name, change in changes.items():
            yield Damage(f"{file}: {name}", file, json_change(change) if is_json else change)

    for file in [*weights, *(name for name in LOADED if name in names)]:
        kinds = ANY_FILE if file.endswith(".safetensors") else ANY_FILE + TEXT_FILE
        yield from of(file, {one.__name__: one for one in kinds}, False)
    yield from of(CONFIG, OF_CONFIG | (OF_TEXT_CONFIG if text else {}))
    yield from of(PROCESSOR, OF_PROCESSOR)
    if extractor["vocabularies"]:
        yield from of(PROCESSOR, OF_VOCABULARIES)
    if any(extractor["boundaries"]):
        yield from of(PROCESSOR, OF_BOUNDARIES)
    if extractor["hashed_fields"]:
        yield from of(PROCESSOR, OF_HASHES)
    if VOCABULARIES in names:
        yield from of(PROCESSOR, OF_SIZES)
        yield from of(VOCABULARIES, OF_LINES, False)
    if TOKENIZER in names:
        yield from of(TOKENIZER, OF_TOKENIZER)
        yield from of("tokenizer_config.json", OF_TOKENIZER_CONFIG)
    if INDEX in names:
        yield from of(INDEX, OF_INDEX, False)
    if ADAPTER in names:
        yield from of(ADAPTER_CONFIG, OF_ADAPTER_CONFIG)
    for file in weights:
        yield from of(file, OF_WEIGHTS, False)
    for file in CODE_FILES:
        for one in OF_CODE:
            yield Damage(f"{file}: {one.__name__}", file, one, is_code=True)
    yield Damage("fields_flip.py: another version", "fields_flip.py", _later_version, is_code=True)
    yield Damage("values_flip.py: that of another file", "values_flip.py", _of_other_code, is_code=True)
    yield Damage("modeling_flip.py: hostile code", "modeling_flip.py", _evil, is_code=True)


def _of_other_code(rng: Random, path: Path, twin: Path) -> None:
    shutil.copyfile(path.with_name("rows_flip.py"), path)


def damaged(folder: Path, twin: Path, damage: Damage, rng: Random, target: Path) -> Path:
    """A damaged copy of a checkpoint."""
    shutil.copytree(folder, target)
    os.chmod(target, 0o755)
    damage.does(rng, target / damage.file, twin / damage.file)
    return target
