"""Messages that a worker sends right before its end. Arguments: the end, how many, the size of each."""

import os
import sys
from typing import Any

from programs.facts import tell
from pycluster import Worker, cluster, process

how, count, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

if cluster.is_primary:
    numbers: list[int] = []
    cluster.on("message", lambda worker, message, handle: numbers.append(message[0]))

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        tell("exit", code=code, messages=len(numbers), in_order=numbers == sorted(numbers))

    cluster.fork()
    cluster.run()
else:

    def send(number: int) -> Any:
        return process.send([number, "x" * size])

    for n in range(count):
        send(n)
    if how == "exits":
        sys.exit(3)
    elif how == "raises":
        raise SystemExit("an error")
    elif how == "disconnects":
        process.disconnect()
    elif how == "_exit":
        os._exit(4)
