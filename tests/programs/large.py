"""One message of 10 MB to a worker and back, and small ones around it."""

import hashlib
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster, process

LARGE = bytes(range(256)) * 40_000


def short(message: Any) -> str:
    return hashlib.sha256(message).hexdigest() if isinstance(message, bytes) else str(message)


if cluster.is_primary:

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        if message == "ready":
            for part in ("first", LARGE, "last"):
                worker.send(part)
        else:
            tell("back", same=message == LARGE if isinstance(message, bytes) else None, short=short(message))
            if message == "last":
                worker.disconnect()

    cluster.fork()
    cluster.run()
    tell("over", short=short(LARGE))
else:
    process.on("message", lambda message, handle: process.send(message))
    process.send("ready")
