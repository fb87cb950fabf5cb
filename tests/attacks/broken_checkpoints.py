"""What is done to the folder of a checkpoint, each from a seed: to any file, to its vocabularies, weights and code."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from broken_json import (
    OF_ADAPTER_CONFIG,
    OF_BOUNDARIES,
    OF_CONFIG,
    OF_HASHES,
    OF_INDEX,
    OF_PROCESSOR,
    OF_SIZES,
    OF_TEXT_CONFIG,
    OF_TOKENIZER,
    OF_TOKENIZER_CONFIG,
    OF_VOCABULARIES,
    Change,
    Random,
    json_change,
)
from safetensors.torch import load_file, save_file

CONFIG, PROCESSOR, VOCABULARIES = "config.json", "processor_config.json", "vocabularies.txt"
WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
TOKENIZER, ADAPTER_CONFIG = "tokenizer.json", "adapter_config.json"
# files that a checkpoint is loaded from, beside its code
LOADED = (CONFIG, PROCESSOR, VOCABULARIES, INDEX, TOKENIZER, "tokenizer_config.json", ADAPTER_CONFIG)
EVIL = "import os\nopen(os.environ['CANARY'], 'w').close()\n"  # code that nobody trusts; it says that it was run


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
