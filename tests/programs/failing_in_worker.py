"""A worker whose handlers raise. Argument: "error" to listen for errors there."""

import sys
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster, process

if cluster.is_primary:

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        if message == "ready":
            worker.send("one")
            worker.send("two")
        else:
            worker.disconnect()

    cluster.on("exit", lambda worker, code, signal: tell("exit", code=code))
    cluster.fork()
    cluster.run()
else:

    def failing(message: Any, handle: None) -> None:
        raise LookupError(f"handler of {message}")

    def other(message: Any, handle: None) -> None:
        tell("got", message=message)
        if message == "two":
            process.send("done")

    process.on("message", failing)
    process.on("message", other)
    if "error" in sys.argv:
        cluster.on("error", lambda exception: tell("error", text=str(exception)))
    process.send("ready")
