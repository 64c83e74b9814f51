"""The app of the HTTP comparisons, for any ASGI or WSGI server: it says which process answers.

A process that is up prints ``ready``: in ASGI when its lifespan starts, a moment before the server listens, in WSGI
when it is imported. A request for ``/slow`` holds its thread for 50 ms.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Any

SLOW_S = 0.05


def say_ready() -> None:
    os.write(1, b"ready\n")  # in one piece: others write there at the same time


def answer(path: str) -> bytes:
    if path == "/slow":
        time.sleep(SLOW_S)
    return b"%d\n" % os.getpid()


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        say_ready()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = answer(scope["path"])
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_wsgi() -> Any:
    """The WSGI app, from a process that is up."""
    say_ready()
    return wsgi


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    body = answer(environ["PATH_INFO"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
