# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Encoded splits on disk: integers that are made once, part by part, and then mapped into memory by every process and
run.

They lie beside the dataset, `<dataset_dir>/.cache/encoded/<split>/<key>/*.npy`, or in a temporary folder where that
cannot be written. The key is of the bytes of the split's files, of sample, processor and format; what has another one
is never read, and neither is an array whose bytes have changed.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np

from flip_ctr.data.readers.shards import PART_ROWS, SplitRows
from flip_ctr.modeling_flip.fingerprint_flip import file_sha256
from flip_ctr.modeling_flip.histories_flip import read_histories
from flip_ctr.modeling_flip.new_files_flip import is_abandoned, partial_prefix
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.prompt_tables_flip import (
    EntityPrompts,
    EntityPromptsBuilder,
    PromptTable,
    PromptTableBuilder,
)

logger = logging.getLogger("flip_ctr")

FORMAT = 4  # of the files, and of how rows are encoded
KEPT = 4  # encoded forms of one split that are kept: the last ones used
LIST = "arrays.json"  # names and checksums of the arrays; the last file to be written
OF_SAVING = (
    "auto_map",
    "feature_extractor_type",
    "processor_class",
)  # what saving and loading add to a feature extractor
PARTIAL = ".partial-"
ABANDONED = 24 * 3600  # seconds after which a partial folder is no longer being written


def processor_digest(processor: FlipProcessor, prompts: bool) -> str:
    """Of everything in a processor that rows are encoded by; without `prompts` what the tabular view needs."""
    digest = blake2b(digest_size=16)

    def add(name: str, value) -> None:
        # value by value: a vocabulary as one text would take more memory than its list
        for part in value if isinstance(value, list) else [value]:
            digest.update(json.dumps([name, part], sort_keys=True).encode())

    extractor = processor.feature_extractor
    state = extractor.to_dict() | {
        "vocabularies": extractor.vocabularies
    }  # large ones are not in what is saved as JSON
    for name, value in sorted(state.items()):
        if name not in OF_SAVING:
            for part in value if name == "vocabularies" else [value]:
                add(name, part)
    add("targets", [processor.label, processor.weight])
    if prompts:
        add("tokenizer", _tokenizer_state(processor.tokenizer))
        add("prompts", processor.prompts)
    return digest.hexdigest()


def _tokenizer_state(tokenizer) -> list:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # in Python: its vocabulary, and how it calls itself with its special tokens and settings
        return [type(tokenizer).__name__, repr(tokenizer), tokenizer.get_vocab()]
    state = json.loads(backend.to_str())
    return [
        {name: part for name, part in state.items() if name not in ("padding", "truncation")}
    ]  # each call sets those


class _NpyWriter:
    """Writes a `.npy` file part by part. (Not through a mapping: on a full disk that would kill the process.)"""

    def __init__(self, path: Path, rows: int):
        self.file, self.rows, self.written = open(path, "wb"), rows, 0

    def write(self, part: np.ndarray) -> None:
        if self.written == 0:
            shape = (self.rows, *part.shape[1:])
            header = {"descr": np.lib.format.dtype_to_descr(part.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_2_0(self.file, header)
        self.file.write(np.ascontiguousarray(part).data)
        self.written += len(part)

    def close(self) -> None:
        with self.file:
            self.file.flush()
            os.fsync(self.file.fileno())  # a machine that goes down must not leave a name without its bytes


def _encode(processor: FlipProcessor, rows: SplitRows, prompts: bool, folder: Path, part_rows: int) -> None:
    """Writes the split's arrays; memory is that of a part and of the distinct values."""
    extractor, user_column = processor.feature_extractor, rows.schema.user_column
    builder: EntityPromptsBuilder | PromptTableBuilder | None = None
    if prompts:
        by_entity = processor.prompts == "entity"
        builder = processor.entity_prompts_builder() if by_entity else processor.piece_builders()[0]
    users: dict = {}
    writers: dict[str, _NpyWriter] = {}
    items, whole = rows.map_items(processor.read_items), {}
    if items is not None:
        of_entities = builder if isinstance(builder, EntityPromptsBuilder) else None
        whole = dict(zip(("item_ids", "item_prompts"), processor.encode_items(items.columns, of_entities)))

    def encoded(part) -> dict[str, np.ndarray | None]:
        columns = extractor.read(part)
        labels, weights = processor.read_targets(part)
        arrays = {"feature_ids": extractor.encode(columns).astype(np.int32), "labels": labels, "weights": weights}
        if labels is not None:
            arrays["labels"] = labels.astype(np.int8)
        if isinstance(builder, EntityPromptsBuilder):
            arrays["index"] = builder.add(columns)
        elif builder is not None:
            arrays["entries"] = builder.add([columns[field.name] for field in processor.text_fields])
            arrays["lengths"] = builder.lengths(arrays["entries"])
        if items is not None:
            fields, width = extractor.all_fields, processor.history_field.max_values
            arrays["history_items"], arrays["history_outcomes"], _ = read_histories(part, fields, items, width)
        if user_column:
            codes = part.column(user_column).combine_chunks().dictionary_encode()
            numbers = [users.setdefault(user, len(users)) for user in codes.dictionary.to_pylist()]
            places = codes.indices.fill_null(len(numbers)).to_numpy(zero_copy_only=False)
            arrays["users"] = np.array([*numbers, -1], np.int64)[places]
        return arrays

    try:
        for arrays in rows.map_parts(encoded, size=part_rows):
            for name, part in arrays.items():
                if part is not None:
                    if name not in writers:
                        writers[name] = _NpyWriter(folder / f"{name}.npy", len(rows))
                    writers[name].write(part)
    finally:
        for writer in writers.values():
            writer.close()
    if builder is not None:
        names = ("tokens", "offsets")
        table: PromptTable | EntityPrompts
        if isinstance(builder, EntityPromptsBuilder):
            table, names = builder.prompts(np.empty(0, np.int32)), (*names, "token_fields")
        else:
            table = builder.table(0)
        whole |= {name: getattr(table, name) for name in names}
    for name, array in whole.items():
        if array is not None:
            writer = _NpyWriter(folder / f"{name}.npy", len(array))
            writer.write(array)
            writer.close()


def read_cache(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an encoded split, mapped; None where there is none, or a damaged one."""
    try:
        # plain arrays over the mapping: a `memmap` makes each of its slices one
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r").view(np.ndarray) for name in _checksums(folder)}
    except (OSError, ValueError):
        return None


def _checksums(folder: Path) -> dict[str, str]:
    with open(folder / LIST, encoding="utf-8") as file:
        return dict(json.load(file))


def _is_whole(folder: Path) -> bool:
    """Whether there is an encoded split with the bytes that were written. Reads them."""
    try:
        return all(file_sha256(folder / f"{name}.npy") == sha for name, sha in _checksums(folder).items())
    except FileNotFoundError:
        return False
    except (OSError, ValueError, TypeError):
        logger.warning(f"{folder} is damaged: its rows are encoded again")
        return False


def cached_split(processor: FlipProcessor, rows: SplitRows, prompts: bool = True, part_rows: int = PART_ROWS) -> Path:
    """The folder with a split's encoded arrays, which are made where they are not there yet.

    Args:
        prompts: whether to encode the textual view too, where there is a tokenizer.
        part_rows: rows that are encoded at a time.

    Raises:
        ValueError: a value cannot be read; names split, file, column and row.
        OSError: neither the dataset folder nor the temporary folder can be written.
    """
    prompts = prompts and not processor.id_only
    key = json.dumps([FORMAT, rows.content_digest(), rows.schema.user_column, processor_digest(processor, prompts)])
    place = Path("encoded", rows.split, blake2b(key.encode(), digest_size=16).hexdigest())
    folder = rows.dataset_dir / ".cache" / place
    if _is_there(folder):
        return folder
    try:
        return _write(processor, rows, prompts, folder, part_rows)
    except OSError as error:
        folder = _temporary_root() / place
        if _is_there(folder):
            return folder
        logger.warning(
            f"{rows.dataset_dir} cannot be written ({error.strerror or error}): encoded rows go to {folder.parent}"
        )
        return _write(processor, rows, prompts, folder, part_rows)


def _is_there(folder: Path) -> bool:
    if not _is_whole(folder):
        return False
    with suppress(OSError):  # it was used, and is the last to go; not where the folder cannot be written
        os.utime(folder)
    return True


def _temporary_root() -> Path:
    """This user's folder for what has no place beside its dataset; the same for all processes and runs."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    root = Path(tempfile.gettempdir()) / f"flip-ctr-{user}"
    root.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and root.lstat().st_uid != user:
        raise OSError(f"{root} belongs to another user; name another temporary folder in TMPDIR")
    return root


def _write(processor: FlipProcessor, rows: SplitRows, prompts: bool, folder: Path, part_rows: int) -> Path:
    """Writes the arrays beside first and then gives them their name: they are there complete, or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=partial_prefix(PARTIAL)))
    try:
        logger.info(f"encoding the split '{rows.split}': {len(rows):,} rows")
        _encode(processor, rows, prompts, partial, part_rows)
        names = sorted(path.stem for path in partial.glob("*.npy"))
        sums = {name: file_sha256(partial / f"{name}.npy") for name in names}
        (partial / LIST).write_text(json.dumps(sums) + "\n", encoding="utf-8")
        if folder.exists() and not _is_whole(folder):
            shutil.rmtree(folder)  # damaged
        try:
            partial.rename(folder)
        except OSError:
            if not _is_whole(folder):
                raise
            # another run was faster: its arrays are the same
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _remove_old(folder.parent)
    return folder


def _remove_old(folder: Path) -> None:
    """Keeps the encoded forms of a split that were used last. Who has mapped another one can go on reading it."""
    ages = []
    for path in folder.iterdir():
        with suppress(OSError):  # another process removes too
            ages.append((path.stat().st_mtime, path))
    whole = sorted((age, path) for age, path in ages if not path.name.startswith(PARTIAL))
    for age, path in ages:
        old = path.name.startswith(PARTIAL) and age < time.time() - ABANDONED
        if old or is_abandoned(path.name, PARTIAL):
            shutil.rmtree(path, ignore_errors=True)
            logger.warning(f"removed {path}, which a killed run left")
    for _, path in whole[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
