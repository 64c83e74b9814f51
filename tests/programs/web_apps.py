"""Apps for `pycluster serve`. Those that a test talks to say which worker they are; /wait?PATH waits for a file."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterable
from typing import Any

from programs.facts import tell
from pycluster import cluster


def own_name() -> bytes:
    return b"worker %d\n" % (cluster.worker.id if cluster.worker is not None else 0)


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        tell("up", loop=type(asyncio.get_running_loop()).__module__.partition(".")[0])
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.sleep(0.05)  # longer than the connections take to end
        tell("down")
        await send({"type": "lifespan.shutdown.complete"})
        return
    if scope["path"] == "/wait":
        tell("busy")
        while not os.path.exists(scope["query_string"]):
            await asyncio.sleep(0.01)
    if scope["path"] == "/exit":
        assert cluster.worker is not None
        cluster.worker.on("error", lambda exception: sys.exit(5))
        threading.Thread(target=cluster.worker.emit, args=["error", ValueError()]).start()
    headers = [(b"content-length", b"%d" % len(own_name()))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": own_name()})


def wsgi(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/wait":
        tell("busy")
        while not os.path.exists(environ["QUERY_STRING"]):
            time.sleep(0.01)
    start_response("200 OK", [("Content-Length", str(len(own_name())))])
    return [own_name()]


def make_asgi() -> Any:
    return asgi


def broken() -> Any:
    raise ValueError("no app today")


nothing = 17
