"""The server answers what the ranker does, names what is wrong, and loses no request."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import httpx2
import past
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
import uvicorn
from fastapi.testclient import TestClient
from serving import made, parted, saved
from starlette.exceptions import HTTPException
from starlette.requests import Request

from flip_ctr import FlipField, FlipRanker
from flip_ctr.modeling_flip.pipeline_flip import ClickThroughRatePipeline
from flip_ctr.serve.batching import BatchingThread, Job, QueueFull
from flip_ctr.serve.exchange import wait_for, whole_body
from flip_ctr.serve.server import Server, make_app
from flip_ctr.serve.service import Served
from flip_ctr.train import cli
from flip_ctr.train.serve_arguments import ServeArguments


def served_by(model, processor, items) -> Served:
    return Served(FlipRanker(model, processor, items), ("org/m", "items.parquet"))


def client_of(served, **options) -> TestClient:
    app = make_app(ServeArguments(model_name_or_path="org/m", items="items.parquet", **options), served)
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def joint(tokenizer, text_config):
    rows = past.past_rows()
    model, processor = made(rows, past.FIELDS, tokenizer, text_config, prompts="entity", fusion="gate")
    return model, processor, *parted(rows), rows


@pytest.fixture(scope="module")
def served(joint):
    model, processor, _, items, _ = joint
    return served_by(model, processor, items)


@pytest.fixture
def client(served):
    with client_of(served) as client:
        yield client


def close(items: list[dict]) -> list[dict]:
    return [{name: pytest.approx(value, abs=1e-6) for name, value in item.items()} for item in items]


# --- what is right


def test_a_user_or_many_are_ranked(client, served, joint):
    _, _, users, _, _ = joint
    ranker = served.ranker
    found = client.post("/rank", json={"user": users[0]}).json()
    assert found["items"] == close(ranker.rank(users[0])) and set(found) == {"items", "model", "catalogue"}
    assert found["model"]["name"] == "org/m" and found["catalogue"] == ranker.catalogue.version
    body = {
        "user": users[0],
        "candidates": [104, 101, 107],
        "top_k": 2,
        "history": [100, {"movie_id": 103, "clicked": 0}],
    }
    history = [{"movie_id": 100, "clicked": 1}, {"movie_id": 103, "clicked": 0}]
    assert client.post("/rank", json=body).json()["items"] == close(
        ranker.rank(users[0], [104, 101, 107], history, top_k=2)
    )
    assert client.post("/rank", json=body | {"history": None, "user": users[0] | {"history": history}}).json()[
        "items"
    ] == close(ranker.rank(users[0], [104, 101, 107], history, top_k=2))
    few = {"user": users[:3], "candidates": [[104], [], [101, 102]], "history": [[100], None, []]}
    for answer, expected in zip(
        client.post("/rank", json=few).json()["items"],
        ranker.rank(users[:3], few["candidates"], history=[[100], [], []]),
        strict=True,
    ):
        assert answer == close(expected)
    unseen = client.post("/rank", json={"user": users[0], "exclude": ["104", 777], "top_k": 3}).json()["items"]
    assert unseen == close(ranker.rank(users[0], top_k=3, exclude=[104]))
    each = client.post("/rank", json={"user": users[:2], "exclude": [[104], None]}).json()["items"]
    assert each == [close(one) for one in ranker.rank(users[:2], exclude=[[104], []])]
    shared = client.post("/rank", json={"user": users[:3], "candidates": [104, "101"]}).json()["items"]
    assert shared == [close(one) for one in ranker.rank(users[:3], [104, 101])]
    rest = {"user": {"user_id": 1}, "context": {name: users[0][name] for name in ("age", "zip_code")}}
    assert client.post("/rank", json=rest).json()["items"] == close(ranker.rank(users[0] | {"user_id": 1}))


def test_versions_are_those_of_what_is_served(joint, served, tmp_path):
    model, processor, _, items, _ = joint
    folder = saved(tmp_path / "m", model, processor)
    again = FlipRanker.from_pretrained(folder, items)
    assert Served(again, (folder, "x")).versions == served.versions | {
        "model": {"name": "m", "version": served.versions["model"]["version"]}
    }
    again.model.config.calibration = {"logits": [0.5, 0.1]}
    corrected = Served(again, (folder, "x")).versions["model"]["version"]
    again.model.config.calibration = None
    with torch.no_grad():
        again.model.id_classifier.weight[0, 0] += 1
    trained = Served(again, (folder, "x")).versions["model"]["version"]
    assert len({served.versions["model"]["version"], corrected, trained}) == 3


def test_fields_of_context_and_candidates(tokenizer, text_config):
    fields = [
        *tiny.FIELDS,
        FlipField("device", entity="context", sides=("id",)),
        FlipField("rank", "int", sides=("id",)),
    ]
    rows = [row | {"device": "phone" if n % 2 else "tv", "rank": n % 4} for n, row in enumerate(tiny.toy_rows())]
    model, processor = made(rows, fields, tokenizer, text_config, strategy="id")
    users, items = parted(rows)
    candidates = [{"movie_id": item["movie_id"], "rank": n % 4} for n, item in enumerate(items)]
    with client_of(served_by(model, processor, items)) as client:
        ranker = client.app.state.service.current.ranker
        body = {"user": users[:2], "candidates": candidates, "context": {"device": "tv"}}
        expected = [close(one) for one in ranker.rank(users[:2], candidates, context={"device": "tv"})]
        assert client.post("/rank", json=body).json()["items"] == expected
        body |= {"candidates": [candidates, candidates], "context": [{"device": "tv"}] * 2}
        assert client.post("/rank", json=body).json()["items"] == expected
        assert "history" in client.post("/rank", json={"user": users[0], "history": []}).text
        body = {"user": users[0] | {"rank": 1, "device": "tv"}, "candidates": candidates}
        wrong = client.post("/rank", json=body)
        assert wrong.status_code == 422 and "'rank' is given by both the user and the candidates" in wrong.text


def test_rows_are_scored_as_by_the_pipeline(client, joint):
    model, processor, _, items, rows = joint
    pipe = ClickThroughRatePipeline(model=model, processor=processor)
    rows = [{name: value for name, value in row.items() if name != "label"} for row in rows[-4:]]
    expected = close(pipe(rows, items=items))
    assert client.post("/predict", json={"rows": rows}).json()["predictions"] == expected
    assert client.post("/predict", json={"rows": rows, "items": items}).json()["predictions"] == expected
    whole = past.past_rows(whole=True)[-2:]
    assert client.post("/predict", json={"rows": whole}).json()["predictions"] == close(pipe(whole))


def test_items_come_and_go(client, served, joint):
    _, _, users, items, _ = joint
    before = client.get("/ready").json()
    assert before["items"] == len(items)
    new = {"movie_id": 900, "title": "Film 4", "genre": "Comedy"}
    added = client.put("/items", json={"items": [new, items[0] | {"title": "Film 7"}]}).json()
    assert added["items"] == len(items) + 1 and added["catalogue"] != before["catalogue"]
    ranked = client.post("/rank", json={"user": users[0]}).json()
    assert ranked["catalogue"] == added["catalogue"] and 900 in {item["movie_id"] for item in ranked["items"]}
    wrong = client.request("DELETE", "/items", json={"keys": [900, 901, 900]})
    assert wrong.status_code == 422 and wrong.json()["detail"][0]["unknown"] == [901]
    gone = client.request("DELETE", "/items", json={"keys": [900, 901], "unknown": "skip"}).json()
    assert gone["items"] == len(items) and gone["skipped"] == {"keys": [901]}
    assert client.post("/items", json={"items": items[:1]}).json()["model"] == before["model"]
    assert len(served.ranker) == len(items)  # what was served before stays what it was
    ranked = client.post("/rank", json={"user": users[0], "history": [900]})
    assert ranked.status_code == 200, "a history may still name an item that is gone"


def test_unknown_candidates_are_listed_or_skipped(client, served, joint):
    _, _, users, _, _ = joint
    body = {"user": users[0], "candidates": [104, 777, "101", 778], "history": [776, 100]}
    wrong = client.post("/rank", json=body)
    assert wrong.status_code == 422
    detail = {"loc": ["candidates"], "type": "unknown_items", "unknown": [777, 778]}
    assert wrong.json()["detail"][0].items() >= detail.items()
    found = client.post("/rank", json=body | {"unknown": "skip"}).json()
    assert found["skipped"] == {"candidates": [777, 778], "history": [776]}
    assert found["items"] == close(served.ranker.rank(users[0], [104, 101], [100]))
    none = client.post("/rank", json=body | {"candidates": [777], "unknown": "skip"}).json()
    assert none["items"] == [] and none["skipped"]["candidates"] == [777]


def test_health_metrics_and_the_page(client, joint):
    _, _, users, items, _ = joint
    assert client.get("/health").json() == {"status": "alive"} and client.get("/ready").status_code == 200
    client.post("/rank", json={"user": users[0]})
    client.post("/rank", json={"user": 1})
    assert client.get("/what/ever").json()["detail"][0]["msg"] == "Not Found"
    shown = client.get("/metrics").text
    for line in (
        'flip_ctr_requests_total{method="POST",route="/rank",status="200"} 1.0',
        'flip_ctr_requests_total{method="POST",route="/rank",status="422"} 1.0',
        'flip_ctr_requests_total{method="other",route="other",status="404"} 1.0',
        'flip_ctr_request_seconds_count{method="POST",route="/rank"} 2.0',
        'flip_ctr_batch_requests_bucket{le="1.0"} 1.0',
        "flip_ctr_queue_length 0.0",
        f"flip_ctr_items {len(items)}.0",
    ):
        assert line in shown.splitlines()
    described = client.get("/openapi.json").json()
    bodies = {path: one["post"]["requestBody"] for path, one in described["paths"].items() if "post" in one}
    assert set(bodies) == {"/rank", "/predict", "/items", "/reload"}
    defined = described["components"]["schemas"]
    assert {"type": "integer"} in defined["User"]["properties"]["age"]["anyOf"] and "title" in defined["Item"][
        "required"
    ]
    for reference in set(json.dumps(described).split('"$ref": "#/components/schemas/')[1:]):
        assert reference.split('"')[0] in defined
    assert "swagger" in client.get("/docs").text


# --- what is wrong

WRONG = {
    "no user": ({}, ["user"], "Field required"),
    "a typo": ({"user": "{user}", "candidate": []}, ["candidate"], "Extra inputs are not permitted"),
    "a value of another type": ({"user": {"age": "old"}}, ["user", "age"], "expected int, got str 'old'"),
    "of the second user": ({"user": ["{user}", {"age": []}]}, ["user", 1, "age"], "expected int, got list"),
    "a field that is missing": ({"user": {"user_id": 1, "age": 3}}, [], "'zip_code' is missing; give it in the user"),
    "given twice": ({"user": "{user}", "context": {"age": 3}}, [], "'age' is given by both the user and the context"),
    "a key of another type": ({"user": "{user}", "candidates": ["x"]}, [], "movie_id: expected int, got str 'x'"),
    "an excluded key of another type": ({"user": "{user}", "exclude": ["x"]}, [], "movie_id: expected int"),
    "no key": ({"user": "{user}", "candidates": [100, []]}, ["candidates", 1], "expected the key of an item, got list"),
    "null for a key": ({"user": "{user}", "candidates": [None]}, ["candidates", 0], "got NoneType"),
    "an unknown entry": ({"user": "{user}", "history": [777]}, ["history"], "catalogue has movie_id 777"),
    "no outcome": ({"user": "{user}", "history": [{"movie_id": 100}]}, ["history", 0, "clicked"], "Field required"),
    "half an outcome": (
        {"user": "{user}", "history": [{"movie_id": 100, "clicked": 0.5}]},
        ["history", 0, "clicked"],
        "expected 0 or 1",
    ),
    "no top_k": ({"user": "{user}", "top_k": 0}, ["top_k"], "greater than or equal to 1"),
    "lists for others": ({"user": ["{user}"] * 2, "candidates": [[100]]}, [], "one for each of the 2 users"),
    "too many rows": ({"user": ["{user}"] * 3, "candidates": [100] * 40}, [], "120 rows (users times candidates)"),
    "beyond 64 bits": ({"user": {"age": 10**30}}, ["user", "age"], "does not fit into 64 bits"),
    "text of a candidate": (
        {"user": {"user_id": 1, "zip_code": "1"}, "candidates": [{"movie_id": 100, "age": 3}]},
        [],
        "is in a prompt",
    ),
    "no list": ([], [], "valid dictionary"),
}


@pytest.fixture(scope="module")
def strict(served):
    with client_of(served, max_candidates=100, max_request_bytes=4000) as client:
        yield client


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(strict, joint, case):
    body, place, message = WRONG[case]
    text = json.dumps(body).replace('"{user}"', json.dumps(joint[2][0]))
    wrong = strict.post("/rank", content=text)
    detail = wrong.json()["detail"]
    assert wrong.status_code == 422 and detail[0]["loc"] == place and message in detail[0]["msg"], detail


@pytest.mark.parametrize(
    "text",
    [
        '{"user": {"age": NaN}}',
        '{"user": {"age": 1e999, "user_id": 1, "zip_code": "1"}}',
        "{",
        "",
        "null",
        "\udcff",
        '{"user": ' * 300 + "1" + "}" * 300,
        "[" * 3000,
        '{"user": {"age": ' + "9" * 3900 + "}}",
        '{"user": {"age": -1e-999}}',
        '{"user": {"user_id": 1, "age": 2, "zip_code": "\\u0000"}}',
        '{"user": {"user_id": 1, "age": 2, "zip_code": "\\ud800"}}',
    ],
)
@pytest.mark.parametrize("route", ["/rank", "/predict", "/items", "/reload"])
def test_what_is_no_request_is_an_error_of_the_client(strict, text, route):
    if route == "/reload" and text == "":
        return  # reads again what it has
    wrong = strict.post(route, content=text.encode("utf-8", "surrogateescape"))
    assert wrong.status_code == 422 and wrong.json()["detail"]


def test_wrong_rows_and_items(strict, joint):
    row = joint[4][0]
    for route, body, place in (
        ("/predict", {"rows": [row, row | {"title": 3}]}, ["rows", 1, "title"]),
        ("/predict", {"rows": []}, ["rows"]),
        ("/predict", {"rows": [{name: value for name, value in row.items() if name != "history"}]}, []),
        ("/predict", {"rows": [row | {"history": [{"movie_id": 1}]}]}, ["rows", 0, "history", 0, "clicked"]),
        ("/items", {"items": [{"movie_id": 1, "title": "x"}]}, ["items", 0, "genre"]),
        ("/items", {"items": [{"movie_id": None, "title": "x", "genre": "y"}]}, []),
        ("/items", {"items": [{"movie_id": 1, "title": "x", "genre": "y"}] * 2}, []),
    ):
        wrong = strict.post(route, json=body)
        assert wrong.status_code == 422 and wrong.json()["detail"][0]["loc"] == place, wrong.text
    assert strict.get("/ready").json()["items"] == len(joint[3])


def test_a_large_request_is_not_read(strict, monkeypatch):
    monkeypatch.setattr("flip_ctr.serve.exchange.LINGER_SECONDS", 0.05)
    for more in ({"content": b"x" * 5000}, {"content": iter([b"x" * 3000] * 2)}):
        wrong = strict.post("/rank", **more)
        assert wrong.status_code == 413 and "4,000 bytes" in wrong.text


def test_the_api_key(served, joint, monkeypatch):
    body = {"user": joint[2][0]}
    with client_of(served, api_key="secret") as client:
        assert {client.get(path).status_code for path in ("/health", "/ready", "/openapi.json", "/docs")} == {200}
        for headers in (
            {},
            {"Authorization": "Bearer secre"},
            {"Authorization": "Basic secret"},
            {"X-API-Key": "secret"},
        ):
            wrong = client.post("/rank", json=body, headers=headers)
            assert wrong.status_code == 401 and wrong.headers["www-authenticate"] == "Bearer"
            assert client.get("/metrics", headers=headers).status_code == 401
            assert client.post("/reload", headers=headers).status_code == 401
        assert client.post("/rank", json=body, headers={"Authorization": "Bearer secret"}).status_code == 200
    for wrong in ("", "two words", "schlüssel"):
        with pytest.raises(ValueError, match="visible ASCII characters"):
            client_of(served, api_key=wrong)
    monkeypatch.setenv("FLIP_CTR_API_KEY", "other")
    with client_of(served) as client:
        assert client.request("DELETE", "/items", json={"keys": [100]}).status_code == 401
        assert client.post("/rank", json=body, headers={"Authorization": "Bearer other"}).status_code == 200


# --- limits of time and number


def blocked(client):
    """Stops the model's thread until the event is set."""
    go = threading.Event()
    client.app.state.service.thread.submit(Job(lambda some: [go.wait(20)] * len(some), None))
    while len(client.app.state.service.thread):
        time.sleep(0.001)
    return go


def test_no_more_wait_than_may(served, joint):
    body = {"user": joint[2][0]}
    with client_of(served, max_queue=2) as client, ThreadPoolExecutor(2) as pool:
        go = blocked(client)
        waiting = [pool.submit(client.post, "/rank", json=body) for _ in range(2)]
        while len(client.app.state.service.thread) < 2:
            time.sleep(0.001)
        full = client.post("/rank", json=body)
        assert full.status_code == 429 and full.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200
        go.set()
        assert [one.result().status_code for one in waiting] == [200, 200]


def test_what_nobody_waits_for_is_not_computed(served, joint, monkeypatch):
    computed = []
    rank = Served.rank
    monkeypatch.setattr(Served, "rank", lambda self, requests: computed.extend(requests) or rank(self, requests))
    with client_of(served, timeout=0.05) as client:
        go = blocked(client)
        late = client.post("/rank", json={"user": joint[2][0]})
        assert late.status_code == 504 and "0.05 seconds" in late.text
        go.set()
        assert client.post("/rank", json={"user": joint[2][0], "top_k": 1}).status_code == 200
        assert [one.top_k for one in computed] == [1]


def test_a_request_that_does_not_arrive_and_a_client_that_has_gone():
    async def silent() -> dict:
        await asyncio.sleep(5)

    async def gone() -> dict:
        return {"type": "http.disconnect"}

    scope = {"type": "http", "headers": []}
    with pytest.raises(HTTPException) as late:
        asyncio.run(whole_body(Request(scope, silent), 100, 0.02))
    assert late.value.status_code == 408
    future: Future = Future()
    with pytest.raises(HTTPException) as left:
        asyncio.run(wait_for(future, Request(scope, gone), 5))
    assert left.value.status_code == 499 and future.cancelled()


def test_the_error_of_one_is_not_that_of_others(served, joint, monkeypatch, caplog):
    _, _, users, _, _ = joint
    sizes, rank = [], Served.rank

    def fails(self, requests):
        sizes.append(len(requests))
        if any(user["age"] == 77 for one in requests for user in one.users):
            raise RuntimeError("of a user: 77")
        return rank(self, requests)

    monkeypatch.setattr(Served, "rank", fails)
    bodies = [{"user": users[n % 3] | ({"age": 77} if n == 2 else {}), "top_k": 1 + n} for n in range(5)]
    with client_of(served) as client, ThreadPoolExecutor(5) as pool:
        go = blocked(client)
        waiting = []
        for number, body in enumerate(bodies):
            waiting.append(pool.submit(client.post, "/rank", json=body))
            while len(client.app.state.service.thread) <= number:
                time.sleep(0.001)
        go.set()
        answers = [one.result() for one in waiting]
    assert sizes == [5, 1, 1, 1, 1, 1]
    assert [one.status_code for one in answers] == [200, 200, 500, 200, 200]
    for body, answer in zip(bodies, answers):
        if answer.status_code == 200:
            assert answer.json()["items"] == close(served.ranker.rank(body["user"], top_k=body["top_k"]))
    assert f"RuntimeError at {os.path.basename(__file__)}" in caplog.text and ": 77" not in caplog.text


def test_jobs_that_fit_are_computed_together():
    batches, go = [], threading.Event()

    def compute(contents):
        batches.append(contents)
        return contents

    thread = BatchingThread(max_batch_size=12, max_wait=0, max_queue=9, on_batch=lambda size: None)
    thread.submit(Job(lambda _: [go.wait(5)], None))
    while len(thread):
        time.sleep(0.001)
    jobs = [
        Job(compute, name, key, users, width)
        for name, key, users, width in (
            ("a", "x", 1, 3),
            ("b", "y", 1, 3),
            ("c", "x", 2, 4),
            ("d", "x", 1, 4),
            ("e", None, 1, 1),
            ("f", "x", 5, 90),
            ("g", "x", 1, 1),
            ("h", "y", 1, 1),
            ("i", None, 1, 1),
        )
    ]
    futures = [thread.submit(job) for job in jobs]
    with pytest.raises(QueueFull):
        thread.submit(Job(compute, "j"))
    futures[3].cancel()
    go.set()
    thread.close()
    assert batches == [["a", "c"], ["b", "h"], ["e"], ["f"], ["g"], ["i"]]
    assert [one.result() for number, one in enumerate(futures) if number != 3] == list("abcefghi")


def test_a_job_waits_for_others():
    batches = []
    thread = BatchingThread(max_batch_size=2, max_wait=5, max_queue=9, on_batch=batches.append)
    begin = time.monotonic()
    futures = [thread.submit(Job(list, number, "x")) for number in range(4)]
    assert [one.result(4) for one in futures] == [0, 1, 2, 3] and batches == [2, 2]
    assert time.monotonic() - begin < 4, "a full batch does not wait"
    thread.submit(Job(list, 4, "x"))
    thread.close()
    assert batches == [2, 2, 1]


# --- a server of its own


def test_sigterm_with_a_delay(served):
    server = Server(uvicorn.Config(None))
    with client_of(served) as client:
        server.service, server.delay = client.app.state.service, 0.05
        server.handle_exit(signal.SIGTERM, None)
        assert not server.should_exit and client.get("/ready").status_code == 503
        assert client.post("/rank", json={"user": {}}).status_code == 422, "it still answers"
        while not server.should_exit:
            time.sleep(0.001)
        again = Server(uvicorn.Config(None))
        again.service, again.delay = server.service, 60
        again.handle_exit(signal.SIGINT, None)
        assert again.should_exit, "a second signal ends the delay"


def test_a_model_that_is_not_there_ends_it(tmp_path, capsys):
    assert cli.main(["serve", "--model_name_or_path", str(tmp_path), "--items", "x", "--port", str(free_port())]) == 2
    assert "flip-ctr serve: error: " in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_no_request_is_lost(joint, tmp_path, warm):
    """Concurrent requests while the catalogue changes and is read again, too large ones, and SIGTERM while requests
    wait: each is answered, for its own user, by the catalogue that the answer names."""
    model, processor, users, items, _ = joint
    folder, port = tmp_path / "m", free_port()
    saved(folder, model, processor)
    pq.write_table(pa.Table.from_pylist(items), tmp_path / "items.parquet")
    changed = items[0] | {"title": "Film 7", "genre": "Comedy"}
    expected = {}
    for shown in (items, [changed, *items[1:]]):
        ranker = FlipRanker(model, processor, shown)
        expected[ranker.catalogue.version] = [close(one) for one in ranker.rank(users)]
    argv = ["serve", "--model_name_or_path", folder, "--items", tmp_path / "items.parquet", "--port", port]
    argv += ["--max_wait_ms", 1000, "--max_batch_size", 4 * len(items), "--max_request_bytes", 100_000]
    argv += ["--reload_from", tmp_path]
    code = "import sys; from flip_ctr.train.cli import main; sys.exit(main())"
    process = subprocess.Popen([warm, "-c", code, *map(str, argv)], env=os.environ | {"FLIP_CTR_API_KEY": "secret"})
    client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers={"Authorization": "Bearer secret"}, timeout=30)

    def state(path: str) -> httpx2.Response | None:
        try:
            return client.get(path)
        except httpx2.TransportError:
            return None

    def ask(number: int) -> str:
        answer = client.post("/rank", json={"user": users[number]})
        assert answer.status_code == 200, answer.text
        found = answer.json()
        assert found["items"] == expected[found["catalogue"]][number]
        return found["catalogue"]

    try:
        while (shown := state("/ready")) is None or shown.status_code != 200:
            assert process.poll() is None and (shown is None or shown.status_code == 503)
            time.sleep(0.02)
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, number % len(users)) for number in range(60)]
            for path in (None, str(folder), None):
                assert client.put("/items", json={"items": [changed]}).status_code == 200
                read = client.post("/reload", json={"model_name_or_path": path, "items": f"{tmp_path}/items.parquet"})
                assert read.status_code == 200 and read.json()["items"] == len(items)
            assert {one.result() for one in asked} <= set(expected)
            wrong = client.post("/reload", json={"items": "/etc/passwd"})
            assert wrong.status_code == 403 and "--reload_from" in wrong.text
            wrong = client.post("/reload", json={"items": f"{tmp_path}/none.parquet"})
            assert wrong.status_code == 422 and "none.parquet" in wrong.text
            large = client.post("/rank", content=b"x" * 20_000_000)
            assert large.status_code == 413
            large = client.post("/rank", content=(b"x" * 50_000 for _ in range(100)))
            assert large.status_code == 413
            last = [pool.submit(ask, number) for number in range(3)]
            while "flip_ctr_queue_length 3.0" not in state("/metrics").text:
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            assert len([one.result() for one in last]) == 3
        assert process.wait(20) == 0
    finally:
        process.kill()
        client.close()
