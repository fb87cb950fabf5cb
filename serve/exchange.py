# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Reading a request's body within limits, waiting for its answer, and the form of answers and errors."""

import asyncio
import contextlib
import os
import traceback
from concurrent.futures import Future
from typing import Any

from fastapi import Request, Response
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from flip_ctr.serve.request_types import TAGS, UnknownItems
from flip_ctr.serve.service import Served
from flip_ctr.train.outputs.run_log import logger

MOST_ERRORS, LONGEST_MESSAGE = 20, 500  # in an answer
LINGER_SECONDS = 2.0  # that the rest of a too large request is thrown away, so that its sender reads the answer


# --- reading


async def whole_body(request: Request, most: int, timeout: float) -> bytes:
    """The body of a request. `HTTPException` 413 once it is known to be too large, before it is there; 408 where it is
    not there in time."""
    length = request.headers.get("content-length", "")
    parts, size = [], int(length) if length.isdecimal() else 0
    if size > most:
        raise HTTPException(413, f"a request may have {most:,} bytes; this one has {size:,}")
    size = 0
    try:
        async with asyncio.timeout(timeout):
            async for part in request.stream():
                size += len(part)
                if size > most:
                    raise HTTPException(413, f"a request may have {most:,} bytes; this one has more")
                parts.append(part)
    except TimeoutError:
        raise HTTPException(408, f"the request was not there after {timeout:g} seconds") from None
    return b"".join(parts)


async def wait_for(future: Future, request: Request, timeout: float) -> Any:
    """What the model's thread gives. Where it takes too long, or the client has gone, it is not computed any more.

    Raises:
        HTTPException: 504 and 499.
    """
    result, gone = asyncio.wrap_future(future), asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({result, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if result.done():
            return result.result()
        if gone.done():
            raise HTTPException(499, "the client has gone")
        raise HTTPException(504, f"no answer after {timeout:g} seconds")
    finally:
        future.cancel()  # at once, and not when the loop comes to it
        result.cancel()  # of what fails after this nobody is told
        gone.cancel()


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


# --- answering


def answer(served: Served, **values: Any) -> Response:
    """With the versions of model and catalogue that it comes from."""
    return Response(to_json(values | served.versions), media_type="application/json")


def too_many() -> HTTPException:
    return HTTPException(429, "too many requests wait", {"Retry-After": "1"})


class LingeringResponse(Response):
    """An answer to a request that is still being sent: its sender would not read it if the connection broke."""

    async def __call__(self, scope, receive, send) -> None:
        self.headers["connection"] = "close"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (message := await receive())["type"] == "http.request" and message.get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def refusal(status: int, message: str, headers: dict | None = None, **more: Any) -> Response:
    detail = [{"loc": [], "msg": message[:LONGEST_MESSAGE], "type": "value_error", **more}]
    return response(status, detail, headers)


def response(status: int, detail: list[dict], headers: dict | None = None) -> Response:
    kind = LingeringResponse if status == 413 else Response
    return kind(to_json({"detail": detail}), status, headers, "application/json")


async def show_error(request: Request, error: Exception) -> Response:
    """What was wrong with a request, in the form of FastAPI's own errors."""
    if isinstance(error, HTTPException):
        return refusal(error.status_code, str(error.detail), error.headers, type="http_error")
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_input=False, include_context=False)
        detail = [
            {"loc": [part for part in one["loc"] if part not in TAGS], "msg": one["msg"][:LONGEST_MESSAGE]}
            | {"type": one["type"]}
            for one in found[:MOST_ERRORS]
        ]
        return response(422, detail)
    if isinstance(error, UnknownItems):
        return refusal(422, str(error), loc=[error.where], type="unknown_items", unknown=error.unknown)
    return refusal(422, str(error))


def failed(error: Exception) -> Response:
    """The answer where the code failed. The log names the place alone: the message may have what users sent."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error(f"{type(error).__name__} at {os.path.basename(place.filename)}:{place.lineno}")
    return refusal(500, "the server failed", type="server_error")
