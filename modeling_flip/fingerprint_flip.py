# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""What belongs together in a checkpoint folder: model and processor carry a fingerprint, and checksums of their files.

`config.json` and `processor_config.json` both hold `fingerprint`: digests of the fields, of the vocabularies and of the
tokenizer, and how prompts are made. `sha256` in each holds checksums of its own content and of the files that belong to
it: weights and code to the model, the tokenizer's files to the processor. Whoever changes such a file on purpose takes
its line out of `sha256`, or saves the checkpoint again.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from typing import Any

from transformers.utils import CONFIG_NAME, PROCESSOR_NAME, cached_file

from .fields_flip import LEARNED, FlipField, read_fields

CHECKPOINT_FORMAT = 1  # of what a checkpoint folder holds; code reads its own and older ones
WEIGHT_FILES = ("model*.safetensors", "adapter_model.safetensors")
TEXTS = (".py", ".json", ".txt")
CODE_FILES = ("*_flip.py", "id_tower*.py")
SAVED = ".saved"  # a whole checkpoint that a run is putting in its place
OF_LOADING = ("sha256", "auto_map", "custom_pipelines", "name_or_path")
INDEX = "model.safetensors.index.json"
MEANINGS = {
    "format": "the form of the checkpoint",
    "fields": "the fields",
    "vocabularies": "the vocabularies or bounds of buckets",
    "prompts": "the kind of prompts",
    "tokenizer": "the tokenizer",
}
AGAIN = "Download or save the checkpoint again."
HUB_ARGUMENTS = (
    "cache_dir",
    "force_download",
    "local_files_only",
    "token",
    "revision",
    "subfolder",
    "proxies",
    "user_agent",
)


def digest(parts: Iterable[str]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of some texts; where one ends is part of it."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode(errors="surrogatepass")
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:16]


def fields_digest(fields: Sequence[FlipField | dict]) -> str:
    """Of what fields say of rows: no sizes of vocabularies, and no defaults, so that a new attribute changes none."""
    default = FlipField("any").to_dict()

    def said(field: FlipField) -> dict:
        values = field.to_dict()
        return {k: v for k, v in values.items() if k == "name" or (k not in LEARNED and default.get(k) != v)}

    return digest(json.dumps(said(field), sort_keys=True) for field in read_fields(fields))


def file_sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file. Text counts with plain line ends, which git may change on the way."""
    with open(path, "rb") as file:
        if os.path.splitext(path)[1] in TEXTS:
            return hashlib.sha256(file.read().replace(b"\r\n", b"\n")).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksums(folder: str, patterns: Sequence[str]) -> dict[str, str]:
    """Of the files of a folder that fit a pattern, by name."""
    names = [name for name in sorted(os.listdir(folder)) if any(fnmatch(name, pattern) for pattern in patterns)]
    return {name: file_sha256(path) for name in names if os.path.isfile(path := os.path.join(folder, name))}


def add_checksums(folder: str, beside: str | None = None) -> None:
    """Writes the checksums of a model's weights and code into its `config.json`: the last step of saving it. Weights in
    the folder `beside`, where these will lie, count too."""
    sums = {} if beside is None else checksums(beside, WEIGHT_FILES)
    sums |= checksums(folder, (*WEIGHT_FILES, *CODE_FILES))
    write_with_checksums(folder, CONFIG_NAME, read_json(os.path.join(folder, CONFIG_NAME)), sums)


def write_with_checksums(folder: str, name: str, values: Mapping[str, Any], sums: Mapping[str, str]) -> None:
    """Writes a JSON file of a checkpoint with checksums: of its content, and those of other files."""
    with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
        file.write(json_text(name, values, sums))


def json_text(name: str, values: Mapping[str, Any], sums: Mapping[str, str]) -> str:
    """What that JSON file holds."""
    sums = {name: content_sha256(values), **sums}
    return json.dumps({**values, "sha256": sums}, indent=2, sort_keys=True) + "\n"


def content_sha256(values: Mapping[str, Any]) -> str:
    """Of what a JSON file says, without its checksums, and without what transformers adds when it reads one."""
    said = {name: value for name, value in values.items() if name not in OF_LOADING and not name.startswith("_")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def check_content(values: Mapping[str, Any], name: str, folder: str) -> None:
    """Raises `ValueError` where a JSON file of a checkpoint says something else than when it was saved."""
    sums = values.get("sha256") or {}
    if not isinstance(sums, dict):
        raise ValueError(f"{folder}: `sha256` in {name} must be a mapping; got {sums!r}. {AGAIN}")
    if name in sums and content_sha256(values) != sums[name]:
        raise ValueError(
            f"{os.path.join(folder, name)}: damaged or changed: its SHA-256 is not that of `sha256` in it. {AGAIN} "
            f"(Changed on purpose: take the line of {name} out of `sha256`.)"
        )


def read_json(path: str) -> dict[str, Any]:
    """`ValueError` that names the file where it holds no JSON object."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except ValueError as error:  # also of bytes that are no UTF-8
        raise ValueError(f"{path}: damaged or cut off, this is no JSON: {error}. {AGAIN}") from None
    except RecursionError:
        raise ValueError(f"{path}: damaged, too many brackets. {AGAIN}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged, this is no JSON object. {AGAIN}")
    return values


def differing(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> list[str]:
    """In what two fingerprints differ; a processor without a tokenizer fits the ID tower of any model with its
    fields."""
    if not one or not other:
        return []
    text = one.get("tokenizer") and other.get("tokenizer")
    names = ("format", "fields", "vocabularies", *(("prompts", "tokenizer") if text else ()))
    return [MEANINGS[name] for name in names if one.get(name) != other.get(name)]


def state_of(name_or_path: str) -> list[tuple]:
    """What tells the files of a model from those that took their places; nothing for a hub id, whose files stay."""
    found: list[tuple] = []
    if not os.path.isdir(name_or_path):
        return found
    for name in sorted(os.listdir(name_or_path)):
        if name in (CONFIG_NAME, INDEX) or _is_weights(name):
            with suppress(FileNotFoundError):  # replaced right now
                stat = os.stat(os.path.join(name_or_path, name))
                found.append((name, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return found


def check_checkpoint(name_or_path: str, own: str, hub: Mapping[str, Any]) -> str | None:
    """As `check_files`; where a run was killed while it saved, the error says where the whole checkpoint lies."""
    try:
        return check_files(name_or_path, own, hub)
    except ValueError as error:
        saved = os.path.join(name_or_path, SAVED)
        if not os.path.isdir(saved):
            raise
        raise ValueError(
            f"{error} A run was stopped here while it put a new checkpoint in place: load {saved}, which is whole, or "
            "run it again."
        ) from None


def check_files(name_or_path: str, own: str, hub: Mapping[str, Any]) -> str | None:
    """Compares what lies in a checkpoint before it is loaded.

    Args:
        name_or_path: a folder, or a hub id, of which files are compared that are on this machine already.
        own: whose files are compared with their checksums: `config.json` or `processor_config.json`.
        hub: arguments of `cached_file`.

    Returns: the checksum of the content of `own`; None where it has none.

    Raises:
        ValueError: model and processor do not belong together, the checkpoint is newer than this code, or a file is
            damaged; names folder and file.
    """
    if not name_or_path:
        return None
    paths = {name: _find(name_or_path, name, hub) for name in (CONFIG_NAME, PROCESSOR_NAME)}
    values = {name: read_json(path) for name, path in paths.items() if path is not None}
    if own not in values or values.get(CONFIG_NAME, {}).get("model_type", "flip") != "flip":
        return None  # transformers says that there is none, or what is there instead
    for name, of_one in values.items():
        check_content(of_one, name, name_or_path)
    prints = {name: of_one.get("fingerprint") for name, of_one in values.items()}
    for name, of_one in prints.items():
        if of_one is not None and not isinstance(of_one, dict):
            raise ValueError(f"{name_or_path}: `fingerprint` in {name} must be a mapping; got {of_one!r}. {AGAIN}")
        if of_one and of_one.get("format", 0) > CHECKPOINT_FORMAT:
            raise ValueError(
                f"{name_or_path}: {name} is of format {of_one['format']}, and this code reads {CHECKPOINT_FORMAT} and "
                "older; install a newer flip-ctr."
            )
    other = differing(prints.get(CONFIG_NAME), prints.get(PROCESSOR_NAME))
    if other:
        raise ValueError(
            f"{name_or_path}: {PROCESSOR_NAME} is not of the model in {CONFIG_NAME}: they differ in "
            f"{', '.join(other)}. Take both from one checkpoint."
        )
    model = values.get(CONFIG_NAME, {})
    try:
        fields = fields_digest(model.get("fields") or [])
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name_or_path}: {CONFIG_NAME}: {error}") from None
    if prints.get(CONFIG_NAME) and fields != prints[CONFIG_NAME].get("fields"):
        raise ValueError(f"{name_or_path}: the fields in {CONFIG_NAME} are not those of its fingerprint. {AGAIN}")
    if own == CONFIG_NAME:
        _check_index(name_or_path, hub)
    sums = values[own].get("sha256") or {}
    _check_files(name_or_path, own, sums, hub)
    return sums.get(own)


def _find(name_or_path: str, name: str, hub: Mapping[str, Any], **more: Any) -> str | None:
    if os.path.isdir(name_or_path):
        path = os.path.join(name_or_path, hub.get("subfolder") or "", name)
        return path if os.path.lexists(path) else None
    try:
        return cached_file(name_or_path, name, **{**hub, **more}, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):  # loading says what is wrong
        return None


def _check_files(name_or_path: str, own: str, expected: Mapping[str, str], hub: Mapping[str, Any]) -> None:
    if own == CONFIG_NAME and any(map(_is_weights, expected)) and os.path.isdir(name_or_path):
        folder = os.path.join(name_or_path, hub.get("subfolder") or "")
        for name in sorted(os.listdir(folder)):
            if name not in expected and _is_weights(name):
                raise ValueError(f"{os.path.join(folder, name)} is of another checkpoint: {own} does not name it.")
    for name, sha in expected.items():
        if name == own:
            continue
        if os.path.basename(name) != name:
            raise ValueError(f"{name_or_path}: {own} names the file {name!r}, which is not in its folder.")
        path = _find(name_or_path, name, hub, local_files_only=True, force_download=False)
        if path is None:
            # code is not needed where the package is; of a hub id nobody knows here what is there
            if os.path.isdir(name_or_path) and not name.endswith(".py"):
                raise ValueError(f"{os.path.join(name_or_path, name)} is missing; {own} names it. {AGAIN}")
        elif file_sha256(path) != sha:
            raise ValueError(
                f"{os.path.join(name_or_path, name)}: damaged, or of another checkpoint: its SHA-256 is not that of "
                f"`sha256` in {own}. {AGAIN} (Changed on purpose: take its line out of `sha256`.)"
            )


def _is_weights(name: str) -> bool:
    return any(fnmatch(name, pattern) for pattern in WEIGHT_FILES)


def _check_index(name_or_path: str, hub: Mapping[str, Any]) -> None:
    """Weights are read from inside the folder only."""
    path = _find(name_or_path, INDEX, hub, local_files_only=True, force_download=False)
    if path is None:
        return
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict):
        raise ValueError(f"{path}: `weight_map` must be a mapping; got {shards!r}. {AGAIN}")
    for shard in shards.values():
        if not isinstance(shard, str) or os.path.basename(shard) != shard or "\\" in shard:
            raise ValueError(f"{path}: names the file of weights {shard!r}, which is not in its folder.")
