# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The clients of `serving_load.py`, in a process of their own that has neither torch nor this package: locust changes
the standard library when it is imported.

    python benchmarks/serving_clients.py FOLDER URL CLIENTS SECONDS FAULTS
"""

# locust comes first, for what it changes
from locust import FastHttpUser, constant, task  # isort: skip
from locust.env import Environment  # isort: skip

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import gevent
import numpy as np

TOLERANCE = 1e-4
SWAP_SECONDS = 0.5  # between two changes of the catalogue


def ask(folder: str, url: str, clients: int, seconds: int, faults: bool) -> dict:
    """Lets clients ask for some seconds. Returns their numbers, and what became of the requests."""
    told = json.loads(Path(folder, "requests.json").read_text())
    right = {version: [dict(map(tuple, one)) for one in some] for version, some in told["right"].items()}
    became: Counter = Counter()
    times: list[float] = []

    def judged(number: int, response) -> str:
        if response.status_code != 200:
            return f"{response.status_code or 'no answer'}"
        found = response.json()
        expected = right[found["catalogue"]][number]
        scores = [(one[told["key"]], one["click_probability"]) for one in found["items"]]
        best = sorted(expected.values(), reverse=True)[: len(scores)]
        close = all(abs(expected[key] - value) < TOLERANCE for key, value in scores)
        close &= all(abs(one - value) < TOLERANCE for one, (_, value) in zip(best, scores))
        return "right" if close and len(scores) == min(10, len(expected)) else "wrong"

    class Asking(FastHttpUser):
        abstract = True
        host, connection_timeout, network_timeout = url, 60, 60

        def send(self, kind: str, judge, method: str, path: str, **request) -> None:
            became[kind, "sent"] += 1
            outcome = "cut off by the end"
            try:
                with self.client.request(method, path, catch_response=True, **request) as response:
                    outcome = judge(response)
                    if outcome == "right":
                        times.append(response.request_meta["response_time"])
                    response.success()
            finally:
                became[kind, outcome] += 1
            if outcome in ("no answer", "503", "429"):
                gevent.sleep(0.2)

    class Client(Asking):
        wait_time = constant(0)

        @task(8 if faults else 1)
        def rank(self) -> None:
            number = random.randrange(len(told["bodies"]))
            body = told["bodies"][number]
            self.send("rank", lambda response: judged(number, response), method="POST", path="/rank", json=body)

        if faults:

            @task(1)
            def malformed(self) -> None:
                self.send("malformed", status, method="POST", path="/rank", data='{"user": {"age": [NaN')

            @task(1)
            def too_large(self) -> None:
                self.send("too large", status, method="POST", path="/rank", data="x" * (2 * told["most_bytes"]))

    class Changer(Asking):
        """Changes the items back and forth, and reads the model again."""

        wait_time, fixed_count, turn = constant(SWAP_SECONDS), 1, 0

        @task
        def change(self) -> None:
            self.turn += 1
            if self.turn % 10:
                items = told["catalogues"][self.turn % 2]
                self.send("items", status, method="PUT", path="/items", json={"items": items})
            else:
                self.send("reload", status, method="POST", path="/reload", json={})

    def status(response) -> str:
        return f"{response.status_code or 'no answer'}"

    environment = Environment(user_classes=[Client, Changer] if faults else [Client], stop_timeout=60)
    runner = environment.create_local_runner()
    runner.start(clients + faults, spawn_rate=100)
    if not faults:
        gevent.sleep(min(5, seconds))
        times.clear()
    begin = time.perf_counter()
    gevent.sleep(seconds)
    taken = time.perf_counter() - begin
    numbers = {"requests_per_second": len(times) / taken}
    numbers |= {f"p{q}_ms": float(np.percentile(times, q)) for q in (50, 95, 99)} if times else {}
    runner.stop()  # when what was sent is answered
    runner.quit()
    return numbers | {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(became.items())}


if __name__ == "__main__":
    folder, url, *numbers = sys.argv[1:]
    print(json.dumps(ask(folder, url, *map(int, numbers))))
