# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""`flip-ctr serve` under load: requests a second and latencies, and what becomes of requests while things fail.

    python benchmarks/serving_load.py --model_name_or_path M --dataset_dir D --candidates 100 1000 --clients 1 8
    python benchmarks/serving_load.py --model_name_or_path M --dataset_dir D --faults --seconds 120

Clients of locust (`pip install '.[load]'`) on the same machine ask one request after the other: a user of the test
split, and candidates drawn from its items. Each answer is compared with the scores of the catalogue that it names.
With `--faults` what items say changes back and forth all the time, the model is read again, requests are malformed or
too large, and the server is killed, ended and started again; of each request it is counted what became of it.
"""

import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flip_ctr.benchmarks.children import answer, measure, print_numbers, write_rows
from flip_ctr.train.options import Options, option, required
from flip_ctr.train.parser import parse_arguments

REQUESTS = 64  # different ones
MOST_BYTES = 100_000  # of a request
KILL_SECONDS = 15  # between two ends of the server


@dataclass(kw_only=True)
class LoadArguments(Options):
    model_name_or_path: str = required("click model", model=True)
    dataset_dir: str = required("dataset folder with its users and items", path=True)
    candidates: list[int] = option([100, 1000], "candidates of a request", at_least=1)
    clients: list[int] = option([1, 8], "clients that ask at the same time", at_least=1)
    seconds: int = option(30, "seconds of each measurement, after some to warm up", at_least=1)
    max_batch_size: list[int] = option([2048, 1], "of the server", at_least=1)
    max_wait_ms: float = option(0.0, "of the server", at_least=0)
    faults: bool = option(False, "let things fail meanwhile, and count what becomes of each request")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


# --- what is asked, and what is right


def write_requests(model: str, dataset_dir: str, candidates: int, folder: str) -> dict:
    """Writes the items, requests, and the scores that are right by the version of the catalogue: as it is, and with
    each item's fields, but its key, those of the next one."""
    import pyarrow.parquet as pq

    from flip_ctr import FlipRanker
    from flip_ctr.data.prepare.dataset_folder import read_split
    from flip_ctr.train.models.build import load_click_model

    click_model, processor = load_click_model(model)
    fields = [one for one in processor.feature_extractor.all_fields if not one.is_history]
    key = next(one.name for one in fields if one.key and one.entity == "item")
    of_items = [one.name for one in fields if one.entity == "item"]
    rows = read_split(dataset_dir, "test")
    items = list({row[key]: row for row in rows.select(of_items).to_pylist()}.values())
    changed = [
        {**one, **{name: value for name, value in other.items() if name != key}}
        for one, other in zip(items, items[1:] + items[:1])
    ]
    draw = random.Random(0)
    users = [
        {n: v for n, v in row.items() if n in {f.name for f in fields} - set(of_items)}
        for row in draw.sample(rows.to_pylist(), REQUESTS)
    ]
    pq.write_table(rows.select(of_items).take(first_rows(rows, key)), Path(folder, "items.parquet"))
    asked = [[one[key] for one in draw.sample(items, min(candidates, len(items)))] for _ in users]
    right = {}
    for shown in (items, changed):
        ranker = FlipRanker(click_model, processor, shown)
        ranked = [ranker.rank(user, keys) for user, keys in zip(users, asked)]
        right[ranker.catalogue.version] = [{one[key]: one["click_probability"] for one in some} for some in ranked]
    bodies = [{"user": user, "candidates": keys, "top_k": 10} for user, keys in zip(users, asked)]
    scores = {version: [list(one.items()) for one in some] for version, some in right.items()}
    told = {"key": key, "bodies": bodies, "right": scores, "catalogues": [items, changed]}
    told["most_bytes"] = MOST_BYTES
    Path(folder, "requests.json").write_text(json.dumps(told))
    return {"items": len(items)}


def first_rows(rows, key: str) -> np.ndarray:
    """The first row of each item, in the order of the rows."""
    return np.sort(np.unique(rows.column(key).to_numpy(), return_index=True)[1])


# --- the server


class Supervised:
    """A server that is started again whenever it has ended."""

    def __init__(self, *options):
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            self.port = one.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [
            sys.executable,
            "-m",
            "flip_ctr.train.cli",
            "serve",
            "--port",
            str(self.port),
            *map(str, options),
        ]
        self.ended: Counter = Counter()
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)
        while not self.is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with code {self.process.returncode}")
            time.sleep(0.05)

    def is_ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"{self.url}/ready", timeout=5).status == 200
        except OSError:
            return False

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        self.ended[f"{number.name}: code {self.process.wait(60)}"] += 1


def run(args: LoadArguments) -> list[dict]:
    results = []
    for candidates in args.candidates:
        with tempfile.TemporaryDirectory() as folder:
            measure(args.model_name_or_path, args.dataset_dir, candidates, folder)
            for size in args.max_batch_size[: 1 if args.faults else None]:
                for clients in args.clients:
                    results.append({"candidates": candidates, "max_batch_size": size, "clients": clients})
                    results[-1] |= under_load(args, folder, clients, size)
                    print_numbers(results[-1])
    write_rows(results, args.output_file)
    return results


def under_load(args: LoadArguments, folder: str, clients: int, max_batch_size: int) -> dict:
    options = ["--model_name_or_path", args.model_name_or_path, "--items", f"{folder}/items.parquet"]
    options += ["--max_batch_size", max_batch_size, "--max_wait_ms", args.max_wait_ms, "--log_level", "error"]
    server = Supervised(*options, *(["--max_request_bytes", MOST_BYTES] if args.faults else []))
    command = [sys.executable, Path(__file__).with_name("serving_clients.py"), folder, server.url]
    command += map(str, [clients, args.seconds, int(args.faults)])
    try:
        load = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        next_end, ends = time.monotonic() + KILL_SECONDS, 0
        while load.poll() is None:
            time.sleep(0.1)
            if args.faults and time.monotonic() > next_end:
                server.end((signal.SIGKILL, signal.SIGTERM)[ends % 2])
                server.start()
                next_end, ends = time.monotonic() + KILL_SECONDS, ends + 1
        return json.loads(load.stdout.read().splitlines()[-1]) | dict(server.ended)
    finally:
        server.process.kill()


if __name__ == "__main__" and not answer(write_requests):
    run(parse_arguments(LoadArguments, description=__doc__))
