"""A worker that does well, and a second one that writes rubbish on its control channel. Argument: it, in hex."""

import sys
import time
from typing import Any

from programs.facts import tell, tell_events
from pycluster import Worker, cluster, process

if cluster.is_primary:
    tell_events()

    @cluster.on("fork")
    def on_fork(worker: Worker) -> None:
        @worker.on("error")
        def on_error(error: Exception) -> None:
            tell("error", worker=worker.id, type=type(error).__name__, text=str(error))

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        if message == "ready" and worker.id == 1:
            cluster.fork()
        elif message == "still here":
            cluster.disconnect()

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        if worker.id == 2:
            cluster.workers[1].send("are you there?")

    cluster.fork()
    cluster.run()
    tell("over")
else:
    assert cluster.worker is not None
    process.on("message", lambda message, handle: process.send("still here"))
    process.send("ready")
    if cluster.worker.id == 2:
        # What a compromised worker could do; a user's program has no way to the channel's socket.
        cluster._child._channel._sock.send(bytes.fromhex(sys.argv[1]))  # type: ignore[union-attr]
    time.sleep(60)
