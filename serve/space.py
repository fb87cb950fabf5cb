# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A Hugging Face Space to try a click model: a folder with a Gradio app, its items and, where they are given, users.

flip-ctr space --model_name_or_path org/flip-ml-100k --items items.parquet --output_dir space
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi, ModelCard, SpaceCardData, get_token
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import cached_file

from flip_ctr.data.outputs import new_folder
from flip_ctr.data.prepare.markdown import code, link, plain
from flip_ctr.data.readers.row_reader import RowReader, whole_table
from flip_ctr.serve.item_files import fields_of_file
from flip_ctr.serve.ranker import FlipRanker
from flip_ctr.serve.trial import Trial, values_of
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.models.lora import is_adapter
from flip_ctr.train.options import public_name
from flip_ctr.train.outputs.card import CARD
from flip_ctr.train.outputs.hub import check_repository, published_files, whole_config
from flip_ctr.train.outputs.run_log import logger
from flip_ctr.train.serve_arguments import SpaceArguments

APP, REQUIREMENTS, ITEMS, USERS = "app.py", "requirements.txt", "items.parquet", "users.parquet"
MODEL, CUSTOM_CODE = "model", "custom_code"  # folders
TEMPLATES = Path(__file__).with_name("templates")
# of a canonical value: its column in Parquet, and how it is read
TYPES = {"string": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
READ = {"string": str, "int": int, "float": float, "bool": "true".__eq__}


def run(args: SpaceArguments) -> str:
    """Writes the folder, and publishes it where that is asked. Returns its path, or the Space's address.

    Raises:
        ValueError: the model, the items or the users cannot be read, or do not fit each other.
        FileExistsError: there is something already, and it is no Space or is not to be replaced.
        ImportError: Gradio is not installed.
        ConnectionError: the upload failed; the folder is whole.
    """
    place = Path(args.output_dir).absolute()
    repository = args.hub_model_id or place.name
    _check_place(place, args.overwrite_output_dir)
    if args.push_to_hub:
        check_repository(repository)
        if not get_token():
            raise ValueError("--push_to_hub needs a token: run `hf auth login`, or set HF_TOKEN")
    try:
        from flip_ctr.serve.page import build_page
    except ImportError as error:
        raise ImportError(f"the page needs Gradio: pip install 'flip-ctr[space]' ({error})") from error
    import_custom_code(args.custom_code)
    name, base = args.model_name_or_path, args.base_model_name_or_path
    ranker = FlipRanker.from_pretrained(name, args.items, args.item_key, base_model_name_or_path=base)
    merged = is_adapter(name) and (os.path.isdir(name) or base is not None)  # the Space may not have its base
    copied = merged or os.path.isdir(name)
    users = None if args.users is None else sample_users(ranker, args.users, args.num_users, args.seed)
    title = args.space_title or public_name(name)
    build_page(ranker, users and users.to_pylist(), title, args.top_k)  # what the Space will do fails here
    place.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(place, True) as new:
        new.mkdir()
        pq.write_table(items_table(ranker), new / ITEMS)
        if users is not None:
            pq.write_table(users, new / USERS)
        if merged:
            ranker.model.save_pretrained(new / MODEL)
            ranker.processor.save_pretrained(new / MODEL)
        elif copied:
            whole_config(name)
            _copy(published_files(name).values(), new / MODEL)
        codes = [os.path.abspath(path) for path in args.custom_code or []]
        _copy({*codes, *(beside for path in codes for beside in _files_of_imports(path))}, new / CUSTOM_CODE)
        (new / REQUIREMENTS).write_text(f"flip-ctr[space]=={version('flip-ctr')}\n", encoding="utf-8")
        facts = {  # of Python code
            "model": f'str(HERE / "{MODEL}")' if copied else repr(name),
            "item_key": repr(ranker.key.name),
            "users": f'HERE / "{USERS}"' if users is not None else "None",
            "title": repr(title),
            "top_k": args.top_k,
            "custom_code": codes and repr([os.path.basename(path) for path in codes]),
        }
        (new / APP).write_text(_worded(APP, facts), encoding="utf-8")
        card = _worded(CARD, _facts_of_card(args, ranker, title, copied, users))
        (new / CARD).write_text(card, encoding="utf-8")
    logger.info(f"the Space: {place}")
    return push_space(place, repository, args.hub_private_repo) if args.push_to_hub else str(place)


def main(args: SpaceArguments) -> None:
    written = run(args)
    print(written if args.push_to_hub else f"{written} is a Space; try it with: python {os.path.join(written, APP)}")


def items_table(ranker: FlipRanker) -> pa.Table:
    """The items that are ranked, each column of its field's type: whoever reads them makes the same canonical values of
    them."""
    shown = ranker.catalogue.take(np.flatnonzero(ranker.catalogue.shown))
    kinds = {field.name: field.type for field in (ranker.key, *ranker.item_fields)}
    columns = {}
    for name, column in shown.columns.items():
        read, kind = READ[kinds[name]], TYPES[kinds[name]]
        lists = any(isinstance(value, tuple) for value in column.values)
        values = [
            None if value is None else [read(one) for one in values_of(value)] if lists else read(value)
            for value in column.values
        ]
        columns[name] = pa.array(values, pa.list_(kind) if lists else kind).take(pa.array(column.codes))
    return pa.table(columns)


def sample_users(ranker: FlipRanker, files: list[str], count: int, seed: int) -> pa.Table:
    """Some of the users in files, in their order: their fields, and their history where the files have it. Of a user
    with several rows the last one. `ValueError` where a column is missing or a value cannot be read."""
    processor = ranker.processor
    history = processor.history_field
    fields = ranker.user_fields + [history] * (
        history in fields_of_file(files[0], processor, "--users") if history else 0
    )
    table = whole_table(RowReader(files, fields, processor.feature_extractor.reading, option="--users"), "--users")
    keys = [field.name for field in ranker.user_fields if field.key]
    rows = np.arange(len(table))
    if keys:
        of_key = zip(*(table.column(name).to_pylist() for name in keys))
        rows = np.array(sorted({key: row for row, key in enumerate(of_key)}.values()))
    chosen = np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False)
    return table.select([field.name for field in fields]).take(np.sort(chosen))


def push_space(folder: Path, repo_id: str, private: bool) -> str:
    """Publishes the folder as a Space, in one commit that replaces what was there. Returns its address.

    Raises:
        ConnectionError: the upload failed, or the Space must be private and is not. The folder is whole.
    """
    api, kind = HfApi(), "space"
    try:
        space = api.create_repo(repo_id, repo_type=kind, space_sdk="gradio", private=private or None, exist_ok=True)
        if private and not api.repo_info(space.repo_id, repo_type=kind).private:
            raise ValueError(f"{space.repo_id} exists and is public; make it private on the Hub")
        api.upload_folder(
            folder_path=folder,
            repo_id=space.repo_id,
            repo_type=kind,
            commit_message="Upload a page to try a click model",
            delete_patterns="*",
        )
    except Exception as error:  # whatever the network, the server or the client raise
        retry = shlex.join(["hf", "upload", repo_id, str(folder), ".", "--repo-type", kind])
        raise ConnectionError(
            f"the Space was not published to {repo_id}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:500]}. It is whole in {folder}; publish it later with: {retry}"
        ) from error
    return str(space)


def _check_place(place: Path, overwrite: bool) -> None:
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"--output_dir {place} is there already; name another folder, or --overwrite_output_dir")
    if not ((place / APP).is_file() and (place / ITEMS).is_file()):
        raise FileExistsError(f"--output_dir {place} is no Space (it has no {APP} and {ITEMS}), and is not replaced")


def _copy(paths: Iterable[str], folder: Path) -> None:
    for path in paths:
        folder.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / os.path.basename(path))


def _files_of_imports(path: str) -> list[str]:
    """The files that a user's own code imports from beside it."""
    return [one for one in get_relative_import_files(path) if os.path.isfile(one)]


def _facts_of_card(args: SpaceArguments, ranker: FlipRanker, title: str, copied: bool, users: pa.Table | None) -> dict:
    """What the template of the README says."""
    name = args.model_name_or_path
    card = cached_file(name, CARD, _raise_exceptions_for_missing_entries=False)
    of_model = {} if card is None else ModelCard.load(card, ignore_metadata_errors=True).data.to_dict()
    licence = {one: of_model[one] for one in ("license", "license_name", "license_link") if one in of_model}
    if args.license is not None:
        licence = {"license": args.license}
    on_hub = not os.path.isdir(name)
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=version("gradio"),
        python_version=".".join(
            map(str, sys.version_info[:2])
        ),  # flip-ctr needs a newer one than a Space has by itself
        app_file=APP,
        models=[name] if on_hub else None,
        tags=["click-through-rate", "recommendation", "flip-ctr"],
        **licence,
    )
    trial = Trial(ranker)
    chosen = [field.wording for field in ranker.user_fields if trial.choices(field) is not None]
    listed = lambda words: ", ".join(map(plain, words))  # noqa: E731
    return {
        "card_data": data.to_yaml(),
        "title": plain(title),
        "model": link(name, f"https://huggingface.co/{name}") if on_hub else code(public_name(name)),
        "copied": copied,
        "items": f"{len(ranker):,}",
        "item_fields": listed(ranker.catalogue.columns),
        "joint": ranker.model.fusion is not None,
        "version": version("flip-ctr"),
        "users": users and f"{len(users):,}",
        "user_fields": users and listed(users.column_names),
        "vocabularies": listed(chosen),
        "licence": plain(licence.get("license_name") or licence.get("license") or ""),
    }


def _worded(file: str, facts: dict) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(f"{file}.jinja").render(facts)
