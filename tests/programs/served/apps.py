"""What the servers of this directory serve: apps that answer with the id of their process."""

import asyncio
import os
from collections.abc import Iterable
from typing import Any

HOST = "127.0.0.1"


def own_id() -> bytes:
    return b"%d\n" % os.getpid()


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(own_id())))])
    return [own_id()]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": own_id().decode()})
    else:
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(own_id()))]
        await asyncio.sleep(0)  # as an app that waits for something
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": own_id()})
