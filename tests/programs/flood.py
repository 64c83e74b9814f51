"""Many messages, both ways at once, in order. Arguments: how many, and the size of each."""

import sys
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster, process

count, size = int(sys.argv[1]), int(sys.argv[2])
filling = "x" * size
got: list[int] = []
ends: list[Any] = []


def take(message: Any, name: str) -> bool:
    """Returns whether that was the last one."""
    got.append(message["n"])
    assert message["filling"] == filling
    if len(got) == count:
        tell("got", by=name, in_order=got == list(range(count)))
    return len(got) == count


if cluster.is_primary:

    @cluster.on("message")
    def on_message(worker: Worker, message: Any, handle: None) -> None:
        if message == "ready":
            for n in range(count):
                worker.send({"n": n, "filling": filling})
        elif message == "done" or take(message, "primary"):
            ends.append(message)
            if len(ends) == 2:
                worker.disconnect()

    cluster.on("exit", lambda worker, code, signal: tell("exit", code=code))
    cluster.fork()
    cluster.run()
else:

    def on_message_in_worker(message: Any, handle: None) -> None:
        if take(message, "worker"):
            process.send("done")

    process.on("message", on_message_in_worker)
    process.send("ready")
    for n in range(count):
        process.send({"n": n, "filling": filling})
