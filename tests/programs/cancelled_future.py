"""Handlers and callbacks that ask a cancelled future for its result, in both roles: CancelledError is no Exception."""

import asyncio
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster


def fail(*args: Any) -> None:
    raise asyncio.CancelledError(args[0])


if cluster.is_primary:
    cluster.on("error", lambda exception: tell("error", text=repr(exception)))
    worker = cluster.fork()
    worker.on("online", lambda: fail("online"))
    worker.once("online", lambda: worker.send("first", callback=lambda _: fail("sent")))
    worker.once("online", lambda: worker.send("second"))

    @worker.on("message")
    def on_message(message: str, handle: object) -> None:
        tell("heard", text=message)
        worker.disconnect()

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        tell("exit", code=code)

    cluster.run()
else:
    assert cluster.worker is not None
    own = cluster.worker

    @own.on("message")
    def failing(message: str, handle: object) -> None:
        own.send(message, callback=lambda _: fail(f"{message} answered"))
        fail(message)
