"""Messages come while the loop that their listeners run on is busy; each one's listener asks for the next."""

import asyncio
import time
from typing import Any

from programs.facts import tell
from pycluster import cluster, process

MESSAGES = ["first", "second", "third"]
PATIENCE_S = 10.0


def listen() -> None:
    """For the next message, with a listener of its own."""

    def hear(message: Any, handle: Any) -> None:
        tell("heard", message=message)
        if message == MESSAGES[-1]:
            process.disconnect()
        else:
            listen()

    process.once("message", hear)


async def serve() -> None:
    listen()
    process.send("ready")
    deadline = time.monotonic() + PATIENCE_S
    while cluster.stats().messages_in < len(MESSAGES) and time.monotonic() < deadline:
        time.sleep(0.001)  # not asyncio's: all are to be emitted before the loop comes to the first
    tell("came", messages=cluster.stats().messages_in)
    await asyncio.sleep(PATIENCE_S)  # until the worker is disconnected


if cluster.is_primary:
    worker = cluster.fork()
    worker.on("message", lambda message, handle: [worker.send(each) for each in MESSAGES])
    cluster.run()
else:
    asyncio.run(serve())
