# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A server over HTTP: the items of a catalogue ranked for users, and rows scored.

flip-ctr serve --model_name_or_path M --items items.parquet
"""

import asyncio
import contextlib
import hmac
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable
from typing import Any

try:
    import uvicorn
    from fastapi import Depends, FastAPI, Request, Response
    from fastapi.openapi.utils import get_openapi
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from pydantic import ConfigDict, TypeAdapter
    from pydantic_core import from_json
    from starlette.exceptions import HTTPException
    from typing_extensions import TypedDict
except ImportError as error:
    raise ImportError(f"{error}; flip-ctr serve needs: pip install 'flip-ctr[serve]'") from error

from transformers.utils import logging as transformers_logging

from flip_ctr.serve.batching import Job, QueueFull
from flip_ctr.serve.exchange import answer, failed, refusal, show_error, too_many, wait_for, whole_body
from flip_ctr.serve.service import Served, Service, TooManyChanges, without_unknown
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.outputs.run_log import LOG_FORMAT, logger
from flip_ctr.train.serve_arguments import ServeArguments

API_KEY = "FLIP_CTR_API_KEY"
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# the bodies of routes, by their names in [`RequestTypes`]
BODIES = {
    ("/rank", "post"): ("rank_one", "rank_many"),
    ("/predict", "post"): ("predict",),
    ("/items", "post"): ("items",),
    ("/items", "put"): ("items",),
    ("/items", "delete"): ("keys",),
}


class ReloadBody(TypedDict, total=False):
    """A model or items to serve from now on; what is not named is read again."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    model_name_or_path: str | None
    items: str | None


RELOAD = TypeAdapter(ReloadBody)


class Metrics:
    """What Prometheus reads."""

    def __init__(self):
        self.registry = CollectorRegistry()
        of_route = ("route", "method")
        self.requests = Counter("flip_ctr_requests", "requests answered", (*of_route, "status"), registry=self.registry)
        self.seconds = Histogram("flip_ctr_request_seconds", "time to answer", of_route, registry=self.registry)
        self.batches = Histogram(
            "flip_ctr_batch_requests", "requests computed together", buckets=BATCH_SIZES, registry=self.registry
        )

    def watch(self, service: Service) -> None:
        queue = Gauge("flip_ctr_queue_length", "requests that wait", registry=self.registry)
        queue.set_function(lambda: len(service.thread))
        items = Gauge("flip_ctr_items", "items that are ranked", registry=self.registry)
        items.set_function(lambda: 0 if service.current is None else len(service.current.ranker))


class Measured:
    """Counts and times the requests of an application, names each in the log, at level debug, and answers those for
    which the code failed."""

    def __init__(self, app: Any, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0

        async def watched(message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception as error:
            response = failed(error)
            if not status:
                await response(scope, receive, watched)
        finally:
            seconds = time.perf_counter() - begin
            of_route = getattr(scope.get("route"), "path", "other"), scope["method"]
            if of_route[0] == "other":
                of_route = "other", "other"  # whatever people send is no label
            self.metrics.requests.labels(*of_route, status).inc()
            self.metrics.seconds.labels(*of_route).observe(seconds)
            logger.debug(f"{of_route[1]} {of_route[0]} {status} {seconds * 1000:.1f} ms")


def make_app(
    args: ServeArguments, served: Served | None = None, on_failure: Callable[[], Any] | None = None
) -> FastAPI:
    """The application.

    Args:
        served: what is served; when None it is read while the application is up already.
        on_failure: is called when that cannot be read; `app.state.service.failure` says why.

    Raises:
        ValueError: the API key is empty, or holds what no header does.
    """
    metrics = Metrics()
    service = Service(args, metrics.batches.observe, served)
    metrics.watch(service)
    key = args.api_key if args.api_key is not None else os.environ.get(API_KEY)
    if key is not None and not re.fullmatch("[!-~]+", key):
        raise ValueError(f"--api_key, or {API_KEY}, must be of visible ASCII characters, and not empty")

    async def load() -> None:
        try:
            await service.change(service.load)
            logger.info(f"ready: {len(service.current.ranker):,} items, {service.current.versions}")
        except Exception as error:  # is raised by `run`
            service.failure = error
            if on_failure is not None:
                on_failure()

    @contextlib.asynccontextmanager
    async def lifespan(_):
        loading = None if served is not None else asyncio.create_task(load())
        yield
        service.stopping = True
        if loading is not None:
            await loading
        await asyncio.to_thread(service.close)

    def check_key(given: HTTPAuthorizationCredentials | None = Depends(HTTPBearer(auto_error=False))) -> None:
        if given is None or not hmac.compare_digest(given.credentials.encode(), key.encode()):
            raise HTTPException(401, "the API key is missing or wrong", {"WWW-Authenticate": "Bearer"})

    app = FastAPI(title="flip-ctr", lifespan=lifespan, root_path=args.root_path or "", redoc_url=None)
    app.state.service = service
    app.add_middleware(Measured, metrics=metrics)
    needs_key = {} if key is None else {"dependencies": [Depends(check_key)], "responses": {401: {}}}

    def current() -> Served:
        if service.current is None:
            raise HTTPException(503, "the model is being read", {"Retry-After": "1"})
        return service.current

    async def read_body(request: Request) -> Any:
        if len(service.thread) >= args.max_queue:
            raise too_many()
        return from_json(await whole_body(request, args.max_request_bytes, args.timeout), allow_inf_nan=False)

    async def computed(job: Job, request: Request) -> Any:
        try:
            return await wait_for(service.thread.submit(job), request, args.timeout)
        except QueueFull:
            raise too_many() from None

    async def change(make: Callable[[], Served]) -> Served:
        try:
            return await service.change(make)
        except TooManyChanges:
            raise too_many() from None

    @app.get("/health", summary="Whether the server is alive")
    async def health() -> dict:
        return {"status": "alive"}

    @app.get("/ready", summary="Whether the model is there, and the server is not about to end", responses={503: {}})
    async def ready() -> Response:
        if not service.ready:
            return refusal(503, "the server is about to end" if service.stopping else "the model is being read")
        return answer(service.current, items=len(service.current.ranker))

    @app.get("/metrics", summary="Numbers for Prometheus", **needs_key)
    def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/rank", summary="Items for a user, or for each of some users, best first", **needs_key)
    async def rank(request: Request) -> Response:
        served = current()
        body = served.types.read_rank(await read_body(request), served.unknown)
        found = await computed(service.rank_job(served, body), request)
        skipped = {} if body.skipped is None else {"skipped": body.skipped}
        return answer(served, items=found if body.many else found[0], **skipped)

    @app.post("/predict", summary="Click probabilities of rows, each a user joined with an item", **needs_key)
    async def predict(request: Request) -> Response:
        served = current()
        body = served.types.read("predict", await read_body(request))
        job = service.predict_job(served, body["rows"], body.get("items"))
        return answer(served, predictions=await computed(job, request))

    @app.put("/items", summary="Adds items, or replaces those of the same keys", **needs_key)
    @app.post("/items", summary="Adds items, or replaces those of the same keys", **needs_key)
    async def put_items(request: Request) -> Response:
        items = current().types.read("items", await read_body(request))["items"]
        made = await change(lambda: service.current.changed(lambda ranker: ranker.add_items(items)))
        return answer(made, items=len(made.ranker))

    @app.delete("/items", summary="Items that are not to be ranked any more", **needs_key)
    async def delete_items(request: Request) -> Response:
        body = current().types.read("keys", await read_body(request))
        skipped: list = []

        def removed(ranker) -> None:
            keys, lacking = without_unknown(service.current, body["keys"], body.get("unknown") == "skip")
            skipped.extend(lacking)
            ranker.remove_items(keys)

        made = await change(lambda: service.current.changed(removed))
        more = {"skipped": {"keys": skipped}} if body.get("unknown") == "skip" else {}
        return answer(made, items=len(made.ranker), **more)

    @app.post("/reload", summary="Another model, or other items, without losing a request", **needs_key)
    async def reload(request: Request) -> Response:
        current()
        text = await whole_body(request, args.max_request_bytes, args.timeout)
        body = RELOAD.validate_json(text or b"{}")
        try:
            made = await change(lambda: service.reload(body.get("model_name_or_path"), body.get("items")))
        except PermissionError as error:
            raise HTTPException(403, str(error)) from None
        except OSError as error:
            raise ValueError(str(error)) from None
        return answer(made, items=len(made.ranker))

    app.add_exception_handler(ValueError, show_error)
    app.add_exception_handler(HTTPException, show_error)
    app.openapi = lambda: described(app, service.current)  # type: ignore[method-assign]
    return app


# --- the description


def described(app: FastAPI, served: Served | None) -> dict:
    """The OpenAPI description, with the fields of the model that is served."""
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    reload_body = RELOAD.json_schema()
    bodies: dict = {("/reload", "post"): [reload_body]}
    if served is not None:
        schemas, defined = served.types.schemas("#/components/schemas/{model}")
        schema.setdefault("components", {}).setdefault("schemas", {}).update(defined)
        bodies |= {route: [schemas[name] for name in names] for route, names in BODIES.items()}
    for (path, method), either in bodies.items():
        body = either[0] if len(either) == 1 else {"oneOf": either}
        schema["paths"][path][method]["requestBody"] = {"content": {"application/json": {"schema": body}}}
    return schema


# --- running


class Server(uvicorn.Server):
    """Ends in order on SIGTERM and SIGINT: it says that it is not ready, goes on for `--shutdown_delay` seconds, stops
    listening, and answers what it took. A second signal ends the delay."""

    service: Service
    delay = 0.0

    def handle_exit(self, sig, frame) -> None:  # not the base class's, which ends by the signal and not by code 0
        again, self.service.stopping = self.service.stopping, True
        if again or not self.delay:
            self.should_exit = True
        else:
            timer = threading.Timer(self.delay, lambda: setattr(self, "should_exit", True))
            timer.daemon = True
            timer.start()


def run(args: ServeArguments) -> None:
    """Serves until SIGTERM or SIGINT.

    Raises:
        ValueError, OSError: model or items cannot be read, see [`FlipRanker.from_pretrained`].
    """
    logging.basicConfig(format=LOG_FORMAT, level=logging.WARNING)
    logger.setLevel(args.log_level.upper())
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    import_custom_code(args.custom_code)
    app = make_app(args, on_failure=lambda: setattr(server, "should_exit", True))
    config = uvicorn.Config(
        app,
        args.host,
        args.port,
        log_level=args.log_level,
        access_log=False,
        timeout_graceful_shutdown=math.ceil(args.timeout) + 1,
        lifespan="on",
    )
    server = Server(config)
    server.service, server.delay = app.state.service, args.shutdown_delay
    server.run()
    if server.service.failure is not None:
        raise server.service.failure
