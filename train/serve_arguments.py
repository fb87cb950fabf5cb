# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the commands in `serve/`: ranking, vectors, graphs, the server and the page."""

from dataclasses import dataclass

from flip_ctr.train.option_groups import (
    CLICK_MODEL,
    CUSTOM_CODE,
    ESCAPE,
    EVENTS,
    ROW_FILES,
    LoadingOptions,
    ScoringOptions,
)
from flip_ctr.train.options import MAX_SEED, Options, option, required

ITEM_FILE = (
    "a file with a row for each (.parquet, .csv, .jsonl, ...), a dataset folder, or a catalogue that FlipRanker.save "
    "has written"
)
ITEM_KEY = "column that tells items apart, where the model's fields do not say it"
BACKENDS = ("torch", "onnx")  # what computes a ranker's requests
BACKEND = "what computes requests: torch, or on a CPU ONNX Runtime (onnx), which takes about half as long"
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass
class RankArguments(LoadingOptions, ScoringOptions):
    """Of `flip-ctr rank`."""

    model_name_or_path: str = required(CLICK_MODEL, model=True)
    items: str = required(f"the items to rank: {ITEM_FILE}", path=True)
    users: list[str] = required(f"a row for each user: {ROW_FILES}", path=True)
    output: str = required(
        "file to write, a row for each user and item, best first (.parquet, .csv, .jsonl); it appears when all are "
        "ranked",
        path=True,
    )
    top_k: int = option(10, "items a user", at_least=1)
    item_key: str | None = option(None, ITEM_KEY)
    backend: str = option("torch", BACKEND, choices=BACKENDS)
    candidates: str | None = option(
        None, "column of the users with the list of the keys that are ranked for each; the whole catalogue without it"
    )
    exclude: str | None = option(
        None,
        "file with a row for each user and item that is left out, with the keys of both: what users have seen",
        path=True,
    )
    events: str | None = option(
        None, f"{EVENTS}; click rates that users or items have as columns are read from there", path=True
    )
    overwrite_output: bool = option(False, "write in the place of an output that is there already")
    escape_formulas: bool = option(False, ESCAPE)


@dataclass
class EmbedArguments(ScoringOptions):
    """Of `flip-ctr embed`."""

    model_name_or_path: str = required("a FLIP checkpoint, pretrained or fine-tuned: a path or hub id", model=True)
    input: str = required(
        "a file with a row for each item (.parquet, .csv, .jsonl, ...), or a dataset folder", path=True
    )
    output: str = required("the .parquet file to write", path=True)
    entity: str = option("item", "what the rows are: item, user, or another entity of the model's fields")
    key: str | None = option(None, "column that tells the rows apart, where the model's fields do not say it")
    overwrite_output: bool = option(False, "write in the place of an output that is there already")
    custom_code: list[str] | None = option(None, CUSTOM_CODE, path=True)


@dataclass
class ExportArguments(LoadingOptions):
    """Of `flip-ctr export`."""

    model_name_or_path: str = required(CLICK_MODEL, model=True)
    output_dir: str = required("folder for the graphs, the processor and export.json", path=True)
    format: str = option("onnx", "of the graphs: for ONNX Runtime, or for OpenVINO", choices=("onnx", "openvino"))
    quantize: str | None = option(
        None, "int8: weights a quarter as large, and inner products of whole numbers (ONNX)", choices=("int8",)
    )
    overwrite_output_dir: bool = option(False, "replace the output folder of a former export")

    def check(self) -> None:
        if self.quantize is not None and self.format != "onnx":
            raise ValueError(f"--quantize {self.quantize} is for --format onnx; got --format {self.format}")


@dataclass(kw_only=True)
class ServeAddressOptions(Options):
    title = "Address and access"

    host: str = option("127.0.0.1", "address to listen at; 0.0.0.0 for those of other machines")
    port: int = option(8000, "port to listen at", at_least=1, at_most=65535)
    root_path: str | None = option(None, "path under which a proxy shows the server, e.g. /ranking")
    api_key: str | None = option(
        None,
        "key that requests must bring as `Authorization: Bearer KEY`, all but /health, /ready and the API's page; "
        "FLIP_CTR_API_KEY of the environment when not given, which does not show in lists of processes",
        private=True,
    )
    log_level: str = option("info", "debug: a line a request too, without its data", choices=LOG_LEVELS)


@dataclass(kw_only=True)
class ServeLimitOptions(Options):
    title = "Limits"

    max_batch_size: int = option(
        2048,
        "rows (users times candidates) of waiting requests that are ranked together; 1: none are. More pay on a GPU",
        at_least=1,
    )
    max_wait_ms: float = option(
        0.0,
        "milliseconds that a request waits for others to be ranked with, where the model has nothing else to do",
        at_least=0,
        at_most=1000,
    )
    max_queue: int = option(256, "requests that may wait; more are answered 429", at_least=1)
    max_candidates: int = option(
        100_000, "rows (users times candidates) of a request, or of a prediction; more are answered 422", at_least=1
    )
    max_request_bytes: int = option(2_000_000, "size of a request; a larger one is answered 413", at_least=1)
    timeout: float = option(30.0, "seconds after which a request is answered 504", above=0, at_most=86_400)
    shutdown_delay: float = option(
        0.0,
        "seconds between SIGTERM, from which on /ready says no, and the end of listening: as long as a load balancer "
        "takes to notice",
        at_least=0,
        at_most=3600,
    )


@dataclass(kw_only=True)
class ServeArguments(LoadingOptions, ServeAddressOptions, ServeLimitOptions):
    """Of `flip-ctr serve`."""

    model_name_or_path: str = required(CLICK_MODEL, model=True)
    items: str = required(
        f"the items to rank: {ITEM_FILE}",
        path=True,
    )
    item_key: str | None = option(None, ITEM_KEY)
    reload_from: list[str] | None = option(
        None,
        "folders whose models and items /reload may name; without it, only those that the server started with are "
        "read again",
        path=True,
    )
    device: str | None = option(None, "where the model computes, e.g. cuda:1; a GPU where there is one")
    backend: str = option("torch", BACKEND, choices=BACKENDS)


@dataclass
class SpaceArguments(LoadingOptions):
    """Of `flip-ctr space`."""

    model_name_or_path: str = required(
        f"{CLICK_MODEL}; the Space names a model of the Hub, and has a copy of one in a folder", model=True
    )
    items: str = required(f"the items to rank, which the Space publishes: {ITEM_FILE}", path=True)
    output_dir: str = required("folder for the Space", path=True)
    overwrite_output_dir: bool = option(False, "replace the folder of a former Space", private=True)
    users: list[str] | None = option(
        None,
        "users to choose from on the page, with what the model reads of them: the Space PUBLISHES a sample of them; "
        f"a row for each user, {ROW_FILES}",
        path=True,
    )
    num_users: int = option(20, "size of that sample", at_least=1)
    seed: int = option(42, "seed of that sample", at_least=0, at_most=MAX_SEED)
    item_key: str | None = option(None, ITEM_KEY)
    space_title: str | None = option(None, "title of the page; the model's name when not given")
    license: str | None = option(None, "of the Space, such as mit; the licence of the model's card when not given")
    top_k: int = option(10, "items that the page shows at first", at_least=1, at_most=100)
    push_to_hub: bool = option(False, "publish the Space, with the token of `hf auth login` or HF_TOKEN", private=True)
    hub_model_id: str | None = option(
        None, "Space to publish to, e.g. org/try-flip; the output folder's name when not given", private=True
    )
    hub_private_repo: bool = option(False, "make a new Space private", private=True)

    def check(self) -> None:
        if self.users is None:
            self.no_effect("without --users", num_users=None, seed=None)
        if not self.push_to_hub:
            self.no_effect("without --push_to_hub", hub_model_id=None, hub_private_repo=False)
