"""Signal handlers of the primary's own: before, while, and after the cluster runs. Argument: "run" or "serve"."""

import asyncio
import os
import signal
import sys
import time

from programs.facts import tell
from pycluster import Worker, cluster, process


def own(number: int, frame: object) -> None:
    tell("own", signal=signal.Signals(number).name)


def handlers() -> list[bool]:
    return [signal.getsignal(number) is own for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]


async def serve() -> None:
    await cluster.serve()


if cluster.is_primary:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, own)
    tell("handlers", own=handlers())

    @cluster.on("message")
    def on_message(worker: Worker, message: object, handle: object) -> None:
        tell("handlers", own=handlers())
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)

    @cluster.on("exit")
    def on_exit(worker: Worker, code: int | None, signal: object) -> None:
        tell("exit", code=code, asked=worker.exited_after_disconnect)

    cluster.fork()
    if sys.argv[1] == "run":
        cluster.run()
    else:
        asyncio.run(serve())
    tell("handlers", own=handlers())
    os.kill(os.getpid(), signal.SIGINT)
else:
    tell("in worker", own=handlers(), term=signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    process.send("told")
    time.sleep(60)
