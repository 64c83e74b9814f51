"""Where handlers run in a worker: on the loop in which they were registered, else on the control thread.

Argument: "asyncio" or "uvloop".
"""

import asyncio
import sys
import threading
from typing import Any

from programs.facts import tell
from pycluster import Worker, child, cluster, process


def where() -> str:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.current_thread().name
    return "loop in " + threading.current_thread().name


async def worker() -> None:
    got = asyncio.Event()

    def on_message(message: Any, handle: None) -> None:
        tell("handler", kind="plain", where=where(), message=message)

    process.on("message", on_message)

    async def on_message_too(message: Any, handle: None) -> None:
        await asyncio.sleep(0)
        tell("handler", kind="async", where=where(), message=message)
        got.set()

    process.on("message", on_message_too)
    process.send("ready")
    await got.wait()
    assert cluster.worker is not None
    cluster.worker.on("disconnect", lambda: tell("handler", kind="disconnect", where=where(), message=None))
    cluster.worker.disconnect()
    await asyncio.sleep(60)


if cluster.is_primary:

    @cluster.on("message")
    def on_message(worker: Worker, message: object, handle: None) -> None:
        worker.send("go")

    cluster.on("exit", lambda worker, code, signal: tell("exit", code=code, asked=worker.exited_after_disconnect))
    cluster.fork()
    cluster.run()
else:
    child.HANDLERS_S = 10  # the main thread may have to wait for a processor
    process.on("message", lambda message, handle: tell("handler", kind="early", where=where(), message=message))
    if sys.argv[1] == "uvloop":
        import uvloop

        uvloop.run(worker())
    else:
        asyncio.run(worker())
